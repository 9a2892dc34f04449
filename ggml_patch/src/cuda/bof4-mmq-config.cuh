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

// The largest tile, in columns, of which two blocks of threads share an SM (mmq_two_blocks); 0 for types that are not ours.
static constexpr __host__ __device__ int bof4_mmq_two_blocks(ggml_type type) {
    switch (type) {
#define BOF4_MMQ_TWO_BLOCKS_CASE(NAME, name) \
    case GGML_TYPE_##NAME: return bof4_cuda_type<GGML_TYPE_##NAME>::mmq_two_blocks;
        BOF4_TYPES_CUDA(BOF4_MMQ_TWO_BLOCKS_CASE)
#undef BOF4_MMQ_TWO_BLOCKS_CASE
        default: return 0;
    }
}

// Blocks of threads for each SM, where these have a type's tiles of J columns. Few columns need few registers, so that
// two blocks fit, of which one works while the other one waits. Other types: what upstream has.
static constexpr __host__ __device__ int bof4_mmq_blocks_per_sm(ggml_type type, int J) {
#if defined(GGML_USE_HIP) || defined(GGML_USE_MUSA)
    GGML_UNUSED(type);
    GGML_UNUSED(J);
    return 1;
#else
    return J <= bof4_mmq_two_blocks(type) ? 2 : 1;
#endif // defined(GGML_USE_HIP) || defined(GGML_USE_MUSA)
}

// Blocks of threads among which all steps of all tiles are divided: as many as the GPU runs at once, but one for each SM
// where a block would have fewer than J / 5 steps of 256 weights, beside which the work around them counts (measured
// on an H200).
template <typename mmq_config, typename mmq_arguments, typename device_info>
static int bof4_mmq_blocks(const mmq_config & config, const mmq_arguments & args, const device_info & device) {
    const int per_sm = bof4_mmq_blocks_per_sm(config.type, config.J);
    const auto parts = [](int64_t n, int size) { return (n + size - 1) / size; };
    const int64_t steps = parts(args.nrows_x, config.I) * parts(args.ncols_max, config.J) * args.nchannels_y *
        args.nsamples_y * parts(args.ncols_x, 256);
    const size_t shared_bytes = per_sm * mmq_get_nbytes_shared(config, device.cc);
    const bool together = shared_bytes <= device.smpbo && 5 * steps >= (int64_t) config.J * per_sm * device.nsm;
    return together ? per_sm * device.nsm : device.nsm;
}

// Has the loop over the weights a second buffer for activations (bof4-mmq-pipeline.cuh), where the chip copies
// asynchronously? Not for few columns: two blocks of threads on an SM hide more.
static constexpr __host__ __device__ bool bof4_mmq_has_second_buffer(ggml_type type, int J) {
    return ggml_cuda_bof4_has_kernels(type) && J > bof4_mmq_two_blocks(type);
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
