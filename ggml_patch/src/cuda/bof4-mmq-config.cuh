// What upstream's mmq.cuh needs of these types before its tile configurations.
#pragma once

#include "bof4-mmq-tiles.cuh"

// Tile sizes and numbers of warps are tuned by type and chip. A type takes those of the upstream type whose tiles have
// the same layout. Other types: themselves.
static constexpr __host__ __device__ ggml_type bof4_mmq_like(ggml_type type) {
    switch (type) {
#define BOF4_MMQ_LIKE_CASE(NAME, name) \
    case GGML_TYPE_##NAME: return bof4_cuda_type<GGML_TYPE_##NAME>::mmq_like;
        BOF4_TYPES_CUDA(BOF4_MMQ_LIKE_CASE)
#undef BOF4_MMQ_LIKE_CASE
        default: return type;
    }
}

// Has the loop over the weights a second buffer for activations (bof4-mmq-pipeline.cuh), where the chip copies
// asynchronously? Not for few columns: those of BOF4_K need more registers than two blocks of threads have, and on an
// H200 took 1.7 times as long as without.
static constexpr __host__ __device__ bool bof4_mmq_has_second_buffer(ggml_type type, int J) {
    return ggml_cuda_bof4_has_kernels(type) && J >= 24;
}

// Bytes of shared memory for that buffer.
static int bof4_mmq_second_buffer(ggml_type type, int J, int cc) {
    return bof4_mmq_has_second_buffer(type, J) && cp_async_available(cc) ? J * BOF4_MMQ_COLUMN * (int) sizeof(int) : 0;
}

#define BOF4_MMQ_TRAITS(NAME, name) \
    template <> struct ggml_cuda_type_traits<GGML_TYPE_##NAME> { \
        static constexpr int qk = QK_##NAME; \
    };
BOF4_TYPES_CUDA(BOF4_MMQ_TRAITS)
#undef BOF4_MMQ_TRAITS

// For upstream's switch over types, and for its declarations of instances, which are compiled in bof4-mmq-*.cu.
#define BOF4_MMQ_CASE(NAME, name) \
    case GGML_TYPE_##NAME: mul_mat_q_case<GGML_TYPE_##NAME>(ctx, args, stream); break;
#define BOF4_MMQ_DECLARE(NAME, name) extern DECL_MMQ_CASE(GGML_TYPE_##NAME);
