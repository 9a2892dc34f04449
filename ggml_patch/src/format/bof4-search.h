// Scale search: scales that minimize the squared error of the nearest levels, weighted by the importance of each weight.
// A weight w_i of 0 or more stands for the importance of x_i; where all are equal, any constant will do.
#pragma once

#include "bof4-blocks.h"

#ifdef __cplusplus
extern "C" {
#endif

// BOF4_S: 64 weights; the fp16 bits of d. fp16 NaN where an x is not finite.
GGML_API uint16_t bof4_s_search_scale(const float * x, const float * w);

// BOF4_K: 256 weights; the fp16 bits of d. fp16 NaN where an x is not finite.
GGML_API uint16_t bof4_k_search_superscale(const float * x, const float * w);

// BOF4_K: 16 weights under the superblock scale d (decoded); their scale, -32 .. 31.
GGML_API int bof4_k_search_block(const float * x, const float * w, float d);

#ifdef __cplusplus
}
#endif
