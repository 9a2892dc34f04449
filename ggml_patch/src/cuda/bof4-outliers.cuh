// The products of outliers, added to a result that was computed from the codes: for more columns than bof4-mmvq.cuh
// takes. Two kernels. The first transposes the activations, so that an outlier reads 32 columns in one cache line. In
// the second a block of threads computes the sums of 32 rows and 32 columns, one lane per column, and transposes them
// in shared memory, so that they are added to contiguous elements of dst.
#pragma once

#include "bof4-list.cuh"

enum { BOF4_TILE = 32, BOF4_TILE_WARPS = 8 };

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
static __global__ void bof4_transpose_kernel(const bof4_transpose_args columns, float * transposed) {
    __shared__ float tile[BOF4_TILE][BOF4_TILE + 1];
    const int64_t i0 = (int64_t) blockIdx.x * BOF4_TILE, c0 = (int64_t) blockIdx.y * BOF4_TILE;
    const int lane = threadIdx.x;
    ggml_cuda_pdl_lc();
    ggml_cuda_pdl_sync();
    for (int k = threadIdx.y; k < BOF4_TILE; k += BOF4_TILE_WARPS) {
        float v = 0.0f;
        if (c0 + k < columns.count && i0 + lane < columns.n) {
            const int64_t c = columns.source ? columns.source[c0 + k] : c0 + k;
            const int64_t i1 = c % columns.ne1, i2 = c / columns.ne1 % columns.ne2, i3 = c / columns.ne1 / columns.ne2;
            v = columns.x[i0 + lane + i1 * columns.s1 + i2 * columns.s2 + i3 * columns.s3];
        }
        tile[k][lane] = v;
    }
    __syncthreads();
    for (int k = threadIdx.y; k < BOF4_TILE; k += BOF4_TILE_WARPS) {
        if (i0 + k < columns.n) {
            transposed[(i0 + k) * columns.padded + c0 + lane] = tile[lane][k];
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

static __global__ void bof4_add_outliers_kernel(const bof4_device_list list, const bof4_add_outliers_args args,
    const float * transposed, const int64_t padded) {
    __shared__ float tile[BOF4_TILE][BOF4_TILE + 1];
    const int lane = threadIdx.x;
    ggml_cuda_pdl_lc();
    ggml_cuda_pdl_sync();
    const int64_t z = blockIdx.z, i2 = z % args.ne2, i3 = z / args.ne2;
    const int64_t first = args.bounds ? args.bounds[z] : z * args.ne1;
    const int64_t count = args.bounds ? args.bounds[z + 1] - first : args.ne1;
    const int64_t r0 = (int64_t) blockIdx.x * BOF4_TILE, c0 = (int64_t) blockIdx.y * BOF4_TILE;
    if (c0 >= count) {
        return;
    }
    const bool has_column = c0 + lane < count;
    const float * x = transposed + first + c0 + (has_column ? lane : 0);
    for (int k = threadIdx.y; k < BOF4_TILE; k += BOF4_TILE_WARPS) {
        float sum = 0.0f;
        if (r0 + k < args.nrows) {
            const int64_t element = args.bounds ? bof4_list_element(list, r0 + k, z, 0)
                                                : bof4_list_element(list, r0 + k, i2 / args.ratio2, i3 / args.ratio3);
            // every lane applies every outlier, in its own column
            bof4_list_apply(list, element, 0, 1, [&](int column, float value) { sum += value * x[column * padded]; });
        }
        tile[k][lane] = sum;
    }
    __syncthreads();
    if (r0 + lane >= args.nrows) {
        return;
    }
    for (int k = threadIdx.y; k < BOF4_TILE && c0 + k < count; k += BOF4_TILE_WARPS) {
        const int64_t at = args.bounds ? args.dst_rows[first + c0 + k] * args.s1
                                       : (c0 + k) * args.s1 + i2 * args.s2 + i3 * args.s3;
        args.dst[at + r0 + lane] += tile[lane][k];
    }
}
