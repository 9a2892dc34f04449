// Outlier lists on a GPU: the view of an operand's list, and applying it for the rows that a kernel computes.
#pragma once

#include "../lists/bof4-list.h"

#include <cstdint>

// bof4_list_view with pointers into device memory. No list: row_pointers is null.
struct bof4_device_list {
    const int32_t * row_pointers;
    const int32_t * entries;
    int64_t first;         // element of the weight at which the operand begins
    int64_t stride[3];     // elements of the weight between neighbours in dimensions 1, 2, 3 of the operand
    int32_t row_length;    // elements of a row of the weight
    int32_t n;             // elements of a row of the operand
    bool is_whole_rows;    // a row of the operand is one whole row of the weight: then
    int32_t first_row;     // the row of the weight at which the operand begins
    int32_t row_stride[3]; // and rows between neighbours in dimensions 1, 2, 3
};

static __device__ __forceinline__ int bof4_list_entry_column(int32_t entry) {
    return entry & 0xffff;
}

static __device__ __forceinline__ float bof4_list_entry_value(int32_t entry) {
    return __int_as_float(entry & (int32_t) 0xffff0000);
}

// Element of the weight at which a row of the operand begins.
static __device__ __forceinline__ int64_t bof4_list_element(
    const bof4_device_list & list, int64_t i1, int64_t i2, int64_t i3) {
    return list.first + i1 * list.stride[0] + i2 * list.stride[1] + i3 * list.stride[2];
}

// Calls apply(column, value) for every n_threads-th outlier, beginning with number `thread`, of the operand's row that
// begins at this element of the weight. The row may span several rows of the weight or be a part of one.
template <typename function>
static __device__ __forceinline__ void bof4_list_apply(
    const bof4_device_list & list, int64_t element, int thread, int n_threads, function apply) {
    int64_t row = element / list.row_length;
    for (int64_t start = row * list.row_length - element; start < list.n; start += list.row_length, ++row) {
        const int end = list.row_pointers[row + 1];
        for (int e = list.row_pointers[row] + thread; e < end; e += n_threads) {
            const int32_t entry = list.entries[e];
            const int64_t column = start + bof4_list_entry_column(entry);
            if (column >= 0 && column < list.n) {
                apply((int) column, bof4_list_entry_value(entry));
            }
        }
    }
}

// Row of the weight that is a row of the operand. Only where operands are whole rows.
static __device__ __forceinline__ int32_t bof4_list_row(
    const bof4_device_list & list, int32_t i1, int32_t i2, int32_t i3) {
    return list.first_row + i1 * list.row_stride[0] + i2 * list.row_stride[1] + i3 * list.row_stride[2];
}
