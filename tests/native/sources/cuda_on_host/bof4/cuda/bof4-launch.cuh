// In place of src/cuda/bof4-launch.cuh: runs kernels on the CPU.
#pragma once

#include "ggml-cuda/common.cuh"

inline std::vector<int4> bof4_dynamic;

// As large as the launch requests, and filled with a pattern.
template <typename... parameters, typename... arguments>
static void bof4_launch(
    void (*kernel)(parameters...), dim3 blocks, dim3 threads, size_t shared_bytes, cudaStream_t, arguments... args) {
    bof4_dynamic.assign((shared_bytes + sizeof(int4) - 1) / sizeof(int4), { -1, -1, -1, -1 });
    on_host::run(blocks, threads, [&] { kernel(args...); });
}

inline uint8_t * bof4_dynamic_shared() {
    return (uint8_t *) bof4_dynamic.data();
}
