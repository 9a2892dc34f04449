// Kernels for AVX2, which has no instruction for dot products of bytes.
//
// vpmaddubsw, the nearest to one, adds two products of an unsigned and a signed byte and saturates at 16 bits, which
// two products of a level and an int8 activation exceed. The two paths avoid this differently, both with four
// instructions for 32 products:
//
// GEMM widens levels and activations to 16 bits once, before the loop over them: vpmaddwd and vpaddd for 16 products,
// nothing else in the loop. 16 rows of 512 weights are 16 KiB, which stay in L1 while all columns are multiplied. Two
// registers of weights (16 rows) and six columns take 12 accumulators. Of BOF4_K, a 16-bit weight is the product of
// level and sub-block scale (127 * 32 at most), and the sum of 256 products with activations (less than 2^28) fits 32
// bits: one conversion in 256.
//
// GEMV has to look up levels for each product, and is faster with bytes: the activation is 16 * high + low, |high| and
// |low| at most 8, so that the sums of a dot (32 products of level + 128 in pairs) fit 16 bits: vpmaddubsw and vpaddw
// for each part, widened to 32 bits once a dot. There are eight accumulators: low and high nibbles of two registers,
// times high and low parts. BOF4_K's dots are multiplied by their scales as they are widened: vpmaddwd with the scale in
// both places.
#pragma once

#include "bof4-repack-layout.h"

#include <immintrin.h>

#include <cstring>

// Types of upstream that have kernels, too.
#define BOF4_GEMM_UPSTREAM_TYPES(X)

namespace {

inline __m256i load(const void * p) {
    return _mm256_loadu_si256(static_cast<const __m256i *>(p));
}

inline __m256i broadcast4(const void * p) {
    int32_t four;
    memcpy(&four, p, sizeof(four));
    return _mm256_set1_epi32(four);
}

// The 16 levels, each increased by `offset`, for vpshufb.
inline __m256i table(const int8_t * levels, int offset) {
    const __m128i t = _mm_add_epi8(_mm_loadu_si128((const __m128i *) levels), _mm_set1_epi8((char) offset));
    return _mm256_broadcastsi128_si256(t);
}

inline __m256i low(__m256i codes, __m256i levels) {
    return _mm256_shuffle_epi8(levels, _mm256_and_si256(codes, _mm256_set1_epi8(0x0f)));
}

inline __m256i high(__m256i codes, __m256i levels) {
    return low(_mm256_srli_epi16(codes, 4), levels);
}

// GCC otherwise reassociates a chain of integer additions, adds products to products and spills them: the accumulators
// occupy all registers here.
inline void keep_order(__m256i & accumulator) {
#if defined(__GNUC__)
    __asm__("" : "+x"(accumulator));
#else
    (void) accumulator;
#endif
}

// How dots, sums of 16-bit products, are added to the sum of a block. No primary definition. r: rows 8 r to 8 r + 7.
//
//   SUMS                             sums of a block in GEMM, each of which is converted to float32
//   sub_scales(head)                 the scales of all dots of weights
//   part, zero()                     the sum of a block in GEMV
//   add(part, dots, j, x, s, r)      adds dot j; dots: of high and of low parts of activations
//   value(part)                      as float32
//   scaled(levels, s, j, r)          16-bit weights
//   scale(d, x)                      of the sum of a block
//   converted(sum, h, part, x)       of sum h in GEMM
template <ggml_type type> struct accumulation;

template <> struct accumulation<GGML_TYPE_BOF4_S> {
    using layout = bof4_layout<GGML_TYPE_BOF4_S>;
    enum { SUMS = 2 };

    struct sub_scales {
        explicit sub_scales(const layout::head &) {}
    };
    using part = __m256;

    static part zero() { return _mm256_setzero_ps(); }
    static void add(part & p, const __m256i * dots, int j, const layout::act & x, const sub_scales &, int) {
        const __m256i total = _mm256_add_epi32(_mm256_add_epi32(_mm256_madd_epi16(dots[0], _mm256_set1_epi16(16)),
                                                   _mm256_madd_epi16(dots[1], _mm256_set1_epi16(1))),
            _mm256_set1_epi32(x.offset[j]));
        p = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), _mm256_set1_ps(x.d[j]), p);
    }
    static __m256 value(const part & p) { return p; }

    static __m256i scaled(__m256i levels, const sub_scales &, int, int) { return levels; }
    static __m256 scale(__m256 d, const layout::act &) { return d; }
    static __m256 converted(__m256i sum, int h, __m256 part, const layout::act & x) {
        const __m256 v = _mm256_cvtepi32_ps(sum);
        const __m256 d = _mm256_set1_ps(x.d[h]);
        return h == 0 ? _mm256_mul_ps(v, d) : _mm256_fmadd_ps(v, d, part);
    }
};

template <> struct accumulation<GGML_TYPE_BOF4_K> {
    using layout = bof4_layout<GGML_TYPE_BOF4_K>;
    enum { SUMS = 1 };

    struct sub_scales {
        alignas(32) int8_t s[BOF4_K_SUB_BLOCKS][BOF4_GROUP];

        explicit sub_scales(const layout::head & head) {
            const __m256i bias = _mm256_set1_epi8(BOF4_K_SUB_SCALE_OFFSET);
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) {
                // sub-blocks 4k to 4k + 3, two in each register
#pragma GCC unroll 2
                for (int half = 0; half < 2; ++half) {
                    const __m256i low = load(head.scales[k % 2 * 4 + 2 * half]);
                    const __m256i high = load(head.scales[8 + 2 * half]);
                    const __m256i low4 = _mm256_and_si256(_mm256_srli_epi16(low, k / 2 * 4), _mm256_set1_epi8(0x0f));
                    const __m256i high2 = _mm256_and_si256(
                        k < 2 ? _mm256_slli_epi16(high, 4 - 2 * k) : _mm256_srli_epi16(high, 2 * k - 4),
                        _mm256_set1_epi8(0x30));
                    _mm256_store_si256(
                        (__m256i *) s[4 * k + 2 * half], _mm256_sub_epi8(_mm256_or_si256(low4, high2), bias));
                }
            }
        }

        // Of sub-block j of eight rows, twice in each 32-bit lane.
        __m256i of(int j, int r) const {
            const __m128i eight = _mm_loadl_epi64((const __m128i *) (s[j] + 8 * r));
            return _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(eight, eight));
        }
    };
    struct part {
        __m256i high, low; // of parts of activations
    };

    static part zero() { return { _mm256_setzero_si256(), _mm256_setzero_si256() }; }
    static void add(part & p, const __m256i * dots, int j, const layout::act & x, const sub_scales & scales, int r) {
        const __m256i s = scales.of(j, r);
        // the offset, -2^7 * sum, as 2^4 * (-2^3 * sum): the sum of 16 numbers fits 12 bits
        const __m256i offset = _mm256_set1_epi32(x.offset[j] / 16 & 0xffff);
        p.high = _mm256_add_epi32(
            p.high, _mm256_add_epi32(_mm256_madd_epi16(dots[0], s), _mm256_madd_epi16(offset, s)));
        p.low = _mm256_add_epi32(p.low, _mm256_madd_epi16(dots[1], s));
    }
    static __m256 value(const part & p) {
        return _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(p.high, 4), p.low));
    }

    static __m256i scaled(__m256i levels, const sub_scales & scales, int j, int r) {
        return _mm256_mullo_epi16(levels, scales.of(j, r));
    }
    static __m256 scale(__m256 d, const layout::act & x) { return _mm256_mul_ps(d, _mm256_set1_ps(x.d[0])); }
    static __m256 converted(__m256i sum, int, __m256, const layout::act &) { return _mm256_cvtepi32_ps(sum); }
};

template <ggml_type type>
struct bof4_kernel {
    using repacked = bof4_repacked<type>;
    using layout = bof4_layout<type>;
    using act = typename layout::act;
    using pair = bof4_block_pair<type>;
    using acc = accumulation<type>;
    enum {
        GROUPS = 1,
        GEMM_COLUMNS = 6,
        GEMM_LEAST = 1,
        GEMV_COLUMNS = 1,
        USE_GEMV = layout::HAS_SUB_SCALES ? 4 : 6,
        MAX_COLUMNS = 128,
        ACT_OF_PATH = 1,
        DOT = layout::DOT,
        DOTS = layout::BLOCK / DOT,
        STEPS = DOT / 4, // of 64 bytes, 16 rows with 4 codes in low and 4 in high nibbles
        CHUNK = BOF4_UNPACKED / layout::BLOCK,
    };

    // d of eight rows.
    static __m256 scales(const typename layout::head & head, int r) {
        const __m128i d = _mm_loadu_si128((const __m128i *) (head.d + 8 * r));
        return _mm256_mul_ps(_mm256_cvtph_ps(d), _mm256_set1_ps(layout::UNIT));
    }

    // Both registers of rows at once: each broadcast of activations is used for both (1.3 times as fast as eight rows
    // after eight). The sums of two columns would not fit the 16 registers.
    template <int T, typename P>
    [[gnu::noinline]] static void gemv(
        const pair * group, int64_t n_blocks, const act * const * columns, float * const * y, P prefetch) {
        static_assert(T == 1, "");
        const act * x = columns[0];
        const __m256i levels = table(layout::LEVELS, 128);
        __m256 sum[2] = { _mm256_setzero_ps(), _mm256_setzero_ps() };
        for (int64_t b = 0; b < n_blocks; ++b) {
            const auto & head = bof4_head(group, b);
            prefetch.lines(bof4_head_lines<type>(b));
            const typename acc::sub_scales sub_scales(head);
            typename acc::part part[2] = { acc::zero(), acc::zero() };
            for (int k = 0; k < DOTS / 2; ++k) {
                const int j[2] = { bof4_low_dot<layout>(k), bof4_low_dot<layout>(k) + layout::NIBBLES / DOT };
                __m256i dot[2][2][2]; // [nibble][eight rows][high, low part of activations]
                for (int h = 0; h < 2; ++h) {
                    for (int r = 0; r < 2; ++r) {
                        dot[h][r][0] = dot[h][r][1] = _mm256_setzero_si256();
                    }
                }
#pragma GCC unroll 8
                for (int i = 0; i < STEPS; ++i) {
                    prefetch.lines(layout::new_lines(k));
                    const auto & qs = bof4_codes(group, b).qs[STEPS * k + i];
                    const __m256i codes[2] = { load(qs[0]), load(qs[8]) };
#pragma GCC unroll 2
                    for (int h = 0; h < 2; ++h) {
                        const int at = DOT * j[h] + 4 * i;
                        const __m256i high4 = broadcast4(x[b].u.half.high + at);
                        const __m256i low4 = broadcast4(x[b].u.half.low + at);
#pragma GCC unroll 2
                        for (int r = 0; r < 2; ++r) {
                            const __m256i level = h == 0 ? low(codes[r], levels) : high(codes[r], levels);
                            dot[h][r][0] = _mm256_add_epi16(dot[h][r][0], _mm256_maddubs_epi16(level, high4));
                            dot[h][r][1] = _mm256_add_epi16(dot[h][r][1], _mm256_maddubs_epi16(level, low4));
                            keep_order(dot[h][r][0]);
                            keep_order(dot[h][r][1]);
                        }
                    }
                }
                for (int h = 0; h < 2; ++h) {
                    for (int r = 0; r < 2; ++r) {
                        acc::add(part[r], dot[h][r], j[h], x[b], sub_scales, r);
                    }
                }
            }
            for (int r = 0; r < 2; ++r) {
                sum[r] = _mm256_fmadd_ps(acc::value(part[r]), acc::scale(scales(head, r), x[b]), sum[r]);
            }
        }
        for (int r = 0; r < 2; ++r) {
            _mm256_storeu_ps(y[0] + 8 * r, sum[r]);
        }
    }

    // 16-bit weights: of four neighbours of a row, the first and third, then the others.
    template <int R>
    struct unpacked {
        alignas(64) int16_t weights[CHUNK][DOTS][STEPS][2][2][16]; // [block][dot][step][pair][eight rows]
        alignas(64) float d[CHUNK][2][8];

        void fill(const pair * group, int, int64_t b0, int64_t n) {
            const __m256i levels = table(layout::LEVELS, 0);
            for (int64_t b = 0; b < n; ++b) {
                const auto & head = bof4_head(group, b0 + b);
                const typename acc::sub_scales sub_scales(head);
                for (int r = 0; r < 2; ++r) {
                    for (int k = 0; k < DOTS / 2; ++k) {
                        for (int i = 0; i < STEPS; ++i) {
                            const __m256i codes = load(bof4_codes(group, b0 + b).qs[STEPS * k + i][8 * r]);
                            const __m256i level[2] = { low(codes, levels), high(codes, levels) };
                            for (int h = 0; h < 2; ++h) {
                                const int j = bof4_low_dot<layout>(k) + h * (layout::NIBBLES / DOT);
                                const __m256i first = _mm256_srai_epi16(_mm256_slli_epi16(level[h], 8), 8);
                                const __m256i second = _mm256_srai_epi16(level[h], 8);
                                auto * to = weights[b][j][i];
                                _mm256_store_si256((__m256i *) to[0][r], acc::scaled(first, sub_scales, j, r));
                                _mm256_store_si256((__m256i *) to[1][r], acc::scaled(second, sub_scales, j, r));
                            }
                        }
                    }
                    _mm256_store_ps(d[b][r], scales(head, r));
                }
            }
        }
    };

    template <int R, int T>
    [[gnu::noinline]] static void tile(
        const unpacked<R> & w, int64_t n, const act * const * columns, bool first, float * const * y) {
        const act * x[T];
        alignas(32) float sum[T][2][8];
        for (int t = 0; t < T; ++t) {
            x[t] = columns[t];
            for (int r = 0; r < 2; ++r) {
                _mm256_store_ps(sum[t][r], first ? _mm256_setzero_ps() : _mm256_loadu_ps(y[t] + r * 8));
            }
        }
        for (int64_t b = 0; b < n; ++b) {
            __m256 part[T][2];
#pragma GCC unroll 2
            for (int h = 0; h < acc::SUMS; ++h) {
                __m256i dot[T][2];
                for (int t = 0; t < T; ++t) {
                    dot[t][0] = dot[t][1] = _mm256_setzero_si256();
                }
                for (int j = h * (DOTS / acc::SUMS); j < (h + 1) * (DOTS / acc::SUMS); ++j) {
#pragma GCC unroll 8
                    for (int i = 0; i < STEPS; ++i) {
#pragma GCC unroll 2
                        for (int p = 0; p < 2; ++p) {
                            for (int t = 0; t < T; ++t) {
                                const __m256i act4 = broadcast4(x[t][b].u.q + DOT * j + 4 * i + 2 * p);
                                for (int r = 0; r < 2; ++r) {
                                    const __m256i weight = _mm256_load_si256(
                                        (const __m256i *) w.weights[b][j][i][p][r]);
                                    dot[t][r] = _mm256_add_epi32(dot[t][r], _mm256_madd_epi16(weight, act4));
                                    keep_order(dot[t][r]);
                                }
                            }
                        }
                    }
                }
                for (int t = 0; t < T; ++t) {
                    for (int r = 0; r < 2; ++r) {
                        part[t][r] = acc::converted(dot[t][r], h, part[t][r], x[t][b]);
                    }
                }
            }
            for (int t = 0; t < T; ++t) {
                for (int r = 0; r < 2; ++r) {
                    const __m256 d = acc::scale(_mm256_load_ps(w.d[b][r]), x[t][b]);
                    _mm256_store_ps(sum[t][r], _mm256_fmadd_ps(part[t][r], d, _mm256_load_ps(sum[t][r])));
                }
            }
        }
        for (int t = 0; t < T; ++t) {
            for (int r = 0; r < 2; ++r) {
                _mm256_storeu_ps(y[t] + r * 8, _mm256_load_ps(sum[t][r]));
            }
        }
    }
};

} // namespace
