// The parts of upstream's tiled product for these types. mmq.cuh includes this before it chooses among them.
#pragma once

#include "bof4-mmq-tiles.cuh"

template <ggml_type type, int J, bool fallback> static __device__ __forceinline__ void ggml_cuda_mmq_load_tiles_bof4(
        const char * __restrict__ x, int * __restrict__ x_tile, const int kbx0, const int i_max, const int stride) {
    using of = std::conditional_t<type == GGML_TYPE_BOF4_S, bof4_s_type, bof4_k_type>;
    constexpr int I        = ggml_cuda_mmq_get_I(type, J, fallback);
    constexpr int nthreads = ggml_cuda_mmq_get_nthreads(type, J, fallback);
    constexpr int mma_stride = ggml_cuda_mmq_get_sram_stride(type, J, fallback);
    constexpr int scales = type == GGML_TYPE_BOF4_S ? 8 : 16;
#if defined(AMD_MFMA_AVAILABLE) || defined(TURING_MMA_AVAILABLE) || defined(AMD_WMMA_AVAILABLE)
    constexpr bool mma = true;
#else
    constexpr bool mma = false;
#endif // defined(AMD_MFMA_AVAILABLE) || defined(TURING_MMA_AVAILABLE) || defined(AMD_WMMA_AVAILABLE)
    using tile = bof4_tile<I, scales, mma_stride, mma>;
    const int thread = threadIdx.y * ggml_cuda_get_physical_warp_size() + threadIdx.x;
    bof4_load_tile<of, tile, I, nthreads, fallback>(
        (const uint8_t *) x + (int64_t) kbx0 * of::bytes, x_tile, thread, stride, i_max);
}

// Of the two types. funcs: upstream's struct of the four, declared behind this.
template <typename funcs, ggml_type type, int J, bool fallback> static constexpr __device__ funcs bof4_mmq_util_funcs() {
    if constexpr (bof4_mmq_like(type) == type) {
        // named for every type in upstream's switch, called for ours
        return funcs(1, nullptr, nullptr, nullptr);
    } else if constexpr (!ggml_cuda_mmq_get_config(type, J, fallback).use_mma_data_layout()) {
        constexpr ggml_cuda_mmq_vec_dot_t vec_dot = type == GGML_TYPE_BOF4_S ?
            ggml_cuda_mmq_vec_dot_q8_0_q8_1_dp4a<type, J, fallback> : ggml_cuda_mmq_vec_dot_q8_0_16_q8_1_dp4a<type, J, fallback>;
        return funcs(VDR_Q8_0_Q8_1_MMQ, ggml_cuda_mmq_load_tiles_bof4<type, J, fallback>, vec_dot,
            ggml_cuda_mmq_write_back_dp4a<type, J, fallback>);
    } else {
        constexpr ggml_cuda_mmq_vec_dot_t vec_dot = type == GGML_TYPE_BOF4_S ?
            ggml_cuda_mmq_vec_dot_q8_0_q8_1_mma<type, J, fallback, MMQ_Q8_1_DS_LAYOUT_D4> :
            ggml_cuda_mmq_vec_dot_q8_0_16_q8_1_mma<type, J, fallback>;
        return funcs(-1, ggml_cuda_mmq_load_tiles_bof4<type, J, fallback>, vec_dot, ggml_cuda_mmq_write_back_mma<type, J, fallback>);
    }
}
