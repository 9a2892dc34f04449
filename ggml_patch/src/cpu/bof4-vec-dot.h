// BOF4 on the CPU backend: what ggml-cpu registers for the types.
#pragma once

#include "../format/bof4-blocks.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// s = the product of a row of n weights with n activations of NAME_ACTIVATION; n is a multiple of the block.
// bs, bx, by and nrc are ggml's interface for kernels that do several rows; nrc is 1 here.
#define BOF4_DECLARE_VEC_DOT(NAME, name) \
    void ggml_vec_dot_##name( \
        int n, float * s, size_t bs, const void * vx, size_t bx, const void * vy, size_t by, int nrc);
BOF4_TYPES(BOF4_DECLARE_VEC_DOT)
#undef BOF4_DECLARE_VEC_DOT

// BOF4_TYPES(...) in type_traits_cpu of ggml-cpu.c
#define BOF4_CPU_TYPE_TRAITS(NAME, name) \
    [GGML_TYPE_##NAME] = { \
        .from_float = quantize_row_##name##_ref, \
        .vec_dot = ggml_vec_dot_##name, \
        .vec_dot_type = NAME##_ACTIVATION, \
        .nrows = 1, \
    },

#ifdef __cplusplus
}
#endif
