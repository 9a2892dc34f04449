// BOF4 on the CPU backend: what ggml-cpu registers for the types.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

void quantize_row_bof4_s(const float * x, void * y, int64_t k);
void quantize_row_bof4_k(const float * x, void * y, int64_t k);

// s = the product of a row of n BOF4_S weights with n Q8_0 activations; n is a multiple of 64.
// bs, bx, by and nrc are ggml's interface for kernels that do several rows; nrc is 1 here.
void ggml_vec_dot_bof4_s_q8_0(
    int n, float * s, size_t bs, const void * vx, size_t bx, const void * vy, size_t by, int nrc);

// The same for BOF4_K weights and Q8_K activations; n is a multiple of 256.
void ggml_vec_dot_bof4_k_q8_K(
    int n, float * s, size_t bs, const void * vx, size_t bx, const void * vy, size_t by, int nrc);

#ifdef __cplusplus
}
#endif
