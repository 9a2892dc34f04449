// The products of outliers, added to a result that was computed from the codes: for more columns than bof4-mmvq.cuh
// takes. Two kernels. The first transposes the activations to bf16, as which outliers are stored, so that an outlier
// reads 64 columns in one cache line. In the second a block of threads computes the sums of 32 rows and 64 columns, two
// columns to a lane, and transposes them in shared memory, so that they are added to contiguous elements of dst.
//
// Bound by L2: every outlier reads all columns. 14336 x 4096 x 512 with 12 outliers per row: 176 MB.
#pragma once

#include "bof4-list.cuh"

enum { BOF4_TILE = 32, BOF4_TILE_COLUMNS = 64, BOF4_TILE_WARPS = 8 };

// Columns of src1 in the order in which bof4_add_outliers_kernel reads them.
struct bof4_transpose_args {
    const float * x;
    int64_t n;              // elements of a column
    int64_t count, padded;  // number of columns, and that number rounded up to whole tiles
    const int32_t * source; // column c is row source[c] of x, counted over its three dimensions; null: row c
    int64_t ne1, ne2;       // of x
    int64_t s1, s2, s3;     // strides of x in elements
};

// transposed[i * padded + c] = element i of column c
static __global__ void bof4_transpose_kernel(const bof4_transpose_args columns, nv_bfloat16 * transposed) {
    __shared__ float tile[BOF4_TILE][BOF4_TILE + 1];
    const int64_t i0 = (int64_t) blockIdx.x * BOF4_TILE;
    const int32_t c0 = blockIdx.y * BOF4_TILE;
    const int lane = threadIdx.x;
    ggml_cuda_pdl_lc();
    ggml_cuda_pdl_sync();
    for (int k = threadIdx.y; k < BOF4_TILE; k += BOF4_TILE_WARPS) {
        float v = 0.0f;
        if (c0 + k < columns.count && i0 + lane < columns.n) {
            const uint32_t c = columns.source ? columns.source[c0 + k] : c0 + k;
            const uint32_t matrix = c / (uint32_t) columns.ne1, i1 = c % (uint32_t) columns.ne1;
            const uint32_t i3 = matrix / (uint32_t) columns.ne2, i2 = matrix % (uint32_t) columns.ne2;
            v = columns.x[i0 + lane + i1 * columns.s1 + i2 * columns.s2 + i3 * columns.s3];
        }
        tile[k][lane] = v;
    }
    __syncthreads();
    for (int k = threadIdx.y; k < BOF4_TILE; k += BOF4_TILE_WARPS) {
        if (i0 + k < columns.n) {
            transposed[(i0 + k) * columns.padded + c0 + lane] = ggml_cuda_cast<nv_bfloat16>(tile[lane][k]);
        }
    }
}

// blockIdx.z is a matrix of columns, or an expert where bounds is not null.
struct bof4_add_outliers_args {
    float * dst;
    int64_t nrows;            // of the weight
    int64_t ne1, ne2;         // of dst
    int64_t s1, s2, s3;       // strides of dst in elements
    int32_t ratio2, ratio3;   // matrices of dst per matrix of the weight, in dimensions 2 and 3
    const int32_t * bounds;   // expert z has the columns bounds[z] to bounds[z + 1] - 1
    const int32_t * dst_rows; // and column c of them is row dst_rows[c] of dst
};

// The two columns of a lane: bf16 in the halves of a word.
static __device__ __forceinline__ void bof4_add_outlier(int32_t entry, uint32_t x, float (&sums)[2]) {
    const float value = bof4_list_entry_value(entry);
    sums[0] += value * __int_as_float((int) (x << 16));
    sums[1] += value * __int_as_float((int) (x & 0xffff0000u));
}

static __global__ void bof4_add_outliers_kernel(const bof4_device_list list, const bof4_add_outliers_args args,
    const nv_bfloat16 * transposed, const int64_t padded) {
    __shared__ float tile[BOF4_TILE_COLUMNS][BOF4_TILE + 1];
    const int lane = threadIdx.x;
    ggml_cuda_pdl_lc();
    ggml_cuda_pdl_sync();
    const int64_t z = blockIdx.z, i2 = z % args.ne2, i3 = z / args.ne2;
    const int64_t first = args.bounds ? args.bounds[z] : z * args.ne1;
    const int64_t count = args.bounds ? args.bounds[z + 1] - first : args.ne1;
    const int64_t r0 = (int64_t) blockIdx.x * BOF4_TILE, c0 = (int64_t) blockIdx.y * BOF4_TILE_COLUMNS;
    if (c0 >= count) {
        return;
    }
    const int64_t w2 = args.bounds ? z : i2 / args.ratio2, w3 = args.bounds ? 0 : i3 / args.ratio3;
    // Columns of this lane, which may be those of another matrix or expert: not used then. A matrix may begin at an odd
    // column.
    const nv_bfloat16 * x = transposed + first + c0 + 2 * lane;
    const bool is_even = ((first + c0) & 1) == 0;
    const auto load = [&](int column) {
        const uint16_t * halves = (const uint16_t *) (x + (int64_t) column * padded);
        return is_even ? *(const uint32_t *) halves : halves[0] | (uint32_t) halves[1] << 16;
    };
    for (int k = threadIdx.y; k < BOF4_TILE; k += BOF4_TILE_WARPS) {
        float sums[2] = {};
        const int64_t row = r0 + k;
        if (row < args.nrows && list.is_whole_rows) {
            // every lane applies every outlier; four at a time, so that their loads do not wait for one another
            const int32_t * pointers = list.row_pointers + bof4_list_row(list, (int) row, (int) w2, (int) w3);
            const int end = pointers[1];
            for (int e = pointers[0]; e < end; e += 4) {
                int32_t entries[4];
                uint32_t xs[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    entries[i] = e + i < end ? list.entries[e + i] : 0;
                }
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    xs[i] = load(bof4_list_entry_column(entries[i]));
                }
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    if (e + i < end) {
                        bof4_add_outlier(entries[i], xs[i], sums);
                    }
                }
            }
        } else if (row < args.nrows) {
            bof4_list_apply(list, bof4_list_element(list, row, w2, w3), 0, 1,
                [&](int column, float value) { bof4_add_outlier(__float_as_int(value), load(column), sums); });
        }
        tile[2 * lane][k] = sums[0];
        tile[2 * lane + 1][k] = sums[1];
    }
    __syncthreads();
    if (r0 + lane >= args.nrows) {
        return;
    }
    for (int k = threadIdx.y; k < BOF4_TILE_COLUMNS && c0 + k < count; k += BOF4_TILE_WARPS) {
        const int64_t at = args.bounds ? args.dst_rows[first + c0 + k] * args.s1
                                       : (c0 + k) * args.s1 + i2 * args.s2 + i3 * args.s3;
        args.dst[at + r0 + lane] += tile[k][lane];
    }
}
