// The driver of products: groups of rows, chunks of blocks, tiles of columns, their remainders, and outlier sums, for
// every instruction set and type. Private to bof4-gemm.cpp.
//
// It calls the inner loops of a kernel, which is
//
//   layout, act, pair     of its type, see bof4-repack-layout.h
//   GROUPS                groups of rows that are multiplied in one pass over activations in the GEMM path
//   GEMM_COLUMNS          columns of a tile, multiplied in one pass over unpacked weights: at most, and
//   GEMM_LEAST            at least: fewer are padded
//   GEMV_COLUMNS          columns that are multiplied in one pass over codes
//   USE_GEMV              up to this many columns, GEMV is faster than unpacking
//   MAX_COLUMNS           columns that are best multiplied at a time: activations and results stay in L2
//   ACT_OF_PATH           1 where the two paths read activations in different formats
//   gemv<T>(group, n_blocks, x, y, prefetch)
//                         y[t][0 .. 15] = product of a group and column x[t], of T columns; prefetch, see
//                         bof4-prefetch.h, is called for every 64 bytes of the group, in order
//   unpacked<R>, its fill(group, r, b0, n)
//                         levels and scales of blocks [b0, b0 + n) of R groups, n at most CHUNK
//   tile<R, T>(unpacked, n, x, first, y)
//                         adds their products to y[t][0 .. 16 R - 1]; if first, stores them
//
// gemv and tile are not to be inlined: within the driver GCC 12 spills their accumulators (on AVX2, BOF4_S took 4 to
// 12 % longer, and BOF4_K in the GEMM path 24 %), and takes ten times as long to compile.
#pragma once

#include "bof4-prefetch.h"
#include "bof4-repack-layout.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace {

// Weights of a row that are unpacked at a time: 16 rows of them are 8 KiB of bytes, which stay in L1 while all columns
// are multiplied.
enum { BOF4_UNPACKED = 512 };

// Calls f with width, LEAST to MOST, as a constant.
template <int LEAST, int MOST, typename F>
inline void with_width(int width, const F & f) {
    if constexpr (MOST > LEAST) {
        if (width < MOST) {
            with_width<LEAST, MOST - 1>(width, f);
            return;
        }
    }
    f(std::integral_constant<int, MOST>());
}

template <typename kernel>
struct gemm_driver {
    using act = typename kernel::act;
    using pair = typename kernel::pair;
    enum { BLOCK = kernel::layout::BLOCK, CHUNK = BOF4_UNPACKED / BLOCK };

    const char * groups;
    size_t group_bytes;
    int64_t n_rows;
    int64_t n_blocks;
    const void * const * x;
    const float * outlier_sums; // or NULL
    float * const * y;
    int64_t n_columns;

    const pair * group(int64_t g) const { return reinterpret_cast<const pair *>(groups + g * group_bytes); }

    // Calls compute(width of a tile as a constant, its x, its y) for blocks [b0, b1) of R groups, the first of them g.
    template <int R, int LEAST, int MOST, typename F>
    void tiles(int64_t g, int64_t b0, int64_t b1, const F & compute) const {
        const int64_t row0 = g * BOF4_GROUP;
        const int64_t rows = std::min<int64_t>(R * BOF4_GROUP, n_rows - row0);
        // tiles of equal width, or one column less: a last tile of one column would cost as much as one of three
        const int64_t n_tiles = (n_columns + MOST - 1) / MOST;
        const auto first_of = [=](int64_t tile) { return tile * n_columns / n_tiles; };
        for (int64_t i = 0; i < n_tiles; ++i) {
            const int64_t c = first_of(i);
            const int width = (int) (first_of(i + 1) - c);
            if (i + 1 < n_tiles) {
                prefetch_results<R>(row0, first_of(i + 1), first_of(i + 2));
            }
            const act * from[MOST];
            float * to[MOST];
            for (int t = 0; t < width; ++t) {
                from[t] = static_cast<const act *>(x[c + t]) + b0;
                to[t] = y[c + t] + row0;
            }
            const float * addend = outlier_sums && b1 == n_blocks ? outlier_sums + (g * n_columns + c) * BOF4_GROUP
                                                                  : nullptr;
            if (rows == R * BOF4_GROUP && width >= LEAST) {
                with_width<LEAST, MOST>(width, [&](auto T) { compute(T, from, to); });
                add_outlier_sums<R>(addend, width, to);
            } else {
                end_tile<R, LEAST, MOST>(rows, width, b0 == 0, from, to, addend, compute);
            }
        }
    }

    // Results of columns [c0, c1): the columns of a matrix are far apart, so that every line that a tile stores is a
    // cache miss. In models on Zen 4 products took 4 to 8 % longer without it (rows of 1536).
    template <int R>
    void prefetch_results(int64_t row0, int64_t c0, int64_t c1) const {
        for (int64_t c = c0; c < c1; ++c) {
            for (int r = 0; r < R; ++r) {
                __builtin_prefetch(y[c] + row0 + r * BOF4_GROUP, 1);
            }
        }
    }

    // A tile with fewer rows than R groups or fewer columns than LEAST: results go through a scratch buffer, and
    // missing columns repeat the last one.
    template <int R, int LEAST, int MOST, typename F>
    void end_tile(int64_t rows, int width, bool first, const act ** from, float * const * to, const float * addend,
        const F & compute) const {
        alignas(64) float scratch[MOST][R * BOF4_GROUP] = {};
        float * results[MOST];
        for (int t = 0; t < MOST; ++t) {
            results[t] = scratch[t];
            if (t >= width) {
                from[t] = from[width - 1];
            } else if (!first) {
                memcpy(scratch[t], to[t], rows * sizeof(float));
            }
        }
        with_width<LEAST, MOST>(std::max(width, LEAST), [&](auto T) { compute(T, from, results); });
        add_outlier_sums<R>(addend, width, results);
        for (int t = 0; t < width; ++t) {
            memcpy(to[t], scratch[t], rows * sizeof(float));
        }
    }

    // __restrict: without it, GCC adds one number at a time, which took 2 % of a prompt.
    static void add_group(float * __restrict y, const float * __restrict sums) {
        for (int i = 0; i < BOF4_GROUP; ++i) {
            y[i] += sums[i];
        }
    }

    // Adds to results that are still in L1. (Adding to the finished matrix costs more: its columns, a power of two
    // apart, evict each other.)
    template <int R>
    void add_outlier_sums(const float * addend, int width, float * const * to) const {
        if (addend == nullptr) {
            return;
        }
        for (int t = 0; t < width; ++t) {
            for (int r = 0; r < R; ++r) {
                add_group(to[t] + r * BOF4_GROUP, addend + (r * n_columns + t) * BOF4_GROUP);
            }
        }
    }

    // prefetch(group): what GEMV calls
    template <typename F>
    void gemv(const F & prefetch) const {
        for (int64_t g = 0; g * BOF4_GROUP < n_rows; ++g) {
            tiles<1, 1, kernel::GEMV_COLUMNS>(
                g, 0, n_blocks, [&](auto T, const act * const * from, float * const * to) {
                    kernel::template gemv<T>(group(g), n_blocks, from, to, prefetch(group(g)));
                });
        }
    }

    void gemv(int64_t distance) const {
        if (distance > 0) {
            gemv([=](const pair * group) {
                return bof4_prefetch_ahead{ reinterpret_cast<const char *>(group) + distance };
            });
        } else {
            gemv([](const pair *) { return bof4_no_prefetch(); });
        }
    }

    template <int R>
    void gemm_groups(int64_t g, int64_t b0, typename kernel::template unpacked<R> & memory) const {
        const int64_t n = std::min<int64_t>(CHUNK, n_blocks - b0);
        for (int r = 0; r < R; ++r) {
            memory.fill(group(g + r), r, b0, n);
        }
        tiles<R, kernel::GEMM_LEAST, kernel::GEMM_COLUMNS>(
            g, b0, b0 + n, [&](auto T, const act * const * from, float * const * to) {
                kernel::template tile<R, T>(memory, n, from, b0 == 0, to);
            });
    }

    void gemm() const {
        const int64_t n_groups = (n_rows + BOF4_GROUP - 1) / BOF4_GROUP;
        typename kernel::template unpacked<kernel::GROUPS> memory;
        for (int64_t b0 = 0; b0 < n_blocks; b0 += CHUNK) {
            int64_t g = 0;
            for (; g + kernel::GROUPS <= n_groups; g += kernel::GROUPS) {
                gemm_groups<kernel::GROUPS>(g, b0, memory);
            }
            if (g < n_groups) {
                typename kernel::template unpacked<1> last;
                gemm_groups<1>(g, b0, last);
            }
        }
    }
};

// gemm and use_gemv of bof4_gemm_kernels.
template <typename kernel>
bool bof4_use_gemv(int64_t n_columns) {
    return n_columns <= kernel::USE_GEMV;
}

template <typename kernel>
void bof4_gemm(const void * groups, int64_t n_rows, int64_t n, const void * const * x, const float * outlier_sums,
    float * const * y, int64_t n_columns, bool use_gemv, int64_t prefetch) {
    const gemm_driver<kernel> driver = {
        static_cast<const char *>(groups),
        kernel::repacked::group_bytes(n),
        n_rows,
        n / kernel::layout::BLOCK,
        x,
        outlier_sums,
        y,
        n_columns,
    };
    // an expert has fewer columns than the operation
    const bool narrow = use_gemv || (!kernel::ACT_OF_PATH && bof4_use_gemv<kernel>(n_columns));
    narrow ? driver.gemv(prefetch) : driver.gemm();
}

} // namespace
