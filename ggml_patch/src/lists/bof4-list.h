// OPQ outlier lists: the few weights kept in 16 bits, as a companion tensor of a BOF4 weight.
//
// A list is an I32 tensor: nrows + 1 row pointers, then one entry an outlier, column | bf16(value) << 16,
// columns ascending within a row. The code at an outlier's place is the zero level, so a weight is its
// block value plus its outlier value.
//
// The loader attaches a list to its weight. ggml_mul_mat, ggml_mul_mat_id and ggml_get_rows put it among
// the sources of their result, where scheduler, graph copies and RPC carry it like any other source, and say
// in op_params where the operand lies in the weight; so views, slices and reshapes of the weight work.
#pragma once

#include "ggml.h"

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BOF4_OPQ_SUFFIX ".opq"

// Types whose weights may have a list.
GGML_API bool ggml_bof4_is_type(enum ggml_type type);

// The list of a weight or of a view of it, or NULL.
GGML_API struct ggml_tensor * ggml_bof4_list(const struct ggml_tensor * weight);

// Attach a list to a weight that is no view. The weight must not be written to afterwards.
GGML_API void ggml_bof4_attach_list(struct ggml_tensor * weight, struct ggml_tensor * list);

// Called on a new mul_mat, mul_mat_id or get_rows: where src[0] has a list, make it a source.
GGML_API void ggml_bof4_link_list(struct ggml_tensor * op);

// The list among the sources of such an operation, or NULL.
GGML_API const struct ggml_tensor * ggml_bof4_list_of_op(const struct ggml_tensor * op);

// Aborts, naming the weight, where an operation reads a weight with a list that it would lose.
GGML_API void ggml_bof4_check_use(const struct ggml_tensor * node);

// Can a backend of this name (ggml_backend_reg_name; "" for none) compute the operation, as far as lists go?
GGML_API bool ggml_bof4_backend_applies_list(const char * backend, const struct ggml_tensor * op);

// NULL where a list of n numbers is sound for a weight of nrows rows, else what is wrong with it.
GGML_API const char * ggml_bof4_list_error(const int32_t * list, int64_t n, int64_t nrows, int64_t ncols);

// Where the rows of src[0] of an operation lie in the weight that its list belongs to.
struct bof4_list_view {
    const int32_t * row_pointers;
    const int32_t * entries;
    int64_t row_length;     // of the weight
    int64_t first;          // element of the weight at which src[0] begins
    int64_t n;              // elements of a row of src[0]
    int64_t stride[3];      // elements of the weight between neighbours in dimensions 1, 2, 3 of src[0]
};
GGML_API struct bof4_list_view ggml_bof4_view_of_op(const struct ggml_tensor * op);

// An entry of a list. The value is rounded to bf16, to nearest, ties to even.
static inline int32_t bof4_entry(int64_t column, float value) {
    return (int32_t) ((uint32_t) column | (uint32_t) ggml_fp32_to_bf16(value).bits << 16);
}

static inline int32_t bof4_entry_column(int32_t entry) {
    return entry & 0xffff;
}

static inline float bof4_entry_value(int32_t entry) {
    union { uint32_t bits; float value; } u;
    u.bits = (uint32_t) entry & 0xffff0000u;
    return u.value;
}

#ifdef __cplusplus
}
#endif
