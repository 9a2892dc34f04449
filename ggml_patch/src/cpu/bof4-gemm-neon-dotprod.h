// The GEMM path of bof4-gemm-neon.h with sdot.
#pragma once

namespace {

template <ggml_type type>
struct bof4_kernel : neon_kernel<type> {
    using base = neon_kernel<type>;
    using typename base::act, typename base::acc, typename base::layout, typename base::pair;
    using base::CHUNK, base::DOT, base::DOTS, base::STEPS;

    // Levels of four weights of 16 rows each.
    template <int R>
    struct unpacked {
        alignas(64) int8_t levels[CHUNK][layout::BLOCK / 4][64];
        typename acc::template unpacked_scales<4> sub_scales[CHUNK];
        alignas(64) float d[CHUNK][16];

        void fill(const pair * group, int, int64_t b0, int64_t n) {
            const int8x16_t table = vld1q_s8(layout::LEVELS);
            for (int64_t b = 0; b < n; ++b) {
                const auto & head = bof4_head(group, b0 + b);
                for (int k = 0; k < DOTS / 2; ++k) {
                    int8_t (*to)[64] = levels[b] + STEPS * bof4_low_dot<layout>(k);
                    for (int i = 0; i < STEPS; ++i) {
                        for (int r = 0; r < 4; ++r) {
                            const uint8x16_t codes = vld1q_u8(bof4_codes(group, b0 + b).qs[STEPS * k + i][4 * r]);
                            vst1q_s8(to[i] + 16 * r, low(codes, table));
                            vst1q_s8(to[layout::NIBBLES / 4 + i] + 16 * r, high(codes, table));
                        }
                    }
                }
                typename acc::sub_scales narrow(head);
                narrow.to_differences();
                for (int j = 0; j < DOTS; ++j) {
                    const typename acc::dot_scales s(narrow, j);
                    for (int r = 0; r < 4; ++r) {
                        sub_scales[b].set(j, r, s[r]);
                    }
                }
                for (int r = 0; r < 4; ++r) {
                    vst1q_f32(d[b] + 4 * r, scales<layout>(head, r));
                }
            }
        }
    };

    // Eight rows at a time, for all sums to stay in registers.
    template <int R, int T>
    [[gnu::noinline]] static void tile(
        const unpacked<R> & w, int64_t n, const act * const * x, bool first, float * const * y) {
        for (int r0 = 0; r0 < 4; r0 += 2) {
            const act * a[T];
            float32x4_t sum[T][2];
            for (int t = 0; t < T; ++t) {
                a[t] = x[t];
                for (int r = 0; r < 2; ++r) {
                    sum[t][r] = first ? vdupq_n_f32(0.0f) : vld1q_f32(y[t] + 4 * (r0 + r));
                }
            }
            for (int64_t b = 0; b < n; ++b) {
                typename acc::part part[T][2];
                for (int t = 0; t < T; ++t) {
                    part[t][0] = part[t][1] = acc::zero();
                }
#pragma GCC unroll 2
                for (int h = 0; h < layout::BLOCK / 32; ++h) {
                    int32x4_t dot[T][2];
                    for (int t = 0; t < T; ++t) {
                        dot[t][0] = dot[t][1] = vdupq_n_s32(0);
                    }
#pragma GCC unroll 2
                    for (int i = 0; i < 2; ++i) {
                        int8x16_t act16[T];
                        for (int t = 0; t < T; ++t) {
                            act16[t] = vld1q_s8(a[t][b].q + 32 * h + 16 * i);
                        }
#define STEP(lane) \
    for (int r = 0; r < 2; ++r) { \
        const int8x16_t level = vld1q_s8(w.levels[b][8 * h + 4 * i + lane] + 16 * (r0 + r)); \
        for (int t = 0; t < T; ++t) { \
            dot[t][r] = vdotq_laneq_s32(dot[t][r], level, act16[t], lane); \
        } \
    }
                        STEP(0)
                        STEP(1)
                        STEP(2)
                        STEP(3)
#undef STEP
                        if (DOT == 32 && i == 0) {
                            continue;
                        }
                        const int j = (32 * h + 16 * i) / DOT;
                        for (int r = 0; r < 2; ++r) {
                            const auto scale = w.sub_scales[b].get(j, r0 + r);
                            for (int t = 0; t < T; ++t) {
                                part[t][r] = acc::add_dot(part[t][r], dot[t][r], j, a[t][b].d_of_dot(j, DOTS), scale);
                            }
                        }
                    }
                }
                for (int r = 0; r < 2; ++r) {
                    const float32x4_t d = vld1q_f32(w.d[b] + 4 * (r0 + r));
                    for (int t = 0; t < T; ++t) {
                        sum[t][r] = vfmaq_f32(sum[t][r], acc::value(part[t][r]), acc::scale(d, a[t][b].d[0]));
                    }
                }
            }
            for (int t = 0; t < T; ++t) {
                for (int r = 0; r < 2; ++r) {
                    vst1q_f32(y[t] + 4 * (r0 + r), sum[t][r]);
                }
            }
        }
    }
};

} // namespace
