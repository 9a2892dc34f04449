// Which path of bof4-gemm.h multiplies many columns where both read the same activations.
//
// GEMM unpacks levels once for all columns, GEMV looks them up for every few and keeps its sums in registers. Which one
// is faster depends on how many vector operations and accesses to L1 the processor executes per cycle: on Zen 4 GEMV
// has 1.14 of GEMM's speed for BOF4_S with any number of columns, and 0.95 for BOF4_K. So the path is chosen while a
// model runs (bof4-choice.h). The environment variable BOF4_PATH, gemm or gemv, replaces the choice.
#pragma once

#include "ggml.h"

#include <stdint.h>

// Fewer columns do not fill the tiles of GEMM, and are no sample.
enum { BOF4_PATH_LEAST_COLUMNS = 64 };

// For one call of bof4_gemm_kernels::gemm.
struct bof4_path_trial {
    bool use_gemv;
    bool is_sample; // its time is wanted
};

bof4_path_trial bof4_path_next(ggml_type type, int64_t n_columns);

// What a sample took.
void bof4_path_add(ggml_type type, bof4_path_trial trial, double ns_per_product);

// 1: GEMV; 0: GEMM; -1: it is being chosen.
int bof4_path_chosen(ggml_type type);
