// BOF4 weights to floats: whole tensors, strided ones, and gathered rows with their outliers.
#pragma once

#include "bof4-codes.cuh"
#include "bof4-list.cuh"

template <typename T> struct alignas(4 * sizeof(T)) bof4_four {
    T x[4];
};

// The eight weights of one word of a row, into the decoded row.
template <typename type, typename T>
static __device__ __forceinline__ void bof4_dequantize_word(const uint8_t * row, int64_t word, T * y) {
    const int64_t b = word / type::words;
    const int w = (int) (word % type::words);
    const uint8_t * block = row + b * type::bytes;
    uint32_t low, high;
    bof4_levels8<typename type::levels_of>(bof4_load_word(block + type::codes_at + 4 * w), low, high);
    float unit_low, unit_high;
    type::units(block, w, unit_low, unit_high);
    bof4_four<T> first, second;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        first.x[i]  = ggml_cuda_cast<T>(type::weight(unit_low,  (int8_t) (low  >> 8 * i)));
        second.x[i] = ggml_cuda_cast<T>(type::weight(unit_high, (int8_t) (high >> 8 * i)));
    }
    y += b * type::n + type::first(w);
    *(bof4_four<T> *) y = first;
    *(bof4_four<T> *) (y + type::apart) = second;
}

// Rows of n_words words; strides in blocks.
template <typename type, typename T>
static __global__ void bof4_dequantize_kernel(
        const uint8_t * __restrict__ x, T * __restrict__ y, int64_t n_words,
        int64_t ne1, int64_t ne2, int64_t ne3, int64_t s1, int64_t s2, int64_t s3) {
    const int64_t word = (int64_t) blockIdx.x * blockDim.x + threadIdx.x;
    if (word >= n_words) {
        return;
    }
    for (int64_t r = blockIdx.y; r < ne1 * ne2 * ne3; r += gridDim.y) {
        const int64_t i1 = r % ne1, i2 = r / ne1 % ne2, i3 = r / ne1 / ne2;
        bof4_dequantize_word<type>(x + (i1 * s1 + i2 * s2 + i3 * s3) * type::bytes, word, y + r * n_words * 8);
    }
}

// What get_rows takes and gives; strides in bytes (of src), numbers (of ids), elements (of dst).
struct bof4_rows {
    const uint8_t * src;
    const int32_t * ids;
    int64_t n_words, ne10, ne11, ne12;
    int64_t nb1, nb2, nb3;
    int64_t si0, si1, si2;
    int64_t s1, s2, s3;
    bof4_device_list list;
};

// One block of threads for each gathered row, which adds the outliers to what it has just written.
template <typename type, typename T>
static __global__ void bof4_get_rows_kernel(bof4_rows rows, T * __restrict__ dst) {
    for (int64_t i = blockIdx.x; i < rows.ne10 * rows.ne11 * rows.ne12; i += gridDim.x) {
        const int64_t i10 = i % rows.ne10, i11 = i / rows.ne10 % rows.ne11, i12 = i / rows.ne10 / rows.ne11;
        const int64_t id = rows.ids[i10 * rows.si0 + i11 * rows.si1 + i12 * rows.si2];
        const uint8_t * row = rows.src + id * rows.nb1 + i11 * rows.nb2 + i12 * rows.nb3;
        T * y = dst + i10 * rows.s1 + i11 * rows.s2 + i12 * rows.s3;
        for (int64_t word = threadIdx.x; word < rows.n_words; word += blockDim.x) {
            bof4_dequantize_word<type>(row, word, y);
        }
        if (rows.list.row_pointers != nullptr) {
            __syncthreads();
            bof4_each_outlier(rows.list, bof4_element(rows.list, id, i11, i12), threadIdx.x, blockDim.x,
                [&](int column, float value) { y[column] = ggml_cuda_cast<T>(ggml_cuda_cast<float>(y[column]) + value); });
        }
    }
}
