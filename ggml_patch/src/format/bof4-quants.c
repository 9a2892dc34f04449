// BOF4 blocks: the encoder absmax, the decoders and the validation of all types, portable C. Bit for bit what
// gguf_bof4/quants.py computes: every float operation below is in that file too, in the same order (tests compare the
// two).

#include "bof4-encode.h"

#include <assert.h>
#include <stdio.h>

bool ggml_is_bof4(enum ggml_type type) {
#define OR_IS(NAME, name) || type == GGML_TYPE_##NAME
    return false BOF4_TYPES(OR_IS);
#undef OR_IS
}

// The element of largest magnitude, with its sign; the first of equals. NaN where any element is not finite, infinity
// where one is too large for the types.
static float signed_maximum(const float * x, int n) {
    const uint32_t largest = bof4_largest_bits(x, n);
    const float magnitude = bof4_checked_magnitude(largest);
    if (!isfinite(magnitude)) {
        return magnitude;
    }
    int j = 0;
    while (bof4_magnitude_bits(x[j]) != largest) {
        ++j;
    }
    return x[j];
}

// Codes of n weights: a run in low nibbles, the next one in the high nibbles of the same bytes.
static inline void pack_codes(uint8_t * qs, const uint8_t * codes, int n, int run) {
    for (int at = 0; at < n / 2; at += run) {
        for (int j = 0; j < run; ++j) {
            qs[at + j] = (uint8_t) (codes[2 * at + j] | codes[2 * at + run + j] << 4);
        }
    }
}

#define DEFINE_PACK_ONE_SCALE(NAME, name) \
    void name##_pack(block_##name * block, uint16_t d, const uint8_t codes[QK_##NAME]) { \
        block->d = d; \
        pack_codes(block->qs, codes, QK_##NAME, NAME##_CODE_RUN); \
    }
#define DEFINE_PACK_SUB_SCALES(NAME, name) \
    void name##_pack( \
        block_##name * block, uint16_t d, const int8_t scales[NAME##_SUB_BLOCKS], const uint8_t codes[QK_##NAME]) { \
        block->d = d; \
        name##_set_scales(block, scales); \
        pack_codes(block->qs, codes, QK_##NAME, NAME##_CODE_RUN); \
    }
BOF4_TYPES_ONE_SCALE(DEFINE_PACK_ONE_SCALE)
BOF4_TYPES_SUB_SCALES(DEFINE_PACK_SUB_SCALES)

// Scale = signed block maximum (eq. 4), code = nearest level. The codes are those for the stored scale, not for the
// maximum: the decoder multiplies with the stored one.
static inline uint16_t encode_one_scale(const struct bof4_encoding * type, const float * x, uint8_t * codes) {
    const uint16_t d = bof4_stored_scale(signed_maximum(x, type->block));
    bof4_nearest_codes(x, type, bof4_value_per_level(d), codes);
    return d;
}

// The same with scales of sub-blocks: the largest maximum of all gets the scale -offset, which has no positive
// counterpart.
static inline uint16_t encode_sub_scales(
    const struct bof4_encoding * type, const float * x, int8_t * scales, uint8_t * codes) {
    const float m = signed_maximum(x, type->block);
    const uint16_t d = bof4_stored_scale(m * (-1.0f / type->unit / (float) (type->offset * BOF4_LEVEL_SCALE)));
    const float unit = GGML_FP16_TO_FP32(d) * type->unit;
    for (int b = 0; b < type->sub_blocks; ++b) {
        const float * block_x = x + b * type->sub_block;
        scales[b] = 0;
        if (fabsf(unit) > 0.0f && isfinite(unit)) {
            const float s = rintf(signed_maximum(block_x, type->sub_block) / (unit * (float) BOF4_LEVEL_SCALE));
            scales[b] = (int8_t) bof4_clamped_scale(s, type);
        }
        bof4_nearest_codes(block_x, type, unit * (float) scales[b], codes + b * type->sub_block);
    }
    return d;
}

#define DEFINE_ENCODE_ONE_SCALE(NAME, name) \
    static void encode_block_##name(const float * x, block_##name * block) { \
        uint8_t codes[QK_##NAME]; \
        const uint16_t d = encode_one_scale(&name##_encoding, x, codes); \
        name##_pack(block, d, codes); \
    }
#define DEFINE_ENCODE_SUB_SCALES(NAME, name) \
    static void encode_block_##name(const float * x, block_##name * block) { \
        int8_t scales[NAME##_SUB_BLOCKS]; \
        uint8_t codes[QK_##NAME]; \
        const uint16_t d = encode_sub_scales(&name##_encoding, x, scales, codes); \
        name##_pack(block, d, scales, codes); \
    }
BOF4_TYPES_ONE_SCALE(DEFINE_ENCODE_ONE_SCALE)
BOF4_TYPES_SUB_SCALES(DEFINE_ENCODE_SUB_SCALES)

#define DEFINE_DECODE_ONE_SCALE(NAME, name) \
    static inline void decode_block_##name(const block_##name * block, float * y) { \
        const float d = GGML_FP16_TO_FP32(block->d); \
        for (int at = 0; at < QK_##NAME / 2; at += NAME##_CODE_RUN, y += 2 * NAME##_CODE_RUN) { \
            for (int j = 0; j < NAME##_CODE_RUN; ++j) { \
                const uint8_t q = block->qs[at + j]; \
                /* d * level is exact (11 + 7 bits), so one rounding is left and level 127 gives exactly d */ \
                y[j] = d * name##_levels[q & 0xf] * NAME##_UNIT; \
                y[j + NAME##_CODE_RUN] = d * name##_levels[q >> 4] * NAME##_UNIT; \
            } \
        } \
    }
#define DEFINE_DECODE_SUB_SCALES(NAME, name) \
    BOF4_STATIC_ASSERT(NAME##_CODE_RUN % NAME##_SUB_BLOCK == 0, "codes of a sub-block of " #NAME " are in one run"); \
    static inline void decode_block_##name(const block_##name * block, float * y) { \
        const float d = GGML_FP16_TO_FP32(block->d) * NAME##_UNIT; \
        for (int at = 0; at < QK_##NAME; at += NAME##_SUB_BLOCK) { \
            /* exact where d, a scale and a level have no more than 24 bits (BOF4_K: 11 + 5 + 7) */ \
            const float per_level = d * (float) name##_scale(block, at / NAME##_SUB_BLOCK); \
            const uint8_t * qs = block->qs + at / (2 * NAME##_CODE_RUN) * NAME##_CODE_RUN + at % NAME##_CODE_RUN; \
            const int shift = at / NAME##_CODE_RUN % 2 * 4; \
            for (int j = 0; j < NAME##_SUB_BLOCK; ++j) { \
                y[at + j] = per_level * name##_levels[qs[j] >> shift & 0xf]; \
            } \
        } \
    }
BOF4_TYPES_ONE_SCALE(DEFINE_DECODE_ONE_SCALE)
BOF4_TYPES_SUB_SCALES(DEFINE_DECODE_SUB_SCALES)

static bool is_finite_scale(uint16_t d, const char * type, size_t block) {
    if ((d & 0x7c00) != 0x7c00) {
        return true;
    }
    const char * scale = d & 0x03ff ? "NaN" : "Inf";
    const char * cause = d & 0x03ff ? "a weight or an importance is not finite, or an importance is negative"
                                    : "a weight is beyond 65504: leave the tensor in F32 or BF16";
    fprintf(stderr, "%s: block %zu has the scale %s (when quantizing: %s)\n", type, block, scale, cause);
    return false;
}

#define DEFINE_ROWS(NAME, name) \
    void quantize_row_##name##_ref(const float * x, void * y, int64_t k) { \
        assert(k % QK_##NAME == 0); \
        block_##name * blocks = y; \
        for (int64_t i = 0; i < k / QK_##NAME; ++i) { \
            encode_block_##name(x + i * QK_##NAME, blocks + i); \
        } \
    } \
    void dequantize_row_##name(const void * x, float * y, int64_t k) { \
        assert(k % QK_##NAME == 0); \
        const block_##name * blocks = x; \
        for (int64_t i = 0; i < k / QK_##NAME; ++i) { \
            decode_block_##name(blocks + i, y + i * QK_##NAME); \
        } \
    } \
    bool validate_row_##name(const void * data, size_t nblocks) { \
        const block_##name * blocks = data; \
        for (size_t i = 0; i < nblocks; ++i) { \
            if (!is_finite_scale(blocks[i].d, #name, i)) { \
                return false; \
            } \
        } \
        return true; \
    }
BOF4_TYPES(DEFINE_ROWS)
