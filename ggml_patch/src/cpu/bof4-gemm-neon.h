// Kernels for NEON with dotprod, and with i8mm where the processor has it. 16 rows are four registers.
//
// sdot adds four signed byte products to each of four lanes, the activations taken from one lane of a register:
// activations need not be broadcast, and levels need no offset.
//
// GEMV looks up levels for each product. GEMM looks them up once for all columns: 16 rows of 512 weights become 8 KiB
// of levels, which stay in L1 while all columns are multiplied, four at a time: 16 accumulators, four registers of
// weights, four of activations.
//
// A dot of BOF4_K is multiplied by its scale as an integer, one mla for four sdot (or two smmla), and the sum of 256
// weights (less than 2^28) becomes a float once.
#pragma once

#include "bof4-repack-layout.h"

#include <arm_neon.h>

// Types of upstream that have kernels, too.
#define BOF4_GEMM_UPSTREAM_TYPES(X)

namespace {

inline int8x16_t low(uint8x16_t codes, int8x16_t levels) {
    return vqtbl1q_s8(levels, vandq_u8(codes, vdupq_n_u8(0x0f)));
}

inline int8x16_t high(uint8x16_t codes, int8x16_t levels) {
    return vqtbl1q_s8(levels, vshrq_n_u8(codes, 4));
}

// A factor of all lanes, or of each.
inline float32x4_t multiply(float32x4_t v, float f) {
    return vmulq_n_f32(v, f);
}
inline float32x4_t multiply(float32x4_t v, float32x4_t f) {
    return vmulq_f32(v, f);
}
inline float32x4_t multiply_add(float32x4_t sum, float32x4_t v, float f) {
    return vfmaq_n_f32(sum, v, f);
}
inline float32x4_t multiply_add(float32x4_t sum, float32x4_t v, float32x4_t f) {
    return vfmaq_f32(sum, v, f);
}

struct no_scale {};

// How dots are added to the sum of a block, and the scales of dots of weights, if any. No primary definition.
//
//   sub_scales(head)                  all of them; to_differences() for accumulators that are not reset
//                                     between two dots: a s + b t = a (s - t) + (a + b) t
//   dot_scales(sub_scales, j)         of dot j: element r of rows 4 r to 4 r + 3
//   unpacked_scales<N>                of all dots in memory, N registers each
//   part, zero()                      the sum of a block
//   add_dot(part, dot, j, d, scale)   adds dot j; d: scale of activations, of one column or of each lane
//   value(part)                       as float32
//   scale(w, d)                       of the sum of a block, from that of weights
template <ggml_type type> struct accumulation;

template <> struct accumulation<GGML_TYPE_BOF4_S> {
    using layout = bof4_layout<GGML_TYPE_BOF4_S>;

    struct sub_scales {
        explicit sub_scales(const layout::head &) {}
        void to_differences() {}
    };
    struct dot_scales {
        dot_scales(const sub_scales &, int) {}
        no_scale operator[](int) const { return {}; }
    };
    template <int N> struct unpacked_scales {
        void set(int, int, no_scale) {}
        no_scale get(int, int) const { return {}; }
    };
    using part = float32x4_t;

    static part zero() { return vdupq_n_f32(0.0f); }
    template <typename D> static part add_dot(part p, int32x4_t dot, int j, D d, no_scale) {
        const float32x4_t v = vcvtq_f32_s32(dot);
        return j == 0 ? multiply(v, d) : multiply_add(p, v, d);
    }
    static float32x4_t value(part p) { return p; }
    template <typename D> static float32x4_t scale(float32x4_t w, D) { return w; }
};

template <> struct accumulation<GGML_TYPE_BOF4_K> {
    using layout = bof4_layout<GGML_TYPE_BOF4_K>;

    struct sub_scales {
        int8_t s[BOF4_K_SUB_BLOCKS][BOF4_GROUP];

        explicit sub_scales(const layout::head & head) {
            const auto store = [](int8_t * to, uint8x16_t six_bits) {
                const uint8x16_t masked = vandq_u8(six_bits, vdupq_n_u8(0x3f));
                vst1q_s8(to, vreinterpretq_s8_u8(vsubq_u8(masked, vdupq_n_u8(BOF4_K_SUB_SCALE_OFFSET))));
            };
            for (int j = 0; j < 4; ++j) {
                const uint8x16_t more = vld1q_u8(head.scales[8 + j]);
                // of sub-blocks j, j + 4, j + 8 and j + 12: their high two bits, and above them what inserting and
                // masking remove
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
        void to_differences() {
            for (int j = 0; j < BOF4_K_SUB_BLOCKS; j += 2) {
                vst1q_s8(s[j], vsubq_s8(vld1q_s8(s[j]), vld1q_s8(s[j + 1])));
            }
        }
    };
    struct dot_scales {
        int32x4_t s[4];

        dot_scales(const sub_scales & scales, int j) {
            const int8x16_t all = vld1q_s8(scales.s[j]);
            const int16x8_t a = vmovl_s8(vget_low_s8(all));
            const int16x8_t b = vmovl_high_s8(all);
            s[0] = vmovl_s16(vget_low_s16(a));
            s[1] = vmovl_high_s16(a);
            s[2] = vmovl_s16(vget_low_s16(b));
            s[3] = vmovl_high_s16(b);
        }
        int32x4_t operator[](int r) const { return s[r]; }
    };
    template <int N> struct unpacked_scales {
        alignas(64) int32_t s[BOF4_K_SUB_BLOCKS][N][4];

        void set(int j, int r, int32x4_t v) { vst1q_s32(s[j][r], v); }
        int32x4_t get(int j, int r) const { return vld1q_s32(s[j][r]); }
    };
    using part = int32x4_t;

    static part zero() { return vdupq_n_s32(0); }
    template <typename D> static part add_dot(part p, int32x4_t dot, int, D, int32x4_t scale) {
        return vmlaq_s32(p, dot, scale);
    }
    static float32x4_t value(part p) { return vcvtq_f32_s32(p); }
    template <typename D> static float32x4_t scale(float32x4_t w, D d) { return multiply(w, d); }
};

// d of four rows.
template <typename layout>
inline float32x4_t scales(const typename layout::head & head, int r) {
    const float16x4_t half = vreinterpret_f16_u16(vld1_u16(head.d + 4 * r));
    return vmulq_n_f32(vcvt_f32_f16(half), layout::UNIT);
}

// What dotprod and i8mm have in common. Each has unpacked weights and tiles of its own.
template <ggml_type type>
struct neon_kernel {
    using repacked = bof4_repacked<type>;
    using layout = bof4_layout<type>;
    using act = typename layout::act;
    using pair = bof4_block_pair<type>;
    using acc = accumulation<type>;
    enum {
        GROUPS = 1,
        GEMM_COLUMNS = 4,
        GEMM_LEAST = 4,
        GEMV_COLUMNS = 2,
        USE_GEMV = 2,
        MAX_COLUMNS = 128,
        ACT_OF_PATH = 0,
        DOT = layout::DOT,
        DOTS = layout::BLOCK / DOT,
        STEPS = DOT / 4, // of 64 bytes, 16 rows with 4 codes in low and 4 in high nibbles
        CHUNK = BOF4_UNPACKED / layout::BLOCK,
    };

    template <int T, typename P>
    [[gnu::noinline]] static void gemv(
        const pair * group, int64_t n_blocks, const act * const * x, float * const * y, P prefetch) {
        const int8x16_t levels = vld1q_s8(layout::LEVELS);
        float32x4_t sum[T][4];
        for (int t = 0; t < T; ++t) {
            for (int r = 0; r < 4; ++r) {
                sum[t][r] = vdupq_n_f32(0.0f);
            }
        }
        for (int64_t b = 0; b < n_blocks; ++b) {
            const auto & head = bof4_head(group, b);
            prefetch.lines(bof4_head_lines<type>(b));
            const typename acc::sub_scales sub_scales(head);
            typename acc::part part[T][4];
            for (int t = 0; t < T; ++t) {
                for (int r = 0; r < 4; ++r) {
                    part[t][r] = acc::zero();
                }
            }
            for (int k = 0; k < DOTS / 2; ++k) {
                const int j[2] = { bof4_low_dot<layout>(k), bof4_low_dot<layout>(k) + layout::NIBBLES / DOT };
                int32x4_t dot[T][2][4];
                for (int t = 0; t < T; ++t) {
                    for (int r = 0; r < 4; ++r) {
                        dot[t][0][r] = dot[t][1][r] = vdupq_n_s32(0);
                    }
                }
#pragma GCC unroll 2
                for (int i = 0; i < STEPS; i += 4) {
                    const auto * qs = bof4_codes(group, b).qs + STEPS * k + i;
                    prefetch.lines(4);
                    int8x16_t act4[T][2];
                    for (int t = 0; t < T; ++t) {
                        act4[t][0] = vld1q_s8(x[t][b].q + DOT * j[0] + 4 * i);
                        act4[t][1] = vld1q_s8(x[t][b].q + DOT * j[1] + 4 * i);
                    }
#define STEP(lane) \
    for (int r = 0; r < 4; ++r) { \
        const uint8x16_t codes = vld1q_u8(qs[lane][4 * r]); \
        const int8x16_t lo = low(codes, levels); \
        const int8x16_t hi = high(codes, levels); \
        for (int t = 0; t < T; ++t) { \
            dot[t][0][r] = vdotq_laneq_s32(dot[t][0][r], lo, act4[t][0], lane); \
            dot[t][1][r] = vdotq_laneq_s32(dot[t][1][r], hi, act4[t][1], lane); \
        } \
    }
                    STEP(0)
                    STEP(1)
                    STEP(2)
                    STEP(3)
#undef STEP
                }
                for (int h = 0; h < 2; ++h) {
                    const typename acc::dot_scales s(sub_scales, j[h]);
                    for (int r = 0; r < 4; ++r) {
                        for (int t = 0; t < T; ++t) {
                            part[t][r] = acc::add_dot(
                                part[t][r], dot[t][h][r], j[h], x[t][b].d_of_dot(j[h], DOTS), s[r]);
                        }
                    }
                }
            }
            for (int r = 0; r < 4; ++r) {
                const float32x4_t d = scales<layout>(head, r);
                for (int t = 0; t < T; ++t) {
                    sum[t][r] = vfmaq_f32(sum[t][r], acc::value(part[t][r]), acc::scale(d, x[t][b].d[0]));
                }
            }
        }
        for (int t = 0; t < T; ++t) {
            for (int r = 0; r < 4; ++r) {
                vst1q_f32(y[t] + 4 * r, sum[t][r]);
            }
        }
    }
};

} // namespace

#ifdef __ARM_FEATURE_MATMUL_INT8
#include "bof4-gemm-neon-i8mm.h"
#else
#include "bof4-gemm-neon-dotprod.h"
#endif
