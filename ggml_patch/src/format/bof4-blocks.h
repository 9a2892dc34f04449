// The BOF4 tensor types: blocks, and the conversions that ggml-base registers for them.
// Formats byte by byte: README.md, "Formats". Levels and sizes: bof4-format.h, generated.
#pragma once

#include "bof4-format.h"
#include "ggml.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// 64 weights. qs[j] holds weight j in its low nibble and weight j+32 in its high one: a 32-byte load
// then splits into two runs of 32 consecutive weights, each of which meets exactly one Q8_0 block.
typedef struct {
    uint16_t d;                       // fp16 signed block maximum
    uint8_t  qs[QK_BOF4_S / 2];       // codes
} block_bof4_s;

// 256 weights. A 64-byte load of qs splits into two runs of 64 consecutive weights: low nibbles, then high ones. The low four
// bits of the sixteen block scales are two runs of eight nibbles, their high two bits four runs of four fields of two bits: a
// shift and a mask put all sixteen in order.
typedef struct {
    uint16_t d;                       // fp16 scale of the superblock, in units of 2^12
    uint8_t  scales[12];              // 16 scales of 16 weights each, signed 6 bits, stored as s + 32
    uint8_t  qs[QK_BOF4_K / 2];       // codes: qs[64 * h + j] holds weights 128 * h + j and 128 * h + 64 + j
} block_bof4_k;

#ifdef __cplusplus
static_assert(sizeof(block_bof4_s) == BOF4_S_BLOCK_BYTES, "BOF4_S blocks are packed");
static_assert(sizeof(block_bof4_k) == BOF4_K_BLOCK_BYTES, "BOF4_K blocks are packed");
#else
_Static_assert(sizeof(block_bof4_s) == BOF4_S_BLOCK_BYTES, "BOF4_S blocks are packed");
_Static_assert(sizeof(block_bof4_k) == BOF4_K_BLOCK_BYTES, "BOF4_K blocks are packed");
#endif

// Block scale j of a superblock, -32 .. 31.
static inline int bof4_k_scale(const block_bof4_k * block, int j) {
    const int low  = block->scales[j % 8] >> 4 * (j / 8) & 0xf;
    const int high = block->scales[8 + j % 4] >> 2 * (j / 4) & 0x3;
    return (low | high << 4) - 32;
}

GGML_API void dequantize_row_bof4_s(const void * x, float * y, int64_t k);
GGML_API void dequantize_row_bof4_k(const void * x, float * y, int64_t k);

// The paper's encoder, absmax.
GGML_API void quantize_row_bof4_s_ref(const float * x, void * y, int64_t k);
GGML_API void quantize_row_bof4_k_ref(const float * x, void * y, int64_t k);

// What llama-quantize calls: scale search, nrow rows of n_per_row weights; imatrix: importance of each column, or NULL.
// Returns bytes written.
GGML_API size_t quantize_bof4_s(const float * src, void * dst, int64_t nrow, int64_t n_per_row, const float * imatrix);
GGML_API size_t quantize_bof4_k(const float * src, void * dst, int64_t nrow, int64_t n_per_row, const float * imatrix);

// false, and a line on stderr, where a scale is not finite
GGML_API bool validate_row_bof4_s(const void * data, size_t nblocks);
GGML_API bool validate_row_bof4_k(const void * data, size_t nblocks);

// Blocks from a stored scale and codes.
GGML_API void bof4_s_pack(block_bof4_s * block, uint16_t d, const uint8_t codes[QK_BOF4_S]);
GGML_API void bof4_k_pack(
    block_bof4_k * block, uint16_t d, const int8_t scales[BOF4_K_SUB_BLOCKS], const uint8_t codes[QK_BOF4_K]);

#ifdef __cplusplus
}
#endif
