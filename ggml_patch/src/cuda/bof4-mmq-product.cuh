// The product of a tile of weights and a tile of activations on tensor cores (mma.sync, int8).
//
// An int32 accumulator begins as the bit pattern of the float 1.5 * 2^23 (BOF4_FLOAT_ZERO), whose mantissa counts ones,
// so the sum of a group of products is a float without conversion: 1.5 * 2^23 + sum. One FMA multiplies it with the
// scale of the weights. What that adds too much, 1.5 * 2^23 times the scale, is subtracted first: exactly, because a
// scale has at most 17 bits. So an element costs one instruction for each scale of weights and one for each scale of
// activations; a conversion and a product of scales would be three each.
//
// Where several scales of weights have one of activations (BOF4_K), the excess of all of them is subtracted first, and
// each FMA rounds at its magnitude: for scales of one size s by about 6 s in all, where the rounding of the activations
// to int8 is about 200 s.
#pragma once

#include "bof4/cuda/bof4-mma.cuh"
#include "bof4-mmq-tiles.cuh"

// Adds the products of 128 weights. x: tile of weights in rows of `stride` words, of which these are half number
// `half`; y: J columns of activations. A warp has 16 row_tiles rows, and of every 8 row_tiles columns eight; sums: for
// each of those eight and each 16 rows four, as mma places them.
// other(i, n) is called in n places, to mix other work with the products.
template <ggml_type type, int J, int row_tiles, int stride, typename function>
static __device__ __forceinline__ void bof4_mmq_multiply(
    const int * x, const int * y, float * sums, const int half, function other) {
    using tile = bof4_product_tile<type>;
    constexpr int act_groups = tile::excess_of_half, steps = tile::act_group / 32;
    constexpr int group = tile::group, groups = tile::act_group / group;
    static_assert(group == 16 || group % 32 == 0, "an mma multiplies 16 or 32 products");
    static_assert(steps % 2 == 0 && groups * group == tile::act_group, "a group of activations has whole groups");
    const int lane = threadIdx.x, warp = threadIdx.y;
    x += warp / row_tiles * (16 * row_tiles) * stride;
    y += warp % row_tiles * 8 * BOF4_MMQ_COLUMN;
    // of this lane; all other offsets are constants
    const int * a_at = x + (lane % 16 * stride + lane / 16 * 4);
    const int * b_at = y + (lane % 8 * BOF4_MMQ_COLUMN + lane / 8 * 4);
    const float * scales_at = (const float *) x + lane / 4 * stride;
    const float * act_scales_at = (const float *) y + lane % 4 * 2 * BOF4_MMQ_COLUMN;

#pragma unroll
    for (int i = 0; i < act_groups; ++i) {
        int a[row_tiles][steps][4];
        float scales[row_tiles][2][groups], excess[row_tiles][2];
#pragma unroll
        for (int n = 0; n < row_tiles; ++n) {
#pragma unroll
            for (int k = 0; k < steps; ++k) {
                bof4_load_matrices(a[n][k], a_at + (16 * n * stride + 32 * half + 8 * (i * steps + k)));
            }
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const float * row = scales_at + (16 * n + 8 * r) * stride;
                bof4_floats<groups>::load(scales[n][r], row + tile::scales_at + (half * act_groups + i) * groups);
                excess[n][r] = row[tile::excess_at + half * act_groups + i];
            }
        }

#pragma unroll
        for (int j = 0; j < J / (8 * row_tiles); ++j) {
            ggml_cuda_syncwarp(); // else loads of all columns are moved here, and registers spill
            other(i * (J / (8 * row_tiles)) + j, act_groups * (J / (8 * row_tiles)));
            const int columns = j * (8 * row_tiles) * BOF4_MMQ_COLUMN;
            int b[steps / 2][4];
#pragma unroll
            for (int k = 0; k < steps / 2; ++k) {
                bof4_load_matrices(b[k], b_at + (columns + BOF4_MMQ_SCALES + 8 * i * steps + 16 * k));
            }
            float act_scales[2];
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                act_scales[c] = act_scales_at[columns + c * BOF4_MMQ_COLUMN + i * steps];
            }
#pragma unroll
            for (int n = 0; n < row_tiles; ++n) {
                float sum[4];
#pragma unroll
                for (int l = 0; l < 4; ++l) {
                    sum[l] = excess[n][l / 2];
                }
#pragma unroll
                for (int g = 0; g < groups; ++g) {
                    int dot[4] = { BOF4_FLOAT_ZERO, BOF4_FLOAT_ZERO, BOF4_FLOAT_ZERO, BOF4_FLOAT_ZERO };
                    if constexpr (group == 16) {
                        const int (&of_a)[4] = a[n][g / 2];
                        bof4_mma_k16(dot, of_a[g % 2 * 2], of_a[g % 2 * 2 + 1], b[g / 4][g % 4]);
                    } else {
#pragma unroll
                        for (int k = g * (group / 32); k < (g + 1) * (group / 32); ++k) {
                            bof4_mma_k32(dot, a[n][k], b[k / 2][k % 2 * 2], b[k / 2][k % 2 * 2 + 1]);
                        }
                    }
#pragma unroll
                    for (int l = 0; l < 4; ++l) {
                        sum[l] = fmaf(__int_as_float(dot[l]), scales[n][l / 2][g], sum[l]);
                    }
                }
#pragma unroll
                for (int l = 0; l < 4; ++l) {
                    float & to = sums[(j * row_tiles + n) * 4 + l];
                    to = fmaf(act_scales[l % 2], sum[l], to);
                }
            }
        }
    }
}
