// Outlier lists on the CPU backend: adding what the outliers contribute to a part of a result that the calling thread
// has just computed from the codes, so that no further barrier is needed.
//
// Functions called from ggml's own code begin with ggml_bof4_list_. They find the view of the list and pass it to the
// functions that begin with bof4_list_, which the repacked products (cpu/bof4-repack-plan.cpp) call directly.
#pragma once

#include "bof4-list.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_compute_params;

// == mul_mat with many columns: transposed bf16 activations ==
//
// Outliers are multiplied by 32 columns at a time. Their activations are transposed, so that one entry takes one load,
// and rounded to bf16: two values in 32 bits need half of the cache, and the error is a fifth of that of rounding to
// int8.
// transposed[(column / 32 * n + element) * 16 + lane] holds columns lane (low half) and 16 + lane of each 32.

enum { BOF4_LIST_COLUMNS = 32 };

// Bytes of the transposed activations of a mul_mat, with room for alignment to a cache line. 0 where outliers use the
// activations as they are: no list, fewer than 8 columns per matrix, rows that are not rows of the weight, or too few
// outliers for transposing to be faster.
size_t bof4_list_transposed_size(const struct ggml_tensor * dst);

// Transposing is divided among threads by pieces: elements [j0, j1) of columns [c0, c1), which are counted over
// dimensions 1 to 3 of src[1]. c0 is a multiple of 32, c1 - c0 at most 32; j0 and j1 are multiples of the weight's
// block.
struct bof4_list_piece {
    int64_t c0, c1, j0, j1;
};

// The pieces of thread ith of nth: numbers [*first, *end).
void bof4_list_pieces_of_thread(const struct ggml_tensor * dst, int ith, int nth, int64_t * first, int64_t * end);
struct bof4_list_piece bof4_list_piece_of(const struct ggml_tensor * dst, int nth, int64_t number);

void bof4_list_transpose_piece(const struct ggml_tensor * dst, struct bof4_list_piece piece, uint32_t * transposed);

// == prefetching: the list is a stream that the hardware does not prefetch early enough ==

void bof4_list_prefetch_row_pointers(struct bof4_list_rows rows);

// At most 8 KiB of entries. Reads row pointers: prefetch them before.
void bof4_list_prefetch_entries(struct bof4_list_rows rows);

// Entries of rows [row0, row1) of a matrix, and row pointers of as many rows after them.
void bof4_list_prefetch(
    const struct ggml_tensor * dst, const struct bof4_list_view * view, int64_t matrix, int64_t row0, int64_t row1);

// == applying ==

// true where the result of a mul_mat is one column and rows are rows of the weight. Then applying the
// list is bandwidth bound: prefetch it early.
bool bof4_list_is_one_column(const struct ggml_tensor * dst, const struct bof4_list_view * view);

// Adds the outliers' products to rows [row0, row1) and columns [c0, c1) of a mul_mat, columns counted over dimensions 1
// to 3. transposed: all activations, or NULL. next_weights: what the thread reads next, prefetched meanwhile where the
// result is one column.
void bof4_list_add_mul_mat(struct ggml_tensor * dst, const struct bof4_list_view * view, const uint32_t * transposed,
    int64_t row0, int64_t row1, int64_t c0, int64_t c1, const char * next_weights);

// The same for rows of one expert of a mul_mat_id. Column j is slot columns[2 * j] of token columns[2 * j + 1].
void bof4_list_add_mul_mat_id(struct ggml_tensor * dst, const struct bof4_list_view * view, int64_t expert,
    int64_t row0, int64_t row1, const int32_t * columns, int64_t n_columns);

// The sums alone, for kernels that add them to their own: rows [row0, row1) of a matrix, columns [c0, c1) of a mul_mat.
// sums[(row - row0) / 16][column - c0][(row - row0) % 16]; zeros for rows from row1 on.
void bof4_list_sum_mul_mat(const struct ggml_tensor * dst, const struct bof4_list_view * view,
    const uint32_t * transposed, int64_t matrix, int64_t row0, int64_t row1, int64_t c0, int64_t c1, float * sums);

// == calls from ggml's mul_mat, mul_mat_id and get_rows; without a list they do nothing ==

// Bytes of work buffer beyond those of the encoded activations.
size_t ggml_bof4_list_work_size(const struct ggml_tensor * dst);

// Rows (and columns) of a chunk: for weights of these types eight times the usual number, so that weights and list
// are read as long streams.
int ggml_bof4_list_chunk_rows(const struct ggml_tensor * dst, int usual);

// Before the thread encodes activations: prefetch the row pointers of its first rows.
void ggml_bof4_list_begin_mul_mat(const struct ggml_compute_params * params, const struct ggml_tensor * dst);

// After that, before the barrier: transpose the thread's part of the activations, or prefetch the entries of its first
// rows.
void ggml_bof4_list_prepare_mul_mat(const struct ggml_compute_params * params, const struct ggml_tensor * dst);

// Before a chunk of rows of a matrix (an expert) is computed.
void ggml_bof4_list_prefetch(const struct ggml_tensor * dst, int64_t matrix, int64_t row0, int64_t row1);

// After it. wdata: the work buffer.
void ggml_bof4_list_apply_mul_mat(
    struct ggml_tensor * dst, const void * wdata, int64_t row0, int64_t row1, int64_t c0, int64_t c1);
void ggml_bof4_list_apply_mul_mat_id(
    struct ggml_tensor * dst, int64_t expert, int64_t row0, int64_t row1, const int32_t * columns, int64_t n_columns);

// For the rows of thread params->ith, as ggml_compute_forward_get_rows_q divides them.
void ggml_bof4_list_apply_get_rows(const struct ggml_compute_params * params, struct ggml_tensor * dst);

#ifdef __cplusplus
}
#endif
