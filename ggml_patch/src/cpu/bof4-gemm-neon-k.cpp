// BOF4_K products on NEON with dotprod, and with i8mm where the processor has it. What bof4-gemm-neon.cpp says holds here.
//
// The dot product of a block of 16 is multiplied by its scale as an integer, one mla for four sdot (or two smmla), and the sum
// of 256 (less than 2^28) becomes a float once.

#include "bof4-repack-layout.h"

#ifdef BOF4_GEMM_NEON

#include <arm_neon.h>

#include <cstring>

namespace {

enum {
    STEPS = QK_BOF4_K / 8,      // of 64 bytes, 16 rows with 4 codes in low and 4 in high nibbles
    WIDTH = 4,                  // columns that share a pass over the weights
    CHUNK = 2,                  // superblocks that are unpacked at a time
    FEW   = 2,                  // columns; for more of them levels are looked up once
};

struct group {
    const bof4_k_pair * pairs;

    group(const void * groups, int64_t g, int64_t n) {
        pairs = reinterpret_cast<const bof4_k_pair *>(static_cast<const char *>(groups) + g * bof4_k_group_bytes(n));
    }
};

inline int8x16_t levels_table() {
    static const int8_t levels[16] = BOF4_K_LEVELS;
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
    return vmulq_n_f32(vcvt_f32_f16(half), BOF4_K_UNIT);
}

// Scale of every block of 16 rows.
inline void block_scales(const bof4_k_head & head, int8_t (* s)[16]) {
    const auto store = [](int8_t * to, uint8x16_t six_bits) {
        vst1q_s8(to, vreinterpretq_s8_u8(vsubq_u8(vandq_u8(six_bits, vdupq_n_u8(0x3f)), vdupq_n_u8(32))));
    };
    for (int j = 0; j < 4; ++j) {
        const uint8x16_t more = vld1q_u8(head.scales[8 + j]);
        // of blocks j, j + 4, j + 8 and j + 12: their high two bits, and above them what shifting in and masking get rid of
        const uint8x16_t high[4] = { more, vshrq_n_u8(more, 2), vshrq_n_u8(more, 4), vshrq_n_u8(more, 6) };
        for (int k = 0; k < 2; ++k) {
            const uint8x16_t low = vld1q_u8(head.scales[4 * k + j]);
            const uint8x16_t first = vsliq_n_u8(low, high[k], 4);
            const uint8x16_t second = vsliq_n_u8(vshrq_n_u8(low, 4), high[k + 2], 4);
            store(s[4 * k + j], first);
            store(s[4 * k + j + 8], second);
        }
    }
}

// Of one block, four rows at a time.
inline void widen(const int8_t * scales, int32x4_t * s) {
    const int8x16_t all = vld1q_s8(scales);
    const int16x8_t a = vmovl_s8(vget_low_s8(all));
    const int16x8_t b = vmovl_high_s8(all);
    s[0] = vmovl_s16(vget_low_s16(a));
    s[1] = vmovl_high_s16(a);
    s[2] = vmovl_s16(vget_low_s16(b));
    s[3] = vmovl_high_s16(b);
}

// For sums that run on over pairs of blocks: a s + b t = a (s - t) + (a + b) t, and only every other sum begins at zero.
inline void pair_scales(int8_t (* s)[16]) {
    for (int j = 0; j < BOF4_K_SUB_BLOCKS; j += 2) {
        vst1q_s8(s[j], vsubq_s8(vld1q_s8(s[j]), vld1q_s8(s[j + 1])));
    }
}

// Block of the low nibbles of step i; that of the high ones is four later.
constexpr int block_of(int i) {
    return i / 16 * 8 + i % 16 / 4;
}

// T columns, one group of rows.
template <int T>
void gemv(const group & w, int64_t n_blocks, const bof4_k_act * const * x, float * const * y) {
    const int8x16_t levels = levels_table();
    float32x4_t sum[T][4];
    for (int t = 0; t < T; ++t) {
        for (int r = 0; r < 4; ++r) {
            sum[t][r] = vdupq_n_f32(0.0f);
        }
    }
    for (int64_t b = 0; b < n_blocks; ++b) {
        int8_t narrow[BOF4_K_SUB_BLOCKS][16];
        block_scales(*bof4_k_head_of(w.pairs, b), narrow);
        int32x4_t total[T][4];
        for (int t = 0; t < T; ++t) {
            for (int r = 0; r < 4; ++r) {
                total[t][r] = vdupq_n_s32(0);
            }
        }
        const uint8_t * qs = bof4_k_codes(w.pairs, b);
        // block j is in low nibbles, block j + 4 in high ones
        for (int h = 0; h < BOF4_K_SUB_BLOCKS; h += 8) for (int j = h; j < h + 4; ++j, qs += 4 * 64) {
            int8x16_t act[T][2];
            int32x4_t dot[T][2][4];
            for (int t = 0; t < T; ++t) {
                act[t][0] = vld1q_s8(x[t][b].q + BOF4_K_SUB_BLOCK * j);
                act[t][1] = vld1q_s8(x[t][b].q + BOF4_K_SUB_BLOCK * (j + 4));
                for (int r = 0; r < 4; ++r) {
                    dot[t][0][r] = dot[t][1][r] = vdupq_n_s32(0);
                }
            }
#define STEP(lane) \
            for (int r = 0; r < 4; ++r) { \
                const uint8x16_t codes = vld1q_u8(qs + lane * 64 + 16 * r); \
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
            for (int nibble = 0; nibble < 2; ++nibble) {
                int32x4_t s[4];
                widen(narrow[j + 4 * nibble], s);
                for (int r = 0; r < 4; ++r) {
                    for (int t = 0; t < T; ++t) {
                        total[t][r] = vmlaq_s32(total[t][r], dot[t][nibble][r], s[r]);
                    }
                }
            }
        }
        for (int r = 0; r < 4; ++r) {
            const float32x4_t d = scales(bof4_k_head_of(w.pairs, b)->d + 4 * r);
            for (int t = 0; t < T; ++t) {
                sum[t][r] = vfmaq_f32(sum[t][r], vcvtq_f32_s32(total[t][r]), vmulq_n_f32(d, x[t][b].d));
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

// CHUNK superblocks of a group as levels of pairs of rows: [superblock][eight weights][pair][row of the pair][weight].
struct unpacked {
    alignas(64) int8_t levels[CHUNK][QK_BOF4_K / 8][8][16];
    alignas(64) int32_t s[CHUNK][BOF4_K_SUB_BLOCKS][8][4];    // pair_scales, of each pair of rows: first row twice, second row twice
    alignas(64) float d[CHUNK][8][4];

    void fill(const group & w, int64_t b0, int64_t n) {
        const int8x16_t table = levels_table();
        for (int64_t b = 0; b < n; ++b) {
            for (int i = 0; i < STEPS; i += 2) {
                for (int r = 0; r < 4; ++r) {
                    // four rows with four weights each, and with the next four
                    const uint8_t * qs = bof4_k_codes(w.pairs, b0 + b) + i * 64 + 16 * r;
                    const uint8x16_t codes[2] = { vld1q_u8(qs), vld1q_u8(qs + 64) };
                    const auto store = [&](int at, int8x16_t first, int8x16_t second) {
                        const int32x4_t a = vreinterpretq_s32_s8(first);
                        const int32x4_t b2 = vreinterpretq_s32_s8(second);
                        vst1q_s8(levels[b][at][2 * r],     vreinterpretq_s8_s32(vzip1q_s32(a, b2)));
                        vst1q_s8(levels[b][at][2 * r + 1], vreinterpretq_s8_s32(vzip2q_s32(a, b2)));
                    };
                    const int at = 2 * block_of(i) + i / 2 % 2;
                    store(at,     low(codes[0], table),  low(codes[1], table));
                    store(at + 8, high(codes[0], table), high(codes[1], table));
                }
            }
            int8_t narrow[BOF4_K_SUB_BLOCKS][16];
            block_scales(*bof4_k_head_of(w.pairs, b0 + b), narrow);
            pair_scales(narrow);
            for (int j = 0; j < BOF4_K_SUB_BLOCKS; ++j) {
                int32x4_t four[4];
                widen(narrow[j], four);
                for (int r = 0; r < 4; ++r) {
                    vst1q_s32(s[b][j][2 * r],     vzip1q_s32(four[r], four[r]));
                    vst1q_s32(s[b][j][2 * r + 1], vzip2q_s32(four[r], four[r]));
                }
            }
            for (int r = 0; r < 4; ++r) {
                const float32x4_t four = scales(bof4_k_head_of(w.pairs, b0 + b)->d + 4 * r);
                vst1q_f32(d[b][2 * r],     vzip1q_f32(four, four));
                vst1q_f32(d[b][2 * r + 1], vzip2q_f32(four, four));
            }
        }
    }
};

// n superblocks of a group times up to four columns (x and y hold four pointers in any case), added to y or written there.
// Two columns at a time, for the sums of blocks and superblocks to stay in registers.
void tile(const unpacked & w, int64_t n, const bof4_k_act * const * x, int64_t b0, float * const * y, bool first) {
    for (int t = 0; t < WIDTH; t += 2) {
        float32x4_t sum[8];
        for (int r = 0; r < 4; ++r) {
            const float32x4_t left  = first ? vdupq_n_f32(0.0f) : vld1q_f32(y[t] + 4 * r);
            const float32x4_t right = first ? vdupq_n_f32(0.0f) : vld1q_f32(y[t + 1] + 4 * r);
            sum[2 * r]     = vzip1q_f32(left, right);
            sum[2 * r + 1] = vzip2q_f32(left, right);
        }
        for (int64_t b = 0; b < n; ++b) {
            const bof4_k_act * a[2] = { x[t] + b0 + b, x[t + 1] + b0 + b };
            int32x4_t total[8];
            for (int r = 0; r < 8; ++r) {
                total[r] = vdupq_n_s32(0);
            }
            for (int j0 = 0; j0 < BOF4_K_SUB_BLOCKS; j0 += 2) {
                int32x4_t dot[8];
                for (int r = 0; r < 8; ++r) {
                    dot[r] = vdupq_n_s32(0);
                }
#pragma GCC unroll 2
                for (int j = j0; j < j0 + 2; ++j) {
                    const int64x2_t q0 = vreinterpretq_s64_s8(vld1q_s8(a[0]->q + BOF4_K_SUB_BLOCK * j));
                    const int64x2_t q1 = vreinterpretq_s64_s8(vld1q_s8(a[1]->q + BOF4_K_SUB_BLOCK * j));
                    const int8x16_t act0 = vreinterpretq_s8_s64(vzip1q_s64(q0, q1));
                    const int8x16_t act1 = vreinterpretq_s8_s64(vzip2q_s64(q0, q1));
#pragma GCC unroll 8
                    for (int r = 0; r < 8; ++r) {
                        dot[r] = vmmlaq_s32(dot[r], vld1q_s8(w.levels[b][2 * j][r]), act0);
                        dot[r] = vmmlaq_s32(dot[r], vld1q_s8(w.levels[b][2 * j + 1][r]), act1);
                        total[r] = vmlaq_s32(total[r], dot[r], vld1q_s32(w.s[b][j][r]));
                    }
                }
            }
            const float32x2_t two = { a[0]->d, a[1]->d };
            const float32x4_t d = vcombine_f32(two, two);
            for (int r = 0; r < 8; ++r) {
                sum[r] = vfmaq_f32(sum[r], vcvtq_f32_s32(total[r]), vmulq_f32(d, vld1q_f32(w.d[b][r])));
            }
        }
        for (int r = 0; r < 4; ++r) {
            vst1q_f32(y[t] + 4 * r,     vuzp1q_f32(sum[2 * r], sum[2 * r + 1]));
            vst1q_f32(y[t + 1] + 4 * r, vuzp2q_f32(sum[2 * r], sum[2 * r + 1]));
        }
    }
}

#else

// CHUNK superblocks of a group as levels: [superblock][block][four weights][row][weight].
struct unpacked {
    alignas(64) int8_t levels[CHUNK][BOF4_K_SUB_BLOCKS][4][64];
    alignas(64) int32_t s[CHUNK][BOF4_K_SUB_BLOCKS][16];  // pair_scales
    alignas(64) float d[CHUNK][16];

    void fill(const group & w, int64_t b0, int64_t n) {
        const int8x16_t table = levels_table();
        for (int64_t b = 0; b < n; ++b) {
            for (int i = 0; i < STEPS; ++i) {
                for (int r = 0; r < 4; ++r) {
                    const uint8x16_t codes = vld1q_u8(bof4_k_codes(w.pairs, b0 + b) + i * 64 + 16 * r);
                    vst1q_s8(levels[b][block_of(i)][i % 4] + 16 * r, low(codes, table));
                    vst1q_s8(levels[b][block_of(i) + 4][i % 4] + 16 * r, high(codes, table));
                }
            }
            int8_t narrow[BOF4_K_SUB_BLOCKS][16];
            block_scales(*bof4_k_head_of(w.pairs, b0 + b), narrow);
            pair_scales(narrow);
            for (int j = 0; j < BOF4_K_SUB_BLOCKS; ++j) {
                int32x4_t four[4];
                widen(narrow[j], four);
                for (int r = 0; r < 4; ++r) {
                    vst1q_s32(s[b][j] + 4 * r, four[r]);
                }
            }
            for (int r = 0; r < 4; ++r) {
                vst1q_f32(d[b] + 4 * r, scales(bof4_k_head_of(w.pairs, b0 + b)->d + 4 * r));
            }
        }
    }
};

// n superblocks of a group times up to four columns (x and y hold four pointers in any case), added to y or written there.
// Eight rows at a time, for the sums of blocks and superblocks to stay in registers.
void tile(const unpacked & w, int64_t n, const bof4_k_act * const * x, int64_t b0, float * const * y, bool first) {
    for (int r0 = 0; r0 < 4; r0 += 2) {
        float32x4_t sum[4][2];
        for (int t = 0; t < 4; ++t) {
            for (int r = 0; r < 2; ++r) {
                sum[t][r] = first ? vdupq_n_f32(0.0f) : vld1q_f32(y[t] + 4 * (r0 + r));
            }
        }
        for (int64_t b = 0; b < n; ++b) {
            const bof4_k_act * a[4] = { x[0] + b0 + b, x[1] + b0 + b, x[2] + b0 + b, x[3] + b0 + b };
            int32x4_t total[4][2];
            for (int t = 0; t < 4; ++t) {
                total[t][0] = total[t][1] = vdupq_n_s32(0);
            }
            for (int j0 = 0; j0 < BOF4_K_SUB_BLOCKS; j0 += 2) {
                int32x4_t dot[4][2];
                for (int t = 0; t < 4; ++t) {
                    dot[t][0] = dot[t][1] = vdupq_n_s32(0);
                }
#pragma GCC unroll 2
                for (int j = j0; j < j0 + 2; ++j) {
                    int8x16_t act[4];
                    for (int t = 0; t < 4; ++t) {
                        act[t] = vld1q_s8(a[t]->q + BOF4_K_SUB_BLOCK * j);
                    }
#define STEP(lane) \
                    for (int r = 0; r < 2; ++r) { \
                        const int8x16_t level = vld1q_s8(w.levels[b][j][lane] + 16 * (r0 + r)); \
                        for (int t = 0; t < 4; ++t) { \
                            dot[t][r] = vdotq_laneq_s32(dot[t][r], level, act[t], lane); \
                        } \
                    }
                    STEP(0)
                    STEP(1)
                    STEP(2)
                    STEP(3)
#undef STEP
                    for (int r = 0; r < 2; ++r) {
                        const int32x4_t s = vld1q_s32(w.s[b][j] + 4 * (r0 + r));
                        for (int t = 0; t < 4; ++t) {
                            total[t][r] = vmlaq_s32(total[t][r], dot[t][r], s);
                        }
                    }
                }
            }
            for (int r = 0; r < 2; ++r) {
                const float32x4_t d = vld1q_f32(w.d[b] + 4 * (r0 + r));
                for (int t = 0; t < 4; ++t) {
                    sum[t][r] = vfmaq_f32(sum[t][r], vcvtq_f32_s32(total[t][r]), vmulq_n_f32(d, a[t]->d));
                }
            }
        }
        for (int t = 0; t < 4; ++t) {
            for (int r = 0; r < 2; ++r) {
                vst1q_f32(y[t] + 4 * (r0 + r), sum[t][r]);
            }
        }
    }
}

#endif

} // namespace

bool bof4_k_few(int64_t n_columns) {
    return n_columns <= FEW;
}

void bof4_k_gemm(const void * groups, int64_t n_rows, int64_t n, const bof4_k_act * const * x, const float * plus,
                 float * const * columns, int64_t n_columns, bool) {
    const bool few = bof4_k_few(n_columns);
    const int64_t n_blocks = n / QK_BOF4_K;
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
                const bof4_k_act * from[WIDTH];
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
