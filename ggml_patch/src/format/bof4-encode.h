// What all encoders do with the weights of one block.
#pragma once

#include "bof4-blocks.h"
#include "bof4-levels.h"
#include "ggml-impl.h"

#include <math.h>
#include <string.h>

#define BOF4_FP16_MAX 65504.0f
#define BOF4_FP16_NAN 0x7e00

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

// The fp16 that is stored for a scale. NaN stays NaN, so that bad weights stay visible: validation refuses it.
static inline uint16_t bof4_stored_scale(float d) {
    return isnan(d) ? BOF4_FP16_NAN : GGML_FP32_TO_FP16(fminf(fmaxf(d, -BOF4_FP16_MAX), BOF4_FP16_MAX));
}

// Codes of the nearest levels to x, where a level of 1 is worth `unit`; zero codes where that is 0 or NaN. n and levels are
// constants wherever this is called, so that it is compiled for them.
static inline void bof4_nearest_codes(
        const float * x, int n, const float * midpoints, int zero_code, float unit, uint8_t * codes) {
    if (!(fabsf(unit) > 0.0f)) {
        memset(codes, zero_code, n);
        return;
    }
    const float inverse = 1.0f / unit;
    float y[QK_BOF4_S];
    for (int j = 0; j < n; ++j) {
        y[j] = x[j] * inverse;
    }
    // code = number of midpoints below: no search and no branch, so the inner loop vectorizes
    int32_t code[QK_BOF4_S] = {0};
    for (int c = 0; c < 15; ++c) {
        for (int j = 0; j < n; ++j) {
            code[j] += y[j] > midpoints[c];
        }
    }
    for (int j = 0; j < n; ++j) {
        codes[j] = (uint8_t) code[j];
    }
}
