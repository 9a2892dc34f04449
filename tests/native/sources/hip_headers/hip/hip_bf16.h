// What ggml's CUDA sources use of newer HIP headers than Debian 12 has (5.2): for compiling only.
#pragma once

#include <hip/hip_bfloat16.h>
#include <hip/hip_fp16.h>

typedef hip_bfloat16 __hip_bfloat16;
struct __hip_bfloat162 {
    hip_bfloat16 x, y;
};

static __host__ __device__ inline hip_bfloat16 __float2bfloat16(float x) {
    return hip_bfloat16(x);
}
static __host__ __device__ inline float __bfloat162float(hip_bfloat16 x) {
    return float(x);
}
static __device__ inline half __hmax(half a, half b) {
    return __hgt(a, b) ? a : b;
}
static __device__ inline half2 __shfl_xor(half2 x, int, int) {
    return x;
}
static __device__ inline half2 __shfl_up(half2 x, unsigned, int) {
    return x;
}
