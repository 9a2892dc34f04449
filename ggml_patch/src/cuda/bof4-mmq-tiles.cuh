// 256 weights of several rows, decoded to int8 in shared memory: the tiles of upstream's tiled matrix product.
#pragma once

#include "bof4-type.cuh"

// Places in a tile: words of four int8 in rows of `qs_stride` words, and the floats of `scales` scales per row. These
// lie behind the first 64 words of their row where tensor cores read the tile (mma), else behind all rows, with one
// float of padding for every 32 to put rows in different banks.
template <int rows, int n_scales, int mma_stride, bool mma> struct bof4_tile {
    static constexpr int scales = n_scales;
    static constexpr int qs_stride = mma ? mma_stride : 64 + 1;

    static __device__ __forceinline__ int word(int row, int i) { return row * qs_stride + i; }
    static __device__ __forceinline__ int scale(int row, int i) {
        return mma ? row * mma_stride + 64 + i : rows * qs_stride + row * scales + row / (32 / scales) + i;
    }
};

// Every 32 threads decode a row at a time, a word of codes each. x: the first block of the first row; stride: blocks
// between rows; clamp: rows behind last_row are that row again.
template <ggml_type type, typename tile, int rows, int threads, bool clamp>
static __device__ __forceinline__ void bof4_load_tile(
    const uint8_t * __restrict__ x, int * __restrict__ tile_x, int thread, int stride, int last_row) {
    using traits = bof4_cuda_type<type>;
    constexpr int scales_of_block = tile::scales * traits::n / 256;
    const int word = thread % 32;
    const int b = word / traits::words, w = word % traits::words;
    float * scales = (float *) tile_x;
#pragma unroll
    for (int row0 = 0; row0 < rows; row0 += threads / 32) {
        int row = row0 + thread / 32;
        if (clamp) {
            row = min(row, last_row);
        }
        const uint8_t * block = x + ((int64_t) row * stride + b) * traits::bytes;
        uint32_t low, high;
        bof4_levels8<type>(bof4_load_word(block + traits::codes_at + 4 * w), low, high);
        const int at = (b * traits::n + traits::first_of_word(w)) / 4;
        tile_x[tile::word(row, at)] = (int) low;
        tile_x[tile::word(row, at + traits::word_distance / 4)] = (int) high;
        if (w < scales_of_block) {
            scales[tile::scale(row, scales_of_block * b + w)] = traits::mmq_scale(block, w);
        }
    }
}
