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
//     int rows(columns)                of a block of threads
//     bool may_have_fewer_rows         for one column, where rows(1) would leave SMs idle; else it has rows(1) always
//     int blocks_per_sm(columns)       for __launch_bounds__, of BOF4_MAX_WARPS warps
//     int chunks(n)                    of a row of n weights
//     size_t staged_bytes<S>()         of shared memory of a warp, for S rows
//     loader<S>(row_at, n, lane, staged_memory)
//                                      row_at(s): address of row s
//     bool is_staged                   chunks pass through shared memory (bof4-copy.cuh): then a loader has
//                                      staged.copy(stage, chunk) and multiply<columns>(stage, act, chunk, sums),
//                                      which adds to sums[row * columns + column]. Else
//     chunks_at_once                   is the number of chunks in weights<S>, which are registers, and a loader has
//                                      load(weights, chunk) and multiply<columns>(weights, act, chunk, sums)
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
    uint32_t nb1; // strides in bytes
    int64_t nb2, nb3;
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
    if (gridDim.y == 1 && gridDim.z == 1 && p.ids == nullptr) {
        return {};
    }
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

// The outliers that a lane applies: of one row, every `stride`-th. The first ones are loaded ahead.
struct bof4_lane_outliers {
    static constexpr int ahead = 2;
    int32_t next = 0, end = 0;
    int32_t entries[ahead] = {};

    __device__ __forceinline__ void find(const bof4_device_list & list, int32_t row, int first) {
        next = list.row_pointers[row] + first;
        end = list.row_pointers[row + 1];
    }
    __device__ __forceinline__ void load(const bof4_device_list & list, int stride) {
#pragma unroll
        for (int i = 0; i < ahead; ++i) {
            if (next + i * stride < end) {
                entries[i] = list.entries[next + i * stride];
            }
        }
    }
    template <typename function>
    __device__ __forceinline__ void apply(const bof4_device_list & list, int stride, function add) {
        while (next < end) {
#pragma unroll
            for (int i = 0; i < ahead; ++i) {
                if (next + i * stride < end) {
                    add(bof4_list_entry_column(entries[i]), bof4_list_entry_value(entries[i]));
                }
            }
            next += ahead * stride;
            load(list, stride);
        }
    }
};

// rows: of each matrix, that a block of threads computes.
template <typename step, int columns, int matrices, int rows>
__launch_bounds__(32 * BOF4_MAX_WARPS, step::blocks_per_sm(columns)) static __global__
    void bof4_mul_mat_vec_kernel(const bof4_mul_mat_vec_args p, const int64_t ne11, const int64_t ne12) {
    constexpr int R = rows, S = R * matrices;
    const int lane = threadIdx.x, warp = threadIdx.y, warps = blockDim.y;
    const int thread = 32 * warp + lane;
    const int row0 = (int) blockIdx.x * R;
    ggml_cuda_pdl_lc();
    // Reads p.ids: the kernel that quantizes lets this one begin when all before it have ended.
    const bof4_mul_mat_vec_position at = bof4_position_of_block(p, ne11, ne12);

    // Number s is row s % R of matrix s / R. Rows behind the last one are that row again.
    const auto row_of = [&](int s) { return min(row0 + s % R, p.nrows - 1); };
    const auto matrix_at = [&](const bof4_mul_mat_vec_weight & f) { return f.data + at.x2 * f.nb2 + at.x3 * f.nb3; };
    const uint8_t *const up_at = matrix_at(p.up), *const gate_at = matrices == 2 ? matrix_at(p.gate) : nullptr;
    const auto row_at = [&](int s) {
        const bool is_up = matrices == 1 || s < R;
        return (is_up ? up_at : gate_at) + (uint64_t) (uint32_t) row_of(s) * (is_up ? p.up.nb1 : p.gate.nb1);
    };

    // 32 / S lanes of every warp apply the outliers of a row. Row pointers are loaded before the codes, and the first
    // entries, which depend on them, behind the first codes.
    constexpr int lanes_of_row = 32 / S;
    const int list_row = lane / lanes_of_row;
    const bof4_device_list & list = matrices == 1 || list_row < R ? p.up.list : p.gate.list;
    const bool has_list = list.row_pointers != nullptr;
    bof4_lane_outliers outliers;
    if (has_list && list.is_whole_rows) {
        outliers.find(list, bof4_list_row(list, row_of(list_row), (int) at.x2, (int) at.x3),
            lane % lanes_of_row + lanes_of_row * warp);
    }

    float sums[bof4_power_of_two(S * columns)] = {};
    const int n_chunks = step::chunks(p.n);
    uint8_t * staged_memory = bof4_dynamic_shared() + warp * step::template staged_bytes<S>();
    const typename step::template loader<S> loader(row_at, p.n, lane, staged_memory);
    bof4_activations act = p.act; // from the first column of this block on
    act.qs += at.column * act.stride;
    act.scales += at.column * act.scale_stride;
    if constexpr (step::is_staged) {
        using staged_rows = typename step::template staged_rows<S>;
        constexpr int stage_bytes = staged_rows::stage_bytes, end = staged_rows::stages * stage_bytes;
#pragma unroll
        for (int i = 0; i < staged_rows::stages - 1; ++i) {
            if (warp + i * warps < n_chunks) {
                loader.staged.copy(i * stage_bytes, warp + i * warps);
            }
            bof4_copy_commit();
        }
        outliers.load(list, lanes_of_row * warps);
        ggml_cuda_pdl_sync();

        int stage = 0, to = end - stage_bytes;
#pragma unroll 2
        for (int chunk = warp; chunk < n_chunks; chunk += warps) {
            bof4_copy_wait_for_all_but_one();
            ggml_cuda_syncwarp(); // all lanes have copied this chunk, and have read the one before
            const int ahead = chunk + (staged_rows::stages - 1) * warps;
            if (ahead < n_chunks) {
                loader.staged.copy(to, ahead);
            }
            bof4_copy_commit();
            loader.template multiply<columns>(stage, act, chunk, sums);
            to = stage;
            stage = stage + stage_bytes == end ? 0 : stage + stage_bytes;
        }
    } else {
        const int begin = step::chunks_at_once * warp, stride = step::chunks_at_once * warps;
        typename step::template weights<S> even, odd;
        if (begin < n_chunks) {
            loader.load(even, begin);
        }
        outliers.load(list, lanes_of_row * warps);
        ggml_cuda_pdl_sync();

        // two sets of registers, used alternately: a single one would have to be copied in each iteration
        for (int chunk = begin; chunk < n_chunks; chunk += 2 * stride) {
            if (chunk + stride < n_chunks) {
                loader.load(odd, chunk + stride);
            }
            loader.template multiply<columns>(even, act, chunk, sums);
            if (chunk + stride >= n_chunks) {
                break;
            }
            if (chunk + 2 * stride < n_chunks) {
                loader.load(even, chunk + 2 * stride);
            }
            loader.template multiply<columns>(odd, act, chunk + stride, sums);
        }
    }

    if (has_list) {
        const float * x = p.x + at.x;
        float of_row[columns] = {};
        const auto add = [&](int column, float value) {
#pragma unroll
            for (int c = 0; c < columns; ++c) {
                of_row[c] += value * x[c * p.x_s1 + column];
            }
        };
        if (list.is_whole_rows) {
            outliers.apply(list, lanes_of_row * warps, add);
        } else {
            bof4_list_apply(list, bof4_list_element(list, row_of(list_row), at.x2, at.x3),
                lane % lanes_of_row + lanes_of_row * warp, lanes_of_row * warps, add);
        }
#pragma unroll
        for (int s = 0; s < S; ++s) {
#pragma unroll
            for (int c = 0; c < columns; ++c) {
                sums[s * columns + c] += s == list_row ? of_row[c] : 0.0f;
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
