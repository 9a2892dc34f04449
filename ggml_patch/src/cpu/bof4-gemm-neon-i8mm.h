// The GEMM path of bof4-gemm-neon.h with smmla, which multiplies two rows by two columns, eight weights each: as many
// products as two sdot. Unpacking puts rows in pairs, and an accumulator holds (row, column) 00 01 10 11. Zips at the
// beginning and the end of a tile convert from and to columns.
#pragma once

namespace {

// The first two, the last two lanes, each twice.
inline float32x4_t low_twice(float32x4_t v) {
    return vzip1q_f32(v, v);
}
inline float32x4_t high_twice(float32x4_t v) {
    return vzip2q_f32(v, v);
}
inline int32x4_t low_twice(int32x4_t v) {
    return vzip1q_s32(v, v);
}
inline int32x4_t high_twice(int32x4_t v) {
    return vzip2q_s32(v, v);
}
inline no_scale low_twice(no_scale v) {
    return v;
}
inline no_scale high_twice(no_scale v) {
    return v;
}

template <ggml_type type>
struct bof4_kernel : neon_kernel<type> {
    using base = neon_kernel<type>;
    using typename base::act, typename base::acc, typename base::layout, typename base::pair;
    using base::CHUNK, base::DOT, base::DOTS, base::STEPS;

    // Levels: [block][eight weights][pair of rows][row of the pair][weight]. Scales: those of the first row twice, of
    // the second row twice.
    template <int R>
    struct unpacked {
        alignas(64) int8_t levels[CHUNK][layout::BLOCK / 8][8][16];
        typename acc::template unpacked_scales<8> sub_scales[CHUNK];
        alignas(64) float d[CHUNK][8][4];

        void fill(const pair * group, int, int64_t b0, int64_t n) {
            const int8x16_t table = vld1q_s8(layout::LEVELS);
            for (int64_t b = 0; b < n; ++b) {
                const auto & head = bof4_head(group, b0 + b);
                for (int k = 0; k < DOTS / 2; ++k) {
                    auto * to = levels[b] + STEPS / 2 * bof4_low_dot<layout>(k);
                    for (int i = 0; i < STEPS; i += 2) {
                        for (int r = 0; r < 4; ++r) {
                            // four rows with four weights each, and with the next four
                            const auto * qs = bof4_codes(group, b0 + b).qs + STEPS * k + i;
                            const uint8x16_t codes[2] = { vld1q_u8(qs[0][4 * r]), vld1q_u8(qs[1][4 * r]) };
                            const auto store = [&](int8_t (*at)[16], int8x16_t first, int8x16_t second) {
                                const int32x4_t a = vreinterpretq_s32_s8(first);
                                const int32x4_t b2 = vreinterpretq_s32_s8(second);
                                vst1q_s8(at[2 * r], vreinterpretq_s8_s32(vzip1q_s32(a, b2)));
                                vst1q_s8(at[2 * r + 1], vreinterpretq_s8_s32(vzip2q_s32(a, b2)));
                            };
                            store(to[i / 2], low(codes[0], table), low(codes[1], table));
                            store(to[i / 2 + layout::NIBBLES / 8], high(codes[0], table), high(codes[1], table));
                        }
                    }
                }
                typename acc::sub_scales narrow(head);
                narrow.to_differences();
                for (int j = 0; j < DOTS; ++j) {
                    const typename acc::dot_scales s(narrow, j);
                    for (int r = 0; r < 4; ++r) {
                        sub_scales[b].set(j, 2 * r, low_twice(s[r]));
                        sub_scales[b].set(j, 2 * r + 1, high_twice(s[r]));
                    }
                }
                for (int r = 0; r < 4; ++r) {
                    const float32x4_t four = scales<layout>(head, r);
                    vst1q_f32(d[b][2 * r], low_twice(four));
                    vst1q_f32(d[b][2 * r + 1], high_twice(four));
                }
            }
        }
    };

    // Two columns at a time, for all sums to stay in registers.
    template <int R, int T>
    [[gnu::noinline]] static void tile(
        const unpacked<R> & w, int64_t n, const act * const * x, bool first, float * const * y) {
        for (int t = 0; t < T; t += 2) {
            float32x4_t sum[8];
            for (int r = 0; r < 4; ++r) {
                const float32x4_t left = first ? vdupq_n_f32(0.0f) : vld1q_f32(y[t] + 4 * r);
                const float32x4_t right = first ? vdupq_n_f32(0.0f) : vld1q_f32(y[t + 1] + 4 * r);
                sum[2 * r] = vzip1q_f32(left, right);
                sum[2 * r + 1] = vzip2q_f32(left, right);
            }
            for (int64_t b = 0; b < n; ++b) {
                const act & x0 = x[t][b];
                const act & x1 = x[t + 1][b];
                const auto d_of = [&](int j) {
                    const float32x2_t two = { x0.d_of_dot(j, DOTS), x1.d_of_dot(j, DOTS) };
                    return vcombine_f32(two, two);
                };
                typename acc::part part[8];
                for (int r = 0; r < 8; ++r) {
                    part[r] = acc::zero();
                }
#pragma GCC unroll 2
                for (int h = 0; h < layout::BLOCK / 32; ++h) {
                    int32x4_t dot[8];
                    for (int r = 0; r < 8; ++r) {
                        dot[r] = vdupq_n_s32(0);
                    }
#pragma GCC unroll 2
                    for (int i = 0; i < 2; ++i) {
                        const int64x2_t q0 = vreinterpretq_s64_s8(vld1q_s8(x0.q + 32 * h + 16 * i));
                        const int64x2_t q1 = vreinterpretq_s64_s8(vld1q_s8(x1.q + 32 * h + 16 * i));
                        const int8x16_t act0 = vreinterpretq_s8_s64(vzip1q_s64(q0, q1));
                        const int8x16_t act1 = vreinterpretq_s8_s64(vzip2q_s64(q0, q1));
                        const int j = (32 * h + 16 * i) / DOT;
                        const float32x4_t d = d_of(j);
#pragma GCC unroll 8
                        for (int r = 0; r < 8; ++r) {
                            dot[r] = vmmlaq_s32(dot[r], vld1q_s8(w.levels[b][4 * h + 2 * i][r]), act0);
                            dot[r] = vmmlaq_s32(dot[r], vld1q_s8(w.levels[b][4 * h + 2 * i + 1][r]), act1);
                            if (DOT == 16 || i == 1) {
                                part[r] = acc::add_dot(part[r], dot[r], j, d, w.sub_scales[b].get(j, r));
                            }
                        }
                    }
                }
                const float32x4_t d = d_of(0);
                for (int r = 0; r < 8; ++r) {
                    sum[r] = vfmaq_f32(sum[r], acc::value(part[r]), acc::scale(vld1q_f32(w.d[b][r]), d));
                }
            }
            for (int r = 0; r < 4; ++r) {
                vst1q_f32(y[t] + 4 * r, vuzp1q_f32(sum[2 * r], sum[2 * r + 1]));
                vst1q_f32(y[t + 1] + 4 * r, vuzp2q_f32(sum[2 * r], sum[2 * r + 1]));
            }
        }
    }
};

} // namespace
