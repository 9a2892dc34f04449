// The loop of the tiled product over the weights of a row, 128 at a time, for chips that copy to shared memory
// asynchronously. While 128 weights are multiplied, the next 128 activations are on their way to the other of two
// buffers, the next 128 weights are decoded from registers to the other half of the tile, and those after them are
// loaded to these registers.
#pragma once

#include "bof4/cuda/bof4-async-copy.cuh"
#include "bof4-mmq-product.cuh"

// Starts to copy 128 activations of J columns, which lie one behind the other, 16 bytes for a thread at a time. to and
// from: the first of this thread.
template <int J, int threads>
static __device__ __forceinline__ void bof4_mmq_copy_columns(int * to, const int * from, int thread) {
    constexpr int n = J * BOF4_MMQ_COLUMN / 4;
#pragma unroll
    for (int i = 0; i < n; i += threads) {
        if (i + threads <= n || i + thread < n) {
            bof4_copy_16<0>(to + 4 * i, from + 4 * i);
        }
    }
}

// Adds to `sums` (see bof4_mmq_multiply) the products of blocks k_begin to k_end of each row, whole tiles.
// x: block 0 of the first row; y: columns for the first 128 weights; y_stride: words to those for the next 128.
// tile_x: `rows` rows of `stride` words; tile_y: the two buffers. Rows behind last_row are that row again.
template <ggml_type type, int rows, int J, int row_tiles, int stride, int threads, bool clamp>
static __device__ __forceinline__ void bof4_mmq_accumulate(const uint8_t * x, const int row_bytes, const int last_row,
    const int * y, const int64_t y_stride, const int k_begin, const int k_end, int * tile_x, int * const (&tile_y)[2],
    float * sums) {
    using traits = bof4_cuda_type<type>;
    constexpr int step = 256 / traits::n;
    const int thread = 32 * threadIdx.y + threadIdx.x;
    using half_blocks = bof4_half_blocks<type, rows, threads, clamp>;
    half_blocks blocks(thread);
    x += (int64_t) k_begin * traits::bytes;
    y += k_begin / step * 2 * y_stride + 4 * thread;
    bof4_mmq_copy_columns<J, threads>(tile_y[0] + 4 * thread, y, thread);
    blocks.load(x, row_bytes, last_row, 0);
    blocks.template store<stride>(tile_x, 0);
    blocks.load(x, row_bytes, last_row, 1);
    const uint8_t * codes = blocks.first_codes(x, row_bytes, last_row);
    for (int k = k_begin; k < k_end; k += step) {
        int bytes = row_bytes;
        asm volatile("" : "+r"(bytes)); // else the offsets of all rows are kept in registers
        if (k + step < k_end) {         // behind the last 256 weights those again: loaded, not used
            codes += step * traits::bytes;
            x += step * traits::bytes;
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            bof4_copy_wait_for_all();
            __syncthreads();
            if (half == 0 || k + step < k_end) {
                y += y_stride;
            }
            bof4_mmq_copy_columns<J, threads>(tile_y[1 - half] + 4 * thread, y, thread);
            bof4_mmq_multiply<type, J, row_tiles, stride>(tile_x, tile_y[half], sums, half, [&](int i, int n) {
                constexpr int steps = half_blocks::steps;
#pragma unroll
                for (int r = i * steps / n; r < (i + 1) * steps / n; ++r) {
                    blocks.template store_codes<stride>(tile_x, 1 - half, r);
                    blocks.load_codes(codes, bytes, last_row, half, r);
                }
                if (i == n - 1) {
                    blocks.template store_scales<stride>(tile_x, 1 - half);
                    blocks.load_scales(x, bytes, last_row, half);
                }
            });
        }
    }
    bof4_copy_wait_for_all();
    __syncthreads();
}
