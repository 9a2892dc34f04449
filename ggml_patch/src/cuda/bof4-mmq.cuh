// The parts of upstream's tiled product for these types. Included by mmq.cuh, before it chooses among the parts of all
// types.
#pragma once

#include "bof4-mmq-tiles.cuh"

template <ggml_type type, int J, bool fallback> static __device__ __forceinline__ void ggml_cuda_mmq_load_tiles_bof4(
    const char * __restrict__ x, int * __restrict__ x_tile, const int kbx0, const int i_max, const int stride) {
    using traits = bof4_cuda_type<type>;
    constexpr int I = ggml_cuda_mmq_get_I(type, J, fallback);
    constexpr int nthreads = ggml_cuda_mmq_get_nthreads(type, J, fallback);
    constexpr int mma_stride = ggml_cuda_mmq_get_sram_stride(type, J, fallback);
#if defined(AMD_MFMA_AVAILABLE) || defined(TURING_MMA_AVAILABLE) || defined(AMD_WMMA_AVAILABLE)
    constexpr bool mma = true;
#else
    constexpr bool mma = false;
#endif // defined(AMD_MFMA_AVAILABLE) || defined(TURING_MMA_AVAILABLE) || defined(AMD_WMMA_AVAILABLE)
    using tile = bof4_tile<I, traits::mmq_scales, mma_stride, mma>;
    const int thread = threadIdx.y * ggml_cuda_get_physical_warp_size() + threadIdx.x;
    bof4_load_tile<type, tile, I, nthreads, fallback>(
        (const uint8_t *) x + (int64_t) kbx0 * traits::bytes, x_tile, thread, stride, i_max);
}

// Upstream's products of a tile, by the number of scales for 256 weights. No primary definition: there are these two.
template <int scales> struct bof4_mmq_vec_dot;

template <> struct bof4_mmq_vec_dot<8> {
    template <ggml_type type, int J, bool fallback> static constexpr __device__ ggml_cuda_mmq_vec_dot_t dp4a() {
        return ggml_cuda_mmq_vec_dot_q8_0_q8_1_dp4a<type, J, fallback>;
    }
    template <ggml_type type, int J, bool fallback> static constexpr __device__ ggml_cuda_mmq_vec_dot_t mma() {
        return ggml_cuda_mmq_vec_dot_q8_0_q8_1_mma<type, J, fallback, MMQ_Q8_1_DS_LAYOUT_D4>;
    }
};

template <> struct bof4_mmq_vec_dot<16> {
    template <ggml_type type, int J, bool fallback> static constexpr __device__ ggml_cuda_mmq_vec_dot_t dp4a() {
        return ggml_cuda_mmq_vec_dot_q8_0_16_q8_1_dp4a<type, J, fallback>;
    }
    template <ggml_type type, int J, bool fallback> static constexpr __device__ ggml_cuda_mmq_vec_dot_t mma() {
        return ggml_cuda_mmq_vec_dot_q8_0_16_q8_1_mma<type, J, fallback>;
    }
};

// Upstream's struct of the parts (funcs, declared behind this include) for a type of ours. Upstream's switch names it
// for every type, because it is no `if constexpr`; for types that are not ours it is not evaluated.
template <typename funcs, ggml_type type, int J, bool fallback> static constexpr __device__ funcs
bof4_mmq_util_funcs() {
    if constexpr (!ggml_cuda_bof4_has_kernels(type)) {
        return funcs(1, nullptr, nullptr, nullptr);
    } else {
        using vec_dot = bof4_mmq_vec_dot<bof4_cuda_type<type>::mmq_scales>;
        if constexpr (!ggml_cuda_mmq_get_config(type, J, fallback).use_mma_data_layout()) {
            return funcs(VDR_Q8_0_Q8_1_MMQ, ggml_cuda_mmq_load_tiles_bof4<type, J, fallback>,
                vec_dot::template dp4a<type, J, fallback>(), ggml_cuda_mmq_write_back_dp4a<type, J, fallback>);
        } else {
            return funcs(-1, ggml_cuda_mmq_load_tiles_bof4<type, J, fallback>,
                vec_dot::template mma<type, J, fallback>(), ggml_cuda_mmq_write_back_mma<type, J, fallback>);
        }
    }
}
