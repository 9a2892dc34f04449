// Outlier lists on a GPU: where the outliers of an operand's row are.
#pragma once

#include "../lists/bof4-list.h"

#include <cstdint>

// bof4_list_view, with pointers into the device's memory. No list: row_pointers is null.
struct bof4_device_list {
    const int32_t * row_pointers;
    const int32_t * entries;
    int64_t first;          // element of the weight at which the operand begins
    int64_t stride[3];      // elements of the weight between neighbours in dimensions 1, 2, 3 of the operand
    int32_t row_length;     // of the weight
    int32_t n;              // elements of a row of the operand
    bool whole_rows;        // a row of the operand is one whole row of the weight
};

static __device__ __forceinline__ int bof4_column(int32_t entry) {
    return entry & 0xffff;
}

static __device__ __forceinline__ float bof4_value(int32_t entry) {
    return __int_as_float(entry & (int32_t) 0xffff0000);
}

static __device__ __forceinline__ int64_t bof4_element(const bof4_device_list & list, int64_t i1, int64_t i2, int64_t i3) {
    return list.first + i1 * list.stride[0] + i2 * list.stride[1] + i3 * list.stride[2];
}

// take(column, value) for every outlier of the operand's row that begins at this element of the weight, shared out among
// `sharers` threads, of which this one is number `self`. That row can span several rows of the weight, or be a part of one.
template <typename function>
static __device__ __forceinline__ void bof4_each_outlier(
        const bof4_device_list & list, int64_t element, int self, int sharers, function take) {
    int64_t row = element / list.row_length;
    for (int64_t start = row * list.row_length - element; start < list.n; start += list.row_length, ++row) {
        const int end = list.row_pointers[row + 1];
        for (int e = list.row_pointers[row] + self; e < end; e += sharers) {
            const int32_t entry = list.entries[e];
            const int64_t column = start + bof4_column(entry);
            if (column >= 0 && column < list.n) {
                take((int) column, bof4_value(entry));
            }
        }
    }
}
