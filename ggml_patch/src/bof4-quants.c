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

// A block that has no scale: bad weights stay visible, because validation refuses the scale NaN.
static void encode_bad_block(block_bof4_s * block) {
    block->d = FP16_NAN;
    memset(block->qs, BOF4_S_ZERO_CODE * 0x11, sizeof(block->qs));
}

// The scale that is stored for m.
static uint16_t stored_scale(float m) {
    return GGML_FP32_TO_FP16(fminf(fmaxf(m, -FP16_MAX), FP16_MAX));
}

// Weights in units of levels, for the scale d.
static void in_level_units(const float * x, float d, float * y) {
    const float inverse = d != 0.0f ? (float) BOF4_LEVEL_SCALE / d : 0.0f;
    for (int j = 0; j < QK_BOF4_S; ++j) {
        y[j] = x[j] * inverse;
    }
}

static float midpoint(int c) {
    return 0.5f * (float) (bof4_s_levels[c] + bof4_s_levels[c + 1]);
}

// Nearest codes for a stored scale.
static void encode_with_scale(const float * x, uint16_t scale, block_bof4_s * block) {
    block->d = scale;
    // normalize by the stored scale, not by the maximum: that is what the decoder multiplies with
    float y[QK_BOF4_S];
    in_level_units(x, GGML_FP16_TO_FP32(scale), y);

    // code = number of midpoints below: no search and no branch, so the inner loop vectorizes
    int32_t code[QK_BOF4_S] = {0};
    for (int c = 0; c < 15; ++c) {
        const float limit = midpoint(c);
        for (int j = 0; j < QK_BOF4_S; ++j) {
            code[j] += y[j] > limit;
        }
    }

    for (int j = 0; j < QK_BOF4_S / 2; ++j) {
        block->qs[j] = (uint8_t) (code[j] | code[j + QK_BOF4_S / 2] << 4);
    }
}

// The paper's encoder: scale = signed block maximum (eq. 4), code = nearest level.
static void encode_block_bof4_s(const float * x, block_bof4_s * block) {
    const float m = signed_maximum(x, QK_BOF4_S);
    if (isnan(m)) {
        encode_bad_block(block);
        return;
    }
    encode_with_scale(x, stored_scale(m), block);
}

// How well the nearest levels k for the scale d can serve, and the scale that serves them best: with the
// least-squares scale sum(w x k) / sum(w k^2), the squared error falls by sum(w x k)^2 / sum(w k^2).
struct fit {
    float gain;
    float scale;
};

static struct fit fit_of_scale(const float * x, const float * w, float d) {
    float y[QK_BOF4_S];
    in_level_units(x, d, y);

    // level = lowest level + the steps whose midpoints are below
    float level[QK_BOF4_S];
    for (int j = 0; j < QK_BOF4_S; ++j) {
        level[j] = (float) bof4_s_levels[0];
    }
    for (int c = 0; c < 15; ++c) {
        const float limit = midpoint(c);
        const float step = (float) (bof4_s_levels[c + 1] - bof4_s_levels[c]);
        for (int j = 0; j < QK_BOF4_S; ++j) {
            level[j] += y[j] > limit ? step : 0.0f;
        }
    }

    // eight partial sums: without -ffast-math a single one would not vectorize
    float xk[8] = {0};
    float kk[8] = {0};
    for (int j = 0; j < QK_BOF4_S; j += 8) {
        for (int i = 0; i < 8; ++i) {
            const float wk = w[j + i] * level[j + i];
            xk[i] += wk * x[j + i];
            kk[i] += wk * level[j + i];
        }
    }
    float sum_xk = 0.0f;
    float sum_kk = 0.0f;
    for (int i = 0; i < 8; ++i) {
        sum_xk += xk[i];
        sum_kk += kk[i];
    }
    if (!(sum_kk > 0.0f)) {
        return (struct fit) { 0.0f, 0.0f };
    }
    return (struct fit) { sum_xk * (sum_xk / sum_kk), sum_xk / sum_kk * (float) BOF4_LEVEL_SCALE };
}

// Scale search: scales around the block maximum, of either sign, each refined by least squares; the one that
// minimizes the squared error weighted by w is stored.
static void search_block_bof4_s(const float * x, const float * w, block_bof4_s * block) {
    const float m = signed_maximum(x, QK_BOF4_S);
    if (isnan(m)) {
        encode_bad_block(block);
        return;
    }
    // on Gaussian weights more candidates lower the error by less than 0.3 % (bench/NOTES.md)
    struct fit best = { 0.0f, m };
    for (int i = 0; i < 9; ++i) {
        const struct fit same = fit_of_scale(x, w, m * (0.72f + 0.045f * (float) i));
        const struct fit other = fit_of_scale(x, w, -m * (0.78f + 0.0425f * (float) i));
        best = same.gain > best.gain ? same : best;
        best = other.gain > best.gain ? other : best;
    }
    const struct fit again = fit_of_scale(x, w, best.scale);
    encode_with_scale(x, stored_scale(again.gain >= best.gain ? again.scale : best.scale), block);
}

void quantize_rows_bof4_s_search(
        const float * src, void * dst, int64_t nrow, int64_t n_per_row, const float * importance) {
    assert(n_per_row % QK_BOF4_S == 0);
    static const float ones[QK_BOF4_S] = {
        1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
        1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    };
    block_bof4_s * blocks = dst;
    for (int64_t i = 0; i < nrow * n_per_row / QK_BOF4_S; ++i) {
        const int64_t column = i * QK_BOF4_S % n_per_row;
        search_block_bof4_s(src + i * QK_BOF4_S, importance ? importance + column : ones, blocks + i);
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
