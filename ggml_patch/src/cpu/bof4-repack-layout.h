// Products of interleaved BOF4_S and BOF4_K weights with many columns of activations (GEMM) and with a few (GEMV).
//
// A matrix is cut into groups of 16 rows, one for each 32-bit lane of an AVX-512 register (two AVX2 registers, four NEON
// ones). All of them have a dot-product instruction, or a pair of them, that adds four int8 products to each lane: lane r
// then wants four neighbouring weights of row r, and the same four activations in every lane. So the unit of the layout is
// the dword of codes that a row has anyway, and a group is a transposition of dwords:
//
//   BOF4_S   for every two blocks:      fp16 d[2][16], u8 qs[2][8][16][4]
//   BOF4_K   for every two superblocks: (fp16 d[16], u8 scales[12][16]) [2], u8 qs[2][32][16][4]
//
// qs[b][i][r] are bytes 4i to 4i+3 of the codes of block b of row r. Two blocks, because their scales fill whole cache lines then,
// and the codes begin one. A group is read from its first byte to its last, scales where they are wanted: one stream for one
// column of activations, which the processor sees coming (scales of their own in front of the codes cost a third).
//
// Low and high nibbles remain what they were. In BOF4_S, those of qs[b][i] are weights 4i.. and 32+4i.. of the block, which meet
// different Q8_0 blocks of activations. The last group is padded with rows of zeros; an odd block at the end of a row has the place
// for two blocks' scales. Nothing grows otherwise, and nothing is lost: a group turns back into its rows.
//
// The kernels: one file for each family of instruction sets, the same functions in each. A processor that has none of
// them interleaves nothing, and computes with the row kernels of bof4-cpu.c.
#pragma once

#include "../format/bof4-blocks.h"

#include <stddef.h>
#include <stdint.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define BOF4_GEMM_AVX512
#define BOF4_GEMM_VNNI
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && defined(__AVXVNNI__)
#define BOF4_GEMM_VNNI
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define BOF4_GEMM_AVX2
#elif defined(__ARM_NEON) && defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#define BOF4_GEMM_NEON
#endif

// Upstream's Q6_K, in which files of every 4-bit type have their output matrix: a sixth of what a token reads of a small model.
#if defined(BOF4_GEMM_VNNI)
#define BOF4_GEMM_Q6
#endif

#if defined(BOF4_GEMM_VNNI) || defined(BOF4_GEMM_AVX2) || defined(BOF4_GEMM_NEON)
#define BOF4_GEMM
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { BOF4_GROUP = 16 };

// Two blocks of BOF4_S of a group. At the end of rows with an odd number of them, qs[1] is missing.
struct bof4_s_pair {
    uint16_t d[2][BOF4_GROUP];
    uint8_t  qs[2][QK_BOF4_S / 8][BOF4_GROUP][4];
};

// Block b of a group.
static inline const uint16_t * bof4_s_scales(const struct bof4_s_pair * pairs, int64_t b) {
    return pairs[(size_t) b / 2].d[b & 1];
}
static inline const uint8_t * bof4_s_codes(const struct bof4_s_pair * pairs, int64_t b) {
    return pairs[(size_t) b / 2].qs[b & 1][0][0];
}

// The same for BOF4_K.
struct bof4_k_head {
    uint16_t d[BOF4_GROUP];
    uint8_t  scales[12][BOF4_GROUP];    // byte j of the scales of row r
};
struct bof4_k_pair {
    struct bof4_k_head head[2];
    uint8_t qs[2][QK_BOF4_K / 8][BOF4_GROUP][4];
};

static inline const struct bof4_k_head * bof4_k_head_of(const struct bof4_k_pair * pairs, int64_t b) {
    return &pairs[(size_t) b / 2].head[b & 1];
}
static inline const uint8_t * bof4_k_codes(const struct bof4_k_pair * pairs, int64_t b) {
    return pairs[(size_t) b / 2].qs[b & 1][0][0];
}

// Activations that meet one block of BOF4_S: the numbers of two Q8_0 blocks, scales as float32.
struct bof4_s_act {
#if defined(BOF4_GEMM_AVX2)
    // no instruction for bytes: see bof4-gemm-avx2.cpp
    union {
        int16_t q[QK_BOF4_S];       // many columns: of four neighbours, the first and third, then the others
        struct {
            int8_t high[QK_BOF4_S]; // few columns: 16 * high + low
            int8_t low[QK_BOF4_S];
        } half;
    } u;
#else
    int8_t  q[QK_BOF4_S];
#endif
    float   d[2];
    int32_t offset[2];      // -128 * sum of each half: what is wrong with a dot product of (level + 128), see the kernels
};

// Are so many columns few enough to look levels up for them alone?
bool bof4_s_few(int64_t n_columns);

// Bytes of a group of 16 rows of n weights.
size_t bof4_s_group_bytes(int64_t n);

// n_rows rows (at most 16) of n weights into a group, and back.
void bof4_s_interleave(const block_bof4_s * rows, int64_t n_rows, int64_t n, void * group);
void bof4_s_deinterleave(const void * group, int64_t n_rows, int64_t n, block_bof4_s * rows);

// n activations, rounded as Q8_0 rounds them; few: bof4_s_few of the most columns that they will come with.
void bof4_s_quantize_act(const float * x, struct bof4_s_act * y, int64_t n, bool few);

// y[c][r] = product of row r of the groups and column x[c], for n_rows rows and n_columns columns, and what is in `plus`,
// [groups][n_columns][16], where that is not NULL: the outliers' share. (To add it to results that are in memory already costs more:
// columns of them, a power of two apart, drive each other out of the nearest cache.)
void bof4_s_gemm(
    const void * groups, int64_t n_rows, int64_t n, const struct bof4_s_act * const * x, const float * plus, float * const * y,
    int64_t n_columns, bool few);

// The same for BOF4_K. 256 activations: the numbers of a Q8_K block, whose scale is positive here (and the numbers' signs
// their own).
struct bof4_k_act {
#if defined(BOF4_GEMM_AVX2)
    union {
        int16_t q[QK_BOF4_K];
        struct {
            int8_t high[QK_BOF4_K];
            int8_t low[QK_BOF4_K];
        } half;
    } u;
#else
    int8_t  q[QK_BOF4_K];
#endif
    float   d;
    int32_t offset[BOF4_K_SUB_BLOCKS];
};

size_t bof4_k_group_bytes(int64_t n);
void bof4_k_interleave(const block_bof4_k * rows, int64_t n_rows, int64_t n, void * group);
void bof4_k_deinterleave(const void * group, int64_t n_rows, int64_t n, block_bof4_k * rows);
bool bof4_k_few(int64_t n_columns);
void bof4_k_quantize_act(const float * x, struct bof4_k_act * y, int64_t n, bool few);
void bof4_k_gemm(
    const void * groups, int64_t n_rows, int64_t n, const struct bof4_k_act * const * x, const float * plus, float * const * y,
    int64_t n_columns, bool few);

#ifdef BOF4_GEMM_Q6
// Q6_K: codes of six bits less 32 in the place of levels, the bytes those of upstream, and the numbers of BOF4_K's activations.
// Upper bits stand in front of the two times four steps that they belong to, so that this is one stream, too.
struct bof4_q6_head {
    uint16_t d[BOF4_GROUP];
    int8_t   scales[16][BOF4_GROUP];    // of block j of row r
};
struct bof4_q6_pair {
    struct bof4_q6_head head[2];
    struct bof4_q6_steps {
        uint8_t qh[4][BOF4_GROUP][4];       // bytes 4i .. 4i + 3 of qh, i from 4 * (number of the steps) on
        uint8_t ql[2][4][BOF4_GROUP][4];    // of ql, from 16 * (number / 2) + 4 * (number % 2) on, and from 8 later on
    } codes[2][4];
};

typedef void block_bof4_q6; // block_q6_K, which is not declared in headers
typedef struct bof4_k_act bof4_q6_act;

size_t bof4_q6_group_bytes(int64_t n);
void bof4_q6_interleave(const block_bof4_q6 * rows, int64_t n_rows, int64_t n, void * group);
void bof4_q6_deinterleave(const void * group, int64_t n_rows, int64_t n, block_bof4_q6 * rows);
bool bof4_q6_few(int64_t n_columns);
void bof4_q6_quantize_act(const float * x, bof4_q6_act * y, int64_t n, bool few);
void bof4_q6_gemm(
    const void * groups, int64_t n_rows, int64_t n, const bof4_q6_act * const * x, const float * plus, float * const * y,
    int64_t n_columns, bool few);
#endif

#ifdef __cplusplus
}
#endif
