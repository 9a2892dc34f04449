// BOF4_S products on NEON with dotprod, and with i8mm where the processor has it.
//
// sdot adds four signed byte products to each of four lanes, the activations taken from one lane of a register: codes need
// no copy of activations in every lane, and levels no offset. 16 rows are four registers.
//
// GEMV looks levels up as it goes. GEMM looks them up once for all columns: 16 rows of 512 weights become 8 KiB of levels, which
// stay in the nearest cache while all columns come by, four at a time: 16 accumulators, four weights, four activations.
//
// smmla multiplies two rows by two columns, eight weights each: as many products as two sdot. Unpacking puts rows in pairs then,
// and an accumulator holds (row, column) 00 01 10 11. Zips at the beginning and the end of a tile turn that into columns.

#include "bof4-repack-layout.h"

#ifdef BOF4_GEMM_NEON

#include <arm_neon.h>

#include <cstring>

namespace {

enum {
    STEPS = QK_BOF4_S / 8,      // of 64 bytes, 16 rows with 4 codes in low and 4 in high nibbles
    WIDTH = 4,                  // columns that share a pass over the weights
    CHUNK = 8,                  // blocks that are unpacked at a time
    FEW   = 2,                  // columns; for more of them levels are looked up once
};

struct group {
    const bof4_s_pair * pairs;

    group(const void * groups, int64_t g, int64_t n) {
        pairs = reinterpret_cast<const bof4_s_pair *>(static_cast<const char *>(groups) + g * bof4_s_group_bytes(n));
    }
};

inline int8x16_t levels_table() {
    static const int8_t levels[16] = BOF4_S_LEVELS;
    return vld1q_s8(levels);
}

inline int8x16_t low(uint8x16_t codes, int8x16_t levels) {
    return vqtbl1q_s8(levels, vandq_u8(codes, vdupq_n_u8(0x0f)));
}

inline int8x16_t high(uint8x16_t codes, int8x16_t levels) {
    return vqtbl1q_s8(levels, vshrq_n_u8(codes, 4));
}

// Of four rows.
inline float32x4_t scales(const uint16_t * d) {
    const float16x4_t half = vreinterpret_f16_u16(vld1_u16(d));
    return vmulq_n_f32(vcvt_f32_f16(half), 1.0f / BOF4_LEVEL_SCALE);
}

// T columns, one group of rows.
template <int T>
void gemv(const group & w, int64_t n_blocks, const bof4_s_act * const * x, float * const * y) {
    const int8x16_t levels = levels_table();
    float32x4_t sum[T][4];
    for (int t = 0; t < T; ++t) {
        for (int r = 0; r < 4; ++r) {
            sum[t][r] = vdupq_n_f32(0.0f);
        }
    }
    for (int64_t b = 0; b < n_blocks; ++b) {
        const uint8_t * qs = bof4_s_codes(w.pairs, b);
        int32x4_t dot[T][2][4];
        for (int t = 0; t < T; ++t) {
            for (int r = 0; r < 4; ++r) {
                dot[t][0][r] = dot[t][1][r] = vdupq_n_s32(0);
            }
        }
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            int8x16_t act[T][2];
            for (int t = 0; t < T; ++t) {
                act[t][0] = vld1q_s8(x[t][b].q + 16 * half);
                act[t][1] = vld1q_s8(x[t][b].q + 32 + 16 * half);
            }
#define STEP(lane) \
            for (int r = 0; r < 4; ++r) { \
                const uint8x16_t codes = vld1q_u8(qs + (4 * half + lane) * 64 + 16 * r); \
                const int8x16_t lo = low(codes, levels); \
                const int8x16_t hi = high(codes, levels); \
                for (int t = 0; t < T; ++t) { \
                    dot[t][0][r] = vdotq_laneq_s32(dot[t][0][r], lo, act[t][0], lane); \
                    dot[t][1][r] = vdotq_laneq_s32(dot[t][1][r], hi, act[t][1], lane); \
                } \
            }
            STEP(0)
            STEP(1)
            STEP(2)
            STEP(3)
#undef STEP
        }
        for (int r = 0; r < 4; ++r) {
            const float32x4_t d = scales(bof4_s_scales(w.pairs, b) + 4 * r);
            for (int t = 0; t < T; ++t) {
                float32x4_t part = vmulq_n_f32(vcvtq_f32_s32(dot[t][0][r]), x[t][b].d[0]);
                part = vfmaq_n_f32(part, vcvtq_f32_s32(dot[t][1][r]), x[t][b].d[1]);
                sum[t][r] = vfmaq_f32(sum[t][r], part, d);
            }
        }
    }
    for (int t = 0; t < T; ++t) {
        for (int r = 0; r < 4; ++r) {
            vst1q_f32(y[t] + 4 * r, sum[t][r]);
        }
    }
}

#ifdef __ARM_FEATURE_MATMUL_INT8

// CHUNK blocks of a group as levels of pairs of rows: [block][eight weights][pair][row of the pair][weight].
struct unpacked {
    alignas(64) int8_t levels[CHUNK][QK_BOF4_S / 8][8][16];
    alignas(64) float d[CHUNK][8][4];   // of each pair: first row twice, second row twice

    void fill(const group & w, int64_t b0, int64_t n) {
        const int8x16_t table = levels_table();
        for (int64_t b = 0; b < n; ++b) {
            for (int i = 0; i < STEPS; i += 2) {
                for (int r = 0; r < 4; ++r) {
                    // four rows with four weights each, and with the next four
                    const uint8_t * qs = bof4_s_codes(w.pairs, b0 + b) + i * 64 + 16 * r;
                    const uint8x16_t codes[2] = { vld1q_u8(qs), vld1q_u8(qs + 64) };
                    const auto store = [&](int at, int8x16_t first, int8x16_t second) {
                        const int32x4_t a = vreinterpretq_s32_s8(first);
                        const int32x4_t b2 = vreinterpretq_s32_s8(second);
                        vst1q_s8(levels[b][at][2 * r],     vreinterpretq_s8_s32(vzip1q_s32(a, b2)));
                        vst1q_s8(levels[b][at][2 * r + 1], vreinterpretq_s8_s32(vzip2q_s32(a, b2)));
                    };
                    store(i / 2,             low(codes[0], table),  low(codes[1], table));
                    store(i / 2 + STEPS / 2, high(codes[0], table), high(codes[1], table));
                }
            }
            for (int r = 0; r < 4; ++r) {
                const float32x4_t four = scales(bof4_s_scales(w.pairs, b0 + b) + 4 * r);
                vst1q_f32(d[b][2 * r],     vzip1q_f32(four, four));
                vst1q_f32(d[b][2 * r + 1], vzip2q_f32(four, four));
            }
        }
    }
};

// n blocks of a group times up to four columns (x and y hold four pointers in any case), added to y or written there. Two
// columns at a time, for all sums to stay in registers.
void tile(const unpacked & w, int64_t n, const bof4_s_act * const * x, int64_t b0, float * const * y, bool first) {
    for (int t = 0; t < WIDTH; t += 2) {
        float32x4_t sum[8];
        for (int r = 0; r < 4; ++r) {
            const float32x4_t left  = first ? vdupq_n_f32(0.0f) : vld1q_f32(y[t] + 4 * r);
            const float32x4_t right = first ? vdupq_n_f32(0.0f) : vld1q_f32(y[t + 1] + 4 * r);
            sum[2 * r]     = vzip1q_f32(left, right);
            sum[2 * r + 1] = vzip2q_f32(left, right);
        }
        for (int64_t b = 0; b < n; ++b) {
            const bof4_s_act & a0 = x[t][b0 + b];
            const bof4_s_act & a1 = x[t + 1][b0 + b];
            float32x4_t part[8];
#pragma GCC unroll 2
            for (int h = 0; h < 2; ++h) {
                int32x4_t dot[8];
                for (int r = 0; r < 8; ++r) {
                    dot[r] = vdupq_n_s32(0);
                }
#pragma GCC unroll 2
                for (int i = 0; i < 2; ++i) {
                    const int64x2_t q0 = vreinterpretq_s64_s8(vld1q_s8(a0.q + 32 * h + 16 * i));
                    const int64x2_t q1 = vreinterpretq_s64_s8(vld1q_s8(a1.q + 32 * h + 16 * i));
                    const int8x16_t act[2] = { vreinterpretq_s8_s64(vzip1q_s64(q0, q1)), vreinterpretq_s8_s64(vzip2q_s64(q0, q1)) };
#pragma GCC unroll 2
                    for (int k = 0; k < 2; ++k) {
#pragma GCC unroll 8
                        for (int r = 0; r < 8; ++r) {
                            dot[r] = vmmlaq_s32(dot[r], vld1q_s8(w.levels[b][4 * h + 2 * i + k][r]), act[k]);
                        }
                    }
                }
                const float32x2_t two = { a0.d[h], a1.d[h] };
                const float32x4_t d = vcombine_f32(two, two);
                for (int r = 0; r < 8; ++r) {
                    const float32x4_t v = vcvtq_f32_s32(dot[r]);
                    part[r] = h == 0 ? vmulq_f32(v, d) : vfmaq_f32(part[r], v, d);
                }
            }
            for (int r = 0; r < 8; ++r) {
                sum[r] = vfmaq_f32(sum[r], part[r], vld1q_f32(w.d[b][r]));
            }
        }
        for (int r = 0; r < 4; ++r) {
            vst1q_f32(y[t] + 4 * r,     vuzp1q_f32(sum[2 * r], sum[2 * r + 1]));
            vst1q_f32(y[t + 1] + 4 * r, vuzp2q_f32(sum[2 * r], sum[2 * r + 1]));
        }
    }
}

#else

// CHUNK blocks of a group as levels: [block][step, low nibbles in front][row][weight].
struct unpacked {
    alignas(64) int8_t levels[CHUNK][2 * STEPS][64];
    alignas(64) float d[CHUNK][16];

    void fill(const group & w, int64_t b0, int64_t n) {
        const int8x16_t table = levels_table();
        for (int64_t b = 0; b < n; ++b) {
            for (int i = 0; i < STEPS; ++i) {
                for (int r = 0; r < 4; ++r) {
                    const uint8x16_t codes = vld1q_u8(bof4_s_codes(w.pairs, b0 + b) + i * 64 + 16 * r);
                    vst1q_s8(levels[b][i] + 16 * r, low(codes, table));
                    vst1q_s8(levels[b][STEPS + i] + 16 * r, high(codes, table));
                }
            }
            for (int r = 0; r < 4; ++r) {
                vst1q_f32(d[b] + 4 * r, scales(bof4_s_scales(w.pairs, b0 + b) + 4 * r));
            }
        }
    }
};

// n blocks of a group times up to four columns (x and y hold four pointers in any case), added to y or written there. Eight
// rows at a time, for all sums to stay in registers.
void tile(const unpacked & w, int64_t n, const bof4_s_act * const * x, int64_t b0, float * const * y, bool first) {
    for (int r0 = 0; r0 < 16; r0 += 8) {
        float32x4_t sum[4][2];
        for (int t = 0; t < 4; ++t) {
            for (int r = 0; r < 2; ++r) {
                sum[t][r] = first ? vdupq_n_f32(0.0f) : vld1q_f32(y[t] + r0 + 4 * r);
            }
        }
        for (int64_t b = 0; b < n; ++b) {
            const bof4_s_act * a[4] = { x[0] + b0 + b, x[1] + b0 + b, x[2] + b0 + b, x[3] + b0 + b };
            float32x4_t part[4][2];
#pragma GCC unroll 2
            for (int h = 0; h < 2; ++h) {
                int32x4_t dot[4][2];
                for (int t = 0; t < 4; ++t) {
                    dot[t][0] = dot[t][1] = vdupq_n_s32(0);
                }
#pragma GCC unroll 2
                for (int i = 0; i < 2; ++i) {
                    int8x16_t act[4];
                    for (int t = 0; t < 4; ++t) {
                        act[t] = vld1q_s8(a[t]->q + 32 * h + 16 * i);
                    }
#define STEP(lane) \
                    for (int r = 0; r < 2; ++r) { \
                        const int8x16_t level = vld1q_s8(w.levels[b][STEPS * h + 4 * i + lane] + 4 * r0 + 16 * r); \
                        for (int t = 0; t < 4; ++t) { \
                            dot[t][r] = vdotq_laneq_s32(dot[t][r], level, act[t], lane); \
                        } \
                    }
                    STEP(0)
                    STEP(1)
                    STEP(2)
                    STEP(3)
#undef STEP
                }
                for (int t = 0; t < 4; ++t) {
                    for (int r = 0; r < 2; ++r) {
                        const float32x4_t v = vcvtq_f32_s32(dot[t][r]);
                        part[t][r] = h == 0 ? vmulq_n_f32(v, a[t]->d[0]) : vfmaq_n_f32(part[t][r], v, a[t]->d[1]);
                    }
                }
            }
            for (int r = 0; r < 2; ++r) {
                const float32x4_t d = vld1q_f32(w.d[b] + r0 + 4 * r);
                for (int t = 0; t < 4; ++t) {
                    sum[t][r] = vfmaq_f32(sum[t][r], part[t][r], d);
                }
            }
        }
        for (int t = 0; t < 4; ++t) {
            for (int r = 0; r < 2; ++r) {
                vst1q_f32(y[t] + r0 + 4 * r, sum[t][r]);
            }
        }
    }
}

#endif

} // namespace

bool bof4_s_few(int64_t n_columns) {
    return n_columns <= FEW;
}

void bof4_s_gemm(const void * groups, int64_t n_rows, int64_t n, const bof4_s_act * const * x, const float * plus,
                 float * const * columns, int64_t n_columns, bool) {
    const bool few = bof4_s_few(n_columns);
    const int64_t n_blocks = n / QK_BOF4_S;
    unpacked memory;
    for (int64_t b0 = 0; b0 < n_blocks; b0 += few ? n_blocks : (int64_t) CHUNK) {
        const int64_t n_chunk = b0 + CHUNK < n_blocks ? (int64_t) CHUNK : n_blocks - b0;
        for (int64_t g = 0; g * BOF4_GROUP < n_rows; ++g) {
            const group w(groups, g, n);
            const int64_t row0 = g * BOF4_GROUP;
            const size_t left = n_rows - row0 < BOF4_GROUP ? (n_rows - row0) * sizeof(float) : 0; // of a last group of fewer rows
            if (!few) {
                memory.fill(w, b0, n_chunk);
            }
            for (int64_t c = 0; c < n_columns; c += WIDTH) {
                const int width = n_columns - c < WIDTH ? (int) (n_columns - c) : (int) WIDTH;
                // columns that do not exist repeat the last one, into a place that nobody looks at
                float aside[WIDTH][BOF4_GROUP];
                const bof4_s_act * from[WIDTH];
                float * to[WIDTH];
                for (int t = 0; t < WIDTH; ++t) {
                    from[t] = x[t < width ? c + t : n_columns - 1];
                    to[t] = t < width && left == 0 ? columns[c + t] + row0 : aside[t];
                    if (to[t] == aside[t] && b0 > 0) {
                        t < width ? memcpy(aside[t], columns[c + t] + row0, left) : memset(aside[t], 0, sizeof(aside[t]));
                    }
                }
                if (few) {
                    width == 1 ? gemv<1>(w, n_blocks, from, to) : gemv<2>(w, n_blocks, from, to);
                } else {
                    tile(memory, n_chunk, from, b0, to, b0 == 0);
                }
                const bool last = few || b0 + n_chunk == n_blocks;
                for (int t = 0; t < width && plus && last; ++t) {
                    for (int r = 0; r < BOF4_GROUP; ++r) {
                        to[t][r] += plus[(g * n_columns + c + t) * BOF4_GROUP + r];
                    }
                }
                for (int t = 0; t < width && left > 0; ++t) {
                    memcpy(columns[c + t] + row0, aside[t], left);
                }
            }
        }
    }
}

#endif
