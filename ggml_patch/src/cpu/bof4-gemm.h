// Stand-in until the engineer `kernels` delivers this file: today's kernels behind the same interface.
#pragma once

#include "bof4-repack-layout.h"
#include "ggml.h"

struct bof4_gemm_kernels {
    size_t (*group_bytes)(int64_t n);
    void (*repack_group)(const void * rows, int64_t n_rows, int64_t n, void * group);
    void (*unpack_group)(const void * group, int64_t n_rows, int64_t n, void * rows);
    void (*quantize_act)(const float * x, void * y, int64_t n, bool use_gemv);
    bool (*use_gemv)(int64_t n_columns);
    void (*gemm)(const void * groups, int64_t n_rows, int64_t n, const void * const * x, const float * outlier_sums,
                 float * const * y, int64_t n_columns, bool use_gemv);
    size_t act_block_bytes;
};

const bof4_gemm_kernels * bof4_gemm_kernels_of(ggml_type type);
