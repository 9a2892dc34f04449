// BOF4_S in CUDA kernels: traits (bof4-type.cuh), order of the activations, and the step of mul_mat_vec.
#pragma once

#include "bof4-activations.cuh"
#include "bof4-codes.cuh"
#include "bof4-copy.cuh"

#include <type_traits>

struct bof4_s_act_layout;
struct bof4_s_piece_step;
template <bool aligned> struct bof4_s_word_step;

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
    static constexpr int mmq_two_blocks = 32;
    static constexpr float mmq_unit = BOF4_S_UNIT;

    static __device__ __forceinline__ float mmq_scale(const uint8_t * block, int) { return bof4_load_scale(block); }

    struct mmq_scales_of_half {
        uint16_t d[2];

        __device__ __forceinline__ void load(const uint8_t * blocks, int half) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                d[i] = *(const uint16_t *) (blocks + (2 * half + i) * bytes);
            }
        }
        __device__ __forceinline__ void decode(float (&scales)[2], int) const {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                scales[i] = __half2float(__ushort_as_half(d[i]));
            }
        }
    };

    using act_layout = bof4_s_act_layout;
    template <int alignment>
    using step = std::conditional_t<alignment == 16, bof4_s_piece_step, bof4_s_word_step<alignment == 4>>;
};

// Each 16 bits of a row's blocks, scales included, have one word of activations, so that rows are read as a sequence of
// words without regard to blocks. The word of a scale is zero. Two bytes of codes, 2i and 2i + 1, are weights 2i,
// 2i + 32, 2i + 1 and 2i + 33 in the order of their nibbles, and so are the activations of their word. Hence one scale
// for all 64.
struct bof4_s_act_layout {
    static constexpr int halves = BOF4_S_BLOCK_BYTES / 2; // 16-bit parts of a block
    static constexpr int padded = 256;                    // the number of them in a row is rounded up to this
    static constexpr int per_lane = 2;
    static constexpr float unit = BOF4_S_UNIT;

    static __host__ __device__ int64_t stride(int64_t n) {
        return (n / QK_BOF4_S * halves + padded - 1) / padded * padded;
    }
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

// Rows that begin at multiples of 16 bytes. Lane l of chunk c has piece 32 c + l of the row, 16 bytes: codes of one
// block or of two, and possibly a scale, whose activations are zero. No word of four bytes has codes of two blocks, so
// the first words of the piece belong to one block and the others to the next. The sums of both are needed: the sum of
// the first words is that of the chain of products, read where the block ends.
struct bof4_s_piece_step {
    static constexpr __host__ __device__ int blocks_per_sm(int columns) {
        return columns == 1 ? 5 : columns == 2 ? 4 : 3;
    }
    static constexpr __host__ __device__ int rows(int columns) { return columns <= 4 ? 4 : 2; }
    static constexpr bool is_staged = true, may_have_fewer_rows = true;
    // the scale of a piece's first block is up to `lead` bytes before it
    static constexpr int chunk_bytes = 16 * 32, lead = 32;
    template <int S>
    using staged_rows = bof4_staged_rows<S, chunk_bytes, lead, (chunk_bytes + lead) / 16, true>;

    template <int S> static constexpr __host__ __device__ size_t staged_bytes() { return staged_rows<S>::bytes; }

    template <int S> struct loader {
        staged_rows<S> staged;
        int lane, n_pieces;

        template <typename function>
        __device__ __forceinline__ loader(function row_at, int n, int lane, uint8_t * staged)
            : staged(row_at, n / QK_BOF4_S * BOF4_S_BLOCK_BYTES, lane, staged),
              lane(lane),
              n_pieces(n / QK_BOF4_S * BOF4_S_BLOCK_BYTES / 16) {}

        template <int columns, int N>
        __device__ __forceinline__ void multiply(
            int stage, const bof4_activations & act, int chunk, float (&sums)[N]) const {
            struct weights {
                bof4_dot8<GGML_TYPE_BOF4_S, (columns > 2)> dots[4];
                float d0, d1; // of the piece's first and last block
            };
            // behind the end of the row its last piece, whose activations are then zero
            const uint32_t i = (uint32_t) min(32 * chunk + lane, n_pieces - 1);
            const uint32_t b0 = 8 * i / bof4_s_act_layout::halves, b1 = (8 * i + 6) / bof4_s_act_layout::halves;
            const int first_byte = lead - chunk_bytes * chunk; // of the row, in the staged chunk
            // words of block b0: those that begin before the scale of the next block
            const int n_first = (int) (bof4_s_act_layout::halves * (b0 + 1) + 1 - 8 * i) / 2;
            const auto read = [&](int s, weights & w) {
                const uint8_t * row = staged.row(stage, s) + first_byte;
                w.d0 = bof4_load_scale(row + BOF4_S_BLOCK_BYTES * (int) b0);
                w.d1 = bof4_load_scale(row + BOF4_S_BLOCK_BYTES * (int) b1);
                const int4 codes = *(const int4 *) (row + 16 * (int) i);
                w.dots[0].look_up((uint32_t) codes.x);
                w.dots[1].look_up((uint32_t) codes.y);
                w.dots[2].look_up((uint32_t) codes.z);
                w.dots[3].look_up((uint32_t) codes.w);
            };
            const auto scales = [&](const float * of_column) { return float2{ of_column[b0], of_column[b1] }; };
            const auto add = [&](const weights & w, const int4(&x)[2], float2 dx, float & sum) {
                const int sum1 = w.dots[0].add(x[0].x, x[0].y, BOF4_FLOAT_ZERO);
                const int sum2 = w.dots[1].add(x[0].z, x[0].w, sum1);
                const int sum3 = w.dots[2].add(x[1].x, x[1].y, sum2);
                const int sum4 = w.dots[3].add(x[1].z, x[1].w, sum3);
                const int first = n_first < 3 ? (n_first < 2 ? sum1 : sum2) : (n_first < 4 ? sum3 : sum4);
                // exact: both have the exponent of BOF4_FLOAT_ZERO
                const float second = __int_as_float(sum4) - __int_as_float(first);
                sum += w.d0 * dx.x * bof4_small_int(first);
                sum += w.d1 * dx.y * second;
            };
            bof4_multiply_lane<S, columns, weights>(act, 32 * chunk + lane, read, scales, add, sums);
        }
    };

    static __device__ __host__ __forceinline__ int chunks(int n) {
        return (int) (bof4_s_act_layout::stride(n) / bof4_s_act_layout::padded);
    }
};

// Other rows. Lane l of chunk c has word 32 c + l of the row: codes of one block, and possibly its scale or that of the
// next block, whose activations are zero. So no word has codes of two blocks, all loads are coalesced, and blocks of 34
// bytes need no realignment. aligned: rows begin at multiples of four bytes; otherwise words are loaded in two halves.
template <bool aligned> struct bof4_s_word_step {
    static constexpr __host__ __device__ int blocks_per_sm(int columns) { return columns == 1 ? 6 : 4; }
    static constexpr __host__ __device__ int rows(int columns) { return columns <= 4 ? 4 : 2; }
    static constexpr bool is_staged = false, may_have_fewer_rows = false;
    static constexpr int chunks_at_once = 2;
    static constexpr int chunk = 64; // 16-bit parts of blocks that a warp multiplies at a time

    template <int S> static constexpr __host__ __device__ size_t staged_bytes() { return 0; }

    template <int S> struct weights {
        uint32_t codes[chunks_at_once][S];
        uint16_t d[chunks_at_once][S];
    };

    template <int S> struct loader {
        const uint8_t * rows[S];
        int lane, halves, n_chunks;

        template <typename function>
        __device__ __forceinline__ loader(function row_at, int n, int lane, uint8_t *)
            : lane(lane),
              halves(n / QK_BOF4_S * bof4_s_act_layout::halves),
              n_chunks(chunks(n)) {
#pragma unroll
            for (int s = 0; s < S; ++s) {
                rows[s] = row_at(s);
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
            for (int u = 0; u < chunks_at_once; ++u) {
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
            const weights<S> & w, const bof4_activations & act, int chunk, float (&sums)[N]) const {
#pragma unroll
            for (int u = 0; u < chunks_at_once; ++u) {
                if (u > 0 && chunk + u >= n_chunks) {
                    break;
                }
                const uint32_t b = block_of_word(word(chunk + u));
#pragma unroll
                for (int c = 0; c < columns; ++c) {
                    const int2 x = ((const int2 *) (act.qs + c * act.stride))[32 * (chunk + u) + lane];
                    const float dx = act.scales[c * act.scale_stride + b];
#pragma unroll
                    for (int s = 0; s < S; ++s) {
                        bof4_dot8<GGML_TYPE_BOF4_S, false> dot;
                        dot.look_up(w.codes[u][s]);
                        const int sum = dot.add(x.x, x.y, BOF4_FLOAT_ZERO);
                        sums[s * columns + c] += __half2float(__ushort_as_half(w.d[u][s])) * dx * bof4_small_int(sum);
                    }
                }
            }
        }
    };

    static __device__ __host__ __forceinline__ int chunks(int n) {
        return (n / QK_BOF4_S * bof4_s_act_layout::halves + chunk - 1) / chunk;
    }
};
