// Activations as int8 for the tiled product: upstream's block_q8_1_mmq (four float scales and 128 int8) with fewer
// different scales, one for mmq_act_group activations, in units of the type.
#pragma once

#include "ggml-cuda/common.cuh"

#include "bof4-mmq-tiles.cuh"

// One warp for each 128 activations of a column, four for each lane; blockIdx.x: columns; blockIdx.z: matrices, whose
// strides s1, s2, s3 are in elements. Activations behind the end of a column, up to padded_n, are zero.
// y: the first 128 activations of all columns, then the next 128.
// slots: 0, or the number of columns of y that each column of x becomes, ids[column * slots] and so on. Without slots,
// ids are the columns of x, if there are any.
template <ggml_type type>
static __global__ void bof4_quantize_mmq_kernel(const float * x, const int32_t * ids, int * y, const int64_t n,
    const int64_t s1, const int64_t s2, const int64_t s3, const int64_t padded_n, const int64_t columns,
    const int64_t ne12, const int slots) {
    using traits = bof4_cuda_type<type>;
    constexpr int lanes = traits::mmq_act_group / 4; // that have activations under one scale
    ggml_cuda_pdl_sync();
    const int lane = threadIdx.x;
    const int64_t block = (int64_t) blockIdx.y * blockDim.y + threadIdx.y;
    if (block >= padded_n / 128) {
        return;
    }
    const int64_t column = slots == 0 && ids ? ids[blockIdx.x] : blockIdx.x;
    const int64_t first = 128 * block + 4 * lane;
    float v[4] = {};
    if (first < n) {
        bof4_floats<4>::load(v, x + blockIdx.z / ne12 * s3 + blockIdx.z % ne12 * s2 + column * s1 + first);
    }
    float largest = fmaxf(fmaxf(fabsf(v[0]), fabsf(v[1])), fmaxf(fabsf(v[2]), fabsf(v[3])));
#pragma unroll
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, offset, 32));
    }
    const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    uint32_t q = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        q |= ((uint32_t) (int) rintf(v[k] * inverse) & 0xff) << 8 * k;
    }
    const float scale = largest / 127.0f * traits::mmq_unit;
    int * of_block = y + (blockIdx.z * (padded_n / 128) + block) * columns * BOF4_MMQ_COLUMN;
    for (int slot = 0; slot < (slots == 0 ? 1 : slots); ++slot) {
        const int64_t to = slots == 0 ? blockIdx.x : ids[(int64_t) blockIdx.x * slots + slot];
        int * words = of_block + to * BOF4_MMQ_COLUMN;
        words[BOF4_MMQ_SCALES + lane] = (int) q;
        if (lane % 8 == 0) {
            ((float *) words)[lane / 8] = scale;
        }
    }
}
