// BOF4 weights times one to eight columns of activations, with outliers, bias and gate.
//
// What bounds it is the memory bus, if the other units keep up; on the fastest buses they barely do. Figures per weight and the
// reasons for this shape: bench/NOTES.md, "CUDA".
//
// Activations are int8 in an order of their own, so that no weight has to be moved to where its activation is (bof4-mmvq-act.cuh).
// Needs, of upstream's, the functions of unary.cuh that a gate goes through.
// A block of threads computes a few rows, its warps each a part of them; every lane holds the codes of the next step while it
// works on those of this one. Lanes end up with parts of every row's sum, to which they add their share of the outliers.
#pragma once

#include "bof4-codes.cuh"
#include "bof4-list.cuh"
#include "bof4-mmvq-act.cuh"

// One matrix of weights; strides in bytes. A bias has the strides of its own tensor, in elements.
struct bof4_factor {
    const uint8_t * data;
    int64_t nb1, nb2, nb3;
    bof4_device_list list;
    const float * bias;
    int64_t bias_s1, bias_s2, bias_s3;
};

struct bof4_product {
    bof4_factor up, gate;
    bof4_activations act;
    const float * x;            // the activations that act was made from, for the outliers
    int64_t x_s1, x_s2, x_s3;
    const int32_t * ids;        // of experts, or null
    int64_t ids_stride;
    float * dst;
    int64_t s1, s2, s3;
    int32_t n, nrows;
    int32_t nchannels_y;        // columns that a token has for its experts
    int32_t channel_ratio, sample_ratio;
    int32_t glu;                // ggml_glu_op
    float glu_limit;
};

// Where the results of one block of threads lie: matrix of the weights, first column of the activations, place in dst and bias.
struct bof4_where {
    int64_t x2, x3;
    int64_t column;
    int64_t x;
    int64_t dst;
    int64_t bias2, bias3;
};

static __device__ __forceinline__ bof4_where bof4_find(const bof4_product & p, int64_t ne11, int64_t ne12) {
    bof4_where at;
    const int64_t channel = blockIdx.y, z = blockIdx.z;
    if (p.ids != nullptr) {
        // a slot of a token: its expert, and the only column it meets
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

// sums[i] over the lanes of a warp, for i < N <= 32, a power of two: lane l gets number l * N / 32. Lanes exchange halves of what
// they hold, so this takes N + log2(32 / N) shuffles instead of 5 N.
template <int N, int offset = 16, int most>
static __device__ __forceinline__ float bof4_warp_sums(float (&sums)[most], int lane) {
    if constexpr (N > 1) {
        const bool upper = lane & offset;
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            const float mine = upper ? sums[i + N / 2] : sums[i];
            const float other = upper ? sums[i] : sums[i + N / 2];
            sums[i] = mine + __shfl_xor_sync(0xffffffff, other, offset, 32);
        }
    } else {
        sums[0] += __shfl_xor_sync(0xffffffff, sums[0], offset, 32);
    }
    if constexpr (offset > 1) {
        return bof4_warp_sums<(N > 1 ? N / 2 : 1), offset / 2>(sums, lane);
    }
    return sums[0];
}

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

enum { BOF4_MOST_WARPS = 4 };

// Rows that a block of threads has of each matrix. Two matrices: rows of both count.
template <typename step, int columns, int matrices>
static constexpr __host__ __device__ int bof4_rows_of_block() {
    return (columns <= 4 ? step::rows : 2) / matrices;
}

// One column waits for memory and wants many warps; more columns want registers.
template <typename step, int columns, int matrices>
__launch_bounds__(32 * BOF4_MOST_WARPS, (columns == 1 ? step::blocks : columns <= 3 ? 4 : step::blocks_of_many))
static __global__ void bof4_mul_mat_vec_kernel(const bof4_product p, const int64_t ne11, const int64_t ne12) {
    constexpr int R = bof4_rows_of_block<step, columns, matrices>();
    constexpr int S = R * matrices;             // streams of weights
    const int lane = threadIdx.x, warp = threadIdx.y, warps = blockDim.y;
    const int thread = 32 * warp + lane, threads = 32 * warps;
    const int64_t row0 = (int64_t) blockIdx.x * R;
    const bof4_where at = bof4_find(p, ne11, ne12);

    // Stream s: row s % R of matrix s / R. What lies beyond the last row reads that row again.
    const uint8_t * rows[S];
    int32_t entries[S];
    const auto row_of = [&](int s) { return min(row0 + s % R, (int64_t) p.nrows - 1); };
    const auto element_of = [&](int s) { return bof4_element((s < R ? p.up : p.gate).list, row_of(s), at.x2, at.x3); };
#pragma unroll
    for (int s = 0; s < S; ++s) {
        const bof4_factor & f = s < R ? p.up : p.gate;
        rows[s] = f.data + row_of(s) * f.nb1 + at.x2 * f.nb2 + at.x3 * f.nb3;
    }

    float sums[bof4_power_of_two(S * columns)] = {};
    const int n_chunks = step::chunks(p.n);
    const int begin = step::unroll * warp, stride = step::unroll * warps;
    const typename step::template source<S> source(rows, p.n, lane);
    typename step::template weights<S> even, odd;
    if (begin < n_chunks) {
        source.load(even, begin);
    }

    // Few rows have more outliers than this block has threads. The first of each are asked for here, behind the first codes:
    // two loads that wait for each other, which would otherwise stand at the end, where nothing hides them.
#pragma unroll
    for (int s = 0; s < S; ++s) {
        const bof4_device_list & list = (s < R ? p.up : p.gate).list;
        entries[s] = 0;
        if (list.row_pointers != nullptr && list.whole_rows) {
            const int32_t * pointers = list.row_pointers + element_of(s) / list.row_length;
            const int e = pointers[0] + thread;
            if (e < pointers[1]) {
                entries[s] = list.entries[e];
            }
        }
    }

    // two sets of registers that take turns: one would be copied every time
    for (int chunk = begin; chunk < n_chunks; chunk += 2 * stride) {
        if (chunk + stride < n_chunks) {
            source.load(odd, chunk + stride);
        }
        source.template multiply<columns>(even, p.act, at.column, chunk, sums);
        if (chunk + stride >= n_chunks) {
            break;
        }
        if (chunk + 2 * stride < n_chunks) {
            source.load(even, chunk + 2 * stride);
        }
        source.template multiply<columns>(odd, p.act, at.column, chunk + stride, sums);
    }

    const float * x = p.x + at.x;
#pragma unroll
    for (int s = 0; s < S; ++s) {
        const bof4_device_list & list = (s < R ? p.up : p.gate).list;
        if (list.row_pointers == nullptr) {
            continue;
        }
        const auto take = [&](int column, float value) {
#pragma unroll
            for (int c = 0; c < columns; ++c) {
                sums[s * columns + c] += value * x[c * p.x_s1 + column];
            }
        };
        if (!list.whole_rows) {
            bof4_each_outlier(list, element_of(s), thread, threads, take);
            continue;
        }
        if (bof4_value(entries[s]) != 0.0f) {
            take(bof4_column(entries[s]), bof4_value(entries[s]));
        }
        const int32_t * pointers = list.row_pointers + element_of(s) / list.row_length;
        for (int e = pointers[0] + thread + threads; e < pointers[1]; e += threads) {
            take(bof4_column(list.entries[e]), bof4_value(list.entries[e]));
        }
    }

    constexpr int N = bof4_power_of_two(S * columns);
    __shared__ float of_warps[BOF4_MOST_WARPS][N];
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
    const auto bias = [&](const bof4_factor & f) {
        return f.bias ? f.bias[at.bias3 * f.bias_s3 + at.bias2 * f.bias_s2 + column * f.bias_s1 + row0 + row] : 0.0f;
    };
    up += bias(p.up);
    if (matrices == 2) {
        up = bof4_glu(p.glu, gate + bias(p.gate), up, p.glu_limit);
    }
    p.dst[at.dst + column * p.s1 + row0 + row] = up;
}
