// Outliers of whole rows times a tile of columns: 16 rows at a time, so that each column of the result is accessed once
// for all of them.

#include "bof4-list-tile.h"
#include "ggml-impl.h"

#include <string.h>

enum { LANES = BOF4_LIST_LANES };
enum { PREFETCH_ENTRIES = 16 };

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

// The same for 32 * tiles columns of transposed activations (tiles is a constant for the compiler): sums[32 * t .. 32 * t
// + 31] are of tile t, whose activations are those of the first tile plus t * tile_size. Entries [e, end) of a list that
// ends at `last`.
static inline void row_sums_of_transposed(const int32_t * entries, int32_t e, int32_t end, int32_t last,
    const uint32_t * transposed, int64_t tile_size, int tiles, float * sums) {
    bof4_list_sums_32 sum[BOF4_LIST_TILES];
    for (int t = 0; t < tiles; ++t) {
        sum[t] = bof4_list_zero_32();
    }
    for (; e < end; ++e) {
        // activations come from L2 or L3, in no order that hardware prefetchers know
        const uint32_t * next = activations_of(transposed, entries[MIN(e + PREFETCH_ENTRIES, last - 1)]);
        const uint32_t * act = activations_of(transposed, entries[e]);
        for (int t = 0; t < tiles; ++t) {
            __builtin_prefetch(next + t * tile_size);
            sum[t] = bof4_list_add_32(sum[t], entries[e], act + t * tile_size);
        }
    }
    for (int t = 0; t < tiles; ++t) {
        bof4_list_store_32(sum[t], sums + BOF4_LIST_COLUMNS * t, sums + BOF4_LIST_COLUMNS * t + LANES);
    }
}

// columns[c - from][r] = sums[r][c] for columns [from, end) of 16; neighbours in r are `stride` apart.
static inline void transpose_sums(const float * sums, int64_t stride, int from, int end, float (*columns)[LANES]) {
    const void * rows[LANES];
    for (int r = 0; r < LANES; ++r) {
        rows[r] = sums + r * stride;
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
    transpose_sums(of_rows[0], LANES, 0, tile->n, sums);
}

// The columns [from, end) of the first of `tiles` tiles of 32 columns; tiles is a constant for the compiler.
static inline void sum_tiles(struct bof4_list_rows rows, int32_t last, const uint32_t * transposed, int64_t tile_size,
    int tiles, int from, int end, float (*sums)[LANES]) {
    const int32_t * p = rows.row_pointers;
    float of_rows[LANES][BOF4_LIST_COLUMNS * BOF4_LIST_TILES];
    for (int r = 0; r < rows.n; ++r) {
        row_sums_of_transposed(rows.entries, p[r], p[r + 1], last, transposed, tile_size, tiles, of_rows[r]);
    }
    memset(of_rows[rows.n], 0, (LANES - rows.n) * sizeof(of_rows[0]));
    for (int c = 0; c < BOF4_LIST_COLUMNS * tiles; c += LANES) {
        const int first = MIN(MAX(from - c, 0), LANES);
        const int behind = MIN(MAX(end - c, 0), LANES);
        if (first < behind) {
            transpose_sums(of_rows[0] + c, BOF4_LIST_COLUMNS * BOF4_LIST_TILES, first, behind, sums);
            sums += behind - first;
        }
    }
}

static void sum_transposed(
    struct bof4_list_rows rows, int32_t last, const struct bof4_list_tile * tile, float (*sums)[LANES]) {
    const uint32_t * transposed = tile->transposed;
    int from = tile->first_lane;
    for (int end = from + tile->n; end > 0;) {
        const int tiles = end >= BOF4_LIST_COLUMNS * BOF4_LIST_TILES ? BOF4_LIST_TILES : 1;
        const int n = MIN(end, BOF4_LIST_COLUMNS * tiles);
        if (tiles > 1) {
            sum_tiles(rows, last, transposed, tile->tile_size, BOF4_LIST_TILES, from, n, sums);
        } else {
            sum_tiles(rows, last, transposed, tile->tile_size, 1, from, n, sums);
        }
        sums += n - from;
        transposed += tiles * tile->tile_size;
        end -= n;
        from = 0;
    }
}

bool bof4_list_sum_tile(
    struct bof4_list_rows rows, int32_t last, const struct bof4_list_tile * tile, float (*sums)[LANES]) {
    if (rows.row_pointers[0] == rows.row_pointers[rows.n]) {
        return false;
    }
    if (tile->transposed) {
        sum_transposed(rows, last, tile, sums);
    } else {
        sum_gathered(rows, tile, sums);
    }
    return true;
}
