// What a warp of bof4-mmvq.cuh does with one chunk of the rows, for each type: load codes, multiply.
#pragma once

#include "bof4-mmvq.cuh"

// A small integer as float without the conversion unit, which is four times slower than an addition: sums of products start at the
// bits of 1.5 * 2^23, where the mantissa counts ones.
static constexpr int BOF4_FLOAT_ZERO = 0x4b400000;

static __device__ __forceinline__ float bof4_small_int(int sum) {
    return __int_as_float(sum) - 12582912.0f;
}

// BOF4_S: lane l of chunk c has word 32 c + l of the row, whatever that is: codes of one block, and perhaps its scale or that of
// the next, to which belong activations of zero. So no word belongs to two blocks, all loads are whole lines, and blocks of 34
// bytes cost nothing. aligned: rows begin at multiples of four bytes; where they do not, words come in two halves.
template <bool aligned> struct bof4_s_step {
    // blocks: of threads, that shall have room on one multiprocessor (registers)
    static constexpr int rows = 4, unroll = 2, blocks = aligned ? 7 : 6, blocks_of_many = 4;

    template <int S> struct weights {
        uint32_t codes[unroll][S];
        uint16_t d[unroll][S];
    };

    template <int S> struct source {
        const uint8_t * rows[S];
        int lane, halves, n_chunks;

        __device__ __forceinline__ source(const uint8_t * const (&rows_at)[S], int n, int lane) :
            lane(lane), halves(n / QK_BOF4_S * bof4_s_act::halves), n_chunks(chunks(n)) {
#pragma unroll
            for (int s = 0; s < S; ++s) {
                rows[s] = rows_at[s];
            }
        }

        // the word of this lane, or the last one again, and the block that it belongs to
        __device__ __forceinline__ uint32_t word(int chunk) const {
            return (uint32_t) min(32 * chunk + lane, (halves - 1) / 2);
        }
        static __device__ __forceinline__ uint32_t block(uint32_t word) {
            return 2 * word / bof4_s_act::halves;
        }

        __device__ __forceinline__ void load(weights<S> & w, int chunk) const {
#pragma unroll
            for (int u = 0; u < unroll; ++u) {
                if (u > 0 && chunk + u >= n_chunks) {
                    break;
                }
                const uint32_t i = word(chunk + u), d_at = block(i) * BOF4_S_BLOCK_BYTES;
                // an odd number of blocks ends in half a word
                const uint32_t second = min(2 * i + 1, (uint32_t) halves - 1);
#pragma unroll
                for (int s = 0; s < S; ++s) {
                    if (aligned) {
                        w.codes[u][s] = ((const uint32_t *) rows[s])[i];
                    } else {
                        w.codes[u][s] = ((const uint16_t *) rows[s])[2 * i] | (uint32_t) ((const uint16_t *) rows[s])[second] << 16;
                    }
                    w.d[u][s] = *(const uint16_t *) (rows[s] + d_at);
                }
            }
        }

        template <int columns, int N>
        __device__ __forceinline__ void multiply(
                const weights<S> & w, const bof4_activations & act, int64_t column, int chunk, float (&sums)[N]) const {
#pragma unroll
            for (int u = 0; u < unroll; ++u) {
                if (u > 0 && chunk + u >= n_chunks) {
                    break;
                }
                const uint32_t b = block(word(chunk + u));
#pragma unroll
                for (int c = 0; c < columns; ++c) {
                    const int2 x = ((const int2 *) (act.qs + (column + c) * act.stride))[32 * (chunk + u) + lane];
                    const float dx = act.scales[(column + c) * act.scale_stride + b];
#pragma unroll
                    for (int s = 0; s < S; ++s) {
                        const uint32_t codes = w.codes[u][s], flipped = codes ^ 0x88888888u;
                        int sum = bof4_dot4<bof4_s_levels_of>(codes, flipped, x.x, BOF4_FLOAT_ZERO);
                        sum = bof4_dot4<bof4_s_levels_of>(codes >> 16, flipped >> 16, x.y, sum);
                        sums[s * columns + c] += __half2float(__ushort_as_half(w.d[u][s])) * dx * bof4_small_int(sum);
                    }
                }
            }
        }
    };

    static __device__ __host__ __forceinline__ int chunks(int n) {
        return (int) bof4_s_act::chunks(n);
    }
};

// BOF4_K: a chunk is four superblocks, eight lanes to each. A lane has eight bytes of codes of the first 128 weights and eight of
// the others, at the same place: then it needs three of the twelve bytes of scales, for four times eight weights.
//
// Superblocks are 142 bytes long, so the codes of every other one begin in the middle of a word. There they are shifted out of the
// words around them, and end in half a word; elsewhere that half would not be theirs, and one of theirs is loaded for it. Four
// superblocks are whole words, so a lane does the same in every chunk.
struct bof4_k_step {
    static constexpr int rows = 2, unroll = 1, blocks = 6, blocks_of_many = 3;
    static constexpr int chunk_bytes = bof4_k_act::blocks_of_chunk * BOF4_K_BLOCK_BYTES;
    static_assert(chunk_bytes % 4 == 0, "codes of a lane lie alike in every chunk");

    template <int S> struct weights {
        uint32_t codes[2][2][S];
        uint16_t d[S];
        uint8_t low[S], low4[S], high[S];   // bytes g, g + 4 and g + 8 of the scales
    };

    static __device__ __forceinline__ int dot8(uint32_t codes, int x0, int x1) {
        const uint32_t flipped = codes ^ 0x88888888u;
        return bof4_dot4<bof4_k_levels_of>(codes >> 16, flipped >> 16, x1, bof4_dot4<bof4_k_levels_of>(codes, flipped, x0, 0));
    }

    template <int S> struct source {
        const uint8_t * heads[S];       // superblock of the lane in chunk 0
        const uint32_t * words[S];      // those that its first codes are in
        uint32_t odd[S];                // bytes by which they begin later
        int lane, first, n_blocks;

        __device__ __forceinline__ source(const uint8_t * const (&rows_at)[S], int n, int lane) :
            lane(lane), n_blocks(n / QK_BOF4_K) {
            first = min(lane / 8, n_blocks - 1);
#pragma unroll
            for (int s = 0; s < S; ++s) {
                heads[s] = rows_at[s] + first * BOF4_K_BLOCK_BYTES;
                const uint8_t * codes = heads[s] + bof4_k_type::codes_at + 8 * (lane % 8);
                odd[s] = (uint32_t) (uintptr_t) codes & 2;
                words[s] = (const uint32_t *) (codes - odd[s]);
            }
        }

        // the chunk before for lanes beyond the row's end: they meet activations of zero
        __device__ __forceinline__ int chunk_of(int chunk) const {
            return chunk > 0 && bof4_k_act::blocks_of_chunk * chunk + first >= n_blocks ? chunk - 1 : chunk;
        }

        __device__ __forceinline__ void load(weights<S> & w, int chunk) const {
            const int at = chunk_of(chunk) * chunk_bytes, g = lane % 8 / 2;
#pragma unroll
            for (int s = 0; s < S; ++s) {
                const uint8_t * head = heads[s] + at, * scales = head + g;
                w.d[s]    = *(const uint16_t *) head;
                w.low[s]  = scales[2];
                w.low4[s] = scales[6];
                w.high[s] = scales[10];
                const uint32_t * p = words[s] + at / 4, * last = p + odd[s] / 2;
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const uint32_t p0 = p[16 * h], p1 = p[16 * h + 1], p2 = *(const uint16_t *) (last + 16 * h + 1);
                    w.codes[h][0][s] = __funnelshift_r(p0, p1, 8 * odd[s]);
                    w.codes[h][1][s] = __funnelshift_r(p1, p2, 8 * odd[s]);
                }
            }
        }

        template <int columns, int N>
        __device__ __forceinline__ void multiply(
                const weights<S> & w, const bof4_activations & act, int64_t column, int chunk, float (&sums)[N]) const {
            const int b = first + bof4_k_act::blocks_of_chunk * chunk_of(chunk);
            const int64_t at = (int64_t) (bof4_k_act::blocks_of_chunk * chunk + lane / 8) * 16 + lane % 8;
#pragma unroll
            for (int c = 0; c < columns; ++c) {
                const int4 * qs = (const int4 *) (act.qs + (column + c) * act.stride) + at;
                const int4 x[2] = { qs[0], qs[8] };
                const float * dx = act.scales + (column + c) * act.scale_stride + 2 * b;
#pragma unroll
                for (int s = 0; s < S; ++s) {
                    // two scales side by side, four bits and two of each, 32 too large
                    const uint32_t four = w.low[s] | (uint32_t) w.low4[s] << 16, two = w.high[s];
                    float sum = 0.0f;
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        const uint32_t of_both = (four >> 4 * h & 0x000f000fu) | ((two >> 4 * h) * 0x40010u & 0x00300030u);
                        const uint32_t first8 = w.codes[h][0][s], second8 = w.codes[h][1][s];
                        const int low  = dot8((first8 & 0x0f0f0f0fu) | (second8 << 4 & 0xf0f0f0f0u), x[h].x, x[h].y);
                        const int high = dot8((first8 >> 4 & 0x0f0f0f0fu) | (second8 & 0xf0f0f0f0u), x[h].z, x[h].w);
                        // each dot at most 8 * 127 * 127: times 63, twice, 2^24
                        sum += dx[h] * (float) ((int) (of_both & 0xffff) * low + (int) (of_both >> 16) * high - 32 * (low + high));
                    }
                    sums[s * columns + c] += __half2float(__ushort_as_half(w.d[s])) * sum;
                }
            }
        }
    };

    static __device__ __host__ __forceinline__ int chunks(int n) {
        return (int) bof4_k_act::chunks(n);
    }
};
