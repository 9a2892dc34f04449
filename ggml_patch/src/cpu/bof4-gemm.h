// Products of repacked weights of the BOF4 types and of Q6_K with columns of activations. The memory layout of repacked
// weights: bof4-repack-layout.h.
//
// A product takes one of two paths: GEMM unpacks levels to L1 once for all columns, GEMV decodes codes as it
// multiplies. The result of a column has the same bits on both (but of BOF4_S on tiles: bof4-gemm-amx.h).
#pragma once

#include "bof4-format.h"
#include "ggml.h"

#include <stddef.h>
#include <stdint.h>

// The instruction sets that have kernels, and the header of each. ggml compiles this folder once for each of its CPU
// variants, and loads the one that fits the processor. Without any of them BOF4_GEMM is not defined, nothing is
// repacked, and the row kernels of bof4-vec-dot.h multiply.
//
// BOF4_GEMM_TILES, where it is defined, are the matrix units that the GEMM path uses if the processor has them. A build
// with BOF4_GEMM_TWIN (bof4_tiles_portable, or bof4_tiles_amx where its instructions are emulated) is for tests: it
// uses them whatever the processor has, and does without vpdpbusd.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define BOF4_GEMM "bof4-gemm-vnni.h"
#define BOF4_GEMM_AVX512
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && (defined(__AVXVNNI__) || defined(BOF4_GEMM_TWIN))
#define BOF4_GEMM "bof4-gemm-vnni.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define BOF4_GEMM "bof4-gemm-avx2.h"
#define BOF4_GEMM_AVX2
#elif defined(__ARM_NEON) && defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#define BOF4_GEMM "bof4-gemm-neon.h"
#endif

#if defined(BOF4_GEMM_TWIN)
#define BOF4_GEMM_TILES BOF4_GEMM_TWIN
#elif defined(BOF4_GEMM_AVX512) && defined(__x86_64__) && defined(__linux__) && \
    (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 11))
#define BOF4_GEMM_TILES bof4_tiles_amx
#endif

enum {
    BOF4_GROUP = 16,        // rows of a group
    BOF4_MAX_COLUMNS = 256, // of bof4_gemm_kernels::max_columns
    BOF4_ACT_ALIGNMENT = 1024,
};

// The functions of one type. n, weights of a row, is a multiple of the type's block.
struct bof4_gemm_kernels {
    // Bytes of a group of 16 rows.
    size_t (*group_bytes)(int64_t n);

    // n_rows rows (at most 16) of blocks into a group, where the rows that are missing become zeros, and back.
    void (*repack_group)(const void * rows, int64_t n_rows, int64_t n, void * group);
    void (*unpack_group)(const void * group, int64_t n_rows, int64_t n, void * rows);

    // Bytes of n_rows rows of n rounded activations, from a multiple of BOF4_ACT_ALIGNMENT on, and where a row of them
    // begins. use_gemv: for which of the two paths.
    size_t (*act_bytes)(int64_t n, int64_t n_rows, bool use_gemv);
    size_t (*act_row_at)(int64_t n, int64_t row, bool use_gemv);

    // Rounds float32 activations [from, to) of a row of n, with the scales of the type's activation type (Q8_0, Q8_K),
    // or to bf16. from and to are multiples of the type's block.
    void (*quantize_act)(const float * x, void * row, int64_t n, int64_t from, int64_t to, bool use_gemv);

    // Copies a row of rounded activations of the GEMM path to another place of a row. NULL where columns are read equally
    // fast wherever they are; else those of one product should be rows that follow one another from a multiple of
    // BOF4_GROUP on.
    void (*copy_act)(const void * from, void * to, int64_t n);

    // Is the GEMV path the faster one for so many columns?
    bool (*use_gemv)(int64_t n_columns);

    // y[c][r] = product of row r and column x[c], a row of rounded activations, for n_rows rows and n_columns columns.
    // outlier_sums, float32 [groups][n_columns][16], 64-byte aligned, is added where it is not NULL. use_gemv: which
    // path; without has_choice the one that the columns were quantized for. prefetch: bytes ahead that the GEMV path
    // prefetches weights, or 0.
    void (*gemm)(const void * groups, int64_t n_rows, int64_t n, const void * const * x, const float * outlier_sums,
        float * const * y, int64_t n_columns, bool use_gemv, int64_t prefetch);

    // Columns that are best multiplied at a time: activations and results stay in L2.
    int64_t max_columns;

    // Groups that a call of the GEMM path should have at least: it may read all activations from beyond L2.
    int64_t least_groups;

    // Both paths read the same activations, so that either can multiply many columns.
    bool has_choice;
};

// NULL for a type that has no kernels in this build.
const bof4_gemm_kernels * bof4_gemm_kernels_of(ggml_type type);
