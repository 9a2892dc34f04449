// BOF4 encoders and decoders, portable C. Bit for bit what gguf_bof4/quants.py computes: every
// float operation below stands there too, in the same order (tests compare the two).

#include "bof4.h"
#include "ggml-impl.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const int8_t bof4_s_levels[16] = BOF4_S_LEVELS;

#define FP16_MAX 65504.0f
#define FP16_NAN 0x7e00

static uint32_t magnitude_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits & 0x7fffffffu;
}

// The element of largest magnitude, with its sign; the first of equals. NaN where any element is not finite.
static float signed_maximum(const float * x, int n) {
    // magnitudes of IEEE floats order like their bits, and an integer maximum vectorizes without -ffast-math
    uint32_t largest = 0;
    for (int j = 0; j < n; ++j) {
        const uint32_t bits = magnitude_bits(x[j]);
        largest = bits > largest ? bits : largest;
    }
    if (largest >= 0x7f800000u) {
        return NAN;
    }
    int j = 0;
    while (magnitude_bits(x[j]) != largest) {
        ++j;
    }
    return x[j];
}

// The paper's encoder: scale = signed block maximum (eq. 4), code = nearest level.
static void encode_block_bof4_s(const float * x, block_bof4_s * block) {
    const float m = signed_maximum(x, QK_BOF4_S);
    if (isnan(m)) {
        // keep bad weights visible: validation refuses this scale
        block->d = FP16_NAN;
        memset(block->qs, BOF4_S_ZERO_CODE * 0x11, sizeof(block->qs));
        return;
    }

    block->d = GGML_FP32_TO_FP16(fminf(fmaxf(m, -FP16_MAX), FP16_MAX));

    // normalize by the stored scale, not by m: that is what the decoder multiplies with
    const float d = GGML_FP16_TO_FP32(block->d);
    const float inverse = d != 0.0f ? (float) BOF4_LEVEL_SCALE / d : 0.0f;

    float y[QK_BOF4_S];
    for (int j = 0; j < QK_BOF4_S; ++j) {
        y[j] = x[j] * inverse;
    }

    // code = number of midpoints below: no search and no branch, so the inner loop vectorizes
    int32_t code[QK_BOF4_S] = {0};
    for (int c = 0; c < 15; ++c) {
        const float midpoint = 0.5f * (float) (bof4_s_levels[c] + bof4_s_levels[c + 1]);
        for (int j = 0; j < QK_BOF4_S; ++j) {
            code[j] += y[j] > midpoint;
        }
    }

    for (int j = 0; j < QK_BOF4_S / 2; ++j) {
        block->qs[j] = (uint8_t) (code[j] | code[j + QK_BOF4_S / 2] << 4);
    }
}

void quantize_row_bof4_s_ref(const float * x, void * y, int64_t k) {
    assert(k % QK_BOF4_S == 0);
    block_bof4_s * blocks = y;
    for (int64_t i = 0; i < k / QK_BOF4_S; ++i) {
        encode_block_bof4_s(x + i * QK_BOF4_S, blocks + i);
    }
}

size_t quantize_bof4_s(const float * src, void * dst, int64_t nrow, int64_t n_per_row, const float * imatrix) {
    GGML_UNUSED(imatrix); // absmax looks at the weights alone
    quantize_row_bof4_s_ref(src, dst, nrow * n_per_row);
    return nrow * ggml_row_size(GGML_TYPE_BOF4_S, n_per_row);
}

void dequantize_row_bof4_s(const void * x, float * y, int64_t k) {
    assert(k % QK_BOF4_S == 0);
    const block_bof4_s * blocks = x;
    for (int64_t i = 0; i < k / QK_BOF4_S; ++i, y += QK_BOF4_S) {
        const float d = GGML_FP16_TO_FP32(blocks[i].d);
        for (int j = 0; j < QK_BOF4_S / 2; ++j) {
            const uint8_t q = blocks[i].qs[j];
            // d * level is exact (11 + 7 bits), so one rounding is left and level 127 gives exactly d
            y[j]                 = d * bof4_s_levels[q & 0xf] * (1.0f / BOF4_LEVEL_SCALE);
            y[j + QK_BOF4_S / 2] = d * bof4_s_levels[q >> 4]  * (1.0f / BOF4_LEVEL_SCALE);
        }
    }
}

bool validate_row_bof4_s(const void * data, size_t nblocks) {
    const block_bof4_s * blocks = data;
    for (size_t i = 0; i < nblocks; ++i) {
        const uint16_t exponent = blocks[i].d & 0x7c00;
        if (exponent == 0x7c00) {
            fprintf(stderr, "%s: block %zu has the scale %s\n", __func__, i, blocks[i].d & 0x03ff ? "NaN" : "Inf");
            return false;
        }
    }
    return true;
}
