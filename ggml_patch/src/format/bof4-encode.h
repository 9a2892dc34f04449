// What all encoders do with the weights of one block.
#pragma once

#include "bof4-blocks.h"
#include "bof4-levels.h"
#include "bof4-search.h"
#include "ggml-impl.h"

#include <math.h>
#include <string.h>

// The numbers of a type that its encoders need.
struct bof4_encoding {
    int block;     // weights
    int sub_block; // weights under the innermost scale
    int sub_blocks;
    int offset; // scales of sub-blocks lie from -offset to offset - 1; 0 where there are none
    float unit; // value of level 1 where every scale is 1
    const int8_t * levels;
    const float * midpoints;
    int zero_code;
    struct bof4_search_grid search;
};

#define BOF4_DEFINE_ENCODING(NAME, name) \
    static const struct bof4_encoding name##_encoding = { \
        QK_##NAME, \
        NAME##_SUB_BLOCK, \
        NAME##_SUB_BLOCKS, \
        NAME##_SUB_SCALE_OFFSET, \
        NAME##_UNIT, \
        name##_levels, \
        name##_midpoints, \
        NAME##_ZERO_CODE, \
        NAME##_SEARCH, \
    };
BOF4_TYPES(BOF4_DEFINE_ENCODING)
#undef BOF4_DEFINE_ENCODING

static inline uint32_t bof4_magnitude_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits & 0x7fffffffu;
}

// Bits of the largest magnitude; 0x7f800000 or more where an element is not finite.
static inline uint32_t bof4_largest_bits(const float * x, int n) {
    // magnitudes of IEEE floats order like their bits, and an integer maximum vectorizes without -ffast-math
    uint32_t largest = 0;
    for (int j = 0; j < n; ++j) {
        const uint32_t bits = bof4_magnitude_bits(x[j]);
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

// The largest magnitude of a block, or a number that stands for it: infinity where it is too large for the types, NaN
// where an element is not finite. Stored as a scale, both are refused by validation.
static inline float bof4_checked_magnitude(uint32_t largest_bits) {
    float largest;
    memcpy(&largest, &largest_bits, sizeof(largest));
    return largest_bits >= 0x7f800000u ? NAN : largest >= BOF4_FP16_OVERFLOW ? INFINITY : largest;
}

// The fp16 that is stored for a scale. NaN and infinities stay what they are, so that weights that are not finite, or
// too large, stay visible.
static inline uint16_t bof4_stored_scale(float d) {
    if (isnan(d)) {
        return BOF4_FP16_NAN;
    }
    return isinf(d) ? BOF4_FP16_INFINITY : GGML_FP32_TO_FP16(fminf(fmaxf(d, -BOF4_FP16_MAX), BOF4_FP16_MAX));
}

// A scale of a sub-block, rounded already, as it can be stored; the lowest for NaN. Comparisons, where fmaxf would be a
// call.
static inline float bof4_clamped_scale(float s, const struct bof4_encoding * type) {
    const float lowest = (float) -type->offset;
    const float highest = (float) (type->offset - 1);
    const float at_least = s > lowest ? s : lowest;
    return at_least < highest ? at_least : highest;
}

// Codes of the nearest levels to x[type->sub_block]. per_level: the value of level 1; zero codes where that is 0 or
// NaN. The type is a constant wherever this is called, so that the function is compiled for it.
static inline void bof4_nearest_codes(
    const float * x, const struct bof4_encoding * type, float per_level, uint8_t * codes) {
    const int n = type->sub_block;
    if (!(fabsf(per_level) > 0.0f)) {
        memset(codes, type->zero_code, n);
        return;
    }
    const float inverse = 1.0f / per_level;
    float y[BOF4_MAX_SUB_BLOCK];
    for (int j = 0; j < n; ++j) {
        y[j] = x[j] * inverse;
    }
    // code = number of midpoints below: no search and no branch, so the inner loop vectorizes
    int32_t code[BOF4_MAX_SUB_BLOCK] = { 0 };
    for (int c = 0; c < 15; ++c) {
        for (int j = 0; j < n; ++j) {
            code[j] += y[j] > type->midpoints[c];
        }
    }
    for (int j = 0; j < n; ++j) {
        codes[j] = (uint8_t) code[j];
    }
}

// The value of level 1 under the only scale of a block. Encoders divide by 127; decoders multiply by the rounded
// 1 / 127.
static inline float bof4_value_per_level(uint16_t d) {
    return GGML_FP16_TO_FP32(d) / (float) BOF4_LEVEL_SCALE;
}
