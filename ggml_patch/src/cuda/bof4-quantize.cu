#include "bof4-cuda.cuh"
#include "bof4/cuda/bof4-launch.cuh"
#include "bof4-quantize.cuh"

void ggml_cuda_bof4_quantize_mmq(const float * x, const int32_t * ids, void * y, ggml_type type, int64_t n, int64_t s1,
    int64_t s2, int64_t s3, int64_t padded_n, int64_t x_columns, int64_t y_columns, int64_t ne12, int64_t ne13,
    int slots, cudaStream_t stream) {
    GGML_ASSERT(n % 4 == 0 && padded_n % 128 == 0);
    constexpr int warps = 4;
    const dim3 blocks(x_columns, (padded_n / 128 + warps - 1) / warps, ne12 * ne13);
    bof4_dispatch(type, "quantization of activations", [&](auto of_type) {
        bof4_launch(bof4_quantize_mmq_kernel<decltype(of_type)::value>, blocks, dim3(32, warps), 0, stream, x, ids,
            (int *) y, n, s1, s2, s3, padded_n, y_columns, ne12, slots);
    });
}
