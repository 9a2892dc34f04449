#pragma once

#include "common.cuh"

template <typename T> using to_t_cuda_t = void (*)(const void * x, T * y, int64_t k, cudaStream_t stream);
template <typename T> using to_t_nc_cuda_t = void (*)(const void * x, T * y, int64_t ne00, int64_t ne01, int64_t ne02,
    int64_t ne03, int64_t s01, int64_t s02, int64_t s03, cudaStream_t stream);

template <typename to, typename from> to ggml_cuda_cast(from x) {
    if constexpr (std::is_same_v<to, from>) {
        return x;
    } else if constexpr (std::is_same_v<to, half>) {
        return { ggml_compute_fp32_to_fp16(x) };
    } else if constexpr (std::is_same_v<to, nv_bfloat16>) {
        return { ggml_compute_fp32_to_bf16(x).bits };
    } else if constexpr (std::is_same_v<from, half>) {
        return ggml_compute_fp16_to_fp32(x.bits);
    } else {
        return ggml_compute_bf16_to_fp32({ x.bits });
    }
}
