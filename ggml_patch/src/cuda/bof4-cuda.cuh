// What the hooks in ggml-cuda call (patches/0011-cuda-backend.patch).
#pragma once

#include "ggml-cuda/common.cuh"
#include "ggml-cuda/convert.cuh"

#include "../lists/bof4-list.h"
#include "bof4-type.cuh"

// Converters of contiguous and of strided tensors to T (float, half or nv_bfloat16), without outliers; null for types
// that have no CUDA kernels here.
template <typename T> to_t_cuda_t<T> ggml_cuda_bof4_to(ggml_type type);
template <typename T> to_t_nc_cuda_t<T> ggml_cuda_bof4_to_nc(ggml_type type);

// get_rows of a weight of these types, with its outliers.
void ggml_cuda_bof4_get_rows(ggml_backend_cuda_context & ctx, ggml_tensor * dst);

// mul_mat of up to eight columns and mul_mat_id of up to eight tokens, with what upstream fuses: dst is then the sum
// with a bias or a gated unit, and the list is a source of the product before it. Adds the outliers, of gate and up.
void ggml_cuda_bof4_mul_mat_vec_q(ggml_backend_cuda_context & ctx, const ggml_tensor * src0, const ggml_tensor * src1,
    const ggml_tensor * ids, ggml_tensor * dst, const ggml_cuda_mm_fusion_args_host * fusion);

// Columns of n activations as blocks of 128 for the tiled product (block_q8_1_mmq). Strides s1, s2, s3 of x are in
// elements; activations from n to padded_n, a multiple of 128, are zero. x_columns, y_columns: of a matrix.
// slots: 0, then ids (if not null) has the column of x for each of y; or for mul_mat_id with one column per token the
// columns of y for each of x, then ids has `slots` of them for each.
void ggml_cuda_bof4_quantize_mmq(const float * x, const int32_t * ids, void * y, ggml_type type, int64_t n, int64_t s1,
    int64_t s2, int64_t s3, int64_t padded_n, int64_t x_columns, int64_t y_columns, int64_t ne12, int64_t ne13,
    int slots, cudaStream_t stream);

// After any other way to compute a mul_mat or mul_mat_id: adds the products of the outliers, where there is a list.
void ggml_cuda_bof4_add_outliers(ggml_backend_cuda_context & ctx, ggml_tensor * dst);

// The list of such an operation for kernels; without pointers where it has none.
struct bof4_device_list;
bof4_device_list ggml_cuda_bof4_list(const ggml_tensor * op);
