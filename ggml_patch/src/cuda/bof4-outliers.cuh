// The products of outliers, added to a result that was computed from the codes: for more columns than bof4-mmvq.cuh
// takes. Two kernels. The first transposes the activations to bf16, as which outliers are stored, so that an outlier
// reads its element of many columns at once. In the second a block of threads computes the sums of 32 rows, one to four
// columns to a lane, and transposes them in shared memory, so that they are added to contiguous elements of dst.
//
// Bound by L2 and by instructions: every outlier reads all columns. 14336 x 4096 x 512 with 8 outliers per row: 120 MB.
#pragma once

#include "bof4-codes.cuh"
#include "bof4-list.cuh"

enum { BOF4_TILE = 32, BOF4_TILE_WARPS = 8, BOF4_TRANSPOSED = 128 };

// Two floats, rounded to bf16, in the halves of a word.
static __device__ __forceinline__ uint32_t bof4_bf16_pair(float low, float high) {
    const nv_bfloat16 halves[2] = { ggml_cuda_cast<nv_bfloat16>(low), ggml_cuda_cast<nv_bfloat16>(high) };
    uint32_t word;
    memcpy(&word, halves, sizeof(word));
    return word;
}

// Columns of src1 in the order in which bof4_add_outliers_kernel reads them.
struct bof4_transpose_args {
    const float * x;
    int32_t n;              // elements of a column
    int32_t count, padded;  // number of columns, and the number of them in `transposed`
    const int32_t * source; // column c is row source[c] of x, counted over its three dimensions; null: row c
    int32_t ne1, ne2;       // of x
    int64_t s1, s2, s3;     // strides of x in elements
};

// transposed[i * padded + c] = element i of column c. A block of threads has 32 columns and BOF4_TRANSPOSED elements.
static __global__ void bof4_transpose_kernel(const bof4_transpose_args columns, nv_bfloat16 * transposed) {
    __shared__ float tile[BOF4_TILE][BOF4_TRANSPOSED + 1];
    __shared__ const float * starts[BOF4_TILE];
    const int i0 = (int) blockIdx.x * BOF4_TRANSPOSED, c0 = (int) blockIdx.y * BOF4_TILE;
    const int lane = threadIdx.x, warp = threadIdx.y;
    ggml_cuda_pdl_lc();
    ggml_cuda_pdl_sync();
    if (warp == 0) {
        const float * start = nullptr;
        if (c0 + lane < columns.count) {
            const uint32_t c = columns.source ? columns.source[c0 + lane] : c0 + lane;
            const uint32_t matrix = c / (uint32_t) columns.ne1, i1 = c % (uint32_t) columns.ne1;
            const uint32_t i3 = matrix / (uint32_t) columns.ne2, i2 = matrix % (uint32_t) columns.ne2;
            start = columns.x + (i1 * columns.s1 + i2 * columns.s2 + i3 * columns.s3);
        }
        starts[lane] = start;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < BOF4_TILE / BOF4_TILE_WARPS; ++k) {
        const int column = warp + k * BOF4_TILE_WARPS;
        const float * start = starts[column];
#pragma unroll
        for (int j = 0; j < BOF4_TRANSPOSED; j += 32) {
            tile[column][j + lane] = start != nullptr && i0 + j + lane < columns.n ? start[i0 + j + lane] : 0.0f;
        }
    }
    __syncthreads();
    // two columns to a lane, two elements to a warp
    const int pair = lane % 16;
#pragma unroll
    for (int k = 0; k < BOF4_TRANSPOSED; k += 2 * BOF4_TILE_WARPS) {
        const int i = k + 2 * warp + lane / 16;
        if (i0 + i < columns.n) {
            auto * to = (uint32_t *) (transposed + (int64_t) (i0 + i) * columns.padded + c0) + pair;
            *to = bof4_bf16_pair(tile[2 * pair][i], tile[2 * pair + 1][i]);
        }
    }
}

// blockIdx.z is a matrix of columns, or an expert where bounds is not null.
struct bof4_add_outliers_args {
    float * dst;
    int32_t nrows;            // of the weight
    int32_t padded;           // columns of the transposed activations
    int64_t ne1, ne2;         // of dst
    int64_t s1, s2, s3;       // strides of dst in elements
    int32_t ratio2, ratio3;   // matrices of dst per matrix of the weight, in dimensions 2 and 3
    const int32_t * bounds;   // expert z has the columns bounds[z] to bounds[z + 1] - 1
    const int32_t * dst_rows; // and column c of them is row dst_rows[c] of dst
};

// per_lane: columns of a lane, neighbours: 1, 2 or 4. A tile begins at a multiple of it, which may be a column of the
// matrix before: such columns are not used.
template <int per_lane>
static __global__ void bof4_add_outliers_kernel(
    const bof4_device_list list, const bof4_add_outliers_args args, const nv_bfloat16 * transposed) {
    constexpr int tile_columns = 32 * per_lane, rows_of_warp = BOF4_TILE / BOF4_TILE_WARPS;
    struct alignas(per_lane * sizeof(nv_bfloat16)) activations {
        uint16_t of[per_lane];
    };
    __shared__ float tile[tile_columns][BOF4_TILE + 1];
    const int lane = threadIdx.x, warp = threadIdx.y;
    ggml_cuda_pdl_lc();
    ggml_cuda_pdl_sync();
    const int64_t z = blockIdx.z, i2 = z % args.ne2, i3 = z / args.ne2;
    const int64_t first = args.bounds ? args.bounds[z] : z * args.ne1;
    const int64_t end = args.bounds ? args.bounds[z + 1] : first + args.ne1;
    const int64_t c0 = first / per_lane * per_lane + (int64_t) blockIdx.y * tile_columns;
    const int r0 = (int) blockIdx.x * BOF4_TILE;
    if (c0 >= end) {
        return;
    }
    const int64_t w2 = args.bounds ? z : i2 / args.ratio2, w3 = args.bounds ? 0 : i3 / args.ratio3;
    const auto * x = (const activations *) (transposed + c0) + lane;
    const int padded = args.padded / per_lane;
    const auto load = [&](int column) { return x[(int64_t) column * padded]; };
    const auto add = [](float value, const activations & a, float (&sums)[per_lane]) {
#pragma unroll
        for (int i = 0; i < per_lane; ++i) {
            sums[i] += value * __int_as_float((int) ((uint32_t) a.of[i] << 16));
        }
    };
    float sums[rows_of_warp][per_lane] = {};
    const int row0 = r0 + warp * rows_of_warp;
    if (list.is_whole_rows && list.row_stride[0] == 1 && row0 < args.nrows) {
        // The entries of this warp's rows lie one behind the other, and a lane has one of them.
        const int32_t * pointers = list.row_pointers + bof4_list_row(list, row0, (int) w2, (int) w3);
        const int pointer = pointers[min(min(lane, rows_of_warp), args.nrows - row0)];
        const int entries_end = __shfl_sync(0xffffffff, pointer, rows_of_warp, 32);
        int begin = __shfl_sync(0xffffffff, pointer, 0, 32); // of the entries in lanes
        const auto load_entry = [&]() { return begin + lane < entries_end ? list.entries[begin + lane] : 0; };
        int32_t entry = load_entry();
#pragma unroll
        for (int r = 0; r < rows_of_warp; ++r) {
            const int row_end = __shfl_sync(0xffffffff, pointer, r + 1, 32);
            constexpr int ahead = 4;
            for (int e = __shfl_sync(0xffffffff, pointer, r, 32); e < row_end; e += ahead) {
                if (e + ahead > begin + 32) {
                    begin = e;
                    entry = load_entry();
                }
                float values[ahead];
                activations xs[ahead];
#pragma unroll
                for (int i = 0; i < ahead; ++i) {
                    const int32_t one = __shfl_sync(0xffffffff, entry, e + i - begin, 32);
                    values[i] = e + i < row_end ? bof4_list_entry_value(one) : 0.0f;
                    xs[i] = load(bof4_list_entry_column(one));
                }
#pragma unroll
                for (int i = 0; i < ahead; ++i) {
                    add(values[i], xs[i], sums[r]);
                }
            }
        }
    } else {
#pragma unroll
        for (int r = 0; r < rows_of_warp; ++r) {
            if (row0 + r < args.nrows) {
                bof4_list_apply(list, bof4_list_element(list, row0 + r, w2, w3), 0, 1,
                    [&](int column, float value) { add(value, load(column), sums[r]); });
            }
        }
    }
#pragma unroll
    for (int r = 0; r < rows_of_warp; ++r) {
#pragma unroll
        for (int i = 0; i < per_lane; ++i) {
            tile[per_lane * lane + i][warp * rows_of_warp + r] = sums[r][i];
        }
    }
    __syncthreads();
    if (r0 + lane >= args.nrows) {
        return;
    }
    for (int k = warp; k < tile_columns && c0 + k < end; k += BOF4_TILE_WARPS) {
        if (c0 + k < first) {
            continue;
        }
        const int64_t at = args.bounds ? args.dst_rows[c0 + k] * args.s1
                                       : (c0 + k - first) * args.s1 + i2 * args.s2 + i3 * args.s3;
        args.dst[at + r0 + lane] += tile[k][lane];
    }
}
