// Outliers of whole rows times a tile of columns: 16 rows at a time, so that each column of the result is accessed once
// for all of them.

#include "bof4-list-tile.h"
#include "ggml-impl.h"

#include <string.h>

enum { LANES = BOF4_LIST_LANES };

static inline const uint32_t * activations_of(const uint32_t * transposed, int32_t entry) {
    return transposed + (int64_t) bof4_entry_column(entry) * LANES;
}

// sums[c] = n entries times column c, for 16 columns.
static inline void row_sums(const int32_t * entries, int32_t n, const float * const * x, float * sums) {
    bof4_list_sums_16 sum = bof4_list_zero_16();
    for (int32_t e = 0; e < n; ++e) {
        sum = bof4_list_add_16(sum, entries[e], x);
    }
    bof4_list_store_16(sum, sums);
}

// The same for 32 columns of transposed activations: sums0 are of the first 16, sums1 of the others. The row is entries
// [e, e + n) of a list that ends at `end` and is not empty.
static inline void row_sums_of_transposed(const int32_t * entries, int32_t e, int32_t n, int32_t end,
    const uint32_t * transposed, float * sums0, float * sums1) {
    bof4_list_sums_32 sum = bof4_list_zero_32();
    // Most rows have two outliers or fewer. Where a vector is one register, always computing two of them costs less
    // than a mispredicted branch; the value of those that belong to the next row is masked to zero.
    for (int32_t i = 0; i < BOF4_LIST_MASKED_ENTRIES; ++i) {
        const int32_t entry = entries[MIN(e + i, end - 1)];
        const uint32_t mask = n > i ? 0xffff0000u : 0u;
        sum = bof4_list_add_32(sum, (int32_t) ((uint32_t) entry & mask), activations_of(transposed, entry));
    }
    for (int32_t i = BOF4_LIST_MASKED_ENTRIES; i < n; ++i) {
        sum = bof4_list_add_32(sum, entries[e + i], activations_of(transposed, entries[e + i]));
    }
    bof4_list_store_32(sum, sums0, sums1);
}

// columns[c - from][r] = sums[r][c] for columns [from, end).
static inline void transpose_sums(float (*sums)[LANES], int from, int end, float (*columns)[LANES]) {
    const void * rows[LANES];
    for (int r = 0; r < LANES; ++r) {
        rows[r] = sums[r];
    }
    if (end - from == LANES) {
        bof4_list_transpose_16x16(rows, columns);
        return;
    }
    float all[LANES][LANES];
    bof4_list_transpose_16x16(rows, all);
    memcpy(columns, all[from], (end - from) * sizeof(all[0]));
}

static void sum_gathered(struct bof4_list_rows rows, const struct bof4_list_tile * tile, float (*sums)[LANES]) {
    const int32_t * p = rows.row_pointers;
    float of_rows[LANES][LANES];
    for (int r = 0; r < rows.n; ++r) {
        row_sums(rows.entries + p[r], p[r + 1] - p[r], tile->x, of_rows[r]);
    }
    memset(of_rows[rows.n], 0, (LANES - rows.n) * sizeof(of_rows[0]));
    transpose_sums(of_rows, 0, tile->n, sums);
}

static void prefetch_activations(struct bof4_list_rows rows, int64_t from, int64_t end, const uint32_t * transposed) {
    for (int32_t e = rows.row_pointers[from]; e < rows.row_pointers[end]; ++e) {
        __builtin_prefetch(activations_of(transposed, rows.entries[e]));
    }
}

static void sum_transposed(
    struct bof4_list_rows rows, int64_t after, const struct bof4_list_tile * tile, float (*sums)[LANES]) {
    const int32_t * p = rows.row_pointers;
    // activations come from L2: those of the next rows are prefetched
    prefetch_activations(rows, rows.n, rows.n + MIN(after, (int64_t) LANES), tile->transposed);
    float of_rows[2][LANES][LANES];
    for (int r = 0; r < rows.n; ++r) {
        row_sums_of_transposed(
            rows.entries, p[r], p[r + 1] - p[r], p[rows.n], tile->transposed, of_rows[0][r], of_rows[1][r]);
    }
    for (int half = 0; half < 2; ++half) {
        memset(of_rows[half][rows.n], 0, (LANES - rows.n) * sizeof(of_rows[0][0]));
        const int from = MIN(MAX(tile->first_lane - half * LANES, 0), LANES);
        const int end = MIN(MAX(tile->first_lane + tile->n - half * LANES, 0), LANES);
        if (from < end) {
            transpose_sums(of_rows[half], from, end, sums);
            sums += end - from;
        }
    }
}

bool bof4_list_sum_tile(
    struct bof4_list_rows rows, int64_t after, const struct bof4_list_tile * tile, float (*sums)[LANES]) {
    if (rows.row_pointers[0] == rows.row_pointers[rows.n]) {
        return false;
    }
    if (tile->transposed) {
        sum_transposed(rows, after, tile, sums);
    } else {
        sum_gathered(rows, tile, sums);
    }
    return true;
}
