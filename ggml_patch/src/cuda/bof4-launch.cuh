// Starting kernels. A file of its own, so that tests can run them on a CPU instead.
#pragma once

#include "ggml-cuda/common.cuh"

template <typename... parameters, typename... arguments>
static void bof4_launch(
    void (*kernel)(parameters...), dim3 blocks, dim3 threads, cudaStream_t stream, arguments... args) {
    kernel<<<blocks, threads, 0, stream>>>(args...);
    CUDA_CHECK(cudaGetLastError());
}
