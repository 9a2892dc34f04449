// llama.cpp's own types for the encoder gptq: bof4_type<GGML_TYPE_Q4_K> and so on, beside this project's in
// format/bof4-type.h. Layouts are ggml's structs; the encoder's weights are what ggml's dequantize_row_* gives, in the
// same operations.
#pragma once

#include "../format/bof4-type.h"

#define GGML_COMMON_DECL_C
#define GGML_COMMON_IMPL_C
#include "ggml-common.h"

#include <cstdint>
#include <cstring>

// X(NAME, name) for every type of llama.cpp that gptq encodes.
#define BOF4_GPTQ_STOCK_TYPES(X) \
    X(Q4_0, q4_0) \
    X(Q4_1, q4_1) \
    X(Q5_0, q5_0) \
    X(Q5_1, q5_1) \
    X(Q8_0, q8_0) \
    X(IQ4_NL, iq4_nl) \
    X(Q2_K, q2_K) \
    X(Q3_K, q3_K) \
    X(Q4_K, q4_K) \
    X(Q5_K, q5_K) \
    X(Q6_K, q6_K) \
    X(IQ4_XS, iq4_xs)

// A weight is u * level - v with the multiplier u and, where has_minimum, the minimum v >= least_minimum of its sub-block.
//   lowest, highest    levels are the whole numbers between them, or the table `levels`; a code is level - lowest, or
//                      the index of the level
//   top                the level that the largest weight has at 1 in the grid `gptq`
//   Types with scales of sub-blocks, in superblocks:
//   scales_of(block)   the two fp16 numbers that those scales are multiples of

// The nearest whole number, for |x| < 2^22; a rounding that vectorizes without SSE4.1, too.
static inline float bof4_round(float x) {
    constexpr float magic = 12582912.0f;
    return (x + magic) - magic;
}

static inline float bof4_as_fp16(float x) {
    return ggml_fp16_to_fp32(ggml_fp32_to_fp16(std::min(std::max(x, -BOF4_FP16_MAX), BOF4_FP16_MAX)));
}

// x as a whole multiple of step, from `least` to `most` steps; 0 steps where step is 0.
static inline float bof4_steps(float x, float step, float least, float most) {
    return step != 0.0f ? bof4_round(std::min(std::max(x / step, least), most)) : std::max(least, 0.0f);
}

// What is the same in all of llama.cpp's types.
template <ggml_type type, int BLOCK, int SUB_BLOCK, int LOWEST, int HIGHEST> struct bof4_stock_type {
    static constexpr int block = BLOCK;
    static constexpr int sub_block = SUB_BLOCK;
    static constexpr int sub_blocks = BLOCK / SUB_BLOCK;
    static constexpr bool is_uniform = true;
    static constexpr bool has_minimum = false;
    static constexpr float unit = 1.0f;
    static constexpr int lowest = LOWEST;
    static constexpr int highest = HIGHEST;
    static constexpr float top = LOWEST < 0 ? (float) -LOWEST : (float) HIGHEST;
    static constexpr int zero_code = LOWEST < 0 ? -LOWEST : 0;
};

// Blocks whose fp16 scale is the only one.
template <ggml_type type, int LOWEST, int HIGHEST>
struct bof4_stock_block : bof4_stock_type<type, 32, 32, LOWEST, HIGHEST> {
    static bof4_superscales superscales(const float *, const float *) { return { 0.0f, 0.0f }; }
    static float snap(float u, float) { return bof4_as_fp16(u); }
    static float snap_minimum(float v, float) { return bof4_as_fp16(v); }
};

// Superblocks: the fp16 scales are those that ggml's own encoder finds with the importances w.
template <ggml_type type, typename BLOCK, int SUB_BLOCK, int LOWEST, int HIGHEST>
struct bof4_stock_superblock : bof4_stock_type<type, QK_K, SUB_BLOCK, LOWEST, HIGHEST> {
    using block_type = BLOCK;
    static bof4_superscales superscales(const float * x, const float * w) {
        BLOCK made;
        ggml_quantize_chunk(type, x, &made, 0, 1, QK_K, w);
        return bof4_type<type>::scales_of(made);
    }
};

static inline void bof4_pack_nibbles(uint8_t * qs, const uint8_t * codes) {
    for (int j = 0; j < 16; ++j) {
        qs[j] = (uint8_t) ((codes[j] & 0xf) | (codes[j + 16] & 0xf) << 4);
    }
}

// The fifth bits of 32 codes.
static inline void bof4_pack_fifth_bits(uint8_t * qh, const uint8_t * codes) {
    uint32_t bits = 0;
    for (int j = 0; j < 32; ++j) {
        bits |= (uint32_t) (codes[j] >> 4 & 1) << j;
    }
    std::memcpy(qh, &bits, sizeof(bits));
}

template <> struct bof4_type<GGML_TYPE_Q4_0> : bof4_stock_block<GGML_TYPE_Q4_0, -8, 7> {
    using block_type = block_q4_0;
    static constexpr bof4_search_grid gptq = { 0.72f, 0.06f, 9 };
    static void pack(block_type * out, bof4_superscales, const float * u, const float *, const uint8_t * codes) {
        out->d = ggml_fp32_to_fp16(u[0]);
        bof4_pack_nibbles(out->qs, codes);
    }
};

template <> struct bof4_type<GGML_TYPE_Q5_0> : bof4_stock_block<GGML_TYPE_Q5_0, -16, 15> {
    using block_type = block_q5_0;
    static constexpr bof4_search_grid gptq = { 0.80f, 0.05f, 7 };
    static void pack(block_type * out, bof4_superscales, const float * u, const float *, const uint8_t * codes) {
        out->d = ggml_fp32_to_fp16(u[0]);
        bof4_pack_nibbles(out->qs, codes);
        bof4_pack_fifth_bits(out->qh, codes);
    }
};

template <> struct bof4_type<GGML_TYPE_Q8_0> : bof4_stock_block<GGML_TYPE_Q8_0, -127, 127> {
    using block_type = block_q8_0;
    static constexpr bof4_search_grid gptq = { 0.96f, 0.02f, 3 };
    static void pack(block_type * out, bof4_superscales, const float * u, const float *, const uint8_t * codes) {
        out->d = ggml_fp32_to_fp16(u[0]);
        for (int j = 0; j < 32; ++j) {
            out->qs[j] = (int8_t) ((int) codes[j] + lowest);
        }
    }
};

template <> struct bof4_type<GGML_TYPE_IQ4_NL> : bof4_stock_block<GGML_TYPE_IQ4_NL, -127, 113> {
    using block_type = block_iq4_nl;
    static constexpr bool is_uniform = false;
    static constexpr const int8_t * levels = kvalues_iq4nl;
    static constexpr bof4_search_grid gptq = { 0.72f, 0.06f, 9 };
    static void pack(block_type * out, bof4_superscales, const float * u, const float *, const uint8_t * codes) {
        out->d = ggml_fp32_to_fp16(u[0]);
        bof4_pack_nibbles(out->qs, codes);
    }
};

template <> struct bof4_type<GGML_TYPE_Q4_1> : bof4_stock_block<GGML_TYPE_Q4_1, 0, 15> {
    using block_type = block_q4_1;
    static constexpr bool has_minimum = true;
    static constexpr float least_minimum = -BOF4_FP16_MAX;
    static constexpr bof4_search_grid gptq = { 0.72f, 0.05f, 8 };
    static void pack(block_type * out, bof4_superscales, const float * u, const float * v, const uint8_t * codes) {
        out->d = ggml_fp32_to_fp16(u[0]);
        out->m = ggml_fp32_to_fp16(-v[0]);
        bof4_pack_nibbles(out->qs, codes);
    }
};

template <> struct bof4_type<GGML_TYPE_Q5_1> : bof4_stock_block<GGML_TYPE_Q5_1, 0, 31> {
    using block_type = block_q5_1;
    static constexpr bool has_minimum = true;
    static constexpr float least_minimum = -BOF4_FP16_MAX;
    static constexpr bof4_search_grid gptq = { 0.82f, 0.04f, 6 };
    static void pack(block_type * out, bof4_superscales, const float * u, const float * v, const uint8_t * codes) {
        out->d = ggml_fp32_to_fp16(u[0]);
        out->m = ggml_fp32_to_fp16(-v[0]);
        bof4_pack_nibbles(out->qs, codes);
        bof4_pack_fifth_bits(out->qh, codes);
    }
};

// Whole numbers of 6 bits for the multipliers and the minimums of eight sub-blocks, in the 12 bytes of Q4_K and Q5_K.
static inline void bof4_pack_k_scales(uint8_t * scales, const uint8_t * sc, const uint8_t * m) {
    for (int j = 0; j < 4; ++j) {
        scales[j] = (uint8_t) (sc[j] | (sc[j + 4] >> 4) << 6);
        scales[j + 4] = (uint8_t) (m[j] | (m[j + 4] >> 4) << 6);
        scales[j + 8] = (uint8_t) ((sc[j + 4] & 0xf) | (m[j + 4] & 0xf) << 4);
    }
}

// Types with minimums, whose multipliers and minimums are both whole numbers from 0 to `most` of two fp16 scales.
template <ggml_type type, typename BLOCK, int SUB_BLOCK, int HIGHEST, int MOST>
struct bof4_stock_minimums : bof4_stock_superblock<type, BLOCK, SUB_BLOCK, 0, HIGHEST> {
    static constexpr bool has_minimum = true;
    static constexpr float least_minimum = 0.0f;
    static bof4_superscales scales_of(const BLOCK & made) {
        return { ggml_fp16_to_fp32(made.d), ggml_fp16_to_fp32(made.dmin) };
    }
    static float snap(float u, float d) { return bof4_steps(u, d, 0.0f, MOST) * d; }
    static float snap_minimum(float v, float dmin) { return bof4_steps(v, dmin, 0.0f, MOST) * dmin; }
    // What is stored of u[sub_blocks] and v[sub_blocks].
    static void numbers(BLOCK * out, bof4_superscales s, const float * u, const float * v, uint8_t * sc, uint8_t * m) {
        out->d = ggml_fp32_to_fp16(s.d);
        out->dmin = ggml_fp32_to_fp16(s.dmin);
        for (int i = 0; i < QK_K / SUB_BLOCK; ++i) {
            sc[i] = (uint8_t) bof4_steps(u[i], s.d, 0.0f, MOST);
            m[i] = (uint8_t) bof4_steps(v[i], s.dmin, 0.0f, MOST);
        }
    }
};

template <> struct bof4_type<GGML_TYPE_Q2_K> : bof4_stock_minimums<GGML_TYPE_Q2_K, block_q2_K, 16, 3, 15> {
    static constexpr bof4_search_grid gptq = { 0.50f, 0.07f, 9 };
    static void pack(block_type * out, bof4_superscales s, const float * u, const float * v, const uint8_t * codes) {
        uint8_t sc[16];
        uint8_t m[16];
        numbers(out, s, u, v, sc, m);
        for (int i = 0; i < 16; ++i) {
            out->scales[i] = (uint8_t) (sc[i] | m[i] << 4);
        }
        for (int j = 0; j < QK_K / 4; ++j) {
            const uint8_t * c = codes + j / 32 * 128 + j % 32;
            out->qs[j] = (uint8_t) (c[0] | c[32] << 2 | c[64] << 4 | c[96] << 6);
        }
    }
};

template <> struct bof4_type<GGML_TYPE_Q4_K> : bof4_stock_minimums<GGML_TYPE_Q4_K, block_q4_K, 32, 15, 63> {
    static constexpr bof4_search_grid gptq = { 0.72f, 0.05f, 8 };
    static void pack(block_type * out, bof4_superscales s, const float * u, const float * v, const uint8_t * codes) {
        uint8_t sc[8];
        uint8_t m[8];
        numbers(out, s, u, v, sc, m);
        bof4_pack_k_scales(out->scales, sc, m);
        for (int j = 0; j < QK_K / 2; ++j) {
            const uint8_t * c = codes + j / 32 * 64 + j % 32;
            out->qs[j] = (uint8_t) (c[0] | c[32] << 4);
        }
    }
};

template <> struct bof4_type<GGML_TYPE_Q5_K> : bof4_stock_minimums<GGML_TYPE_Q5_K, block_q5_K, 32, 31, 63> {
    static constexpr bof4_search_grid gptq = { 0.82f, 0.04f, 6 };
    static void pack(block_type * out, bof4_superscales s, const float * u, const float * v, const uint8_t * codes) {
        uint8_t sc[8];
        uint8_t m[8];
        numbers(out, s, u, v, sc, m);
        bof4_pack_k_scales(out->scales, sc, m);
        for (int j = 0; j < QK_K / 2; ++j) {
            const uint8_t * c = codes + j / 32 * 64 + j % 32;
            out->qs[j] = (uint8_t) ((c[0] & 0xf) | (c[32] & 0xf) << 4);
        }
        for (int j = 0; j < 32; ++j) {
            uint8_t bits = 0;
            for (int i = 0; i < 8; ++i) {
                bits |= (uint8_t) ((codes[32 * i + j] >> 4) << i);
            }
            out->qh[j] = bits;
        }
    }
};

// Types without minimums, whose multipliers are whole numbers from `LEAST` to `MOST` of the fp16 scale.
template <ggml_type type, typename BLOCK, int SUB_BLOCK, int LOWEST, int HIGHEST, int LEAST, int MOST>
struct bof4_stock_scales : bof4_stock_superblock<type, BLOCK, SUB_BLOCK, LOWEST, HIGHEST> {
    static bof4_superscales scales_of(const BLOCK & made) { return { ggml_fp16_to_fp32(made.d), 0.0f }; }
    static float snap(float u, float d) { return bof4_steps(u, d, LEAST, MOST) * d; }
    static int number(float u, float d) { return (int) bof4_steps(u, d, LEAST, MOST); }
};

template <> struct bof4_type<GGML_TYPE_Q3_K> : bof4_stock_scales<GGML_TYPE_Q3_K, block_q3_K, 16, -4, 3, -32, 31> {
    static constexpr bof4_search_grid gptq = { 0.50f, 0.075f, 12 };
    static void pack(block_type * out, bof4_superscales s, const float * u, const float *, const uint8_t * codes) {
        std::memset(out, 0, sizeof(*out));
        out->d = ggml_fp32_to_fp16(s.d);
        for (int i = 0; i < 16; ++i) {
            const int n = number(u[i], s.d) + 32;
            out->scales[i % 8] |= (uint8_t) ((n & 0xf) << i / 8 * 4);
            out->scales[8 + i % 4] |= (uint8_t) ((n >> 4) << i / 4 * 2);
        }
        for (int j = 0; j < QK_K; ++j) {
            const int run = j / 32; // of 32 weights: two bits of it in 32 bytes of qs, the third in hmask
            out->qs[run / 4 * 32 + j % 32] |= (uint8_t) ((codes[j] & 3) << run % 4 * 2);
            out->hmask[j % 32] |= (uint8_t) ((codes[j] >> 2) << run);
        }
    }
};

template <> struct bof4_type<GGML_TYPE_Q6_K> : bof4_stock_scales<GGML_TYPE_Q6_K, block_q6_K, 16, -32, 31, -128, 127> {
    static constexpr bof4_search_grid gptq = { 0.86f, 0.04f, 6 };
    static void pack(block_type * out, bof4_superscales s, const float * u, const float *, const uint8_t * codes) {
        std::memset(out, 0, sizeof(*out));
        out->d = ggml_fp32_to_fp16(s.d);
        for (int i = 0; i < 16; ++i) {
            out->scales[i] = (int8_t) number(u[i], s.d);
        }
        for (int j = 0; j < QK_K; ++j) {
            const int half = j / 128;
            const int run = j % 128 / 32;
            out->ql[64 * half + run % 2 * 32 + j % 32] |= (uint8_t) ((codes[j] & 0xf) << run / 2 * 4);
            out->qh[32 * half + j % 32] |= (uint8_t) ((codes[j] >> 4) << 2 * run);
        }
    }
};

template <>
struct bof4_type<GGML_TYPE_IQ4_XS> : bof4_stock_scales<GGML_TYPE_IQ4_XS, block_iq4_xs, 32, -127, 113, -32, 31> {
    static constexpr bool is_uniform = false;
    static constexpr const int8_t * levels = kvalues_iq4nl;
    static constexpr bof4_search_grid gptq = { 0.72f, 0.06f, 9 };
    static void pack(block_type * out, bof4_superscales s, const float * u, const float *, const uint8_t * codes) {
        std::memset(out, 0, sizeof(*out));
        out->d = ggml_fp32_to_fp16(s.d);
        for (int i = 0; i < 8; ++i) {
            const int n = number(u[i], s.d) + 32;
            out->scales_l[i / 2] |= (uint8_t) ((n & 0xf) << i % 2 * 4);
            out->scales_h |= (uint16_t) ((n >> 4) << 2 * i);
            bof4_pack_nibbles(out->qs + 16 * i, codes + 32 * i);
        }
    }
};
