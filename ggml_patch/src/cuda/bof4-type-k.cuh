// BOF4_K in CUDA kernels: traits (bof4-type.cuh), order of the activations, and the step of mul_mat_vec.
#pragma once

#include "bof4-activations.cuh"
#include "bof4-codes.cuh"
#include "bof4-copy.cuh"

#include <cstddef>

struct bof4_k_act_layout;
template <bool aligned> struct bof4_k_step;

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
    static constexpr int mmq_two_blocks = 16; // more would need more registers
    static constexpr float mmq_unit = BOF4_K_UNIT;

    static __device__ __forceinline__ float mmq_scale(const uint8_t * block, int i) {
        return bof4_load_scale(block) * (float) sub_block_scale(block + scales_at, i);
    }

    struct mmq_scales_of_half {
        uint16_t d, words[6]; // the 12 bytes of scales: eight of low bits, four of high bits

        __device__ __forceinline__ void load(const uint8_t * block, int) {
            d = *(const uint16_t *) block;
#pragma unroll
            for (int i = 0; i < 6; ++i) {
                words[i] = ((const uint16_t *) (block + scales_at))[i];
            }
        }
        __device__ __forceinline__ void decode(float (&scales)[8], int half) const {
            const float unit = __half2float(__ushort_as_half(d));
            const uint32_t high = words[4] | (uint32_t) words[5] << 16;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const uint32_t low = words[2 * i] | (uint32_t) words[2 * i + 1] << 16;
                // four stored scales, a byte each
                const uint32_t stored = (low >> 4 * half & 0x0f0f0f0fu) |
                    (high >> (4 * half + 2 * i) & 0x03030303u) << 4;
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    // as the low bits of the float 2^23
                    const uint32_t bits = bof4_prmt(stored, 0x4b000000u, 0x7440u + k);
                    scales[4 * i + k] = unit * (__int_as_float((int) bits) - (8388608.0f + BOF4_K_SUB_SCALE_OFFSET));
                }
            }
        }
    };

    using act_layout = bof4_k_act_layout;
    template <int alignment> using step = bof4_k_step<alignment == 16>;
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

// A chunk is four superblocks of eight lanes each. A lane has 16 bytes of codes: the sub-blocks of their low and of their
// high nibbles, and so two scales, which are in three bytes.
//
// Superblocks are 142 bytes long. Loaded by four bytes to a lane, a chunk would touch each of its cache lines nine times,
// which L1 cannot do at the speed of the memory of an H100. So each warp copies chunks to shared memory, 16 bytes to a
// lane, and its lanes shift their codes out of five words there.
template <bool aligned> struct bof4_k_step {
    static constexpr __host__ __device__ int blocks_per_sm(int columns) {
        return columns == 1 ? 5 : columns == 2 ? 4 : 3;
    }
    static constexpr __host__ __device__ int rows(int columns) { return columns <= 4 ? 4 : 2; }
    static constexpr bool is_staged = true, may_have_fewer_rows = aligned;
    static constexpr int chunk_bytes = bof4_k_act_layout::superblocks_of_chunk * BOF4_K_BLOCK_BYTES;
    static_assert(chunk_bytes % 16 == 8, "chunks of aligned rows begin at byte 0 or 8 of a piece");
    template <int S>
    using staged_rows = bof4_staged_rows<S, chunk_bytes, 0, (chunk_bytes + (aligned ? 8 : 14) + 15) / 16, aligned>;

    template <int S> static constexpr __host__ __device__ size_t staged_bytes() { return staged_rows<S>::bytes; }

    template <int S> struct loader {
        using traits = bof4_cuda_type<GGML_TYPE_BOF4_K>;

        staged_rows<S> staged;
        int lane, n_blocks;

        template <typename function>
        __device__ __forceinline__ loader(function row_at, int n, int lane, uint8_t * staged)
            : staged(row_at, n / QK_BOF4_K * BOF4_K_BLOCK_BYTES, lane, staged),
              lane(lane),
              n_blocks(n / QK_BOF4_K) {}

        template <int columns, int N>
        __device__ __forceinline__ void multiply(
            int stage, const bof4_activations & act, int chunk, float (&sums)[N]) const {
            struct weights {
                bof4_dot8<GGML_TYPE_BOF4_K, (columns > 2)> dots[4]; // words 0 and 1, 2 and 3 merged
                int low, high;                                      // scales of the sub-blocks, -32 to 31
                float d;
            };
            // superblock of the lane; behind the end of the row its last one, because activations are then zero
            const int left = n_blocks - 1 - bof4_k_act_layout::superblocks_of_chunk * chunk;
            const int b = min(lane / 8, left), g = lane % 8, half = g / 4;
            const auto read = [&](int s, weights & w) {
                const int at = staged.place(aligned ? 0 : s, chunk) + b * BOF4_K_BLOCK_BYTES;
                const uint8_t * row = staged.row(stage, s);
                w.d = bof4_load_scale(row + at);
                const uint8_t * bytes = row + (at + traits::scales_at + g % 4);
                const uint32_t four = (bytes[0] | (uint32_t) bytes[4] << 16) >> 4 * half & 0x000f000fu;
                const uint32_t of_both = four | (((uint32_t) bytes[8] >> 4 * half) * 0x40010u & 0x00300030u);
                w.low = (int) (of_both & 0xffff) - BOF4_K_SUB_SCALE_OFFSET;
                w.high = (int) (of_both >> 16) - BOF4_K_SUB_SCALE_OFFSET;

                const int codes_at = at + traits::codes_at + 16 * g, odd = codes_at & 2;
                const uint32_t * words = (const uint32_t *) (row + (codes_at - odd));
                uint32_t codes[5] = { words[0], words[1], words[2], words[3], words[4] };
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    codes[k] = __funnelshift_r(codes[k], codes[k + 1], 8 * odd);
                }
#pragma unroll
                for (int k = 0; k < 4; k += 2) {
                    w.dots[k].look_up(bof4_select(0x0f0f0f0fu, codes[k], codes[k + 1] << 4));
                    w.dots[k + 1].look_up(bof4_select(0x0f0f0f0fu, codes[k] >> 4, codes[k + 1]));
                }
            };
            const int scale = 2 * (bof4_k_act_layout::superblocks_of_chunk * chunk + b) + half;
            const auto scales = [&](const float * of_column) { return of_column[scale]; };
            const auto add = [&](const weights & w, const int4(&x)[2], float dx, float & sum) {
                const int low = w.dots[2].add(x[1].x, x[1].y, w.dots[0].add(x[0].x, x[0].y, 0));
                const int high = w.dots[3].add(x[1].z, x[1].w, w.dots[1].add(x[0].z, x[0].w, 0));
                // each is at most 16 * 127 * 127; times 32, twice: below 2^24, so the conversion is exact
                sum += w.d * (dx * (float) (w.low * low + w.high * high));
            };
            bof4_multiply_lane<S, columns, weights>(act, 32 * chunk + lane, read, scales, add, sums);
        }
    };

    static __device__ __host__ __forceinline__ int chunks(int n) { return (int) bof4_k_act_layout::chunks(n); }
};
