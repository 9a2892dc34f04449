// The BOF4 tensor types: blocks, and the conversions that ggml-base registers for them.
// Formats byte by byte: docs/formats.md. Numbers of the types: bof4-format.h, generated from gguf_bof4/formats.py.
// A new type needs its block here and, where it has scales of sub-blocks, the two functions that read and write them.
#pragma once

#include "bof4-format.h"
#include "ggml.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
#define BOF4_STATIC_ASSERT static_assert
extern "C" {
#else
#define BOF4_STATIC_ASSERT _Static_assert
#endif

// 64 weights. qs[j] holds weight j in its low nibble and weight j + 32 in its high one: a 32-byte load then splits into
// two runs of 32 consecutive weights, each of which is multiplied with exactly one Q8_0 block.
typedef struct {
    uint16_t d;                // fp16 signed block maximum
    uint8_t qs[QK_BOF4_S / 2]; // codes
} block_bof4_s;

// 256 weights. A 64-byte load of qs splits into two runs of 64 consecutive weights: low nibbles, then high ones. The
// low four bits of the sixteen scales are two runs of eight nibbles; their high two bits are four runs of four 2-bit
// fields. A shift and a mask put all sixteen in order.
typedef struct {
    uint16_t d;                             // fp16 scale of the superblock, in units of 2^12
    uint8_t scales[BOF4_K_SUB_SCALE_BYTES]; // 16 scales of 16 weights each, signed 6 bits, stored as s + 32
    uint8_t qs[QK_BOF4_K / 2];              // codes: qs[64 * h + j] holds weights 128 * h + j and 128 * h + 64 + j
} block_bof4_k;

// Scale of sub-block j of a superblock, -32 .. 31.
static inline int bof4_k_scale(const block_bof4_k * block, int j) {
    const int low = block->scales[j % 8] >> 4 * (j / 8) & 0xf;
    const int high = block->scales[8 + j % 4] >> 2 * (j / 4) & 0x3;
    return (low | high << 4) - BOF4_K_SUB_SCALE_OFFSET;
}

static inline void bof4_k_set_scales(block_bof4_k * block, const int8_t scales[BOF4_K_SUB_BLOCKS]) {
    memset(block->scales, 0, sizeof(block->scales));
    for (int j = 0; j < BOF4_K_SUB_BLOCKS; ++j) {
        const int s = scales[j] + BOF4_K_SUB_SCALE_OFFSET;
        block->scales[j % 8] |= (uint8_t) ((s & 0xf) << 4 * (j / 8));
        block->scales[8 + j % 4] |= (uint8_t) (s >> 4 << 2 * (j / 4));
    }
}

#define BOF4_CHECK_BLOCK(NAME, name) \
    BOF4_STATIC_ASSERT( \
        sizeof(block_##name) == NAME##_BLOCK_BYTES, "blocks of " #NAME " have the bytes of formats.py"); \
    BOF4_STATIC_ASSERT(offsetof(block_##name, qs) == NAME##_CODES_AT, "codes of " #NAME " begin as in formats.py"); \
    BOF4_STATIC_ASSERT( \
        QK_##NAME % (2 * NAME##_CODE_RUN) == 0, "codes of " #NAME " fill whole runs of low and high nibbles");
BOF4_TYPES(BOF4_CHECK_BLOCK)
#undef BOF4_CHECK_BLOCK

// Is this one of the BOF4 types?
GGML_API bool ggml_is_bof4(enum ggml_type type);

// For each type:
//   dequantize_row_NAME      decodes k weights, a multiple of the block
//   quantize_row_NAME_ref    the encoder absmax: the paper's
//   quantize_NAME            the encoder search, which llama-quantize calls: nrow rows of n_per_row weights;
//                            imatrix: importance of each column, or NULL. Returns the bytes written.
//   validate_row_NAME        false, and a line on stderr, where a scale is not finite
#define BOF4_DECLARE_CONVERSIONS(NAME, name) \
    GGML_API void dequantize_row_##name(const void * x, float * y, int64_t k); \
    GGML_API void quantize_row_##name##_ref(const float * x, void * y, int64_t k); \
    GGML_API size_t quantize_##name( \
        const float * src, void * dst, int64_t nrow, int64_t n_per_row, const float * imatrix); \
    GGML_API bool validate_row_##name(const void * data, size_t nblocks);
BOF4_TYPES(BOF4_DECLARE_CONVERSIONS)
#undef BOF4_DECLARE_CONVERSIONS

// Blocks from stored scales and codes.
#define BOF4_DECLARE_PACK_ONE_SCALE(NAME, name) \
    GGML_API void name##_pack(block_##name * block, uint16_t d, const uint8_t codes[QK_##NAME]);
#define BOF4_DECLARE_PACK_SUB_SCALES(NAME, name) \
    GGML_API void name##_pack( \
        block_##name * block, uint16_t d, const int8_t scales[NAME##_SUB_BLOCKS], const uint8_t codes[QK_##NAME]);
BOF4_TYPES_ONE_SCALE(BOF4_DECLARE_PACK_ONE_SCALE)
BOF4_TYPES_SUB_SCALES(BOF4_DECLARE_PACK_SUB_SCALES)
#undef BOF4_DECLARE_PACK_ONE_SCALE
#undef BOF4_DECLARE_PACK_SUB_SCALES

#ifdef __cplusplus
}
#endif
