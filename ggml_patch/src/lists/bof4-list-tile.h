// Internal to the functions that apply lists on the CPU: a tile of columns, and the sums of outliers for it.
#pragma once

#include "bof4-list-cpu.h"
#include "bof4-list-simd.h"

// Columns from which on a tile is computed at once; fewer are computed one by one.
enum { BOF4_LIST_MIN_TILE_COLUMNS = 8 };

// Columns whose outliers are summed together, all of one matrix.
struct bof4_list_tile {
    int n;                            // columns: at most 16, or any number of transposed activations
    const float * x[BOF4_LIST_LANES]; // activations of each; pointers from n on repeat the last
    const uint32_t * transposed;      // or the transposed activations that the columns are part of, or NULL
    int64_t tile_size;                // numbers from 32 columns of these to the next
    int first_lane;                   // of the first column in these, 0 .. 31
    float * y[BOF4_LIST_COLUMNS];     // row 0 of the results of each, of at most 32
};

// Activations of a column of src[1], counted over dimensions 1 to 3.
static inline const float * bof4_list_column(const struct ggml_tensor * src1, int64_t c) {
    const int64_t i1 = c % src1->ne[1];
    const int64_t i2 = c / src1->ne[1] % src1->ne[2];
    const int64_t i3 = c / (src1->ne[1] * src1->ne[2]);
    return (const float *) ((const char *) src1->data + i1 * src1->nb[1] + i2 * src1->nb[2] + i3 * src1->nb[3]);
}

// y[r] += outliers of row r times x. One column; running sums in double precision. next: memory that is read next.
void bof4_list_add_column(struct bof4_list_rows rows, const float * x, float * y, const char * next);

// sums[c][r] = outliers of row r times column c, for at most 16 rows (0 for rows that do not exist) and the columns of
// the tile. The activations of the next entries are prefetched, up to entry `last`. Returns false, without sums, where no
// row has outliers.
bool bof4_list_sum_tile(
    struct bof4_list_rows rows, int32_t last, const struct bof4_list_tile * tile, float (*sums)[BOF4_LIST_LANES]);

// The part of an operand's row that lies in one row of the weight: entries [begin, end), whose columns plus `offset`
// are elements of the operand's row. A row of a reshaped operand may span several rows of the weight, a row of a slice
// may be a part of one.
struct bof4_list_run {
    int32_t begin;
    int32_t end;
    int64_t offset;
};

// The next run of the operand's row that begins at element `first` of the weight. *row: row of the weight, first /
// row_length to begin with. false where there is none left.
bool bof4_list_next_run(const struct bof4_list_view * view, int64_t first, int64_t * row, struct bof4_list_run * run);

// Adds the outliers of rows [row0, row1) of a matrix to the tile's results; rows of the operand need not be rows of the
// weight.
void bof4_list_add_slices(
    const struct bof4_list_view * view, int64_t matrix, int64_t row0, int64_t row1, const struct bof4_list_tile * tile);
