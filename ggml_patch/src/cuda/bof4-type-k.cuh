// BOF4_K in CUDA kernels: traits (bof4-type.cuh), order of the activations, and the step of mul_mat_vec.
#pragma once

#include "bof4-activations.cuh"
#include "bof4-codes.cuh"

#include <cstddef>

struct bof4_k_act_layout;
struct bof4_k_step;

template <> struct bof4_cuda_type<GGML_TYPE_BOF4_K> {
    static constexpr int n = QK_BOF4_K, bytes = BOF4_K_BLOCK_BYTES, words = n / 8, codes_at = BOF4_K_CODES_AT;
    static constexpr int word_distance = n / 4;
    static constexpr int scales_at = offsetof(block_bof4_k, scales);

    static constexpr int level(int code) {
        constexpr int8_t levels[16] = BOF4_K_LEVELS;
        return levels[code];
    }
    static __device__ __forceinline__ int first_of_word(int word) { return n / 2 * (word / 16) + 4 * (word % 16); }
    // Scale j of a superblock, -32 to 31. scales: its 12 bytes of scales.
    static __device__ __forceinline__ int sub_block_scale(const uint8_t * scales, int j) {
        return ((scales[j % 8] >> 4 * (j / 8) & 0xf) | (scales[8 + j % 4] >> 2 * (j / 4) & 0x3) << 4) -
            BOF4_K_SUB_SCALE_OFFSET;
    }
    static __device__ __forceinline__ void units(const uint8_t * block, int word, float & low, float & high) {
        const float d = bof4_load_scale(block) * BOF4_K_UNIT;
        const int j = first_of_word(word) / BOF4_K_SUB_BLOCK;
        low = d * (float) sub_block_scale(block + scales_at, j);
        high = d * (float) sub_block_scale(block + scales_at, j + word_distance / BOF4_K_SUB_BLOCK);
    }
    static __device__ __forceinline__ float weight(float unit, int level) { return unit * (float) level; }

    static constexpr ggml_type mmq_like = GGML_TYPE_IQ2_S;
    static constexpr int mmq_scales = BOF4_K_SUB_BLOCKS;
    static constexpr int mmq_group = BOF4_K_SUB_BLOCK, mmq_act_group = QK_BOF4_K / 2;
    static constexpr float mmq_unit = BOF4_K_UNIT;

    static __device__ __forceinline__ float mmq_scale(const uint8_t * block, int i) {
        return bof4_load_scale(block) * (float) sub_block_scale(block + scales_at, i);
    }

    struct mmq_scales_of_64 {
        uint16_t d, low[2], high[2]; // four bytes of low and four of high bits

        __device__ __forceinline__ void load(const uint8_t * block, int i) {
            const auto * words = (const uint16_t *) (block + scales_at);
            d = bof4_load_global((const uint16_t *) block);
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                low[k] = bof4_load_global(words + i % 2 * 2 + k);
                high[k] = bof4_load_global(words + 4 + k);
            }
        }
        __device__ __forceinline__ void decode(float (&scales)[4], int i) const {
            const float unit = __half2float(__ushort_as_half(d));
            const uint32_t four = low[0] | (uint32_t) low[1] << 16, two = high[0] | (uint32_t) high[1] << 16;
            const uint32_t stored = (four >> i / 2 * 4 & 0x0f0f0f0fu) | (two >> 2 * i & 0x03030303u) << 4;
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                // a byte of `stored` as the low bits of the float 2^23
                const uint32_t bits = bof4_prmt(stored, 0x4b000000u, 0x7440u + k);
                scales[k] = unit * (__int_as_float((int) bits) - (8388608.0f + BOF4_K_SUB_SCALE_OFFSET));
            }
        }
    };

    using act_layout = bof4_k_act_layout;
    template <bool aligned> using step = bof4_k_step;
};

// Eight bytes of codes are eight consecutive weights in the low nibbles and eight in the high nibbles, 64 later. The
// step merges the nibbles of two words to the order 0 4 1 5 2 6 3 7. The activations are stored in that order: eight of
// the low nibbles, then eight of the high ones. One scale for half a superblock.
struct bof4_k_act_layout {
    static constexpr int superblocks_of_chunk = 4;
    static constexpr int group = QK_BOF4_K / 2;
    static constexpr int per_lane = group / 32;
    static constexpr float unit = BOF4_K_UNIT;

    static __host__ __device__ int64_t chunks(int64_t n) {
        return (n / QK_BOF4_K + superblocks_of_chunk - 1) / superblocks_of_chunk;
    }
    static __host__ __device__ int64_t stride(int64_t n) { return chunks(n) * superblocks_of_chunk * (QK_BOF4_K / 4); }
    static __host__ __device__ int64_t scale_stride(int64_t n) { return n / group; }
    static __host__ __device__ int64_t groups(int64_t n) { return stride(n) / (group / 4); }

    static __device__ __forceinline__ int64_t at(int64_t b, int lane, int k) { return b * group + per_lane * lane + k; }
    static __device__ __forceinline__ void store(
        const bof4_activations & act, int64_t column, int64_t b, int lane, const int8_t * q) {
        const int eight = lane / 2 % 8, high = lane / 16;
        int8_t * bytes = (int8_t *) (act.qs + column * act.stride) + b * group + 16 * eight + 8 * high + lane % 2;
#pragma unroll
        for (int k = 0; k < per_lane; ++k) {
            bytes[2 * k] = q[k];
        }
    }
};

// A chunk is four superblocks of eight lanes each. A lane has eight bytes of codes of the first 128 weights and the
// eight bytes at the same place of the other 128: of the twelve bytes of scales it then needs three, for four times
// eight weights.
//
// Superblocks are 142 bytes long, so the codes of every other one begin in the middle of a word and are shifted out of
// two words and a half. Where codes begin at a word, the half word behind them may lie outside of the row: half of
// their second word is loaded instead and not used. Four superblocks are a whole number of words, so a lane does the
// same in every chunk.
struct bof4_k_step {
    static constexpr int rows = 2, unroll = 1;
    static constexpr int blocks_per_sm = 6, blocks_per_sm_4_to_8 = 3;
    static constexpr int chunk_bytes = bof4_k_act_layout::superblocks_of_chunk * BOF4_K_BLOCK_BYTES;
    static_assert(chunk_bytes % 4 == 0, "the codes of a lane have the same alignment in every chunk");

    template <int S> struct weights {
        uint32_t codes[2][2][S];
        uint16_t d[S];
        uint8_t low[S], low4[S], high[S]; // bytes g, g + 4 and g + 8 of the scales
    };

    static __device__ __forceinline__ int dot8(uint32_t codes, int x0, int x1) {
        const uint32_t flipped = codes ^ 0x88888888u;
        return bof4_dot4<GGML_TYPE_BOF4_K>(
            codes >> 16, flipped >> 16, x1, bof4_dot4<GGML_TYPE_BOF4_K>(codes, flipped, x0, 0));
    }

    template <int S> struct loader {
        using traits = bof4_cuda_type<GGML_TYPE_BOF4_K>;

        const uint8_t * heads[S];  // superblock of the lane in chunk 0
        const uint32_t * words[S]; // that hold its first codes
        uint32_t odd[S];           // bytes from the beginning of words[s] to those codes: 0 or 2
        int lane, first, n_blocks;

        __device__ __forceinline__ loader(const uint8_t * const (&rows_at)[S], int n, int lane)
            : lane(lane),
              n_blocks(n / QK_BOF4_K) {
            first = min(lane / 8, n_blocks - 1);
#pragma unroll
            for (int s = 0; s < S; ++s) {
                heads[s] = rows_at[s] + first * BOF4_K_BLOCK_BYTES;
                const uint8_t * codes = heads[s] + traits::codes_at + 8 * (lane % 8);
                odd[s] = (uint32_t) (uintptr_t) codes & 2;
                words[s] = (const uint32_t *) (codes - odd[s]);
            }
        }

        // Lanes behind the end of the row load the chunk before again; their activations are zero.
        __device__ __forceinline__ int chunk_of(int chunk) const {
            return chunk > 0 && bof4_k_act_layout::superblocks_of_chunk * chunk + first >= n_blocks ? chunk - 1 : chunk;
        }

        __device__ __forceinline__ void load(weights<S> & w, int chunk) const {
            const int at = chunk_of(chunk) * chunk_bytes, g = lane % 8 / 2;
#pragma unroll
            for (int s = 0; s < S; ++s) {
                const uint8_t *head = heads[s] + at, *scales = head + traits::scales_at + g;
                w.d[s] = *(const uint16_t *) head;
                w.low[s] = scales[0];
                w.low4[s] = scales[4];
                w.high[s] = scales[8];
                const uint32_t *p = words[s] + at / 4, *last = p + odd[s] / 2;
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
            const int b = first + bof4_k_act_layout::superblocks_of_chunk * chunk_of(chunk);
            const int64_t at = (int64_t) (bof4_k_act_layout::superblocks_of_chunk * chunk + lane / 8) * 16 + lane % 8;
#pragma unroll
            for (int c = 0; c < columns; ++c) {
                const int4 * qs = (const int4 *) (act.qs + (column + c) * act.stride) + at;
                const int4 x[2] = { qs[0], qs[8] };
                const float * dx = act.scales + (column + c) * act.scale_stride + 2 * b;
#pragma unroll
                for (int s = 0; s < S; ++s) {
                    // stored scales of the low and of the high nibbles in the halves of a word: their low four
                    // bits, and their high two
                    const uint32_t four = w.low[s] | (uint32_t) w.low4[s] << 16, two = w.high[s];
                    float sum = 0.0f;
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        const uint32_t of_both = (four >> 4 * h & 0x000f000fu) |
                            ((two >> 4 * h) * 0x40010u & 0x00300030u);
                        const uint32_t first8 = w.codes[h][0][s], second8 = w.codes[h][1][s];
                        const int low = dot8((first8 & 0x0f0f0f0fu) | (second8 << 4 & 0xf0f0f0f0u), x[h].x, x[h].y);
                        const int high = dot8((first8 >> 4 & 0x0f0f0f0fu) | (second8 & 0xf0f0f0f0u), x[h].z, x[h].w);
                        // each dot is at most 8 * 127 * 127; times 63, twice: below 2^24, so the conversion is exact
                        sum += dx[h] *
                            (float) ((int) (of_both & 0xffff) * low + (int) (of_both >> 16) * high -
                                BOF4_K_SUB_SCALE_OFFSET * (low + high));
                    }
                    sums[s * columns + c] += __half2float(__ushort_as_half(w.d[s])) * sum;
                }
            }
        }
    };

    static __device__ __host__ __forceinline__ int chunks(int n) { return (int) bof4_k_act_layout::chunks(n); }
};
