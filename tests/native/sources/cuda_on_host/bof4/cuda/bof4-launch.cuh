// In place of src/cuda/bof4-launch.cuh: runs kernels on the CPU.
#pragma once

#include "ggml-cuda/common.cuh"

template <typename... parameters, typename... arguments>
static void bof4_launch(void (*kernel)(parameters...), dim3 blocks, dim3 threads, cudaStream_t, arguments... args) {
    on_host::run(blocks, threads, [&] { kernel(args...); });
}
