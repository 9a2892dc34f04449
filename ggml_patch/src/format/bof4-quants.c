// BOF4 blocks: the absmax encoders, the decoders and the validation of both types, portable C. Bit for bit what
// gguf_bof4/quants.py computes: every float operation below stands there too, in the same order (tests compare the two).

#include "bof4-blocks.h"
#include "bof4-encode.h"

#include <assert.h>
#include <stdio.h>

// The element of largest magnitude, with its sign; the first of equals. NaN where any element is not finite.
static float signed_maximum(const float * x, int n) {
    const uint32_t largest = bof4_largest_bits(x, n);
    if (largest >= 0x7f800000u) {
        return NAN;
    }
    int j = 0;
    while (bof4_magnitude_bits(x[j]) != largest) {
        ++j;
    }
    return x[j];
}

void bof4_s_pack(block_bof4_s * block, uint16_t d, const uint8_t codes[QK_BOF4_S]) {
    block->d = d;
    for (int j = 0; j < QK_BOF4_S / 2; ++j) {
        block->qs[j] = (uint8_t) (codes[j] | codes[j + QK_BOF4_S / 2] << 4);
    }
}

void bof4_k_pack(block_bof4_k * block, uint16_t d, const int8_t scales[BOF4_K_SUB_BLOCKS], const uint8_t codes[QK_BOF4_K]) {
    block->d = d;
    memset(block->scales, 0, sizeof(block->scales));
    for (int j = 0; j < BOF4_K_SUB_BLOCKS; ++j) {
        const int s = scales[j] + 32;
        block->scales[j % 8]     |= (uint8_t) ((s & 0xf) << 4 * (j / 8));
        block->scales[8 + j % 4] |= (uint8_t) (s >> 4 << 2 * (j / 4));
    }
    for (int h = 0; h < 2; ++h) {
        for (int j = 0; j < 64; ++j) {
            block->qs[64 * h + j] = (uint8_t) (codes[128 * h + j] | codes[128 * h + 64 + j] << 4);
        }
    }
}

// Scale = signed block maximum (eq. 4), code = nearest level. The codes are those for the stored scale, not for the
// maximum: that is what the decoder multiplies with.
static void encode_block_bof4_s(const float * x, block_bof4_s * block) {
    const uint16_t d = bof4_stored_scale(signed_maximum(x, QK_BOF4_S));
    uint8_t codes[QK_BOF4_S];
    bof4_nearest_codes(x, QK_BOF4_S, bof4_s_midpoints, BOF4_S_ZERO_CODE,
        GGML_FP16_TO_FP32(d) / (float) BOF4_LEVEL_SCALE, codes);
    bof4_s_pack(block, d, codes);
}

// The same with two levels of scales: the largest maximum of all gets the scale -32, which has no positive counterpart.
static void encode_block_bof4_k(const float * x, block_bof4_k * block) {
    const float m = signed_maximum(x, QK_BOF4_K);
    const uint16_t d = bof4_stored_scale(m * (-4096.0f / (32 * BOF4_LEVEL_SCALE)));
    const float unit = GGML_FP16_TO_FP32(d) * BOF4_K_UNIT;
    int8_t scales[BOF4_K_SUB_BLOCKS] = {0};
    uint8_t codes[QK_BOF4_K];
    for (int b = 0; b < BOF4_K_SUB_BLOCKS; ++b) {
        const float * block_x = x + b * BOF4_K_SUB_BLOCK;
        if (fabsf(unit) > 0.0f) {
            const float s = rintf(signed_maximum(block_x, BOF4_K_SUB_BLOCK) / (unit * (float) BOF4_LEVEL_SCALE));
            scales[b] = (int8_t) fminf(fmaxf(s, -32.0f), 31.0f);
        }
        bof4_nearest_codes(block_x, BOF4_K_SUB_BLOCK, bof4_k_midpoints, BOF4_K_ZERO_CODE, unit * (float) scales[b],
            codes + b * BOF4_K_SUB_BLOCK);
    }
    bof4_k_pack(block, d, scales, codes);
}

void quantize_row_bof4_s_ref(const float * x, void * y, int64_t k) {
    assert(k % QK_BOF4_S == 0);
    block_bof4_s * blocks = y;
    for (int64_t i = 0; i < k / QK_BOF4_S; ++i) {
        encode_block_bof4_s(x + i * QK_BOF4_S, blocks + i);
    }
}

void quantize_row_bof4_k_ref(const float * x, void * y, int64_t k) {
    assert(k % QK_BOF4_K == 0);
    block_bof4_k * blocks = y;
    for (int64_t i = 0; i < k / QK_BOF4_K; ++i) {
        encode_block_bof4_k(x + i * QK_BOF4_K, blocks + i);
    }
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

void dequantize_row_bof4_k(const void * x, float * y, int64_t k) {
    assert(k % QK_BOF4_K == 0);
    const block_bof4_k * blocks = x;
    for (int64_t i = 0; i < k / QK_BOF4_K; ++i, y += QK_BOF4_K) {
        const float d = GGML_FP16_TO_FP32(blocks[i].d) * BOF4_K_UNIT;
        for (int b = 0; b < BOF4_K_SUB_BLOCKS; ++b) {
            // d * s * level is exact: 11 + 5 + 7 bits
            const float unit = d * (float) bof4_k_scale(blocks + i, b);
            const uint8_t * qs = blocks[i].qs + 64 * (b / 8) + BOF4_K_SUB_BLOCK * (b % 4);
            const int shift = b / 4 % 2 * 4;
            for (int j = 0; j < BOF4_K_SUB_BLOCK; ++j) {
                y[b * BOF4_K_SUB_BLOCK + j] = unit * bof4_k_levels[qs[j] >> shift & 0xf];
            }
        }
    }
}

static bool is_finite_scale(uint16_t d, const char * type, size_t block) {
    if ((d & 0x7c00) != 0x7c00) {
        return true;
    }
    fprintf(stderr, "%s: block %zu has the scale %s\n", type, block, d & 0x03ff ? "NaN" : "Inf");
    return false;
}

bool validate_row_bof4_s(const void * data, size_t nblocks) {
    const block_bof4_s * blocks = data;
    for (size_t i = 0; i < nblocks; ++i) {
        if (!is_finite_scale(blocks[i].d, "bof4_s", i)) {
            return false;
        }
    }
    return true;
}

bool validate_row_bof4_k(const void * data, size_t nblocks) {
    const block_bof4_k * blocks = data;
    for (size_t i = 0; i < nblocks; ++i) {
        if (!is_finite_scale(blocks[i].d, "bof4_k", i)) {
            return false;
        }
    }
    return true;
}
