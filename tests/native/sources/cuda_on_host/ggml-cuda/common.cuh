// The parts of upstream's common.cuh that this project's files use, on a CPU.
#pragma once

#include "cuda_on_host.h"

typedef void * cudaStream_t;

enum { cudaMemcpyDeviceToDevice };
#define CUDA_CHECK(call) (call)

inline void cudaMemcpyAsync(void * to, const void * from, size_t bytes, int, cudaStream_t) {
    std::memcpy(to, from, bytes);
}

struct ggml_cuda_pool {};

struct ggml_backend_cuda_context {
    ggml_cuda_pool memory;
    cudaStream_t stream() { return nullptr; }
    ggml_cuda_pool & pool() { return memory; }
};

// Exactly as large as requested, and filled with a pattern, because a kernel must not rely on the contents.
template <typename T> struct ggml_cuda_pool_alloc {
    T * ptr = nullptr;

    ggml_cuda_pool_alloc() = default;
    ggml_cuda_pool_alloc(ggml_cuda_pool & pool, size_t n) { alloc(pool, n); }
    ggml_cuda_pool_alloc(const ggml_cuda_pool_alloc &) = delete;
    ~ggml_cuda_pool_alloc() { std::free(ptr); }

    T * alloc(ggml_cuda_pool &, size_t n) {
        // aligned to 16 bytes, as kernels may assume; nothing behind the end
        const size_t bytes = n * sizeof(T);
        void * memory = nullptr;
        GGML_ASSERT(posix_memalign(&memory, 16, bytes) == 0);
        std::memset(memory, 0x7f, bytes);
        return ptr = (T *) memory;
    }
    T * get() { return ptr; }
};

struct ggml_cuda_device_info {
    struct {
        int nsm;
    } devices[1] = { { 2 } };
};

inline const ggml_cuda_device_info & ggml_cuda_info() {
    static const ggml_cuda_device_info info;
    return info;
}

inline int ggml_cuda_get_device() {
    return 0;
}

struct ggml_cuda_mm_fusion_args_host {
    const ggml_tensor * x_bias = nullptr;
    const ggml_tensor * gate = nullptr;
    const ggml_tensor * gate_bias = nullptr;
    const ggml_tensor * x_scale = nullptr;
    const ggml_tensor * gate_scale = nullptr;
    ggml_glu_op glu_op;
    float glu_limit = 0.0f;
};
