// The parts of upstream's tiled product for these types. Included by mmq.cuh, before it chooses among the parts of all
// types. With the tensor cores of NVIDIA chips the product is ours; elsewhere it is upstream's, with our tiles.
#pragma once

#include "bof4-mmq-tiles.cuh"

#if defined(TURING_MMA_AVAILABLE)

#include "bof4-mmq-pipeline.cuh"

template <ggml_type type, int J, bool fallback> struct bof4_mmq_config {
    static constexpr int rows = ggml_cuda_mmq_get_I(type, J, fallback);
    static constexpr int threads = ggml_cuda_mmq_get_nthreads(type, J, fallback);
    static constexpr int row_tiles = ggml_cuda_mmq_get_rows_per_warp(type, J, fallback) / 16;
    static constexpr int stride = ggml_cuda_mmq_get_sram_stride(type, J, fallback);
    // upstream instantiates numbers of columns without a configuration, too, and does not run them
    static_assert(
        ggml_cuda_mmq_get_config(type, J, fallback).type == GGML_TYPE_COUNT || bof4_product_tile<type>::end <= stride,
        "a row has its levels, scales and excess");
};

template <ggml_type type, int J, bool fallback> static __device__ __forceinline__ void ggml_cuda_mmq_load_tiles_bof4(
    const char * __restrict__ x, int * __restrict__ x_tile, const int kbx0, const int i_max, const int stride) {
    using traits = bof4_cuda_type<type>;
    using config = bof4_mmq_config<type, J, fallback>;
    const int thread = threadIdx.y * 32 + threadIdx.x;
    const auto * blocks = (const uint8_t *) x + (int64_t) kbx0 * traits::bytes;
    using half_blocks = bof4_half_blocks<type, config::rows, config::threads, fallback>;
    half_blocks halves[2] = { half_blocks(thread), half_blocks(thread) };
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        halves[half].load(blocks, stride * traits::bytes, i_max, half);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        halves[half].template store<config::stride>(x_tile, half);
    }
}

template <ggml_type type, int J, bool fallback> static __device__ __forceinline__ void ggml_cuda_mmq_vec_dot_bof4(
    const int * __restrict__ x, const int * __restrict__ y, float * __restrict__ sum, const int k00) {
    using config = bof4_mmq_config<type, J, fallback>;
    bof4_mmq_multiply<type, J, config::row_tiles, config::stride>(x, y, sum, k00 / MMQ_TILE_NE_K, [](int, int) {});
}

#else

template <ggml_type type, int J, bool fallback> static __device__ __forceinline__ void ggml_cuda_mmq_load_tiles_bof4(
    const char * __restrict__ x, int * __restrict__ x_tile, const int kbx0, const int i_max, const int stride) {
    using traits = bof4_cuda_type<type>;
    constexpr int I = ggml_cuda_mmq_get_I(type, J, fallback);
    constexpr int nthreads = ggml_cuda_mmq_get_nthreads(type, J, fallback);
    constexpr int mma_stride = ggml_cuda_mmq_get_sram_stride(type, J, fallback);
#if defined(AMD_MFMA_AVAILABLE) || defined(AMD_WMMA_AVAILABLE)
    constexpr bool mma = true;
#else
    constexpr bool mma = false;
#endif // defined(AMD_MFMA_AVAILABLE) || defined(AMD_WMMA_AVAILABLE)
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

#endif // defined(TURING_MMA_AVAILABLE)

// Upstream's struct of the parts (funcs, declared behind this include) for a type of ours. Upstream's switch names it
// for every type, because it is no `if constexpr`; for types that are not ours it is not evaluated.
template <typename funcs, ggml_type type, int J, bool fallback> static constexpr __device__ funcs
bof4_mmq_util_funcs() {
    if constexpr (!ggml_cuda_bof4_has_kernels(type)) {
        return funcs(1, nullptr, nullptr, nullptr);
    } else {
#if defined(TURING_MMA_AVAILABLE)
        return funcs(-1, ggml_cuda_mmq_load_tiles_bof4<type, J, fallback>,
            ggml_cuda_mmq_vec_dot_bof4<type, J, fallback>, ggml_cuda_mmq_write_back_mma<type, J, fallback>);
#else
        using vec_dot = bof4_mmq_vec_dot<bof4_cuda_type<type>::mmq_scales>;
        if constexpr (!ggml_cuda_mmq_get_config(type, J, fallback).use_mma_data_layout()) {
            return funcs(VDR_Q8_0_Q8_1_MMQ, ggml_cuda_mmq_load_tiles_bof4<type, J, fallback>,
                vec_dot::template dp4a<type, J, fallback>(), ggml_cuda_mmq_write_back_dp4a<type, J, fallback>);
        } else {
            return funcs(-1, ggml_cuda_mmq_load_tiles_bof4<type, J, fallback>,
                vec_dot::template mma<type, J, fallback>(), ggml_cuda_mmq_write_back_mma<type, J, fallback>);
        }
#endif // defined(TURING_MMA_AVAILABLE)
    }
}

// Is the loop over the weights that of bof4-mmq-pipeline.cuh?
static constexpr __device__ bool bof4_mmq_has_pipeline(ggml_type type, int J) {
#if defined(CP_ASYNC_AVAILABLE)
    return bof4_mmq_has_second_buffer(type, J);
#else
    GGML_UNUSED(type);
    GGML_UNUSED(J);
    return false;
#endif // defined(CP_ASYNC_AVAILABLE)
}

// That loop, with the arguments of upstream's mul_mat_q_process_tile.
template <ggml_type type, int J, bool fallback> static __device__ __forceinline__ void bof4_mmq_process_tile(
    const char * x, const int offset_x, const int * y, int * tile_x, int * tile_y, const int stride_row_x,
    const int ncols_y, const int i_max, const int kb0_start, const int kb0_stop, float * sum) {
#if defined(CP_ASYNC_AVAILABLE)
    using traits = bof4_cuda_type<type>;
    using config = bof4_mmq_config<type, J, fallback>;
    int * const buffers[2] = { tile_y, tile_x + config::rows * config::stride };
    bof4_mmq_accumulate<type, config::rows, J, config::row_tiles, config::stride, config::threads, fallback>(
        (const uint8_t *) x + (int64_t) offset_x * traits::bytes, stride_row_x * traits::bytes, i_max, y,
        (int64_t) ncols_y * BOF4_MMQ_COLUMN, kb0_start, kb0_stop, tile_x, buffers, sum);
#endif // defined(CP_ASYNC_AVAILABLE)
}
