// The loop of the tiled product over the weights of a row, 256 at a time, for chips that copy to shared memory
// asynchronously: while a tile is multiplied, the next activations are on their way to the other of two buffers, and
// the next blocks of weights to registers.
#pragma once

#include "bof4-mmq-product.cuh"

// Starts to copy 128 activations of J columns, which lie one behind the other.
template <int J, int threads>
static __device__ __forceinline__ void bof4_mmq_copy_columns(int * to, const int * from, int thread) {
    constexpr int n = J * BOF4_MMQ_COLUMN / 4; // 16 bytes each
#pragma unroll
    for (int i0 = 0; i0 < n; i0 += threads) {
        const int i = i0 + thread;
        if (i0 + threads <= n || i < n) {
            bof4_copy_async(to + 4 * i, from + 4 * i);
        }
    }
}

// Adds to `sums` (see bof4_mmq_multiply) the products of blocks k_begin to k_end of each row, whole tiles.
// x: block 0 of the first row; y: columns for the first 128 weights; y_stride: words to those for the next 128.
// tile_x: `rows` rows of `stride` words; tile_y: the two buffers.
template <ggml_type type, int rows, int J, int row_tiles, int stride, int threads, bool clamp>
static __device__ __forceinline__ void bof4_mmq_accumulate(const uint8_t * x, int row_bytes, int last_row,
    const int * y, int64_t y_stride, int k_begin, int k_end, int * tile_x, int * const (&tile_y)[2], float * sums) {
    using traits = bof4_cuda_type<type>;
    constexpr int step = 256 / traits::n;
    const int thread = 32 * threadIdx.y + threadIdx.x;
    bof4_tile_blocks<type, rows, threads> blocks;
    x += (int64_t) k_begin * traits::bytes;
    y += k_begin / step * 2 * y_stride;
    bof4_mmq_copy_columns<J, threads>(tile_y[0], y, thread);
    blocks.template load<clamp>(x, row_bytes, last_row, thread);
    for (int k = k_begin; k < k_end; k += step) {
        blocks.template store<stride>(tile_x, thread);
        bof4_wait_for_copies();
        __syncthreads();
        bof4_mmq_copy_columns<J, threads>(tile_y[1], y + y_stride, thread);
        bof4_mmq_multiply<type, J, row_tiles, stride>(tile_x, tile_y[0], sums, 0);
        bof4_wait_for_copies();
        __syncthreads();
        // behind the last tile that one again, which is not used: a branch here costs registers
        if (k + step < k_end) {
            x += step * traits::bytes;
            y += 2 * y_stride;
        }
        bof4_mmq_copy_columns<J, threads>(tile_y[0], y, thread);
        blocks.template load<clamp>(x, row_bytes, last_row, thread);
        bof4_mmq_multiply<type, J, row_tiles, stride>(tile_x, tile_y[1], sums, 1);
        __syncthreads();
    }
    bof4_wait_for_copies();
}
