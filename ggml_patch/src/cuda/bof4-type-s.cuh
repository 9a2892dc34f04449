// BOF4_S in CUDA kernels: traits (bof4-type.cuh), order of the activations, and the step of mul_mat_vec.
#pragma once

#include "bof4-activations.cuh"
#include "bof4-codes.cuh"

struct bof4_s_act_layout;
template <bool aligned> struct bof4_s_step;

template <> struct bof4_cuda_type<GGML_TYPE_BOF4_S> {
    static constexpr int n = QK_BOF4_S, bytes = BOF4_S_BLOCK_BYTES, words = n / 8, codes_at = BOF4_S_CODES_AT;
    static constexpr int word_distance = n / 2;

    static constexpr int level(int code) {
        constexpr int8_t levels[16] = BOF4_S_LEVELS;
        return levels[code];
    }
    static __device__ __forceinline__ int first_of_word(int word) { return 4 * word; }
    static __device__ __forceinline__ void units(const uint8_t * block, int, float & low, float & high) {
        low = high = bof4_load_scale(block);
    }
    static __device__ __forceinline__ float weight(float unit, int level) { return unit * (float) level * BOF4_S_UNIT; }

    // upstream's products know one scale for 32 weights: each block has its scale twice
    static constexpr ggml_type mmq_like = GGML_TYPE_IQ4_NL;
    static constexpr int mmq_scales = 8;
    static constexpr int mmq_group = QK_BOF4_S, mmq_act_group = QK_BOF4_S;
    static constexpr float mmq_unit = BOF4_S_UNIT;

    static __device__ __forceinline__ float mmq_scale(const uint8_t * block, int) { return bof4_load_scale(block); }

    struct mmq_scales_of_64 {
        uint16_t d;

        __device__ __forceinline__ void load(const uint8_t * blocks, int i) {
            d = bof4_load_global((const uint16_t *) (blocks + i * bytes));
        }
        __device__ __forceinline__ void decode(float (&scales)[1], int) const {
            scales[0] = __half2float(__ushort_as_half(d));
        }
    };

    using act_layout = bof4_s_act_layout;
    template <bool aligned> using step = bof4_s_step<aligned>;
};

// Each 16 bits of a row's blocks, scales included, have one word of activations, so that rows are read as a sequence of
// words without regard to blocks. The word of a scale is zero. Two bytes of codes, 2i and 2i + 1, are weights 2i,
// 2i + 32, 2i + 1 and 2i + 33 in the order of their nibbles, and so are the activations of their word. Hence one scale
// for all 64.
struct bof4_s_act_layout {
    static constexpr int halves = BOF4_S_BLOCK_BYTES / 2; // 16-bit parts of a block
    static constexpr int chunk = 64;                      // of them that a warp multiplies at a time
    static constexpr int per_lane = 2;
    static constexpr float unit = BOF4_S_UNIT;

    static __host__ __device__ int64_t chunks(int64_t n) { return (n / QK_BOF4_S * halves + chunk - 1) / chunk; }
    static __host__ __device__ int64_t stride(int64_t n) { return chunks(n) * chunk; }
    static __host__ __device__ int64_t scale_stride(int64_t n) { return n / QK_BOF4_S; }
    static __host__ __device__ int64_t groups(int64_t n) { return (stride(n) + halves - 1) / halves; }

    // Lane i: activations i and i + 32 of block `group`.
    static __device__ __forceinline__ int64_t at(int64_t group, int lane, int k) {
        return group * QK_BOF4_S + lane + 32 * k;
    }
    static __device__ __forceinline__ void store(
        const bof4_activations & act, int64_t column, int64_t group, int lane, const int8_t * q) {
        int32_t * words = act.qs + column * act.stride;
        if (lane == 0 && group * halves < act.stride) {
            words[group * halves] = 0;
        }
        const int64_t half = 2 * (group * halves + 1) + lane;
        if (half < 2 * act.stride) {
            ((uint16_t *) words)[half] = (uint16_t) ((uint8_t) q[0] | (uint8_t) q[1] << 8);
        }
    }
};

// Lane l of chunk c has word 32 c + l of the row: codes of one block, and possibly its scale or that of the next block,
// whose activations are zero. So no word has codes of two blocks, all loads are coalesced, and blocks of 34 bytes need
// no realignment. aligned: rows begin at multiples of four bytes; otherwise words are loaded in two halves.
template <bool aligned> struct bof4_s_step {
    static constexpr int rows = 4, unroll = 2;
    static constexpr int blocks_per_sm = aligned ? 7 : 6, blocks_per_sm_4_to_8 = 4;

    template <int S> struct weights {
        uint32_t codes[unroll][S];
        uint16_t d[unroll][S];
    };

    template <int S> struct loader {
        const uint8_t * rows[S];
        int lane, halves, n_chunks;

        __device__ __forceinline__ loader(const uint8_t * const (&rows_at)[S], int n, int lane)
            : lane(lane),
              halves(n / QK_BOF4_S * bof4_s_act_layout::halves),
              n_chunks(chunks(n)) {
#pragma unroll
            for (int s = 0; s < S; ++s) {
                rows[s] = rows_at[s];
            }
        }

        // Word of this lane in the chunk; behind the end of the row its last word, whose activations are then zero.
        __device__ __forceinline__ uint32_t word(int chunk) const {
            return (uint32_t) min(32 * chunk + lane, (halves - 1) / 2);
        }
        static __device__ __forceinline__ uint32_t block_of_word(uint32_t word) {
            return 2 * word / bof4_s_act_layout::halves;
        }

        __device__ __forceinline__ void load(weights<S> & w, int chunk) const {
#pragma unroll
            for (int u = 0; u < unroll; ++u) {
                if (u > 0 && chunk + u >= n_chunks) {
                    break;
                }
                const uint32_t i = word(chunk + u), d_at = block_of_word(i) * BOF4_S_BLOCK_BYTES;
                // an odd number of blocks ends in half a word
                const uint32_t second = min(2 * i + 1, (uint32_t) halves - 1);
#pragma unroll
                for (int s = 0; s < S; ++s) {
                    if (aligned) {
                        w.codes[u][s] = ((const uint32_t *) rows[s])[i];
                    } else {
                        w.codes[u][s] = ((const uint16_t *) rows[s])[2 * i] |
                            (uint32_t) ((const uint16_t *) rows[s])[second] << 16;
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
                const uint32_t b = block_of_word(word(chunk + u));
#pragma unroll
                for (int c = 0; c < columns; ++c) {
                    const int2 x = ((const int2 *) (act.qs + (column + c) * act.stride))[32 * (chunk + u) + lane];
                    const float dx = act.scales[(column + c) * act.scale_stride + b];
#pragma unroll
                    for (int s = 0; s < S; ++s) {
                        const uint32_t codes = w.codes[u][s], flipped = codes ^ 0x88888888u;
                        int sum = bof4_dot4<GGML_TYPE_BOF4_S>(codes, flipped, x.x, BOF4_FLOAT_ZERO);
                        sum = bof4_dot4<GGML_TYPE_BOF4_S>(codes >> 16, flipped >> 16, x.y, sum);
                        sums[s * columns + c] += __half2float(__ushort_as_half(w.d[u][s])) * dx * bof4_small_int(sum);
                    }
                }
            }
        }
    };

    static __device__ __host__ __forceinline__ int chunks(int n) { return (int) bof4_s_act_layout::chunks(n); }
};
