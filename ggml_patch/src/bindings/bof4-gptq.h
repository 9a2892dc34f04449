// GPTQ: rows encoded column by column, each column correcting for the errors of those before it.
//
// With H = X^T X of the inputs, the loss of a row w that becomes q is (w - q) H (w - q)^T. Factored as
// H = (I + M) diag(D) (I + M)^T, M strictly upper, that is sum_k D_k (t_k - q_k)^2 with the target
// t_k = w_k + sum_{j<k} (w_j - q_j) M[j][k]: a weighted error like any other, once the columns before are quantized.
#pragma once

#include "ggml.h"

#include <cstdint>

// The rows of a tile are encoded together, one row per vector lane.
constexpr int bof4_gptq_tile_rows = 32;

// Columns of a panel: n x n matrices are passed as n/64 panels [n][64], so that a panel is read consecutively.
constexpr int bof4_gptq_panel = 64;

// What the rows of a matrix have in common. Columns are in the order of processing; order[k] is the column of
// a row that is processed k-th; the columns of a block, and of each of its sub-blocks, are consecutive in it.
struct bof4_gptq_job {
    ggml_type type;
    int64_t n;               // columns, a multiple of the type's block
    const int32_t * order;   // n
    const float * feedback;  // M, in panels
    const float * curvature; // D, n
    const float * hessian;   // H, in panels; may be null where sweeps is 0
    int sweeps;              // rounds of coordinate descent over codes and scales, after the columns are quantized
};

// A range of rows. Outliers: the block holds zero for them, and their value in `entries` becomes that of their target.
struct bof4_gptq_rows {
    const float * weights; // [count][n]
    int64_t count;
    const int32_t * row_pointers; // [count + 1], or null
    int32_t * entries;            // where row_pointers points
    void * encoded;               // [count] rows of the type
    float * decoded;              // [count][n], outliers included
    double loss[2];               // out: after the columns, and after the sweeps
};

// Is this one of the types that it encodes?
bool bof4_gptq_can_encode(ggml_type type);

// Does `order` keep the columns of blocks and sub-blocks together? Throws std::runtime_error for a type that it does
// not encode.
bool bof4_gptq_is_block_order(ggml_type type, const int32_t * order, int64_t n);

// Throws std::runtime_error for a type that it does not encode.
void bof4_gptq_encode(const bof4_gptq_job & job, bof4_gptq_rows & rows);
