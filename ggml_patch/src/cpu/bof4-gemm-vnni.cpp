// BOF4_S products on AVX-512 VNNI and on AVX-VNNI, which has half the registers of half the width.
//
// vpdpbusd adds four products of an unsigned and a signed byte to each of 16 lanes. The unsigned side is the weight, as
// level + 128; accumulators begin with -128 * sum(activations), which the activations carry, so that nothing is left to
// correct. Two instructions a cycle on the processors of interest (Zen 5, Sapphire Rapids): 128 products. All else is
// overhead, and here is where it goes. (Numbers for AVX-512.)
//
// GEMV (1 to 6 columns) reads codes, looks levels up and multiplies: 24 instructions beside 16 vpdpbusd for each column and
// 1024 weights. That is several times faster than memory.
//
// GEMM looks levels up once for all columns. 32 rows of 512 weights become 16 KiB of bytes, which stay in the nearest
// cache while all columns come by, six at a time: 12 accumulators hide the latency of vpdpbusd, and a step of 12 needs 8
// loads (two of weights, six broadcasts of activations), where the processors do two a cycle. For 64 weights, 12 x 16
// vpdpbusd are followed by 12 x 5 others for the scales: convert two halves, scale and add them, scale by the weight's d,
// add. Sums stay in memory, an access to the nearest cache for 16 vpdpbusd, to leave the registers to the accumulators.

#include "bof4-repack-layout.h"

#ifdef BOF4_GEMM_VNNI

#include "bof4-gemm-vnni.h"

namespace {

enum {
    STEPS  = QK_BOF4_S / 8,     // loads of codes in a block of 16 rows: 4 weights a row in low, 4 in high nibbles
    CHUNK  = 8,                 // blocks that are unpacked at a time
#ifdef BOF4_GEMM_AVX512
    GROUPS = 2,                 // of rows and
    WIDTH  = 6,                 // columns that share a pass over unpacked weights
    NARROW = 6,                 // columns that share a pass over codes
    DIRECT = 18,                // up to so many columns, unpacking to memory does not pay
#else
    GROUPS = 1,                 // half as many registers, and they are half as wide
    WIDTH  = 6,
    NARROW = 2,
    DIRECT = 2,
#endif
};

const int8_t levels16[16] = BOF4_S_LEVELS;

struct group {
    const bof4_s_pair * pairs;
    mask rows;                  // those that exist

    group(const void * groups, int64_t g, int64_t n_rows, int64_t n) {
        pairs = reinterpret_cast<const bof4_s_pair *>(static_cast<const char *>(groups) + g * bof4_s_group_bytes(n));
        rows = first_lanes(n_rows - g * BOF4_GROUP);
    }
};

// Of 16 rows.
inline floats scales(const uint16_t * d) {
    return multiply(from_halves(d), all_lanes(1.0f / BOF4_LEVEL_SCALE));
}

// T columns, one group of rows.
template <int T>
void gemv(const group & w, int64_t n_blocks, const bof4_s_act * const * x, const float * plus, float * const * y) {
    const lookup level(levels16);
    floats sum[T];
    for (int t = 0; t < T; ++t) {
        sum[t] = all_lanes(0.0f);
    }
    for (int64_t b = 0; b < n_blocks; ++b) {
        const uint8_t * qs = bof4_s_codes(w.pairs, b);
        ints dot0[T], dot1[T];
        for (int t = 0; t < T; ++t) {
            dot0[t] = all_lanes(x[t][b].offset[0]);
            dot1[t] = all_lanes(x[t][b].offset[1]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < STEPS; ++i) {
            const bytes codes = load_bytes(qs + i * 64);
            const bytes lo = level.low(codes);
            const bytes hi = level.high(codes);
            for (int t = 0; t < T; ++t) {
                dot0[t] = add_dot(dot0[t], lo, broadcast(x[t][b].q + 4 * i));
                dot1[t] = add_dot(dot1[t], hi, broadcast(x[t][b].q + 32 + 4 * i));
            }
        }
        const floats d = scales(bof4_s_scales(w.pairs, b));
        for (int t = 0; t < T; ++t) {
            floats part = multiply(to_floats(dot0[t]), all_lanes(x[t][b].d[0]));
            part = multiply_add(to_floats(dot1[t]), all_lanes(x[t][b].d[1]), part);
            sum[t] = multiply_add(part, d, sum[t]);
        }
    }
    for (int t = 0; t < T; ++t) {
        store(y[t], w.rows, plus ? add(sum[t], load(plus + t * BOF4_GROUP)) : sum[t]);
    }
}

// CHUNK blocks of R groups as bytes: level + 128 of four weights a row, for the first half of a block, then the second.
template <int R>
struct unpacked {
    alignas(64) uint8_t levels[CHUNK][2][STEPS][R][64];
    alignas(64) float d[CHUNK][R][16];

    void fill(const group * w, int64_t b0, int64_t n) {
        const lookup level(levels16);
        for (int r = 0; r < R; ++r) {
            for (int64_t b = 0; b < n; ++b) {
                for (int i = 0; i < STEPS; ++i) {
                    const bytes codes = load_bytes(bof4_s_codes(w[r].pairs, b0 + b) + i * 64);
                    store_bytes(levels[b][0][i][r], level.low(codes));
                    store_bytes(levels[b][1][i][r], level.high(codes));
                }
                store(d[b][r], scales(bof4_s_scales(w[r].pairs, b0 + b)));
            }
        }
    }
};

// n blocks of R groups times T columns, added to y (or written there, for the first blocks of a row), and `plus`.
template <int R, int T>
void tile(const unpacked<R> & w, const mask * rows, int64_t n, const bof4_s_act * const * columns, int64_t b0,
          const float * plus, int64_t n_columns, float * const * y) {
    const bof4_s_act * x[T];
    alignas(64) float sum[T][R][16];
    for (int t = 0; t < T; ++t) {
        x[t] = columns[t] + b0;
        for (int r = 0; r < R; ++r) {
            store(sum[t][r], b0 == 0 ? all_lanes(0.0f) : load(y[t] + r * 16, rows[r]));
        }
    }
    for (int64_t b = 0; b < n; ++b) {
        floats part[T][R];
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
            ints dot[T][R];
            for (int t = 0; t < T; ++t) {
                for (int r = 0; r < R; ++r) {
                    dot[t][r] = all_lanes(x[t][b].offset[h]);
                }
            }
#pragma GCC unroll 8
            for (int i = 0; i < STEPS; ++i) {
                bytes level[R];
                for (int r = 0; r < R; ++r) {
                    level[r] = load_bytes(w.levels[b][h][i][r]);
                    in_register(level[r]);
                }
                for (int t = 0; t < T; ++t) {
                    const four act = broadcast(x[t][b].q + h * 32 + 4 * i);
                    for (int r = 0; r < R; ++r) {
                        dot[t][r] = add_dot(dot[t][r], level[r], act);
                    }
                }
            }
            for (int t = 0; t < T; ++t) {
                const floats d = all_lanes(x[t][b].d[h]);
                for (int r = 0; r < R; ++r) {
                    const floats v = to_floats(dot[t][r]);
                    part[t][r] = h == 0 ? multiply(v, d) : multiply_add(v, d, part[t][r]);
                }
            }
        }
        for (int r = 0; r < R; ++r) {
            const floats d = load(w.d[b][r]);
            for (int t = 0; t < T; ++t) {
                store(sum[t][r], multiply_add(part[t][r], d, load(sum[t][r])));
            }
        }
    }
    for (int t = 0; t < T; ++t) {
        for (int r = 0; r < R; ++r) {
            const floats all = load(sum[t][r]);
            store(y[t] + r * 16, rows[r], plus ? add(all, load(plus + (r * n_columns + t) * BOF4_GROUP)) : all);
        }
    }
}

template <int R>
void tiles(const unpacked<R> & w, const mask * rows, int64_t n, const bof4_s_act * const * x, int64_t b0,
           const float * plus, float * const * columns, int64_t row0, int64_t n_columns) {
    // as many columns in each tile, or one less: a last tile of one would cost as much as one of three
    const int64_t n_tiles = (n_columns + WIDTH - 1) / WIDTH;
    for (int64_t i = 0; i < n_tiles; ++i) {
        const int64_t c = i * n_columns / n_tiles;
        const float * from = plus ? plus + c * BOF4_GROUP : nullptr;
        float * y[WIDTH];
        const int width = (int) ((i + 1) * n_columns / n_tiles - c);
        for (int t = 0; t < width; ++t) {
            y[t] = columns[c + t] + row0;
        }
        switch (width) {
            case 6: tile<R, 6>(w, rows, n, x + c, b0, from, n_columns, y); break;
            case 5: tile<R, 5>(w, rows, n, x + c, b0, from, n_columns, y); break;
            case 4: tile<R, 4>(w, rows, n, x + c, b0, from, n_columns, y); break;
            case 3: tile<R, 3>(w, rows, n, x + c, b0, from, n_columns, y); break;
            case 2: tile<R, 2>(w, rows, n, x + c, b0, from, n_columns, y); break;
            case 1: tile<R, 1>(w, rows, n, x + c, b0, from, n_columns, y); break;
        }
    }
}

void few_columns(const void * groups, int64_t n_rows, int64_t n, const bof4_s_act * const * x, const float * plus,
                 float * const * columns, int64_t n_columns) {
    const int64_t n_blocks = n / QK_BOF4_S;
    const int64_t n_tiles = (n_columns + NARROW - 1) / NARROW;
    for (int64_t g = 0; g * BOF4_GROUP < n_rows; ++g) {
        const group w(groups, g, n_rows, n);
        for (int64_t i = 0; i < n_tiles; ++i) {
            const int64_t c = i * n_columns / n_tiles;
            const int width = (int) ((i + 1) * n_columns / n_tiles - c);
            const float * from = plus ? plus + (g * n_columns + c) * BOF4_GROUP : nullptr;
            float * y[NARROW];
            for (int t = 0; t < width; ++t) {
                y[t] = columns[c + t] + g * BOF4_GROUP;
            }
            switch (width) {
                case 6: gemv<6>(w, n_blocks, x + c, from, y); break;
                case 5: gemv<5>(w, n_blocks, x + c, from, y); break;
                case 4: gemv<4>(w, n_blocks, x + c, from, y); break;
                case 3: gemv<3>(w, n_blocks, x + c, from, y); break;
                case 2: gemv<2>(w, n_blocks, x + c, from, y); break;
                case 1: gemv<1>(w, n_blocks, x + c, from, y); break;
            }
        }
    }
}

template <int R>
void many_columns(const void * groups, int64_t g, int64_t n_rows, int64_t n, const bof4_s_act * const * x,
                  const float * plus, float * const * y, int64_t n_columns, int64_t b0, unpacked<R> & memory) {
    const int64_t n_chunk = b0 + CHUNK < n / QK_BOF4_S ? (int64_t) CHUNK : n / QK_BOF4_S - b0;
    const group w[2] = { group(groups, g, n_rows, n), group(groups, g + R - 1, n_rows, n) };
    const mask rows[2] = { w[0].rows, w[1].rows };
    memory.fill(w, b0, n_chunk);
    const bool last = b0 + n_chunk == n / QK_BOF4_S;
    plus = plus && last ? plus + g * n_columns * BOF4_GROUP : nullptr;
    tiles<R>(memory, rows, n_chunk, x, b0, plus, y, g * BOF4_GROUP, n_columns);
}

} // namespace

bool bof4_s_few(int64_t n_columns) {
    return n_columns <= DIRECT;
}

// The activations have one form here, whatever the number of columns.
void bof4_s_gemm(const void * groups, int64_t n_rows, int64_t n, const bof4_s_act * const * x, const float * plus,
                 float * const * y, int64_t n_columns, bool) {
    if (bof4_s_few(n_columns)) {
        few_columns(groups, n_rows, n, x, plus, y, n_columns);
        return;
    }
    const int64_t n_groups = (n_rows + BOF4_GROUP - 1) / BOF4_GROUP;
    unpacked<GROUPS> memory;
    for (int64_t b0 = 0; b0 < n / QK_BOF4_S; b0 += CHUNK) {
        int64_t g = 0;
        for (; g + GROUPS <= n_groups; g += GROUPS) {
            many_columns<GROUPS>(groups, g, n_rows, n, x, plus, y, n_columns, b0, memory);
        }
        if (g < n_groups) {
            unpacked<1> last;
            many_columns<1>(groups, g, n_rows, n, x, plus, y, n_columns, b0, last);
        }
    }
}

#endif
