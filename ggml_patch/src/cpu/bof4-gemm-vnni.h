// Kernels for processors with vpdpbusd: AVX-512 VNNI, and AVX-VNNI, which has half the registers of half the width.
//
// vpdpbusd adds four products of an unsigned and a signed byte to each of 16 lanes. The unsigned byte is the weight, as
// level + 128; accumulators begin with -128 * sum(activations), the offset of an activation block, so that no
// correction is left. Zen 5 and Sapphire Rapids execute two of them per cycle: 128 products. Everything else is
// overhead. (The numbers here are for AVX-512.)
//
// GEMV (BOF4_S, 1 to 6 columns) loads codes, looks up levels and multiplies: 24 instructions beside 16 vpdpbusd for
// each column and 1024 weights. That is several times faster than memory.
//
// GEMM looks up levels once for all columns. 32 rows of 512 weights become 16 KiB of bytes, which stay in L1 while all
// columns are multiplied, six at a time: 12 accumulators hide the latency of vpdpbusd, and a step of 12 needs 8 loads
// (two of weights, six broadcasts of activations), of which the processors execute two per cycle. For 64 weights,
// 12 x 16 vpdpbusd are followed by 12 x 5 others for the scales: convert two halves, scale and add them, scale by the
// weight's d, add. Sums stay in memory, one access to L1 for 16 vpdpbusd, so that the registers are free for the
// accumulators.
//
// In BOF4_K and Q6_K, every 16 weights have their own scale: four vpdpbusd are followed by a conversion and a fused
// multiply-add, for which unpacking converts the sub-block scales to float32. That is six instructions where the dot
// product needs four, and still less than to multiply the scales into 16-bit weights (eight). The values remain
// integers: a sub-block times its scale is below 2^23, and the sum of sixteen is exact below 2^24, where
// the products of models end at 2^20. (Beyond, it is rounded as any float.) The superblock's and the activations'
// scales are applied once in 256 weights.
#pragma once

#include "bof4-repack-layout.h"

#ifdef BOF4_GEMM_AVX512
#include "bof4-gemm-avx512.h"
#else
#include "bof4-gemm-avx-vnni.h"
#endif

#include <cstring>

// Types of upstream that have kernels, too.
#define BOF4_GEMM_UPSTREAM_TYPES(X) X(Q6_K, q6_k)

namespace {

// Keeps an array in memory until here. GCC otherwise loads sums before the dot products that they do not depend on,
// and stores them again for want of registers (1.03 of the speed on Zen 4).
template <typename array>
inline void in_memory(array & a) {
#if defined(__GNUC__)
    __asm__("" : "+m"(a));
#else
    (void) a;
#endif
}

// Four activations, the same for every lane.
inline four broadcast(const int8_t * q) {
    int32_t v;
    memcpy(&v, q, sizeof(v));
    return all_lanes_four(v);
}

// How weights and the scales of dots are decoded. No primary definition.
//
//   decoder(addend)                  of levels: 128 for vpdpbusd
//   step(codes, k, i, low, high)     levels + addend of pair k of dots, four weights a row from 4 i on
//   sub_scale(head, j)               scales of dot j, int8, of 16 rows
//   sub_scales(head, s, stride)      s[j * stride] = the same as float
template <ggml_type type> struct decoder;

// Codes of nibbles.
template <ggml_type type>
struct nibble_decoder {
    using layout = bof4_layout<type>;

    decltype(repeat(__m128i())) table;

    explicit nibble_decoder(int addend)
        : table(repeat(_mm_add_epi8(_mm_loadu_si128((const __m128i *) layout::LEVELS), _mm_set1_epi8((char) addend)))) {
    }

    void step(const typename layout::codes & c, int k, int i, bytes & low, bytes & high) const {
        const bytes codes = load_bytes(c.qs[layout::DOT / 4 * k + i]);
        low = look_up(table, codes);
        high = look_up(table, shift_right<4>(codes));
    }
};

template <> struct decoder<GGML_TYPE_BOF4_S> : nibble_decoder<GGML_TYPE_BOF4_S> {
    using nibble_decoder::nibble_decoder;

    static void sub_scales(const layout::head &, float (*)[16], int) {}
};

template <> struct decoder<GGML_TYPE_BOF4_K> : nibble_decoder<GGML_TYPE_BOF4_K> {
    using nibble_decoder::nibble_decoder;

    static __m128i sub_scale(const layout::head & h, int j) {
        const __m128i low = _mm_loadu_si128((const __m128i *) h.scales[j % 8]);
        const __m128i high = _mm_loadu_si128((const __m128i *) h.scales[8 + j % 4]);
        const __m128i low4 = _mm_and_si128(j < 8 ? low : _mm_srli_epi16(low, 4), _mm_set1_epi8(0x0f));
        const __m128i high2 = _mm_and_si128(
            j < 8 ? _mm_slli_epi16(high, 4 - j / 4 * 2) : _mm_srli_epi16(high, j / 4 * 2 - 4), _mm_set1_epi8(0x30));
        return _mm_sub_epi8(_mm_or_si128(low4, high2), _mm_set1_epi8(BOF4_K_SUB_SCALE_OFFSET));
    }

    static void sub_scales(const layout::head & h, float (*s)[16], int stride) {
#pragma GCC unroll 16
        for (int j = 0; j < BOF4_K_SUB_BLOCKS; ++j) {
            store(s[j * stride], from_bytes(sub_scale(h, j)));
        }
    }
};

template <> struct decoder<GGML_TYPE_Q6_K> {
    using layout = bof4_layout<GGML_TYPE_Q6_K>;

    six_bits level;

    explicit decoder(int addend) : level(addend - layout::ZERO_CODE) {}

    void step(const layout::codes & c, int k, int i, bytes & low, bytes & high) const {
        const auto & part = c.parts[k / 4 * 2 + k % 2];
        const bool second = k % 4 >= 2;
        const bytes two = load_bytes(part.qh[i]);
        const bytes four = load_bytes(part.ql[second][i]);
        low = level.join(four, second ? shift_left<2>(two) : shift_left<4>(two));
        high = level.join(shift_right<4>(four), second ? shift_right<2>(two) : two);
    }

    static __m128i sub_scale(const layout::head & h, int j) { return _mm_loadu_si128((const __m128i *) h.scales[j]); }

    static void sub_scales(const layout::head & h, float (*s)[16], int stride) {
        for (int j = 0; j < layout::BLOCK / layout::DOT; ++j) {
            store(s[j * stride], from_bytes(sub_scale(h, j)));
        }
    }
};

template <ggml_type type>
struct bof4_kernel : tiles_of<bof4_layout<type>::HAS_SUB_SCALES> {
    using repacked = bof4_repacked<type>;
    using layout = bof4_layout<type>;
    using act = typename layout::act;
    using pair = bof4_block_pair<type>;
    enum {
        DOT = layout::DOT,
        DOTS = layout::BLOCK / DOT,
        STEPS = DOT / 4, // vpdpbusd of a dot
        CHUNK = BOF4_UNPACKED / layout::BLOCK,
        GEMM_LEAST = 1,
        ACT_OF_PATH = 0,
    };

    // d of 16 rows.
    static floats scales(const typename layout::head & h) {
        return multiply(from_halves(h.d), all_lanes(layout::UNIT));
    }

    // The sum of a block so far, and dot j of it.
    static floats add_dot_to(floats part, ints dot, int j, const act & x, const float * sub_scales) {
        if constexpr (layout::HAS_SUB_SCALES) {
            return multiply_add(to_floats(dot), load(sub_scales), part);
        }
        const floats d = all_lanes(x.d[j]);
        return j == 0 ? multiply(to_floats(dot), d) : multiply_add(to_floats(dot), d, part);
    }

    // The sum of a row so far, and that of a block.
    static floats add_block(floats sum, floats part, floats d, const act & x) {
        return multiply_add(part, layout::HAS_SUB_SCALES ? multiply(d, all_lanes(x.d[0])) : d, sum);
    }

    template <int T, typename P>
    [[gnu::noinline]] static void gemv(
        const pair * group, int64_t n_blocks, const act * const * x, float * const * y, P prefetch) {
        const decoder<type> decode(128);
        floats sum[T];
        for (int t = 0; t < T; ++t) {
            sum[t] = all_lanes(0.0f);
        }
        for (int64_t b = 0; b < n_blocks; ++b) {
            const auto & head = bof4_head(group, b);
            const auto & codes = bof4_codes(group, b);
            prefetch.lines(bof4_head_lines<type>(b));
            alignas(64) float sub_scales[DOTS][16];
            decode.sub_scales(head, sub_scales, 1);
            floats part[T];
            for (int t = 0; t < T; ++t) {
                part[t] = all_lanes(0.0f);
            }
#pragma GCC unroll 8
            for (int n = 0; n < DOTS / 2; ++n) {
                const int k = layout::pair_at(n);
                const int j = bof4_low_dot<layout>(k), j2 = j + layout::NIBBLES / DOT;
                ints dot[T], dot2[T];
                for (int t = 0; t < T; ++t) {
                    dot[t] = all_lanes(x[t][b].offset[j]);
                    dot2[t] = all_lanes(x[t][b].offset[j2]);
                }
#pragma GCC unroll 8
                for (int i = 0; i < STEPS; ++i) {
                    prefetch.lines(layout::new_lines(n));
                    bytes low, high;
                    decode.step(codes, k, i, low, high);
                    for (int t = 0; t < T; ++t) {
                        dot[t] = add_dot(dot[t], low, broadcast(x[t][b].q + DOT * j + 4 * i));
                        dot2[t] = add_dot(dot2[t], high, broadcast(x[t][b].q + DOT * j2 + 4 * i));
                    }
                }
                for (int t = 0; t < T; ++t) {
                    part[t] = add_dot_to(part[t], dot[t], j, x[t][b], sub_scales[j]);
                    part[t] = add_dot_to(part[t], dot2[t], j2, x[t][b], sub_scales[j2]);
                }
            }
            const floats d = scales(head);
            for (int t = 0; t < T; ++t) {
                sum[t] = add_block(sum[t], part[t], d, x[t][b]);
            }
        }
        for (int t = 0; t < T; ++t) {
            store_unaligned(y[t], sum[t]);
        }
    }

    // Levels + 128 of four weights a row, dot by dot.
    template <int R>
    struct unpacked {
        alignas(64) uint8_t levels[CHUNK][DOTS][STEPS][R][64];
        alignas(64) float sub_scales[layout::HAS_SUB_SCALES ? CHUNK : 1][DOTS][R][16];
        alignas(64) float d[CHUNK][R][16];

        const float * sub_scales_of(int64_t b, int j, int r) const {
            return sub_scales[layout::HAS_SUB_SCALES ? b : 0][j][r];
        }

        void fill(const pair * group, int r, int64_t b0, int64_t n) {
            const decoder<type> decode(128);
            for (int64_t b = 0; b < n; ++b) {
                const auto & head = bof4_head(group, b0 + b);
                for (int k = 0; k < DOTS / 2; ++k) {
                    const int j = bof4_low_dot<layout>(k), j2 = j + layout::NIBBLES / DOT;
                    for (int i = 0; i < STEPS; ++i) {
                        bytes low, high;
                        decode.step(bof4_codes(group, b0 + b), k, i, low, high);
                        store_bytes(levels[b][j][i][r], low);
                        store_bytes(levels[b][j2][i][r], high);
                    }
                }
                decode.sub_scales(head, sub_scales[layout::HAS_SUB_SCALES ? b : 0][0] + r, R);
                store(d[b][r], scales(head));
            }
        }
    };

    template <int R, int T>
    [[gnu::noinline]] static void tile(
        const unpacked<R> & w, int64_t n, const act * const * columns, bool first, float * const * y) {
        const act * x[T];
        alignas(64) float sum[T][R][16];
        for (int t = 0; t < T; ++t) {
            x[t] = columns[t];
            for (int r = 0; r < R; ++r) {
                store(sum[t][r], first ? all_lanes(0.0f) : load_unaligned(y[t] + r * 16));
            }
        }
        for (int64_t b = 0; b < n; ++b) {
            floats part[T][R];
            for (int t = 0; t < T; ++t) {
                for (int r = 0; r < R; ++r) {
                    part[t][r] = all_lanes(0.0f);
                }
            }
            for (int j0 = 0; j0 < DOTS; j0 += 2) {
#pragma GCC unroll 2
                for (int j = j0; j < j0 + 2; ++j) {
                    ints dot[T][R];
                    for (int t = 0; t < T; ++t) {
                        for (int r = 0; r < R; ++r) {
                            dot[t][r] = all_lanes(x[t][b].offset[j]);
                        }
                    }
#pragma GCC unroll 8
                    for (int i = 0; i < STEPS; ++i) {
                        bytes level[R];
                        for (int r = 0; r < R; ++r) {
                            level[r] = load_bytes(w.levels[b][j][i][r]);
                            in_register(level[r]);
                        }
                        for (int t = 0; t < T; ++t) {
                            const four act4 = broadcast(x[t][b].q + DOT * j + 4 * i);
                            for (int r = 0; r < R; ++r) {
                                dot[t][r] = add_dot(dot[t][r], level[r], act4);
                            }
                        }
                    }
                    for (int t = 0; t < T; ++t) {
                        for (int r = 0; r < R; ++r) {
                            part[t][r] = add_dot_to(part[t][r], dot[t][r], j, x[t][b], w.sub_scales_of(b, j, r));
                        }
                    }
                }
            }
            in_memory(sum);
            for (int r = 0; r < R; ++r) {
                const floats d = load(w.d[b][r]);
                for (int t = 0; t < T; ++t) {
                    store(sum[t][r], add_block(load(sum[t][r]), part[t][r], d, x[t][b]));
                }
            }
        }
        for (int t = 0; t < T; ++t) {
            for (int r = 0; r < R; ++r) {
                store_unaligned(y[t] + r * 16, load(sum[t][r]));
            }
        }
    }
};

} // namespace
