// Activations for bof4-mmvq.cuh: int8, one scale for 64 of them (BOF4_S) or 128 (BOF4_K), in the order in which the codes lie.
#pragma once

#include "bof4-format.h"

#include <cstdint>

// Columns one after the other. qs: `stride` words of four each; scales: `scale_stride` of each, times what the type's own scales
// are in units of (unit).
struct bof4_activations {
    int32_t * qs;
    float * scales;
    int64_t stride, scale_stride;
};

// BOF4_S: to each 16 bits of a row's blocks, codes or scale, belongs one word; a row of blocks is then read straight through, in
// words that lie as they please. To the scale belongs zero. Two bytes of codes 2 i, 2 i + 1 are weights 2 i, 2 i + 32, 2 i + 1 and
// 2 i + 33, as nibbles follow each other, hence one scale for all 64.
struct bof4_s_act {
    static constexpr int halves = BOF4_S_BLOCK_BYTES / 2;      // 16-bit parts of a block
    static constexpr int chunk = 64;                            // of them that a warp takes at a time

    static __host__ __device__ int64_t chunks(int64_t n) {
        return (n / QK_BOF4_S * halves + chunk - 1) / chunk;
    }
    static __host__ __device__ int64_t stride(int64_t n) {
        return chunks(n) * chunk;
    }
    static __host__ __device__ int64_t scale_stride(int64_t n) {
        return n / QK_BOF4_S;
    }
    // warps that bof4_quantize_kernel needs for a column
    static __host__ __device__ int64_t groups(int64_t n) {
        return (stride(n) + halves - 1) / halves;
    }
    static constexpr int per_lane = 2;
    static constexpr float unit = 1.0f / BOF4_LEVEL_SCALE;

    // Lane i: activations i and i + 32 of block b.
    static __device__ __forceinline__ int64_t at(int64_t b, int lane, int k) {
        return b * QK_BOF4_S + lane + 32 * k;
    }
    static __device__ __forceinline__ void store(const bof4_activations & act, int64_t column, int64_t b, int lane, const int8_t * q) {
        int32_t * words = act.qs + column * act.stride;
        if (lane == 0 && b * halves < act.stride) {
            words[b * halves] = 0;
        }
        const int64_t half = 2 * (b * halves + 1) + lane;
        if (half < 2 * act.stride) {
            ((uint16_t *) words)[half] = (uint16_t) ((uint8_t) q[0] | (uint8_t) q[1] << 8);
        }
    }
};

// BOF4_K: eight bytes of codes are eight consecutive weights in the low nibbles and eight in the high ones, 64 later. Nibbles of
// two words are brought together as in 0 4 1 5 2 6 3 7: so lie the activations, eight of the former and then eight of the latter.
struct bof4_k_act {
    static constexpr int blocks_of_chunk = 4;

    static __host__ __device__ int64_t chunks(int64_t n) {
        return (n / QK_BOF4_K + blocks_of_chunk - 1) / blocks_of_chunk;
    }
    static __host__ __device__ int64_t stride(int64_t n) {
        return chunks(n) * blocks_of_chunk * (QK_BOF4_K / 4);
    }
    static __host__ __device__ int64_t scale_stride(int64_t n) {
        return n / 128;
    }
    static __host__ __device__ int64_t groups(int64_t n) {
        return stride(n) / 32;
    }
    static constexpr int per_lane = 4;
    static constexpr float unit = 1.0f / 4096;

    static __device__ __forceinline__ int64_t at(int64_t b, int lane, int k) {
        return b * 128 + 4 * lane + k;
    }
    static __device__ __forceinline__ void store(const bof4_activations & act, int64_t column, int64_t b, int lane, const int8_t * q) {
        const int eight = lane / 2 % 8, high = lane / 16;
        int8_t * bytes = (int8_t *) (act.qs + column * act.stride) + b * 128 + 16 * eight + 8 * high + lane % 2;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            bytes[2 * k] = q[k];
        }
    }
};

// One warp for each group of activations under one scale, blockIdx.y, z: rows and matrices of x. Groups beyond the last become
// zeros: the products read them.
template <typename layout>
static __global__ void bof4_quantize_kernel(
        const float * __restrict__ x, const bof4_activations act, const int64_t n,
        const int64_t ne11, const int64_t ne12, const int64_t s1, const int64_t s2, const int64_t s3) {
    const int lane = threadIdx.x;
    const int64_t b = (int64_t) blockIdx.x * blockDim.y + threadIdx.y;
    if (b >= layout::groups(n)) {
        return;
    }
    const int64_t i1 = blockIdx.y, i2 = blockIdx.z % ne12, i3 = blockIdx.z / ne12;
    const float * column = x + i1 * s1 + i2 * s2 + i3 * s3;
    float v[layout::per_lane];
    float largest = 0.0f;
#pragma unroll
    for (int k = 0; k < layout::per_lane; ++k) {
        const int64_t i = layout::at(b, lane, k);
        v[k] = i < n ? column[i] : 0.0f;
        largest = fmaxf(largest, fabsf(v[k]));
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, offset, 32));
    }
    const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    int8_t q[layout::per_lane];
#pragma unroll
    for (int k = 0; k < layout::per_lane; ++k) {
        q[k] = (int8_t) rintf(v[k] * inverse);
    }
    const int64_t c = (i3 * ne12 + i2) * ne11 + i1;
    layout::store(act, c, b, lane, q);
    if (lane == 0 && b < act.scale_stride) {
        act.scales[c * act.scale_stride + b] = largest / 127.0f * layout::unit;
    }
}
