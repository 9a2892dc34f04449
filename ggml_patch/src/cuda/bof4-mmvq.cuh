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
// The block before may still be running in the kernel that computes the activations (bof4-launch.cuh): the first codes
// and the outlier list are loaded before this is waited for.
//
// A step (traits of the type, bof4-type.cuh) has
//
//     int rows(columns)                      of a block of threads
//     int blocks_per_sm(columns)             for __launch_bounds__, of BOF4_MAX_WARPS warps
//     static constexpr int chunks_at_once    chunks that are loaded and multiplied at once
//     int chunks(n)                          of a row of n weights
//     size_t staged_bytes<S>()               of shared memory of a warp, for S rows
//     weights<S>                             registers with the codes and scales of `chunks_at_once` chunks of S rows
//     loader<S>(row_at, n, lane, staged)     row_at(s): address of row s.
//                                            load<stage>(weights, chunk) loads, or begins to copy to the shared memory
//                                            of stage 0 or 1; multiply<stage, columns>(weights, act, column, chunk,
//                                            sums) adds to sums[row * columns + column]
//
// Needs upstream's unary.cuh, included before, for the activation functions of gated units.
#pragma once

#include "bof4-activations.cuh"
#include "bof4-copy.cuh"
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

// Quotient of small numbers; the divisor is 1 in most models.
static __device__ __forceinline__ uint32_t bof4_quotient(uint32_t n, int32_t divisor) {
    return divisor == 1 ? n : n / (uint32_t) divisor;
}

static __device__ __forceinline__ bof4_mul_mat_vec_position bof4_position_of_block(
    const bof4_mul_mat_vec_args & p, int64_t ne11, int64_t ne12) {
    bof4_mul_mat_vec_position at;
    const uint32_t channel = blockIdx.y, z = blockIdx.z;
    if (p.ids != nullptr) {
        // blockIdx.y is a slot of token z: the weights of its expert times one column
        at.x2 = p.ids[z * p.ids_stride + channel];
        at.x3 = 0;
        const uint32_t y = channel - p.nchannels_y * bof4_quotient(channel, p.nchannels_y);
        at.column = (int64_t) z * p.nchannels_y + y;
        at.x = z * p.x_s2 + y * p.x_s1;
        at.dst = z * p.s2 + channel * p.s1;
        at.bias2 = at.x2;
        at.bias3 = 0;
    } else {
        at.x2 = bof4_quotient(channel, p.channel_ratio);
        at.x3 = bof4_quotient(z, p.sample_ratio);
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
    return step::rows(columns) / matrices;
}

// The outliers of a row of the operand as a warp applies them: its entries, and the first one of this lane.
struct bof4_row_outliers {
    int32_t next = 0, end = 0; // this lane's entries: next, next + 32, ...
    int32_t entry = 0;         // number `next`; 0 (value zero) where there is none

    __device__ __forceinline__ void find(const bof4_device_list & list, int32_t row, int lane) {
        next = list.row_pointers[row] + lane;
        end = list.row_pointers[row + 1];
    }
    __device__ __forceinline__ void load(const bof4_device_list & list) {
        if (next < end) {
            entry = list.entries[next];
        }
    }
};

// With one column, latency of loads is hidden by many warps; more columns need more registers per thread.
template <typename step, int columns, int matrices>
__launch_bounds__(32 * BOF4_MAX_WARPS, step::blocks_per_sm(columns)) static __global__
    void bof4_mul_mat_vec_kernel(const bof4_mul_mat_vec_args p, const int64_t ne11, const int64_t ne12) {
    constexpr int R = bof4_rows_per_block<step, columns, matrices>();
    constexpr int S = R * matrices;
    const int lane = threadIdx.x, warp = threadIdx.y, warps = blockDim.y;
    const int thread = 32 * warp + lane;
    const int64_t row0 = (int64_t) blockIdx.x * R;
    ggml_cuda_pdl_lc();
    if (p.ids != nullptr) {
        ggml_cuda_pdl_sync(); // the kernel before may have computed them
    }
    const bof4_mul_mat_vec_position at = bof4_position_of_block(p, ne11, ne12);

    // Number s is row s % R of matrix s / R. Rows behind the last one are that row again.
    const auto row_of = [&](int s) { return min(row0 + s % R, (int64_t) p.nrows - 1); };
    const auto row_at = [&](int s) {
        const bof4_mul_mat_vec_weight & f = matrices == 1 || s < R ? p.up : p.gate;
        return f.data + row_of(s) * f.nb1 + at.x2 * f.nb2 + at.x3 * f.nb3;
    };

    // Warp w applies the outliers of rows w, w + warps, ... Row pointers are loaded before the codes, and the first
    // entries, which depend on them, behind the first codes.
    constexpr int ahead = 2; // rows of a warp whose first entries are loaded here
    bof4_row_outliers outliers[ahead];
    const auto list_of = [&](int s) -> const bof4_device_list & {
        return matrices == 1 || s < R ? p.up.list : p.gate.list;
    };
    const auto is_ahead = [&](int s) {
        return s < S && list_of(s).row_pointers != nullptr && list_of(s).is_whole_rows;
    };
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
        const int s = warp + i * warps;
        if (is_ahead(s)) {
            outliers[i].find(list_of(s), bof4_list_row(list_of(s), (int) row_of(s), (int) at.x2, (int) at.x3), lane);
        }
    }

    float sums[bof4_power_of_two(S * columns)] = {};
    const int n_chunks = step::chunks(p.n);
    const int begin = step::chunks_at_once * warp, stride = step::chunks_at_once * warps;
    uint8_t * staged = bof4_dynamic_shared() + warp * step::template staged_bytes<S>();
    const typename step::template loader<S> loader(row_at, p.n, lane, staged);
    typename step::template weights<S> even, odd;
    if (begin < n_chunks) {
        loader.template load<0>(even, begin);
    }
    bof4_copy_commit();
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
        const int s = warp + i * warps;
        if (is_ahead(s)) {
            outliers[i].load(list_of(s));
        }
    }
    ggml_cuda_pdl_sync();

    // two sets of registers, used alternately: a single one would have to be copied in each iteration
    for (int chunk = begin; chunk < n_chunks; chunk += 2 * stride) {
        if (chunk + stride < n_chunks) {
            loader.template load<1>(odd, chunk + stride);
        }
        bof4_copy_commit();
        bof4_copy_wait_for_all_but_one();
        loader.template multiply<0, columns>(even, p.act, at.column, chunk, sums);
        if (chunk + stride >= n_chunks) {
            break;
        }
        if (chunk + 2 * stride < n_chunks) {
            loader.template load<0>(even, chunk + 2 * stride);
        }
        bof4_copy_commit();
        bof4_copy_wait_for_all_but_one();
        loader.template multiply<1, columns>(odd, p.act, at.column, chunk + stride, sums);
    }

    const float * x = p.x + at.x;
    for (int i = 0, s = warp; s < S; ++i, s += warps) {
        const bof4_device_list & list = list_of(s);
        if (list.row_pointers == nullptr) {
            continue;
        }
        float of_row[columns] = {};
        const auto add = [&](int column, float value) {
#pragma unroll
            for (int c = 0; c < columns; ++c) {
                of_row[c] += value * x[c * p.x_s1 + column];
            }
        };
        if (list.is_whole_rows) {
            bof4_row_outliers row = i == 0 ? outliers[0] : outliers[1];
            if (i >= ahead) {
                row.find(list, bof4_list_row(list, (int) row_of(s), (int) at.x2, (int) at.x3), lane);
                row.load(list);
            }
            for (; row.next < row.end; row.next += 32) {
                add(bof4_list_entry_column(row.entry), bof4_list_entry_value(row.entry));
                if (row.next + 32 < row.end) {
                    row.entry = list.entries[row.next + 32];
                }
            }
        } else {
            bof4_list_apply(list, bof4_list_element(list, row_of(s), at.x2, at.x3), lane, 32, add);
        }
#pragma unroll
        for (int k = 0; k < S; ++k) {
            if (k == s) {
#pragma unroll
                for (int c = 0; c < columns; ++c) {
                    sums[k * columns + c] += of_row[c];
                }
            }
        }
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
