// Applying lists to mul_mat and mul_mat_id, of plain and of repacked weights.

#include "bof4-list-tile.h"
#include "ggml-impl.h"

#include <string.h>

enum { LANES = BOF4_LIST_LANES };

bool bof4_list_is_one_column(const struct ggml_tensor * dst, const struct bof4_list_view * view) {
    return dst->op == GGML_OP_MUL_MAT && ggml_nrows(dst) == 1 && view->is_whole_rows;
}

// y[r] += sums[r] for n rows, at most 16.
static inline void add_rows(float * y, const float * sums, int64_t n) {
    if (n == LANES) {
        bof4_list_add_to(y, sums);
        return;
    }
    for (int r = 0; r < n; ++r) {
        y[r] += sums[r];
    }
}

// Whole rows, which are rows [row0, row0 + rows.n) of the results.
static void add_tile(struct bof4_list_rows rows, int64_t row0, const struct bof4_list_tile * tile) {
    const int32_t last = rows.row_pointers[rows.n];
    while (rows.n > 0) {
        const int64_t n = MIN((int64_t) LANES, rows.n);
        if (tile->transposed) {
            for (int c = 0; c < tile->n; ++c) {
                __builtin_prefetch(tile->y[c] + row0, 1);
            }
        }
        float sums[BOF4_LIST_COLUMNS][LANES];
        const struct bof4_list_rows first = { rows.row_pointers, rows.entries, n };
        if (bof4_list_sum_tile(first, last, tile, sums)) {
            for (int c = 0; c < tile->n; ++c) {
                add_rows(tile->y[c] + row0, sums[c], n);
            }
        }
        rows.row_pointers += n;
        rows.n -= n;
        row0 += n;
    }
}

// Adds the outliers of rows [row0, row1) of a matrix to the results of a tile.
static void add_outliers(const struct bof4_list_view * view, int64_t matrix, int64_t row0, int64_t row1,
    const struct bof4_list_tile * tile) {
    if (!view->is_whole_rows) {
        bof4_list_add_slices(view, matrix, row0, row1, tile);
        return;
    }
    const struct bof4_list_rows rows = bof4_list_rows_of(view, matrix, row0, row1);
    if (tile->transposed || tile->n >= BOF4_LIST_MIN_TILE_COLUMNS) {
        add_tile(rows, row0, tile);
        return;
    }
    for (int c = 0; c < tile->n; ++c) {
        const char * next = (const char *) (rows.entries + rows.row_pointers[rows.n]);
        bof4_list_add_column(rows, tile->x[c], tile->y[c] + row0, next);
    }
}

// Where the tile's first column, c, lies in transposed activations of rows of n elements.
static void find_transposed(struct bof4_list_tile * tile, const uint32_t * transposed, int64_t n, int64_t c) {
    tile->first_lane = (int) (c % BOF4_LIST_COLUMNS);
    tile->tile_size = LANES * n;
    tile->transposed = transposed + c / BOF4_LIST_COLUMNS * tile->tile_size;
}

// The tile of a mul_mat that begins with column c: columns of one matrix, which are neighbours in dimension 1, and of
// transposed activations columns of the same 32.
static struct bof4_list_tile tile_at(
    const struct ggml_tensor * dst, const uint32_t * transposed, int64_t c, int64_t c1) {
    const struct ggml_tensor * src1 = dst->src[1];
    const int64_t i1 = c % dst->ne[1];
    const int64_t n = MIN(c1 - c, dst->ne[1] - i1);
    struct bof4_list_tile tile;
    tile.transposed = NULL;
    if (transposed) {
        find_transposed(&tile, transposed, src1->ne[0], c);
    }
    tile.n = (int) MIN(n, transposed ? BOF4_LIST_COLUMNS - tile.first_lane : (int64_t) LANES);
    tile.x[0] = bof4_list_column(src1, c);
    for (int i = 1; i < (transposed || tile.n == 1 ? 1 : LANES); ++i) {
        tile.x[i] = (const float *) ((const char *) tile.x[0] + MIN(i, tile.n - 1) * src1->nb[1]);
    }
    return tile;
}

void bof4_list_add_mul_mat(struct ggml_tensor * dst, const struct bof4_list_view * view, const uint32_t * transposed,
    int64_t row0, int64_t row1, int64_t c0, int64_t c1, const char * next_weights) {
    const struct ggml_tensor * src0 = dst->src[0];
    const struct ggml_tensor * src1 = dst->src[1];
    GGML_ASSERT(src1->type == GGML_TYPE_F32);
    if (bof4_list_is_one_column(dst, view)) {
        const struct bof4_list_rows rows = bof4_list_rows_of(view, 0, row0, row1);
        bof4_list_add_column(rows, (const float *) src1->data, (float *) dst->data + row0, next_weights);
        return;
    }
    for (int64_t c = c0; c < c1;) {
        struct bof4_list_tile tile = tile_at(dst, transposed, c, c1);
        const int64_t i3 = c / (dst->ne[1] * dst->ne[2]);
        const int64_t i2 = c / dst->ne[1] % dst->ne[2];
        char * y = (char *) dst->data + c % dst->ne[1] * dst->nb[1] + i2 * dst->nb[2] + i3 * dst->nb[3];
        for (int i = 0; i < tile.n; ++i) {
            tile.y[i] = (float *) (y + i * dst->nb[1]);
        }
        const int64_t matrix = i2 / (dst->ne[2] / src0->ne[2]) + i3 / (dst->ne[3] / src0->ne[3]) * src0->ne[2];
        add_outliers(view, matrix, row0, row1, &tile);
        c += tile.n;
    }
}

void bof4_list_sum_mul_mat(const struct ggml_tensor * dst, const struct bof4_list_view * view,
    const uint32_t * transposed, int64_t matrix, int64_t row0, int64_t row1, int64_t c0, int64_t c1, float * sums) {
    struct bof4_list_tile tile;
    tile.n = (int) (c1 - c0);
    find_transposed(&tile, transposed, dst->src[0]->ne[0], c0);
    struct bof4_list_rows rows = bof4_list_rows_of(view, matrix, row0, row1);
    const int32_t last = rows.row_pointers[rows.n];
    for (int64_t row = row0; row < row1; row += LANES) {
        rows.n = MIN((int64_t) LANES, row1 - row);
        if (!bof4_list_sum_tile(rows, last, &tile, (float (*)[LANES]) sums)) {
            memset(sums, 0, tile.n * LANES * sizeof(float));
        }
        rows.row_pointers += LANES;
        sums += tile.n * LANES;
    }
}

void bof4_list_add_mul_mat_id(struct ggml_tensor * dst, const struct bof4_list_view * view, int64_t expert,
    int64_t row0, int64_t row1, const int32_t * columns, int64_t n_columns) {
    const struct ggml_tensor * src1 = dst->src[1];
    GGML_ASSERT(src1->type == GGML_TYPE_F32);
    for (int64_t j = 0; j < n_columns; j += LANES) {
        struct bof4_list_tile tile;
        tile.n = (int) MIN((int64_t) LANES, n_columns - j);
        tile.transposed = NULL;
        for (int c = 0; c < LANES; ++c) {
            const int64_t column = j + MIN(c, tile.n - 1);
            const int64_t slot = columns[2 * column];
            const int64_t token = columns[2 * column + 1];
            const int64_t row = slot % src1->ne[1];
            tile.x[c] = (const float *) ((const char *) src1->data + row * src1->nb[1] + token * src1->nb[2]);
            tile.y[c] = (float *) ((char *) dst->data + slot * dst->nb[1] + token * dst->nb[2]);
        }
        add_outliers(view, expert, row0, row1, &tile);
    }
}
