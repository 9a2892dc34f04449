// OPQ outlier lists on the CPU backend. Each function adds what the outliers contribute to a part of the
// result that the calling thread has just computed from the codes, so no further barrier is needed.
#pragma once

#include "ggml.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_compute_params;
struct bof4_list_view;

// Bytes of the activations of a mul_mat side by side, so that an outlier meets 32 of them in one load. They are rounded to bf16:
// two in a lane halve what the caches must hold, and the error is a fifth of the one that rounding to int8 makes beside it. 0
// where there is no list, few columns (of a matrix), or too few outliers to pay for it; then outliers meet the activations as
// they are. Else with room to begin a cache line.
size_t bof4_pairs_size(const struct ggml_tensor * dst);

// Columns that are put side by side: two tiles of 16, of which bf16 pairs make one line of cache an element.
enum { BOF4_PAIRED = 32 };

// Puts elements [j0, j1) of columns ir1 .. ir1 + BOF4_PAIRED (those that exist, counted over dimensions 1 to 3) side by side, at the
// first cache line of a buffer of that size. ir1 is a multiple of BOF4_PAIRED, j0 and j1 of 16.
void bof4_pair_part(const struct ggml_tensor * dst, int64_t ir1, int64_t j0, int64_t j1, uint32_t * pairs);

// Are the rows of matrix 0 of src[0] rows of the list's weight?
bool bof4_whole_rows(const struct bof4_list_view * view);

// Of such rows: ask for the row pointers of n_rows rows from r0 on, and, where those are at hand, for their entries. `limit`: rows
// that there are.
void bof4_prefetch_pointers(const struct bof4_list_view * view, int64_t r0, int64_t n_rows, int64_t limit);
void bof4_prefetch_entries(const struct bof4_list_view * view, int64_t r0, int64_t n_rows, int64_t limit);

// For ggml's own products. Before this thread encodes its share of the activations of a mul_mat: ask for the row pointers that
// it will want first.
void bof4_foresee_list(const struct ggml_compute_params * params, const struct ggml_tensor * dst);

// After that, and before the threads wait for each other: with several columns, the share of this thread in putting
// the activations side by side, behind the encoded ones; with one, ask for the entries that it will want first.
void bof4_prepare_list(const struct ggml_compute_params * params, struct ggml_tensor * dst);

// Rows [ir0_start, ir0_end) and columns [ir1_start, ir1_end) of a mul_mat, columns counted over dimensions 1 to 3.
// wdata: the activations, encoded one after the other, and side by side.
void bof4_add_outliers(
    struct ggml_tensor * dst, const void * wdata, int64_t ir0_start, int64_t ir0_end, int64_t ir1_start, int64_t ir1_end);

// The same where the caller has the list, and all columns side by side, or NULL.
void bof4_add_outliers_to(
    struct ggml_tensor * dst, const struct bof4_list_view * view, const uint32_t * pairs,
    int64_t ir0_start, int64_t ir0_end, int64_t ir1_start, int64_t ir1_end);

// What outliers of rows [row0, row1) of matrix `matrix` contribute to columns [c0, c1) of a mul_mat, of activations side by side:
// sums[(row - row0) / 16][column - c0][(row - row0) % 16]. All rows are rows of the list's weight.
void bof4_sum_outliers(
    const struct ggml_tensor * dst, const struct bof4_list_view * view, const uint32_t * pairs, int64_t matrix,
    int64_t row0, int64_t row1, int64_t c0, int64_t c1, float * sums);

// Rows [ir0_start, ir0_end) of a product of one column with whole rows of the list's weight. What lies at `ahead`, weights that
// this thread wants next, is asked for meanwhile.
void bof4_add_outliers_to_column(
    struct ggml_tensor * dst, const struct bof4_list_view * view, int64_t ir0_start, int64_t ir0_end, const char * ahead);

// Rows (and columns) that a thread takes at a time: for weights of our types more than the usual number, so that weights
// and list remain long streams, interrupted seldom, and small models are not handed out in crumbs.
int bof4_chunk_rows(const struct ggml_tensor * dst, int usual);

// Ask for the part of the list that these rows of matrix `matrix` of src[0] will want. Between two runs of weights it is a
// stream that the processor does not see coming, and waiting for it costs more than using it.
void bof4_prefetch_list(const struct ggml_tensor * dst, int64_t matrix, int64_t ir0_start, int64_t ir0_end);

// Rows of one expert of a mul_mat_id. Column j of the part: slot columns[2*j] of token columns[2*j + 1].
void bof4_add_outliers_of_expert(
    struct ggml_tensor * dst, int64_t expert, int64_t ir0_start, int64_t ir0_end,
    const int32_t * columns, int64_t n_columns);

// The share of get_rows that thread params->ith has, as ggml_compute_forward_get_rows_q divides it.
void bof4_add_outliers_to_rows(const struct ggml_compute_params * params, struct ggml_tensor * dst);

#ifdef __cplusplus
}
#endif
