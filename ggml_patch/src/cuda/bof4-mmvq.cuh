// BOF4 weights times one to eight columns of activations, with outliers, bias and gate.
//
// Bound by memory bandwidth on most GPUs, by instruction issue on those with the highest bandwidth. Instructions per
// weight and the reasons for this design: bench/NOTES.md, "CUDA".
//
// Activations are int8 in the order of the codes (bof4-activations.cuh). A block of threads computes a few rows. Each
// of its warps computes a part of these rows, chunk by chunk: every lane loads the codes of the next chunk before it
// multiplies those of this one. Each lane has a partial sum of every row, to which it adds its part of the outliers;
// the sums of all lanes and warps are added at the end.
//
// A step (traits of the type, bof4-type.cuh) has
//
//     static constexpr int rows              of a block of threads, up to four columns
//     static constexpr int unroll            chunks that are loaded and multiplied at once
//     static constexpr int blocks_per_sm     for __launch_bounds__, with one column
//     static constexpr int blocks_per_sm_4_to_8
//                                            the same with 4 to 8 columns
//     int chunks(n)                          of a row of n weights
//     weights<S>                             registers with the codes and scales of `unroll` chunks of S rows
//     loader<S>(rows, n, lane)               load(weights, chunk), and multiply<columns>(weights, act, column, chunk,
//                                            sums), which adds to sums[row * columns + column]
//
// Needs upstream's unary.cuh, included before, for the activation functions of gated units.
#pragma once

#include "bof4-activations.cuh"
#include "bof4-list.cuh"
#include "bof4-type.cuh"

// One matrix of weights with its list and bias.
struct bof4_mul_mat_vec_weight {
    const uint8_t * data;
    int64_t nb1, nb2, nb3; // strides in bytes
    bof4_device_list list;
    const float * bias;                // or null
    int64_t bias_s1, bias_s2, bias_s3; // strides in elements
};

struct bof4_mul_mat_vec_args {
    bof4_mul_mat_vec_weight up, gate;
    bof4_activations act;
    const float * x;          // the activations before they were quantized, for the outliers
    int64_t x_s1, x_s2, x_s3; // strides in elements
    const int32_t * ids;      // of experts, or null
    int64_t ids_stride;
    float * dst;
    int64_t s1, s2, s3;                  // strides in elements
    int32_t n, nrows;                    // of the weights
    int32_t nchannels_y;                 // with ids: columns that a token has for its experts
    int32_t channel_ratio, sample_ratio; // activation matrices per weight matrix, in dimensions 2 and 3
    int32_t glu;                         // ggml_glu_op
    float glu_limit;
};

// What one block of threads computes: places in the tensors.
struct bof4_mul_mat_vec_position {
    int64_t x2, x3;       // matrix of the weights
    int64_t column;       // first column of the quantized activations
    int64_t x;            // its element in the activations
    int64_t dst;          // element
    int64_t bias2, bias3; // matrix of the bias
};

static __device__ __forceinline__ bof4_mul_mat_vec_position bof4_position_of_block(
    const bof4_mul_mat_vec_args & p, int64_t ne11, int64_t ne12) {
    bof4_mul_mat_vec_position at;
    const int64_t channel = blockIdx.y, z = blockIdx.z;
    if (p.ids != nullptr) {
        // blockIdx.y is a slot of token z: the weights of its expert times one column
        at.x2 = p.ids[z * p.ids_stride + channel];
        at.x3 = 0;
        const int64_t y = channel % p.nchannels_y;
        at.column = z * p.nchannels_y + y;
        at.x = z * p.x_s2 + y * p.x_s1;
        at.dst = z * p.s2 + channel * p.s1;
        at.bias2 = at.x2;
        at.bias3 = 0;
    } else {
        at.x2 = channel / p.channel_ratio;
        at.x3 = z / p.sample_ratio;
        at.column = (z * ne12 + channel) * ne11;
        at.x = z * p.x_s3 + channel * p.x_s2;
        at.dst = z * p.s3 + channel * p.s2;
        at.bias2 = channel;
        at.bias3 = z;
    }
    return at;
}

// Sums of sums[i] over the lanes of a warp, for i < N <= 32, a power of two: lane l returns that of i = l * N / 32.
// Lanes exchange half of their remaining values in each step, so this takes N - 1 + log2(32 / N) shuffles instead of
// 5 N.
template <int N, int offset = 16, int size>
static __device__ __forceinline__ float bof4_warp_sums(float (&sums)[size], int lane) {
    if constexpr (N > 1) {
        const bool upper = lane & offset;
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            const float kept = upper ? sums[i + N / 2] : sums[i];
            const float sent = upper ? sums[i] : sums[i + N / 2];
            sums[i] = kept + __shfl_xor_sync(0xffffffff, sent, offset, 32);
        }
    } else {
        sums[0] += __shfl_xor_sync(0xffffffff, sums[0], offset, 32);
    }
    if constexpr (offset > 1) {
        return bof4_warp_sums<(N > 1 ? N / 2 : 1), offset / 2>(sums, lane);
    }
    return sums[0];
}

// n, rounded up to a power of two.
static constexpr __host__ __device__ int bof4_power_of_two(int n) {
    return n <= 1 ? 1 : 2 * bof4_power_of_two((n + 1) / 2);
}

static __device__ __forceinline__ float bof4_glu(int32_t op, float gate, float up, float limit) {
    switch (op) {
        case GGML_GLU_OP_SWIGLU:       return up * ggml_cuda_op_silu_single(gate);
        case GGML_GLU_OP_GEGLU:        return up * ggml_cuda_op_gelu_single(gate);
        case GGML_GLU_OP_SWIGLU_OAI:   return ggml_cuda_op_swiglu_oai_single(gate, up);
        case GGML_GLU_OP_SWIGLU_CLAMP: return ggml_cuda_op_swiglu_clamp_single(gate, up, limit);
        default:                       return up * gate;
    }
}

enum { BOF4_MAX_WARPS = 4 };

// Rows of each matrix that a block of threads computes. Two matrices (up and gate) have half of the rows each.
template <typename step, int columns, int matrices>
static constexpr __host__ __device__ int bof4_rows_per_block() {
    return (columns <= 4 ? step::rows : 2) / matrices;
}

// With one column, latency of loads is hidden by many warps; more columns need more registers per thread.
template <typename step, int columns, int matrices>
__launch_bounds__(32 * BOF4_MAX_WARPS,
    (columns == 1          ? step::blocks_per_sm
            : columns <= 3 ? 4
                           : step::blocks_per_sm_4_to_8)) static __global__
    void bof4_mul_mat_vec_kernel(const bof4_mul_mat_vec_args p, const int64_t ne11, const int64_t ne12) {
    constexpr int R = bof4_rows_per_block<step, columns, matrices>();
    constexpr int S = R * matrices;
    const int lane = threadIdx.x, warp = threadIdx.y, warps = blockDim.y;
    const int thread = 32 * warp + lane, threads = 32 * warps;
    const int64_t row0 = (int64_t) blockIdx.x * R;
    const bof4_mul_mat_vec_position at = bof4_position_of_block(p, ne11, ne12);

    // Number s is row s % R of matrix s / R. Rows behind the last one are that row again.
    const uint8_t * rows[S];
    int32_t prefetched[S];
    const auto row_of = [&](int s) { return min(row0 + s % R, (int64_t) p.nrows - 1); };
#pragma unroll
    for (int s = 0; s < S; ++s) {
        const bof4_mul_mat_vec_weight & f = s < R ? p.up : p.gate;
        rows[s] = f.data + row_of(s) * f.nb1 + at.x2 * f.nb2 + at.x3 * f.nb3;
    }

    float sums[bof4_power_of_two(S * columns)] = {};
    const int n_chunks = step::chunks(p.n);
    const int begin = step::unroll * warp, stride = step::unroll * warps;
    const typename step::template loader<S> loader(rows, p.n, lane);
    typename step::template weights<S> even, odd;
    if (begin < n_chunks) {
        loader.load(even, begin);
    }

    // The first outlier of each thread is read here, behind the first codes: two loads, the second of which depends on
    // the first. Few rows have more outliers than this block has threads.
#pragma unroll
    for (int s = 0; s < S; ++s) {
        prefetched[s] = bof4_list_prefetch((s < R ? p.up : p.gate).list, row_of(s), at.x2, at.x3, thread);
    }

    // two sets of registers, used alternately: a single one would have to be copied in each iteration
    for (int chunk = begin; chunk < n_chunks; chunk += 2 * stride) {
        if (chunk + stride < n_chunks) {
            loader.load(odd, chunk + stride);
        }
        loader.template multiply<columns>(even, p.act, at.column, chunk, sums);
        if (chunk + stride >= n_chunks) {
            break;
        }
        if (chunk + 2 * stride < n_chunks) {
            loader.load(even, chunk + 2 * stride);
        }
        loader.template multiply<columns>(odd, p.act, at.column, chunk + stride, sums);
    }

    const float * x = p.x + at.x;
#pragma unroll
    for (int s = 0; s < S; ++s) {
        const bof4_device_list & list = (s < R ? p.up : p.gate).list;
        if (list.row_pointers == nullptr) {
            continue;
        }
        const auto add = [&](int column, float value) {
#pragma unroll
            for (int c = 0; c < columns; ++c) {
                sums[s * columns + c] += value * x[c * p.x_s1 + column];
            }
        };
        bof4_list_apply_prefetched(list, row_of(s), at.x2, at.x3, prefetched[s], thread, threads, add);
    }

    constexpr int N = bof4_power_of_two(S * columns);
    __shared__ float of_warps[BOF4_MAX_WARPS][N];
    const float sum = bof4_warp_sums<N>(sums, lane);
    if (lane % (32 / N) == 0) {
        of_warps[warp][lane / (32 / N)] = sum;
    }
    __syncthreads();

    const int row = thread / columns, column = thread % columns;
    if (thread >= R * columns || row0 + row >= p.nrows) {
        return;
    }
    float up = 0.0f, gate = 0.0f;
    for (int w = 0; w < warps; ++w) {
        up += of_warps[w][thread];
        if (matrices == 2) {
            gate += of_warps[w][R * columns + thread];
        }
    }
    const auto bias = [&](const bof4_mul_mat_vec_weight & f) {
        return f.bias ? f.bias[at.bias3 * f.bias_s3 + at.bias2 * f.bias_s2 + column * f.bias_s1 + row0 + row] : 0.0f;
    };
    up += bias(p.up);
    if (matrices == 2) {
        up = bof4_glu(p.glu, gate + bias(p.gate), up, p.glu_limit);
    }
    p.dst[at.dst + column * p.s1 + row0 + row] = up;
}
