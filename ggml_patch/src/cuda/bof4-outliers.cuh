// Adding what outliers contribute to a product that something else has computed from the codes: more columns than
// bof4-mmvq.cuh takes. Two kernels. The activations are transposed, so that an outlier meets 32 columns in one line of memory;
// then every block of threads does 32 rows of 32 columns, and turns its sums around before it adds them to rows of dst.
#pragma once

#include "bof4-list.cuh"

enum { BOF4_TILE = 32, BOF4_TILE_WARPS = 8 };

// Columns of src1, in the order in which the kernel below takes them: column c is row source[c] of a matrix of ne1 rows in ne2
// and ne3 matrices; no source: row c.
struct bof4_columns {
    const float * x;
    int64_t n;
    int64_t count, padded;
    const int32_t * source;
    int64_t ne1, ne2;
    int64_t s1, s2, s3;
};

// transposed[i * padded + c] = element i of column c
static __global__ void bof4_transpose_kernel(const bof4_columns columns, float * __restrict__ transposed) {
    __shared__ float tile[BOF4_TILE][BOF4_TILE + 1];
    const int64_t i0 = (int64_t) blockIdx.x * BOF4_TILE, c0 = (int64_t) blockIdx.y * BOF4_TILE;
    const int lane = threadIdx.x;
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

// Where the sums go. blockIdx.z is a matrix of columns (ne2, ne3), or an expert: then its columns are bounds[z] to bounds[z + 1],
// and column c of them is row dst_rows[c].
struct bof4_sums {
    float * dst;
    int64_t nrows;
    int64_t ne1, ne2;
    int64_t s1, s2, s3;
    int32_t ratio2, ratio3;
    const int32_t * bounds;
    const int32_t * dst_rows;
};

static __global__ void bof4_add_outliers_kernel(
        const bof4_device_list list, const bof4_sums sums, const float * __restrict__ transposed, const int64_t padded) {
    __shared__ float tile[BOF4_TILE][BOF4_TILE + 1];
    const int lane = threadIdx.x;
    const int64_t z = blockIdx.z, i2 = z % sums.ne2, i3 = z / sums.ne2;
    const int64_t first = sums.bounds ? sums.bounds[z] : z * sums.ne1;
    const int64_t count = sums.bounds ? sums.bounds[z + 1] - first : sums.ne1;
    const int64_t r0 = (int64_t) blockIdx.x * BOF4_TILE, c0 = (int64_t) blockIdx.y * BOF4_TILE;
    if (c0 >= count) {
        return;
    }
    const bool mine = c0 + lane < count;
    const float * x = transposed + first + c0 + (mine ? lane : 0);
    for (int k = threadIdx.y; k < BOF4_TILE; k += BOF4_TILE_WARPS) {
        float sum = 0.0f;
        if (r0 + k < sums.nrows) {
            const int64_t element = sums.bounds ?
                bof4_element(list, r0 + k, z, 0) : bof4_element(list, r0 + k, i2 / sums.ratio2, i3 / sums.ratio3);
            // every lane meets every outlier, each in a column of its own
            bof4_each_outlier(list, element, 0, 1,
                [&](int column, float value) { sum += value * x[column * padded]; });
        }
        tile[k][lane] = sum;
    }
    __syncthreads();
    if (r0 + lane >= sums.nrows) {
        return;
    }
    for (int k = threadIdx.y; k < BOF4_TILE && c0 + k < count; k += BOF4_TILE_WARPS) {
        const int64_t at = sums.bounds ?
            sums.dst_rows[first + c0 + k] * sums.s1 : (c0 + k) * sums.s1 + i2 * sums.s2 + i3 * sums.s3;
        sums.dst[at + r0 + lane] += tile[lane][k];
    }
}
