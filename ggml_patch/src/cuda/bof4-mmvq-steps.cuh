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
    static constexpr int rows = 4, unroll = 2, blocks = 7;

    template <int S> struct weights {
        uint32_t codes[unroll][S];
        uint16_t d[unroll][S];
    };

    static __device__ __forceinline__ int chunks(int n) {
        return (int) bof4_s_act::chunks(n);
    }
    // word of the row, the last one for lanes beyond it, and its block
    static __device__ __forceinline__ uint32_t word(int n, int chunk, int lane) {
        const int n_words = (n / QK_BOF4_S * bof4_s_act::halves + 1) / 2;
        return min(32 * chunk + lane, n_words - 1);
    }
    static __device__ __forceinline__ uint32_t block(uint32_t word) {
        return 2 * word / bof4_s_act::halves;
    }

    template <int S>
    static __device__ __forceinline__ void load(
            weights<S> & w, const uint8_t * const (&rows_at)[S], int n, int chunk, int n_chunks, int warps, int lane) {
#pragma unroll
        for (int u = 0; u < unroll; ++u) {
            if (u > 0 && chunk + u * warps >= n_chunks) {
                break;
            }
            const uint32_t i = word(n, chunk + u * warps, lane);
            const uint32_t d_at = block(i) * BOF4_S_BLOCK_BYTES;
            // the last half of an odd number of blocks has no neighbour
            const uint32_t second = min(2 * i + 1, (uint32_t) (n / QK_BOF4_S * bof4_s_act::halves - 1));
#pragma unroll
            for (int s = 0; s < S; ++s) {
                if (aligned) {
                    w.codes[u][s] = ((const uint32_t *) rows_at[s])[i];
                } else {
                    const uint16_t * halves = (const uint16_t *) rows_at[s];
                    w.codes[u][s] = halves[2 * i] | (uint32_t) halves[second] << 16;
                }
                w.d[u][s] = *(const uint16_t *) (rows_at[s] + d_at);
            }
        }
    }

    template <int S, int columns, int N>
    static __device__ __forceinline__ void multiply(
            const weights<S> & w, const bof4_activations & act, int64_t column, int n, int chunk, int n_chunks, int warps, int lane,
            float (&sums)[N]) {
#pragma unroll
        for (int u = 0; u < unroll; ++u) {
            if (u > 0 && chunk + u * warps >= n_chunks) {
                break;
            }
            const int at = 32 * (chunk + u * warps) + lane;
            const uint32_t b = block(word(n, chunk + u * warps, lane));
#pragma unroll
            for (int c = 0; c < columns; ++c) {
                const int2 x = ((const int2 *) (act.qs + (column + c) * act.stride))[at];
                const float dx = act.scales[(column + c) * act.scale_stride + b] * (1.0f / BOF4_LEVEL_SCALE);
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

// BOF4_K: a chunk is four superblocks, eight lanes to each. A lane has eight bytes of codes of the first 128 weights and eight of
// the others, at the same place: then it needs three of the twelve bytes of scales, for four times eight weights.
struct bof4_k_step {
    static constexpr int rows = 2, unroll = 1, blocks = 6;

    template <int S> struct weights {
        uint32_t codes[2][2][S];
        uint16_t d[S];
        uint8_t low[S], low4[S], high[S];   // bytes g, g + 4 and g + 8 of the scales
    };

    static __device__ __forceinline__ int chunks(int n) {
        return (int) bof4_k_act::chunks(n);
    }
    static __device__ __forceinline__ int block(int n, int chunk, int lane) {
        return min(bof4_k_act::blocks_of_chunk * chunk + lane / 8, n / QK_BOF4_K - 1);
    }

    template <int S>
    static __device__ __forceinline__ void load(
            weights<S> & w, const uint8_t * const (&rows_at)[S], int n, int chunk, int, int, int lane) {
        const int64_t at = (int64_t) block(n, chunk, lane) * BOF4_K_BLOCK_BYTES;
        const int t = lane % 8, g = t / 2;
#pragma unroll
        for (int s = 0; s < S; ++s) {
            const uint8_t * b = rows_at[s] + at;
            w.d[s]    = *(const uint16_t *) b;
            w.low[s]  = b[2 + g];
            w.low4[s] = b[6 + g];
            w.high[s] = b[10 + g];
            // 142 bytes: every other superblock's codes begin in the middle of a word. Then they are shifted out of the words
            // around them, and end in half a word; else that half is not theirs, and one of theirs is loaded for it.
            const uint8_t * codes = b + bof4_k_type::codes_at + 8 * t;
            const uint32_t odd = (uint32_t) (uintptr_t) codes & 2;
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const uint32_t * p = (const uint32_t *) (codes + 64 * h - odd);
                const uint32_t p0 = p[0], p1 = p[1], p2 = *(const uint16_t *) (p + 1 + odd / 2);
                w.codes[h][0][s] = __funnelshift_r(p0, p1, 8 * odd);
                w.codes[h][1][s] = __funnelshift_r(p1, p2, 8 * odd);
            }
        }
    }

    static __device__ __forceinline__ int dot8(uint32_t codes, int x0, int x1) {
        const uint32_t flipped = codes ^ 0x88888888u;
        return bof4_dot4<bof4_k_levels_of>(codes >> 16, flipped >> 16, x1, bof4_dot4<bof4_k_levels_of>(codes, flipped, x0, 0));
    }

    template <int S, int columns, int N>
    static __device__ __forceinline__ void multiply(
            const weights<S> & w, const bof4_activations & act, int64_t column, int n, int chunk, int, int, int lane,
            float (&sums)[N]) {
        const int b = block(n, chunk, lane), t = lane % 8;
        const int64_t at = (int64_t) (bof4_k_act::blocks_of_chunk * chunk + lane / 8) * 16 + t;
#pragma unroll
        for (int c = 0; c < columns; ++c) {
            const int4 * qs = (const int4 *) (act.qs + (column + c) * act.stride) + at;
            const int4 x[2] = { qs[0], qs[8] };
            const float * dx = act.scales + (column + c) * act.scale_stride + 2 * b;
#pragma unroll
            for (int s = 0; s < S; ++s) {
                float sum = 0.0f;
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const uint32_t first = w.codes[h][0][s], second = w.codes[h][1][s];
                    const uint32_t low  = (first & 0x0f0f0f0fu) | (second << 4 & 0xf0f0f0f0u);
                    const uint32_t high = (first >> 4 & 0x0f0f0f0fu) | (second & 0xf0f0f0f0u);
                    const int scale_low  = ((w.low[s]  >> 4 * h & 0xf) | (w.high[s] >> 4 * h       & 0x3) << 4) - 32;
                    const int scale_high = ((w.low4[s] >> 4 * h & 0xf) | (w.high[s] >> (4 * h + 2) & 0x3) << 4) - 32;
                    // each at most 8 * 127 * 127 * 32: both fit 23 bits
                    sum += dx[h] * (float) (scale_low * dot8(low, x[h].x, x[h].y) + scale_high * dot8(high, x[h].z, x[h].w));
                }
                sums[s * columns + c] += __half2float(__ushort_as_half(w.d[s])) * BOF4_K_UNIT * sum;
            }
        }
    }
};
