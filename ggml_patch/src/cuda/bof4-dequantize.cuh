// BOF4 weights to floats: contiguous tensors, strided tensors, and gathered rows with their outliers.
#pragma once

#include "bof4-list.cuh"
#include "bof4-type.cuh"

// Four numbers that are stored at once.
template <typename T> struct alignas(4 * sizeof(T)) bof4_vec4 {
    T x[4];
};

// Decodes the eight weights of one word of a row into the decoded row y.
template <ggml_type type, typename T>
static __device__ __forceinline__ void bof4_dequantize_word(const uint8_t * row, int64_t word, T * y) {
    using traits = bof4_cuda_type<type>;
    const int64_t b = word / traits::words;
    const int w = (int) (word % traits::words);
    const uint8_t * block = row + b * traits::bytes;
    uint32_t low, high;
    bof4_levels8<type>(bof4_load_word(block + traits::codes_at + 4 * w), low, high);
    float unit_low, unit_high;
    traits::units(block, w, unit_low, unit_high);
    bof4_vec4<T> first, second;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        first.x[i] = ggml_cuda_cast<T>(traits::weight(unit_low, (int8_t) (low >> 8 * i)));
        second.x[i] = ggml_cuda_cast<T>(traits::weight(unit_high, (int8_t) (high >> 8 * i)));
    }
    y += b * traits::n + traits::first_of_word(w);
    *(bof4_vec4<T> *) y = first;
    *(bof4_vec4<T> *) (y + traits::word_distance) = second;
}

// Rows of n_words words; strides s1, s2, s3 of x in blocks; y is contiguous.
template <ggml_type type, typename T>
static __global__ void bof4_dequantize_kernel(const uint8_t * __restrict__ x, T * __restrict__ y, int64_t n_words,
    int64_t ne1, int64_t ne2, int64_t ne3, int64_t s1, int64_t s2, int64_t s3) {
    const int64_t word = (int64_t) blockIdx.x * blockDim.x + threadIdx.x;
    ggml_cuda_pdl_lc();
    ggml_cuda_pdl_sync();
    if (word >= n_words) {
        return;
    }
    for (int64_t r = blockIdx.y; r < ne1 * ne2 * ne3; r += gridDim.y) {
        const int64_t i1 = r % ne1, i2 = r / ne1 % ne2, i3 = r / ne1 / ne2;
        const uint8_t * row = x + (i1 * s1 + i2 * s2 + i3 * s3) * bof4_cuda_type<type>::bytes;
        bof4_dequantize_word<type>(row, word, y + r * n_words * 8);
    }
}

struct bof4_get_rows_args {
    const uint8_t * src;
    const int32_t * ids;               // ne10 x ne11 x ne12 row numbers
    int64_t n_words, ne10, ne11, ne12; // words of a row
    int64_t nb1, nb2, nb3;             // strides of src in bytes
    int64_t si0, si1, si2;             // strides of ids in elements
    int64_t s1, s2, s3;                // strides of dst in elements
    bof4_device_list list;
};

// One block of threads per gathered row, which then adds the outliers to the decoded row.
template <ggml_type type, typename T>
static __global__ void bof4_get_rows_kernel(bof4_get_rows_args args, T * __restrict__ dst) {
    ggml_cuda_pdl_lc();
    ggml_cuda_pdl_sync();
    for (int64_t i = blockIdx.x; i < args.ne10 * args.ne11 * args.ne12; i += gridDim.x) {
        const int64_t i10 = i % args.ne10, i11 = i / args.ne10 % args.ne11, i12 = i / args.ne10 / args.ne11;
        const int64_t id = args.ids[i10 * args.si0 + i11 * args.si1 + i12 * args.si2];
        const uint8_t * row = args.src + id * args.nb1 + i11 * args.nb2 + i12 * args.nb3;
        T * y = dst + i10 * args.s1 + i11 * args.s2 + i12 * args.s3;
        for (int64_t word = threadIdx.x; word < args.n_words; word += blockDim.x) {
            bof4_dequantize_word<type>(row, word, y);
        }
        if (args.list.row_pointers != nullptr) {
            __syncthreads();
            bof4_list_apply(args.list, bof4_list_element(args.list, id, i11, i12), threadIdx.x, blockDim.x,
                [&](int column, float value) {
                    y[column] = ggml_cuda_cast<T>(ggml_cuda_cast<float>(y[column]) + value);
                });
        }
    }
}
