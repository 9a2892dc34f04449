// Starting kernels. A file of its own, so that tests can run them on a CPU instead.
#pragma once

#include "ggml-cuda/common.cuh"

// Starts a kernel by programmatic dependent launch where the GPU has it: its blocks may begin while the kernel before it
// is still running. So a kernel must call ggml_cuda_pdl_sync() in every thread before it reads what an earlier kernel
// writes, or writes anything. Weights and lists may be read before.
//
// shared_bytes: of bof4_dynamic_shared().
template <typename... parameters, typename... arguments>
static void bof4_launch(void (*kernel)(parameters...), dim3 blocks, dim3 threads, size_t shared_bytes,
    cudaStream_t stream, arguments... args) {
    const ggml_cuda_kernel_launch_params params(blocks, threads, shared_bytes, stream);
    ggml_cuda_kernel_launch(kernel, params, args...);
}

// Shared memory of the size that the launch requested, aligned to 16 bytes.
static __device__ __forceinline__ uint8_t * bof4_dynamic_shared() {
    extern __shared__ int4 bof4_dynamic[];
    return (uint8_t *) bof4_dynamic;
}
