// 256 weights of some rows, decoded to int8 in shared memory: what upstream's tiled matrix product takes.
#pragma once

#include "bof4-codes.cuh"

// Where things lie in a tile: words of four int8 in `qs_stride` words a row, floats behind the first 64 words of a row (where
// tensor cores read the tile) or behind all rows, one for each scale and some to keep rows in different banks.
template <int rows, int scales, int mma_stride, bool mma> struct bof4_tile {
    static constexpr int qs_stride = mma ? mma_stride : 64 + 1;

    static __device__ __forceinline__ int word(int row, int i) {
        return row * qs_stride + i;
    }
    static __device__ __forceinline__ int scale(int row, int i) {
        return mma ? row * mma_stride + 64 + i : rows * qs_stride + row * scales + row / (32 / scales) + i;
    }
};

// Each 32 threads decode a row at a time, a word of codes each. x: the first block of the first row; stride: blocks between rows;
// rows beyond last_row are that one again.
template <typename type, typename tile, int rows, int threads, bool clamp>
static __device__ __forceinline__ void bof4_load_tile(
        const uint8_t * __restrict__ x, int * __restrict__ tile_x, int thread, int stride, int last_row) {
    constexpr int blocks = 256 / type::n;
    const int word = thread % 32;
    const int b = word / type::words, w = word % type::words;
    float * scales = (float *) tile_x;
#pragma unroll
    for (int row0 = 0; row0 < rows; row0 += threads / 32) {
        int row = row0 + thread / 32;
        if (clamp) {
            row = min(row, last_row);
        }
        const uint8_t * block = x + ((int64_t) row * stride + b) * type::bytes;
        uint32_t low, high;
        bof4_levels8<typename type::levels_of>(bof4_load_word(block + type::codes_at + 4 * w), low, high);
        const int at = (b * type::n + type::first(w)) / 4;
        tile_x[tile::word(row, at)] = (int) low;
        tile_x[tile::word(row, at + type::apart / 4)] = (int) high;

        if (blocks == 1) {
            // BOF4_K: one scale for 16
            if (word < BOF4_K_SUB_BLOCKS) {
                scales[tile::scale(row, word)] =
                    bof4_load_scale(block) * BOF4_K_UNIT * (float) bof4_unpack_scale(block + 2, word);
            }
        } else if (w < 2) {
            // BOF4_S: upstream has one for 32
            scales[tile::scale(row, 2 * b + w)] = bof4_load_scale(block) * (1.0f / BOF4_LEVEL_SCALE);
        }
    }
}
