// 256 weights of several rows, decoded to int8 in shared memory: the tiles of the tiled matrix product.
#pragma once

#include "bof4-type.cuh"

// Words of four int8 of 256 weights.
static constexpr int BOF4_TILE_WORDS = 64;

// Words of a column of upstream's block_q8_1_mmq: four scales, float, and 128 int8.
static constexpr int BOF4_MMQ_SCALES = 4, BOF4_MMQ_COLUMN = BOF4_MMQ_SCALES + 32;

// Where the 32 threads of a warp store the levels of their words of codes: sixteen threads those of 128 weights, the
// others those of 128 more or of another row. Those sixteen words of low nibbles or of high nibbles lie in different
// banks, and those of the other threads in the same ones: these store the high nibbles first.
template <ggml_type type> struct bof4_tile_places {
    int first, second; // words of a row
    uint32_t of_first, of_second;

    // word: of the codes of 256 weights
    __device__ __forceinline__ bof4_tile_places(int word, bool high_first) {
        using traits = bof4_cuda_type<type>;
        const int low = (word / traits::words * traits::n + traits::first_of_word(word % traits::words)) / 4;
        first = low + (high_first ? traits::word_distance / 4 : 0);
        second = low + (high_first ? 0 : traits::word_distance / 4);
        of_first = high_first ? BOF4_OF_HIGH : BOF4_OF_LOW;
        of_second = high_first ? BOF4_OF_LOW : BOF4_OF_HIGH;
    }

    __device__ __forceinline__ void store(int * row, uint32_t codes) const {
        uint32_t levels[2];
        bof4_levels_in_order<type>(codes, levels);
        row[first] = (int) bof4_prmt(levels[0], levels[1], of_first);
        row[second] = (int) bof4_prmt(levels[0], levels[1], of_second);
    }
};

// Tiles of upstream's products: words of four int8 in rows of `qs_stride` words, and the floats of `scales` scales per
// row. These lie behind the first 64 words of their row where matrix instructions read the tile (mma), else behind all
// rows, with one float of padding for every 32 to put rows in different banks.
template <int rows, int n_scales, int mma_stride, bool mma> struct bof4_tile {
    static constexpr int scales = n_scales;
    static constexpr int qs_stride = mma ? mma_stride : BOF4_TILE_WORDS + 1;

    static __device__ __forceinline__ int word(int row, int i) { return row * qs_stride + i; }
    static __device__ __forceinline__ int scale(int row, int i) {
        return mma ? row * mma_stride + BOF4_TILE_WORDS + i : rows * qs_stride + row * scales + row / (32 / scales) + i;
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
    const bof4_tile_places<type> places(word, word >= 16);
    float * scales = (float *) tile_x;
#pragma unroll
    for (int row0 = 0; row0 < rows; row0 += threads / 32) {
        int row = row0 + thread / 32;
        if (clamp) {
            row = min(row, last_row);
        }
        const uint8_t * block = x + ((int64_t) row * stride + b) * traits::bytes;
        places.store(tile_x + tile::word(row, 0), bof4_load_word(block + traits::codes_at + 4 * w));
        if (w < scales_of_block) {
            scales[tile::scale(row, scales_of_block * b + w)] = traits::mmq_scale(block, w);
        }
    }
}

// Tiles of our product (bof4-mmq-product.cuh): rows of `stride` words, of which 64 have the levels. Behind them are the
// scales of the weights, then what each group of activations subtracts (excess).
template <ggml_type type> struct bof4_product_tile {
    using traits = bof4_cuda_type<type>;
    static constexpr int group = traits::mmq_group, act_group = traits::mmq_act_group;
    static constexpr int scales_of_half = 128 / group, excess_of_half = 128 / act_group;
    static constexpr int scales_at = BOF4_TILE_WORDS, excess_at = scales_at + 2 * scales_of_half;
    static constexpr int end = excess_at + 2 * excess_of_half;
};

// What a thread decodes of 128 weights of each row, in registers, so that the next ones are loaded from global memory
// while others are multiplied. Sixteen threads have a word of codes each of a row, and the first `rows` threads the
// scales of a row. Addresses are those of step 0 and of the first 128 weights, plus constants: the compiler would keep
// all of them in registers. clamp: there may be fewer rows than the tile has.
template <ggml_type type, int rows, int threads, bool clamp> struct bof4_half_blocks {
    using traits = bof4_cuda_type<type>;
    using tile = bof4_product_tile<type>;
    static constexpr int rows_of_step = threads / 16, steps = rows / rows_of_step;
    static_assert(rows_of_step == 16, "rows of the two halves of a warp are in the same banks");
    static constexpr int half_bytes = 16 / traits::words * traits::bytes + 4 * (16 % traits::words);

    uint16_t codes[steps][2];
    typename traits::mmq_scales_of_half scales;
    const bof4_tile_places<type> places;
    const int thread;

    __device__ __forceinline__ explicit bof4_half_blocks(int thread)
        : places(thread % 16, thread % 32 >= 16),
          thread(thread) {}

    __device__ __forceinline__ int first_row() const { return thread % 32 / 16 * 8 + thread / 32; }
    // x: the first block of the first row of a tile.
    __device__ __forceinline__ const uint8_t * first_codes(const uint8_t * x, int row_bytes, int last_row) const {
        const int word = thread % 16;
        return x + (int64_t) (clamp ? min(first_row(), last_row) : first_row()) * row_bytes +
            word / traits::words * traits::bytes + traits::codes_at + 4 * (word % traits::words);
    }

    // half: of 256 weights. Rows behind last_row are that row again.
    __device__ __forceinline__ void load_codes(
        const uint8_t * first_codes, int row_bytes, int last_row, int half, int step) {
        const int more_rows = clamp ? max(min(rows_of_step * step, last_row - first_row()), 0) : rows_of_step * step;
        const auto * p = (const uint16_t *) (first_codes + more_rows * row_bytes + half * half_bytes);
        codes[step][0] = p[0];
        codes[step][1] = p[1];
    }
    __device__ __forceinline__ void load_scales(const uint8_t * x, int row_bytes, int last_row, int half) {
        if (thread < rows) {
            scales.load(x + (clamp ? min(thread, last_row) : thread) * row_bytes, half);
        }
    }

    template <int stride> __device__ __forceinline__ void store_codes(int * tile_x, int half, int step) const {
        places.store(tile_x + first_row() * stride + (step * rows_of_step * stride + BOF4_TILE_WORDS / 2 * half),
            codes[step][0] | (uint32_t) codes[step][1] << 16);
    }
    template <int stride> __device__ __forceinline__ void store_scales(int * tile_x, int half) const {
        if (thread >= rows) {
            return;
        }
        float decoded[tile::scales_of_half], excess[tile::excess_of_half];
        scales.decode(decoded, half);
#pragma unroll
        for (int i = 0; i < tile::excess_of_half; ++i) {
            constexpr int n = tile::act_group / tile::group;
            float sum = 0.0f;
#pragma unroll
            for (int g = n * i; g < n * (i + 1); ++g) {
                sum += decoded[g];
            }
            excess[i] = -BOF4_FLOAT_ZERO_VALUE * sum;
        }
        float * row = (float *) (tile_x + thread * stride);
        bof4_floats<tile::scales_of_half>::store(row + tile::scales_at + half * tile::scales_of_half, decoded);
        bof4_floats<tile::excess_of_half>::store(row + tile::excess_at + half * tile::excess_of_half, excess);
    }

    __device__ __forceinline__ void load(const uint8_t * x, int row_bytes, int last_row, int half) {
#pragma unroll
        for (int i = 0; i < steps; ++i) {
            load_codes(first_codes(x, row_bytes, last_row), row_bytes, last_row, half, i);
        }
        load_scales(x, row_bytes, last_row, half);
    }
    template <int stride> __device__ __forceinline__ void store(int * tile_x, int half) const {
#pragma unroll
        for (int i = 0; i < steps; ++i) {
            store_codes<stride>(tile_x, half, i);
        }
        store_scales<stride>(tile_x, half);
    }
};
