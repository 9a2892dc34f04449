// The memory layout of repacked weights, and that of the activations that they are multiplied with.
//
// A matrix is divided into groups of 16 rows, one for each 32-bit lane of an AVX-512 register (two AVX2 registers, four
// NEON ones). Their dot-product instructions add four int8 products to each lane: lane r needs four neighbouring
// weights of row r, and all lanes need the same four activations. So a group is a transposition of the dwords of codes
// of 16 rows. Two successive blocks of its rows are one bof4_block_pair, blocks 0 and 1 first:
//
//   BOF4_S   fp16 d[2][16], u8 qs[2][8][16][4]
//   BOF4_K   (fp16 d[16], u8 scales[12][16]) [2], u8 qs[2][32][16][4]
//   Q6_K     (fp16 d[16], i8 scales[16][16]) [2], (u8 qh[4][16][4], u8 ql[2][4][16][4]) [2][4]
//
// The first index of two is the block of the pair, that of 16 the row. d and byte j of scales are those of upstream's
// or our block. qs[b][i][r] are bytes 4i to 4i+3 of the codes of row r. Of Q6_K, qh[k] of part i are bytes 4 (4i + k)
// to + 3 of qh, ql[0][k] bytes 4 (16 (i / 2) + 4 (i % 2) + k) to + 3 of ql, ql[1][k] those 32 bytes later: the upper
// bits precede the lower bits that they belong to.
//
// Two blocks, because their scales then fill whole cache lines, and codes begin on a cache line. A group is read from
// its first byte to its last, one sequential stream for the prefetcher of the processor (an array of scales in front of
// all codes made one column a third slower). At the end of rows with an odd number of blocks, the second half of the
// codes is missing. The last group of a matrix is padded with rows of zeros. A group unpacks to exactly
// the bytes of its rows.
#pragma once

#include "../format/bof4-blocks.h"
#include "bof4-gemm.h"

#include <cstddef>
#include <cstdint>

// Activations are int8. Without an instruction for dot products of bytes (bof4-gemm-avx2.h) GEMM reads them as int16,
// the first and third of four before the second and fourth, and GEMV as 16 * high + low.
struct bof4_act_bytes {
    template <int N> struct numbers {
        int8_t q[N];
    };
};
struct bof4_act_words {
    template <int N> struct numbers {
        union {
            int16_t q[N];
            struct {
                int8_t high[N];
                int8_t low[N];
            } half;
        } u;
    };
};
#if defined(BOF4_GEMM_AVX2)
using bof4_act_form = bof4_act_words;
#else
using bof4_act_form = bof4_act_bytes;
#endif

// N activations with a scale for every N / SCALES of them. offset[j] = -128 * (sum of part j of OFFSETS parts) corrects
// a dot product of level + 128.
template <int N, int SCALES, int OFFSETS>
struct bof4_act_block : bof4_act_form::numbers<N> {
    float d[SCALES];
    int32_t offset[OFFSETS];

    // The scale of dot j of `dots`.
    float d_of_dot(int j, int dots) const { return d[j * SCALES / dots]; }
};
using bof4_s_act_block = bof4_act_block<QK_BOF4_S, 2, 2>;                 // scales of Q8_0
using bof4_k_act_block = bof4_act_block<QK_BOF4_K, 1, BOF4_K_SUB_BLOCKS>; // of Q8_K, but positive

// How a type is read. A dot is a run of weights whose products with activations are summed up as integers: they have
// one scale each, that of activations included. No primary definition: a type without a layout does not compile.
//
//   head, codes     of one block of 16 rows
//   BLOCK, DOT      weights of a block, of a dot
//   NIBBLES         distance in weights from the low nibble of a byte to its high nibble
//   HAS_SUB_SCALES  a dot has a scale of weights (one of activations otherwise)
//   UNIT            of d
//   pair_at(k)      the k-th pair of dots, of low and of high nibbles, in memory
//   new_lines(k)    cache lines that the 16 rows of four codes of that pair are in and that no pair before it was in
template <ggml_type type> struct bof4_layout;

template <> struct bof4_layout<GGML_TYPE_BOF4_S> {
    using act = bof4_s_act_block;
    enum { BLOCK = QK_BOF4_S, DOT = 32, NIBBLES = 32 };
    static constexpr bool HAS_SUB_SCALES = false;
    static constexpr float UNIT = BOF4_S_UNIT;
    static constexpr int8_t LEVELS[16] = BOF4_S_LEVELS;

    struct head {
        uint16_t d[BOF4_GROUP];
    };
    struct codes {
        uint8_t qs[QK_BOF4_S / 8][BOF4_GROUP][4];
    };
    static constexpr int pair_at(int k) { return k; }
    static constexpr int new_lines(int) { return 1; }
};

template <> struct bof4_layout<GGML_TYPE_BOF4_K> {
    using act = bof4_k_act_block;
    enum { BLOCK = QK_BOF4_K, DOT = BOF4_K_SUB_BLOCK, NIBBLES = 64 };
    static constexpr bool HAS_SUB_SCALES = true;
    static constexpr float UNIT = BOF4_K_UNIT;
    static constexpr int8_t LEVELS[16] = BOF4_K_LEVELS;

    struct head {
        uint16_t d[BOF4_GROUP];
        uint8_t scales[BOF4_K_SUB_SCALE_BYTES][BOF4_GROUP];
    };
    struct codes {
        uint8_t qs[QK_BOF4_K / 8][BOF4_GROUP][4];
    };
    static constexpr int pair_at(int k) { return k; }
    static constexpr int new_lines(int) { return 1; }
};

// Upstream's Q6_K, which files of every 4-bit type use for their output matrix: in a small model, a sixth of the bytes
// that are read per token. A level is the 6-bit code minus 32.
template <> struct bof4_layout<GGML_TYPE_Q6_K> {
    using act = bof4_k_act_block;
    enum { BLOCK = 256, DOT = 16, NIBBLES = 64, ZERO_CODE = 32 };
    static constexpr bool HAS_SUB_SCALES = true;
    static constexpr float UNIT = 1.0f;

    struct head {
        uint16_t d[BOF4_GROUP];
        int8_t scales[16][BOF4_GROUP];
    };
    struct codes {
        struct part {
            uint8_t qh[4][BOF4_GROUP][4];
            uint8_t ql[2][4][BOF4_GROUP][4];
        } parts[4];
    };
    // pairs 0 and 2 of four are in one part
    static constexpr int pair_at(int k) { return (k & ~3) | (k & 1) << 1 | (k & 2) >> 1; }
    static constexpr int new_lines(int k) { return k % 2 == 0 ? 2 : 1; } // qh is that of the pair before
};

// The dot of the low nibbles of pair k; that of the high nibbles is NIBBLES / DOT later.
template <typename layout>
constexpr int bof4_low_dot(int k) {
    constexpr int between = layout::NIBBLES / layout::DOT;
    return k / between * 2 * between + k % between;
}

template <ggml_type type>
struct bof4_block_pair {
    typename bof4_layout<type>::head head[2];
    typename bof4_layout<type>::codes codes[2];
};

// The functions of bof4_gemm_kernels that are the same for all instruction sets.
template <ggml_type type>
struct bof4_repacked {
    using pair = bof4_block_pair<type>;

    static size_t group_bytes(int64_t n) {
        const int64_t n_blocks = n / bof4_layout<type>::BLOCK;
        return n_blocks / 2 * sizeof(pair) + n_blocks % 2 * (sizeof(pair) - sizeof(pair::codes[1]));
    }
    static void repack_group(const void * rows, int64_t n_rows, int64_t n, void * group);
    static void unpack_group(const void * group, int64_t n_rows, int64_t n, void * rows);
    static size_t act_bytes(int64_t n, int64_t n_rows, bool use_gemv);
    static size_t act_row_at(int64_t n, int64_t row, bool use_gemv);
    static void quantize_act(const float * x, void * row, int64_t n, int64_t from, int64_t to, bool use_gemv);
};

// Activations as tiles read them. A piece is 64 bytes of a row; the pieces of 16 rows that are at one place in them
// follow each other: 1 KiB that one instruction loads. (From rows that are apart a tile took a line of each of 16 pages,
// which made products three times as slow.) An odd number of pieces, so that the same pieces of several times 16 rows do
// not fall into the same sets of L2.
//
// Activations are int8, with a scale for each RUN of them; the scales are in pieces behind all of them.
template <int RUN>
struct bof4_act_pieces {
    enum { PIECE = 64, STRIDE = BOF4_GROUP * PIECE }; // bytes of a piece, from a row's piece to its next one

    static size_t n_pieces(int64_t n) { return (n + n / RUN * sizeof(float) + PIECE - 1) / PIECE | 1; }
    static size_t bytes(int64_t n, int64_t n_rows) {
        return (n_rows + BOF4_GROUP - 1) / BOF4_GROUP * n_pieces(n) * STRIDE;
    }
    static size_t row_at(int64_t n, int64_t row) {
        return row / BOF4_GROUP * n_pieces(n) * STRIDE + row % BOF4_GROUP * PIECE;
    }

    // Byte i of a row, and the scale of a run.
    static size_t at(int64_t i) { return i / PIECE * STRIDE + i % PIECE; }
    static size_t scale_at(int64_t n, int64_t run) { return at(n + run * sizeof(float)); }

    static void quantize(const float * x, void * row, int64_t n, int64_t from, int64_t to);
};

// Cache lines in front of the codes of block b: both heads of a pair precede the codes of its first block.
template <ggml_type type>
constexpr int bof4_head_lines(int64_t b) {
    static_assert(sizeof(bof4_block_pair<type>::head) % 64 == 0 && sizeof(bof4_block_pair<type>::codes) % 64 == 0, "");
    return b % 2 == 0 ? sizeof(bof4_block_pair<type>::head) / 64 : 0;
}

// Of block b.
template <ggml_type type>
inline const typename bof4_layout<type>::head & bof4_head(const bof4_block_pair<type> * group, int64_t b) {
    return group[(size_t) b / 2].head[b & 1];
}
template <ggml_type type>
inline const typename bof4_layout<type>::codes & bof4_codes(const bof4_block_pair<type> * group, int64_t b) {
    return group[(size_t) b / 2].codes[b & 1];
}
