// Activations as int8 for mul_mat_vec, in the order in which the codes of a type are stored, so that no weight has to
// be moved to its activation. The number of activations under one scale depends on the type, too.
#pragma once

#include <cstdint>

// Columns of n activations each. A column has `stride` words of four int8 in qs, and `scale_stride` floats in scales:
// each is the scale of a group of activations times the unit of the type, so that the product of level and int8 has to
// be multiplied by this and by the scale of the weights only.
struct bof4_activations {
    int32_t * qs;
    float * scales;
    int64_t stride, scale_stride;
};

// One warp per group of activations under one scale; blockIdx.y, z: rows and matrices of x, whose strides s1, s2, s3
// are in elements. Groups behind the end of a column, which the products read, become zeros. A layout has
//
//     static constexpr int per_lane               activations of a lane
//     static constexpr float unit                 of the type, by which scales are multiplied
//     int64_t stride(n), scale_stride(n)          of bof4_activations, for columns of n
//     int64_t groups(n)                           warps per column
//     int64_t at(group, lane, k)                  the k-th activation of a lane
//     void store(act, column, group, lane, q)
//
// dependents_read_more: the next kernel reads what kernels before this one write, before it waits for this one. It begins
// when they have ended, and else may begin at once.
template <typename layout>
static __global__ void bof4_quantize_kernel(const float * x, const bof4_activations act, const int64_t n,
    const int64_t ne11, const int64_t ne12, const int64_t s1, const int64_t s2, const int64_t s3,
    const bool dependents_read_more) {
    const int lane = threadIdx.x;
    const int64_t group = (int64_t) blockIdx.x * blockDim.y + threadIdx.y;
    if (!dependents_read_more) {
        ggml_cuda_pdl_lc();
    }
    ggml_cuda_pdl_sync();
    if (dependents_read_more) {
        ggml_cuda_pdl_lc();
    }
    if (group >= layout::groups(n)) {
        return;
    }
    const uint32_t z = blockIdx.z;
    const int64_t i1 = blockIdx.y, i3 = z == 0 ? 0 : z / (uint32_t) ne12, i2 = z - i3 * ne12;
    const float * column = x + i1 * s1 + i2 * s2 + i3 * s3;
    float v[layout::per_lane];
    float largest = 0.0f;
#pragma unroll
    for (int k = 0; k < layout::per_lane; ++k) {
        const int64_t i = layout::at(group, lane, k);
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
    layout::store(act, c, group, lane, q);
    if (lane == 0 && group < act.scale_stride) {
        act.scales[c * act.scale_stride + group] = largest / 127.0f * layout::unit;
    }
}

// The products of a lane's weights of S rows and of its 32 activations in each column: the 32 bytes at number `place`.
//
//     read(s, weights &)                     loads the lane's weights of row s, and looks up their levels
//     scales(column)                         of the lane's activations, out of all of the column
//     add(weights, activations, scales, sum) adds the product
//
// Few columns: their activations stay in registers; more: the weights of all rows do.
template <int S, int columns, typename weights, typename reader, typename scaler, typename adder, int N>
static __device__ __forceinline__ void bof4_multiply_lane(
    const bof4_activations & act, int place, reader read, scaler scales, adder add, float (&sums)[N]) {
    struct activations {
        int4 x[2];
        decltype(scales(act.scales)) dx;
    };
    const auto load = [&](int c) {
        const int4 * x = (const int4 *) act.qs + 2 * place + c * (act.stride / 4);
        return activations{ { x[0], x[1] }, scales(act.scales + c * act.scale_stride) };
    };
    if constexpr (columns > 2) {
        weights w[S];
#pragma unroll
        for (int s = 0; s < S; ++s) {
            read(s, w[s]);
        }
#pragma unroll
        for (int c = 0; c < columns; ++c) {
            const activations a = load(c);
#pragma unroll
            for (int s = 0; s < S; ++s) {
                add(w[s], a.x, a.dx, sums[s * columns + c]);
            }
        }
    } else {
        activations a[columns];
#pragma unroll
        for (int c = 0; c < columns; ++c) {
            a[c] = load(c);
        }
#pragma unroll
        for (int s = 0; s < S; ++s) {
            weights w;
            read(s, w);
#pragma unroll
            for (int c = 0; c < columns; ++c) {
                add(w, a[c].x, a[c].dx, sums[s * columns + c]);
            }
        }
    }
}
