// OPQ outlier lists: the few weights kept in 16 bits, as a companion tensor of a BOF4 weight.
//
// A list is an I32 tensor: nrows + 1 row pointers, then one entry per outlier, column | bf16(value) << 16,
// columns ascending within a row. The code of an outlier is the zero level, so a weight is the sum of its block value
// and its outlier value.
//
// The loader attaches a list to its weight. ggml_mul_mat, ggml_mul_mat_id and ggml_get_rows make it a source of
// their result, where scheduler, graph copies and RPC carry it like any other source, and store in op_params where
// the operand lies in the weight, so that views, slices and reshapes of the weight work.
//
// A backend applies a list by two calls: ggml_bof4_list_view_of_op for the operation, then for each range of rows that
// it computes the function that adds the outliers' products (on the CPU: bof4-list-cpu.h). Where the operand's
// rows are rows of the weight, bof4_list_rows_of gives the part of the list for the range.
#pragma once

#include "../format/bof4-blocks.h"
#include "ggml.h"

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Name of a list: name of its weight and this.
#define BOF4_LIST_SUFFIX ".opq"

// The list of a weight or of a view of it, or NULL.
GGML_API struct ggml_tensor * ggml_bof4_list_of_weight(const struct ggml_tensor * weight);

// Attach a list (I32, at least nrows + 1 long) to a weight that is not a view. Aborts where either is unsuitable. The
// weight must not be written to afterwards.
GGML_API void ggml_bof4_list_attach(struct ggml_tensor * weight, struct ggml_tensor * list);

// Called for a new mul_mat, mul_mat_id or get_rows: where src[0] has a list, make it a source.
GGML_API void ggml_bof4_list_link(struct ggml_tensor * op);

// The list among the sources of such an operation, or NULL.
GGML_API const struct ggml_tensor * ggml_bof4_list_of_op(const struct ggml_tensor * op);

// Aborts, naming the weight, where an operation would read a weight without its list.
GGML_API void ggml_bof4_list_check_use(const struct ggml_tensor * node);

// true where the backend of this name (ggml_backend_reg_name; "" for none) applies the list of the operation, or the
// operation has none.
GGML_API bool ggml_bof4_list_is_supported(const char * backend, const struct ggml_tensor * op);

// NULL where a list of n numbers is valid for a weight of nrows rows of ncols columns, else what is wrong with it.
GGML_API const char * ggml_bof4_list_error(const int32_t * list, int64_t n, int64_t nrows, int64_t ncols);

// Where the rows of src[0] of an operation lie in the weight that its list belongs to.
struct bof4_list_view {
    const int32_t * row_pointers; // of the whole list; NULL while the graph is planned
    const int32_t * entries;
    int64_t row_length; // elements of a row of the weight
    int64_t first;      // element of the weight at which src[0] begins
    int64_t n;          // elements of a row of src[0]
    int64_t stride[3];  // elements of the weight between neighbours in dimensions 1, 2, 3 of src[0]

    // The rows of each matrix of src[0] are neighbouring rows of the weight (no slice, no reshape of rows):
    bool is_whole_rows;
    int64_t first_row;     // then the weight's row at which src[0] begins
    int64_t row_stride[2]; // and rows between neighbours in dimensions 2 and 3
    int64_t ne2;           // size of src[0] in dimension 2
};
GGML_API struct bof4_list_view ggml_bof4_list_view_of_op(const struct ggml_tensor * op);

// The part of a list for n neighbouring rows: row r has the entries row_pointers[r] .. row_pointers[r + 1] - 1.
struct bof4_list_rows {
    const int32_t * row_pointers;
    const int32_t * entries;
    int64_t n;
};

// Rows [row0, row1) of a matrix of src[0] (counted over dimensions 2 and 3) of a view with is_whole_rows.
static inline struct bof4_list_rows bof4_list_rows_of(
    const struct bof4_list_view * view, int64_t matrix, int64_t row0, int64_t row1) {
    const int64_t i3 = matrix < view->ne2 ? 0 : matrix / view->ne2;
    const int64_t i2 = matrix - i3 * view->ne2;
    const int64_t row = view->first_row + i2 * view->row_stride[0] + i3 * view->row_stride[1] + row0;
    const struct bof4_list_rows rows = { view->row_pointers + row, view->entries, row1 - row0 };
    return rows;
}

// An entry of a list. The value is rounded to bf16, to nearest, ties to even.
static inline int32_t bof4_entry(int64_t column, float value) {
    return (int32_t) ((uint32_t) column | (uint32_t) ggml_fp32_to_bf16(value).bits << 16);
}

static inline int32_t bof4_entry_column(int32_t entry) {
    return entry & 0xffff;
}

static inline float bof4_entry_value(int32_t entry) {
    union {
        uint32_t bits;
        float value;
    } u;
    u.bits = (uint32_t) entry & 0xffff0000u;
    return u.value;
}

#ifdef __cplusplus
}
#endif
