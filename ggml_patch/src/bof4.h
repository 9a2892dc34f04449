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

#ifdef __cplusplus
static_assert(sizeof(block_bof4_s) == BOF4_S_BLOCK_BYTES, "BOF4_S blocks are packed");
#else
_Static_assert(sizeof(block_bof4_s) == BOF4_S_BLOCK_BYTES, "BOF4_S blocks are packed");
#endif

GGML_API void dequantize_row_bof4_s(const void * x, float * y, int64_t k);
GGML_API void quantize_row_bof4_s_ref(const float * x, void * y, int64_t k);

// nrow rows of n_per_row weights; imatrix: importance of each column, or NULL. Returns bytes written.
GGML_API size_t quantize_bof4_s(const float * src, void * dst, int64_t nrow, int64_t n_per_row, const float * imatrix);

// The same by scale search: the scale of a block minimizes the squared error, weighted by the importance of each
// column (n_per_row floats, or NULL for equal ones).
GGML_API void quantize_rows_bof4_s_search(
    const float * src, void * dst, int64_t nrow, int64_t n_per_row, const float * importance);

// false, and a line on stderr, where a block's scale is not finite
GGML_API bool validate_row_bof4_s(const void * data, size_t nblocks);

#ifdef __cplusplus
}
#endif
