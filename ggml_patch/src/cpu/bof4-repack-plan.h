// mul_mat and mul_mat_id of repacked weights, both as one: matrices of weights (one, or one per expert), each of which
// is multiplied by a set of columns.
//
// First all threads quantize the activations to int8, and one lists for each matrix its columns: where each one's
// activations and results are. After a barrier, and another one where the columns of experts are first copied into order
// (bof4_gemm_kernels::copy_act), threads take pieces (some rows of one matrix, with all its columns) until none is left.
// Each has a work range of neighbouring pieces, so that weights are one long stream, and then steals half of another's.
// The thread that computes a piece applies its outliers: where the activations are transposed for them
// (bof4_list_transposed_size), it passes their sums to the kernel; else it adds them to the results.
#pragma once

#include "../lists/bof4-list.h"
#include "bof4-gemm.h"
#include "bof4-prefetch.h"
#include "bof4-work-range.h"

struct ggml_compute_params;

class bof4_repack_plan {
  public:
    // wdata: the work buffer, or NULL where only its size is wanted.
    bof4_repack_plan(const bof4_gemm_kernels & kernels, ggml_tensor * op, void * wdata, int n_threads);

    // Bytes of work buffer, which need not be aligned to a cache line.
    size_t work_size() const;

    // The thread's part of the operation.
    void compute(const ggml_compute_params * params) const;

  private:
    // A column of a mul_mat_id: expert slot and token, as bof4_list_add_mul_mat_id takes them.
    struct column_id {
        int32_t slot;
        int32_t token;
    };

    const bof4_gemm_kernels & kernels;
    ggml_tensor * op;
    const ggml_tensor * weight;
    const ggml_tensor * act;
    int64_t n_columns; // of the result
    int64_t n_matrices;
    bool use_gemv; // by the mean number of columns of a matrix
    bool has_list;
    bof4_list_view view; // of the list
    bool is_one_column;  // see bof4_list_is_one_column

    int64_t n_groups; // of a matrix
    size_t group_bytes;
    int64_t piece;    // groups of a piece
    int64_t n_pieces; // of a matrix

    // in the work buffer
    char * acts;           // rounded activations
    char * ordered;        // rounded activations in the order of experts, or NULL
    int32_t * ordered_row; // of each column
    uint32_t * transposed; // bf16 activations for outliers, or NULL
    const void ** x;       // activations of each column, columns of the first matrix first
    float ** y;            // results of each column
    column_id * ids;
    int64_t * first_column;         // of each matrix, and the end of the last
    bof4_work_range * ranges;       // of each thread
    bof4_prefetch_trial * prefetch; // for this operation
    size_t work_bytes;

    int64_t groups_of_piece(int64_t n_threads) const;
    const float * act_at(int64_t i1, int64_t i2, int64_t i3) const;
    char * act_row(int64_t row) const;
    void quantize_act(int64_t row, int64_t j0, int64_t j1) const;
    void prepare_activations(int ith, int nth) const;

    void list_columns() const;
    int32_t expert_of(int64_t slot, int64_t token) const;
    void list_columns_of_experts() const;
    void order_columns() const;
    void copy_to_order(int ith, int nth) const;
    bool has_columns(int64_t matrix) const { return first_column[matrix] < first_column[matrix + 1]; }
    void divide_pieces(int n_threads) const;
    void choose_prefetch(int n_threads) const;

    bof4_list_rows first_rows(int ith, int nth) const;
    int64_t multiply(int ith, int nth) const;
    void add_prefetch_trial(double ns, int64_t n_multiplied, int n_threads) const;
    void multiply_piece(int64_t matrix, int64_t group) const;
    void multiply_rows(int64_t matrix, int64_t row0, int64_t row1) const;
    void apply_list(int64_t matrix, int64_t row0, int64_t row1, const char * next_weights) const;
};
