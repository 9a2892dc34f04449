// The GEMM path on AMX tiles (bof4-tiles-amx.h), over the vector operations of bof4-gemm-vnni.h.
//
// A tile instruction multiplies 16 columns, 16 rows and 64 weights of int8: 16384 products in 16 cycles. Results leave
// the tiles where a scale ends, and vectors multiply them by the scales and add them to sums, while the next tiles are
// multiplied:
//
//   BOF4_S         after 64 weights, a block. Activations have a scale for 64, too. Results of two blocks are added at a
//                  time, so that sums are loaded and stored half as often
//   BOF4_K, Q6_K   after 256, a superblock. level * sub-block scale, at most 4096, is 256 * high + low: two int8
//                  matrices, exact, whose products are added in two tiles. Then 256 * high + low becomes a float, is
//                  multiplied by the scales of weights and activations, and is added to the sum of the row, as in the
//                  other kernels: with the same bits, while sums of a superblock are below 2^24
//
// Two tiles of columns are multiplied at a time. Two groups of 16 rows and 256 weights (a span) are unpacked at a time:
// they stay in L1 while the activations of all columns come from L2.
#pragma once

#include "bof4-gemm-vnni.h"
#include "bof4-tiles-amx.h"
#ifdef BOF4_GEMM_TWIN
#include "bof4-tiles-portable.h"
#endif

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace {

enum {
    TILE_SPAN = 256,
    TILE_GROUPS = 2, // that are unpacked at a time
};

// Sums of TILE_GROUPS groups and one column.
using group_sums = float[TILE_GROUPS][16];

// n at most 16 * TILE_GROUPS; without a call for all of them.
inline void copy_rows(float * to, const float * from, int64_t n) {
    if (n == 16 * TILE_GROUPS) {
        for (int i = 0; i < TILE_GROUPS; ++i) {
            store_unaligned(to + 16 * i, load_unaligned(from + 16 * i));
        }
    } else {
        memcpy(to, from, n * sizeof(float));
    }
}

// 64 activations of each of 16 columns, then the next ones.
using act_tile = const char (*)[16][64];

// A span of 16 rows as tiles of 64 weights; those of high and low parts alternate.
struct unpacked_span {
    alignas(64) uint8_t tiles[8][16][64];
    alignas(64) float scale[4][16]; // of each block
};

// Stores level * factor / 2^7 of four weights a row, weights i to i + 3 of the span.
inline void store_parts(unpacked_span & to, int i, bytes levels, bytes factor) {
    const bytes even = scale_words(shift_left<8>(levels), factor);
    const bytes odd = scale_words(odd_bytes(levels), factor);
    auto * part = to.tiles + i / 64 * 2;
    store_bytes(part[0][i % 64 / 4], blend_bytes(shift_right<8>(even), odd));
    store_bytes(part[1][i % 64 / 4], blend_bytes(even, shift_left<8>(odd)));
}

// Unpacks block b of a group, a span, as level * sub-block scale.
template <ggml_type type>
[[gnu::noinline]] void unpack_parts(unpacked_span & to, const bof4_block_pair<type> * group, int64_t b) {
    using layout = bof4_layout<type>;
    enum { DOT = layout::DOT, DOTS = layout::BLOCK / DOT };
    static_assert((int) layout::BLOCK == (int) TILE_SPAN, "a span has one scale");
    const decoder<type> decode(0);
    const auto & head = bof4_head(group, b);
    const auto & codes = bof4_codes(group, b);
    store(to.scale[0], bof4_kernel<type>::scales(head));
    // of level * 2^8, a product divided by 2^15
    const auto factor_of = [&](int j) { return shift_left<7>(in_both_words(to_ints(decode.sub_scale(head, j)))); };
#pragma GCC unroll 8
    for (int k = 0; k < DOTS / 2; ++k) {
        const int j = bof4_low_dot<layout>(k), j2 = j + layout::NIBBLES / DOT;
        const auto factor = factor_of(j), factor2 = factor_of(j2);
#pragma GCC unroll 8
        for (int i = 0; i < DOT; i += 4) {
            bytes low, high;
            decode.step(codes, k, i / 4, low, high);
            store_parts(to, DOT * j + i, low, factor);
            store_parts(to, DOT * j2 + i, high, factor2);
        }
    }
}

// Unpacks blocks [b0, b0 + n) of a group, at most a span, as levels, for types that have no sub-block scales.
template <ggml_type type>
[[gnu::noinline]] void unpack_levels(unpacked_span & to, const bof4_block_pair<type> * group, int64_t b0, int64_t n) {
    using layout = bof4_layout<type>;
    static_assert((int) layout::BLOCK == 64 && (int) layout::DOT == 32 && (int) layout::NIBBLES == 32, "a tile");
    const decoder<type> decode(0);
    for (int64_t b = 0; b < n; ++b) {
        store(to.scale[b], bof4_kernel<type>::scales(bof4_head(group, b0 + b)));
        const auto & codes = bof4_codes(group, b0 + b);
#pragma GCC unroll 8
        for (int i = 0; i < layout::DOT / 4; ++i) {
            bytes low, high;
            decode.step(codes, 0, i, low, high);
            store_bytes(to.tiles[b][i], low);
            store_bytes(to.tiles[b][layout::DOT / 4 + i], high);
        }
    }
}

template <ggml_type type>
void unpack_span(unpacked_span & to, const bof4_block_pair<type> * group, int64_t b0, int64_t n) {
    if constexpr (bof4_layout<type>::HAS_SUB_SCALES) {
        unpack_parts<type>(to, group, b0);
    } else {
        unpack_levels<type>(to, group, b0, n);
    }
}

// Products of two parts of a span, of 16 rows and up to 32 columns, that have left the tiles, and the sums they belong
// to.
struct part_results {
    alignas(64) int32_t high[32][16]; // [column][row]
    alignas(64) int32_t low[32][16];
    int columns;
    const float * row_scale;
    const float * column_scale;
    group_sums * sums; // of the first column, from the group on

    // Of columns [c0, c1).
    void add_to_sums(int c0, int c1) const {
        if (c0 == c1) {
            return;
        }
        const floats scale = load(row_scale);
        const float * const d = column_scale; // (GCC would load both anew after each store)
        group_sums * const to = sums;
        for (int64_t c = c0; c < c1; ++c) {
            const floats total = to_floats(join_parts(load_ints(high[c]), load_ints(low[c])));
            store(to[c][0], multiply_add(total, multiply(scale, all_lanes(d[c])), load(to[c][0])));
        }
    }
};

// `to` = products of a span in two parts and T tiles of columns; meanwhile, `before` is added to its sums.
template <int T, typename tiles>
[[gnu::noinline]] BOF4_TILE_CODE void multiply_parts(
    tiles & tile, const unpacked_span & w, const act_tile * x, const part_results & before, part_results & to) {
    enum { STEPS = TILE_SPAN / 64 };
    const int columns_of_step = before.columns / STEPS;
    tile.template zero<0>();
    tile.template zero<1>();
    if constexpr (T == 2) {
        tile.template zero<2>();
        tile.template zero<3>();
    }
    for (int s = 0; s < STEPS; ++s) {
        tile.template load<4>(x[0][s], 64);
        tile.template load<6>(w.tiles[2 * s], 64);
        tile.template add_products_signed<0, 4, 6>();
        if constexpr (T == 2) {
            tile.template load<5>(x[1][s], 64);
            tile.template add_products_signed<2, 5, 6>();
        }
        tile.template load<7>(w.tiles[2 * s + 1], 64);
        tile.template add_products_unsigned<1, 4, 7>();
        if constexpr (T == 2) {
            tile.template add_products_unsigned<3, 5, 7>();
        }
        before.add_to_sums(columns_of_step * s, columns_of_step * (s + 1));
    }
    tile.template store<0>(to.high[0], 64);
    tile.template store<1>(to.low[0], 64);
    if constexpr (T == 2) {
        tile.template store<2>(to.high[16], 64);
        tile.template store<3>(to.low[16], 64);
    }
    to.columns = T * 16;
}

// The same of levels, of two blocks and at most two groups.
struct level_results {
    alignas(64) int32_t products[2][TILE_GROUPS][32][16]; // [block][group][column][row]
    int columns;
    const float * row_scale[2][TILE_GROUPS];
    const float * column_scale[2]; // zeros where there is no second block
    group_sums * sums;             // of the first column

    // Of R groups and columns [c0, c1).
    template <int R> void add_to_sums(int c0, int c1) const {
        if (c0 == c1) {
            return;
        }
        floats scale[2][R];
        for (int b = 0; b < 2; ++b) {
            for (int r = 0; r < R; ++r) {
                scale[b][r] = load(row_scale[b][r]);
            }
        }
        const float * const d[2] = { column_scale[0], column_scale[1] };
        group_sums * const to = sums;
        for (int64_t c = c0; c < c1; ++c) {
            const floats of_column[2] = { all_lanes(d[0][c]), all_lanes(d[1][c]) };
            for (int r = 0; r < R; ++r) {
                floats sum = load(to[c][r]);
                for (int b = 0; b < 2; ++b) {
                    const floats total = to_floats(load_ints(products[b][r][c]));
                    sum = multiply_add(total, multiply(scale[b][r], of_column[b]), sum);
                }
                store(to[c][r], sum);
            }
        }
    }
};

// `to` = products of blocks [b0, b0 + n_blocks) of a span, one or two, of R groups and T tiles of columns; meanwhile,
// `before` is added to its sums.
template <int R, int T, typename tiles>
[[gnu::noinline]] BOF4_TILE_CODE void multiply_levels(tiles & tile, const unpacked_span * w, int64_t b0, int n_blocks,
    const act_tile * x, const level_results & before, level_results & to) {
    const int half = before.columns / 2;
    for (int b = 0; b < n_blocks; ++b) {
        tile.template load<4>(x[0][b0 + b], 64);
        tile.template load<6>(w[0].tiles[b0 + b], 64);
        tile.template zero<0>();
        tile.template add_products_signed<0, 4, 6>();
        if constexpr (R == 2) {
            tile.template load<7>(w[1].tiles[b0 + b], 64);
            tile.template zero<1>();
            tile.template add_products_signed<1, 4, 7>();
        }
        if constexpr (T == 2) {
            tile.template load<5>(x[1][b0 + b], 64);
            tile.template zero<2>();
            tile.template add_products_signed<2, 5, 6>();
        }
        if constexpr (R == 2 && T == 2) {
            tile.template zero<3>();
            tile.template add_products_signed<3, 5, 7>();
        }
        before.template add_to_sums<R>(half * b, half * (b + 1));
        tile.template store<0>(to.products[b][0][0], 64);
        if constexpr (R == 2) {
            tile.template store<1>(to.products[b][1][0], 64);
        }
        if constexpr (T == 2) {
            tile.template store<2>(to.products[b][0][16], 64);
        }
        if constexpr (R == 2 && T == 2) {
            tile.template store<3>(to.products[b][1][16], 64);
        }
    }
    before.template add_to_sums<R>(half * n_blocks, before.columns);
    to.columns = T * 16;
}

template <ggml_type type>
using tile_acts = bof4_act_pieces<bof4_layout<type>::BLOCK>;

// At most BOF4_MAX_COLUMNS columns of a product.
template <ggml_type type, typename tiles>
class tile_product {
    using acts = tile_acts<type>;
    using pair = bof4_block_pair<type>;
    enum {
        BLOCKS = TILE_SPAN / bof4_layout<type>::BLOCK, // of a span
        TILES = BOF4_MAX_COLUMNS / 16,
        PIECES = TILE_SPAN / acts::PIECE, // of a span
        // Activations that are read for all rows: 1 MiB, half of the L2 of the processors with AMX.
        SPANS = (1 << 20) / (TILE_SPAN * BOF4_MAX_COLUMNS),
    };

    const char * groups;
    int64_t n_rows;
    int64_t n;
    const float * outlier_sums; // of the first column and the first group, or NULL
    int64_t outlier_stride;     // from group to group
    float * const * y;
    int n_columns;

    tiles tile;
    const char * x[BOF4_MAX_COLUMNS]; // the last one repeated to fill a tile
    bool is_in_place[TILES];          // can a tile be read from the columns where they are?
    unpacked_span weights[TILE_GROUPS];
    std::conditional_t<bof4_layout<type>::HAS_SUB_SCALES, part_results, level_results> results[2];
    float column_scales[SPANS * BLOCKS][BOF4_MAX_COLUMNS]; // of each block
    alignas(64) group_sums sums[BOF4_MAX_COLUMNS];
    alignas(64) char gathered[2][PIECES][16][acts::PIECE];

    int n_tiles() const { return (n_columns + 15) / 16; }
    int64_t weights_of(int64_t span) const { return std::min<int64_t>(TILE_SPAN, n - span * TILE_SPAN); }
    int64_t blocks_of(int64_t span) const { return weights_of(span) / bof4_layout<type>::BLOCK; }
    int64_t rows_of(int64_t g, int n_groups) const {
        return std::min<int64_t>(n_groups * BOF4_GROUP, n_rows - g * BOF4_GROUP);
    }

    const pair * group_at(int64_t g) const {
        return reinterpret_cast<const pair *>(groups + g * bof4_repacked<type>::group_bytes(n));
    }

    // The weights to unpack next: the processor's prefetcher does not see where a span ends.
    void prefetch_span(int64_t g, int64_t span) const {
        if (g * BOF4_GROUP >= n_rows) {
            return;
        }
        const int64_t b0 = span * BLOCKS, b1 = b0 + blocks_of(span);
        const pair * group = group_at(g);
        const auto * from = b0 % 2 == 0 ? reinterpret_cast<const char *>(group + b0 / 2)
                                        : reinterpret_cast<const char *>(&bof4_codes(group, b0));
        const auto * to = reinterpret_cast<const char *>(&bof4_codes(group, b1 - 1) + 1);
        for (; from < to; from += 64) {
            __builtin_prefetch(from);
        }
    }

    // A span of a tile of columns: where they are, or copied.
    act_tile columns_of(int t, int64_t span, char (&copy)[PIECES][16][acts::PIECE]) const {
        const char * const * from = x + 16 * t;
        const size_t at = acts::at(span * TILE_SPAN);
        if (is_in_place[t]) {
            return reinterpret_cast<act_tile>(from[0] + at);
        }
        for (int64_t p = 0; p < weights_of(span) / acts::PIECE; ++p) {
            for (int c = 0; c < 16; ++c) {
                memcpy(copy[p][c], from[c] + at + p * acts::STRIDE, acts::PIECE);
            }
        }
        return copy;
    }

    // (Sums of rows and columns that are not there are not used.)
    void load_sums(int64_t g, int n_groups, bool first) {
        memset(sums, 0, n_tiles() * 16 * sizeof(sums[0]));
        const int64_t n_rows_here = rows_of(g, n_groups);
        for (int c = 0; !first && c < n_columns; ++c) {
            copy_rows(sums[c][0], y[c] + g * BOF4_GROUP, n_rows_here);
        }
    }

    void store_sums(int64_t g, int n_groups, bool last) {
        const int64_t n_rows_here = rows_of(g, n_groups);
        for (int c = 0; c < n_columns; ++c) {
            for (int r = 0; last && outlier_sums && r < n_groups; ++r) {
                const float * addend = outlier_sums + (g + r) * outlier_stride + c * BOF4_GROUP;
                store(sums[c][r], add(load(sums[c][r]), load(addend)));
            }
            copy_rows(y[c] + g * BOF4_GROUP, sums[c][0], n_rows_here);
        }
    }

    // So that their lines, which are far apart, are in the cache by the time that results are stored.
    void prefetch_results(int64_t g, int n_groups) const {
        const int64_t bytes = rows_of(g, n_groups) * sizeof(float);
        for (int c = 0; c < n_columns; ++c) {
            const char * to = reinterpret_cast<const char *>(y[c] + g * BOF4_GROUP);
            for (int64_t i = 0; i < bytes; i += 64) {
                __builtin_prefetch(to + i, 1);
            }
        }
    }

    // Of spans [s0, s1): read from the columns once for all groups.
    void load_column_scales(int64_t s0, int64_t s1) {
        const int64_t b0 = s0 * BLOCKS, b1 = (s1 - 1) * BLOCKS + blocks_of(s1 - 1);
        for (int64_t b = b0; b < b1; ++b) {
            for (int c = 0; c < n_tiles() * 16; ++c) {
                memcpy(&column_scales[b - b0][c], x[c] + acts::scale_at(n, b), sizeof(float));
            }
        }
    }

    // Products of a span, of n_groups groups and the tiles of columns from t on, of which there are T. b0: the block of
    // column_scales at which the span begins.
    template <int T>
    BOF4_TILE_CODE void multiply(int64_t span, int64_t b0, int n_groups, int t, const act_tile * columns, int & next) {
        if constexpr (bof4_layout<type>::HAS_SUB_SCALES) {
            for (int r = 0; r < n_groups; ++r, next ^= 1) {
                part_results & to = results[next];
                to.row_scale = weights[r].scale[0];
                to.column_scale = column_scales[b0] + 16 * t;
                to.sums = reinterpret_cast<group_sums *>(sums[16 * t][r]);
                multiply_parts<T>(tile, weights[r], columns, results[next ^ 1], to);
            }
        } else {
            static constexpr float zeros[32] = {};
            for (int64_t b = 0; b < blocks_of(span); b += 2, next ^= 1) {
                const int n_blocks = (int) std::min<int64_t>(2, blocks_of(span) - b);
                level_results & to = results[next];
                for (int i = 0; i < 2; ++i) {
                    for (int r = 0; r < TILE_GROUPS; ++r) {
                        to.row_scale[i][r] = weights[r].scale[i < n_blocks ? b + i : b];
                    }
                    to.column_scale[i] = i < n_blocks ? column_scales[b0 + b + i] + 16 * t : zeros;
                }
                to.sums = sums + 16 * t;
                n_groups == 2 ? multiply_levels<2, T>(tile, weights, b, n_blocks, columns, results[next ^ 1], to)
                              : multiply_levels<1, T>(tile, weights, b, n_blocks, columns, results[next ^ 1], to);
            }
        }
    }

    BOF4_TILE_CODE void multiply_groups(int64_t span, int64_t b0, int n_groups) {
        int next = 0;           // of results, to be written
        results[1].columns = 0; // there are none yet
        int t = 0;
        for (; t + 2 <= n_tiles(); t += 2) {
            const act_tile columns[2] = { columns_of(t, span, gathered[0]), columns_of(t + 1, span, gathered[1]) };
            multiply<2>(span, b0, n_groups, t, columns, next);
        }
        if (t < n_tiles()) {
            const act_tile columns = columns_of(t, span, gathered[0]);
            multiply<1>(span, b0, n_groups, t, &columns, next);
        }
        add_last(results[next ^ 1], n_groups);
    }

    static void add_last(const part_results & last, int) { last.add_to_sums(0, last.columns); }
    static void add_last(const level_results & last, int n_groups) {
        n_groups == 2 ? last.add_to_sums<2>(0, last.columns) : last.add_to_sums<1>(0, last.columns);
    }

  public:
    tile_product(const void * groups, int64_t n_rows, int64_t n, const void * const * columns,
        const float * outlier_sums, int64_t outlier_stride, float * const * y, int n_columns)
        : groups(static_cast<const char *>(groups)),
          n_rows(n_rows),
          n(n),
          outlier_sums(outlier_sums),
          outlier_stride(outlier_stride),
          y(y),
          n_columns(n_columns) {
        for (int c = 0; c < n_tiles() * 16; ++c) {
            x[c] = static_cast<const char *>(columns[std::min(c, n_columns - 1)]);
        }
        // (columns behind the last one are not used)
        for (int t = 0; t < n_tiles(); ++t) {
            is_in_place[t] = reinterpret_cast<uintptr_t>(x[16 * t]) % acts::STRIDE == 0;
            for (int c = 16 * t + 1; c < std::min(16 * t + 16, n_columns); ++c) {
                is_in_place[t] &= x[c] - x[c - 1] == acts::PIECE;
            }
        }
    }

    BOF4_TILE_CODE void compute() {
        const int64_t n_groups = (n_rows + BOF4_GROUP - 1) / BOF4_GROUP;
        const int64_t n_spans = (n + TILE_SPAN - 1) / TILE_SPAN;
        for (int64_t s0 = 0; s0 < n_spans; s0 += SPANS) {
            const int64_t s1 = std::min<int64_t>(s0 + SPANS, n_spans);
            load_column_scales(s0, s1);
            for (int64_t g = 0; g < n_groups; g += TILE_GROUPS) {
                const int count = (int) std::min<int64_t>(TILE_GROUPS, n_groups - g);
                load_sums(g, count, s0 == 0);
                for (int64_t s = s0; s < s1; ++s) {
                    for (int r = 0; r < count; ++r) {
                        unpack_span<type>(weights[r], group_at(g + r), s * BLOCKS, blocks_of(s));
                        s + 1 < s1 ? prefetch_span(g + r, s + 1) : prefetch_span(g + r + TILE_GROUPS, s0);
                    }
                    if (s + 1 == s1) {
                        prefetch_results(g, count);
                    }
                    multiply_groups(s, (s - s0) * BLOCKS, count);
                }
                store_sums(g, count, s1 == n_spans);
            }
        }
    }
};

// The functions of bof4_gemm_kernels that differ where the GEMM path uses tiles.
template <ggml_type type, typename tiles>
struct bof4_tile_kernel {
    using acts = tile_acts<type>;

    // By roofline, one tile of columns costs what the GEMV path needs for ten.
    enum { USE_GEMV = 12 };

    static bool use_gemv(int64_t n_columns) { return n_columns <= USE_GEMV; }

    static size_t act_bytes(int64_t n, int64_t n_rows, bool use_gemv) {
        return use_gemv ? bof4_repacked<type>::act_bytes(n, n_rows, true) : acts::bytes(n, n_rows);
    }

    static size_t act_row_at(int64_t n, int64_t row, bool use_gemv) {
        return use_gemv ? bof4_repacked<type>::act_row_at(n, row, true) : acts::row_at(n, row);
    }

    static void quantize_act(const float * x, void * row, int64_t n, int64_t from, int64_t to, bool use_gemv) {
        if (use_gemv) {
            bof4_repacked<type>::quantize_act(x, row, n, from, to, true);
        } else {
            acts::quantize(x, row, n, from, to);
        }
    }

    static void copy_act(const void * from, void * to, int64_t n) {
        for (size_t at = 0; at < acts::n_pieces(n) * acts::STRIDE; at += acts::STRIDE) {
            memcpy(static_cast<char *>(to) + at, static_cast<const char *>(from) + at, acts::PIECE);
        }
    }

    BOF4_TILE_CODE static void gemm(const void * groups, int64_t n_rows, int64_t n, const void * const * x,
        const float * outlier_sums, float * const * y, int64_t n_columns, bool use_gemv, int64_t prefetch) {
        if (use_gemv) {
            bof4_gemm<bof4_kernel<type>>(groups, n_rows, n, x, outlier_sums, y, n_columns, true, prefetch);
            return;
        }
        for (int64_t c = 0; c < n_columns; c += BOF4_MAX_COLUMNS) {
            tile_product<type, tiles> product(groups, n_rows, n, x + c,
                outlier_sums ? outlier_sums + c * BOF4_GROUP : nullptr, n_columns * BOF4_GROUP, y + c,
                (int) std::min<int64_t>(BOF4_MAX_COLUMNS, n_columns - c));
            product.compute();
        }
    }
};

} // namespace
