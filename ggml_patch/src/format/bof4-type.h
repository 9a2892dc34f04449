// The types for C++ templates: bof4_type<GGML_TYPE_BOF4_S> and so on. There is no primary definition, so that a type
// that a template is used with, but that has no specialization here, does not compile.
#pragma once

#include "bof4-blocks.h"
#include "bof4-levels.h"
#include "bof4-search.h"

#include <algorithm>
#include <cmath>

template <ggml_type type> struct bof4_type;

// The numbers of a type, from the generated header.
#define BOF4_TYPE_NUMBERS(NAME, name) \
    using block_type = block_##name; \
    static constexpr int block = QK_##NAME;            /* weights */ \
    static constexpr int sub_block = NAME##_SUB_BLOCK; /* weights under the innermost scale */ \
    static constexpr int sub_blocks = NAME##_SUB_BLOCKS; \
    static constexpr bool is_uniform = false; \
    static constexpr bool has_minimum = false; \
    static constexpr float top = BOF4_LEVEL_SCALE; /* the grid counts in this level */ \
    static constexpr int zero_code = NAME##_ZERO_CODE; \
    static constexpr const int8_t * levels = name##_levels; \
    static constexpr bof4_search_grid gptq = NAME##_GPTQ;

// The scales of a superblock, of which the multipliers and minimums of its sub-blocks are whole multiples.
struct bof4_superscales {
    float d;    // of multipliers
    float dmin; // of minimums; 0 where there are none
};

// A weight is u * level * unit with the multiplier u of its sub-block. Types with has_minimum, which only llama.cpp has
// (bindings/bof4-gptq-types.h), subtract the minimum v of the sub-block.
//   superscales(x, w)    the superblock scales of the weights x[block] with the importances w; all u depend on them
//   snap(u, d)           the nearest u that can be stored with the superblock scale d
//   pack(out, s, u, v, codes)   the block with the multipliers u[sub_blocks], all of them snapped; v is not read where
//                        there are no minimums

// The fp16 scale is the only one, and it is u.
#define BOF4_TYPE_ONE_SCALE(NAME, name) \
    template <> struct bof4_type<GGML_TYPE_##NAME> { \
        BOF4_TYPE_NUMBERS(NAME, name) \
        static constexpr float unit = NAME##_UNIT; \
        static bof4_superscales superscales(const float *, const float *) { return { 0.0f, 0.0f }; } \
        static float snap(float u, float) { \
            return ggml_fp16_to_fp32(ggml_fp32_to_fp16(std::min(std::max(u, -BOF4_FP16_MAX), BOF4_FP16_MAX))); \
        } \
        static void pack(block_type * out, bof4_superscales, const float * u, const float *, const uint8_t * codes) { \
            name##_pack(out, ggml_fp32_to_fp16(u[0]), codes); \
        } \
    };

// u is a whole number of steps of the superblock scale.
#define BOF4_TYPE_SUB_SCALES(NAME, name) \
    template <> struct bof4_type<GGML_TYPE_##NAME> { \
        BOF4_TYPE_NUMBERS(NAME, name) \
        static constexpr float unit = 1.0f; \
        static constexpr int offset = NAME##_SUB_SCALE_OFFSET; \
        static bof4_superscales superscales(const float * x, const float * w) { \
            return { ggml_fp16_to_fp32(name##_search_superscale(x, w)), 0.0f }; \
        } \
        static float steps(float u, float d) { \
            const float step = d * NAME##_UNIT; \
            return std::fabs(step) > 0.0f \
                ? std::min(std::max(std::nearbyint(u / step), (float) -offset), (float) (offset - 1)) \
                : 0.0f; \
        } \
        static float snap(float u, float d) { return steps(u, d) * (d * NAME##_UNIT); } \
        static void pack( \
            block_type * out, bof4_superscales s, const float * u, const float *, const uint8_t * codes) { \
            int8_t scales[sub_blocks]; \
            for (int i = 0; i < sub_blocks; ++i) { \
                scales[i] = (int8_t) steps(u[i], s.d); \
            } \
            name##_pack(out, ggml_fp32_to_fp16(s.d), scales, codes); \
        } \
    };

BOF4_TYPES_ONE_SCALE(BOF4_TYPE_ONE_SCALE)
BOF4_TYPES_SUB_SCALES(BOF4_TYPE_SUB_SCALES)

#undef BOF4_TYPE_NUMBERS
#undef BOF4_TYPE_ONE_SCALE
#undef BOF4_TYPE_SUB_SCALES
