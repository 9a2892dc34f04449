// Outliers of operands whose rows are not rows of the weight: slices, reshapes, permutations.

#include "bof4-list-tile.h"

bool bof4_list_next_run(const struct bof4_list_view * view, int64_t first, int64_t * row, struct bof4_list_run * run) {
    const int64_t start = *row * view->row_length;
    if (start >= first + view->n) {
        return false;
    }
    run->begin = view->row_pointers[*row];
    run->end = view->row_pointers[*row + 1];
    run->offset = start - first;
    ++*row;
    while (run->begin < run->end && run->offset + bof4_entry_column(view->entries[run->begin]) < 0) {
        ++run->begin;
    }
    while (run->begin < run->end && run->offset + bof4_entry_column(view->entries[run->end - 1]) >= view->n) {
        --run->end;
    }
    return true;
}

static void add_row(const struct bof4_list_view * view, int64_t first, int64_t r, const struct bof4_list_tile * tile) {
    int64_t row = first / view->row_length;
    struct bof4_list_run run;
    float sum[BOF4_LIST_LANES] = { 0 };
    while (bof4_list_next_run(view, first, &row, &run)) {
        for (int32_t e = run.begin; e < run.end; ++e) {
            const float value = bof4_entry_value(view->entries[e]);
            const int64_t element = run.offset + bof4_entry_column(view->entries[e]);
            for (int c = 0; c < tile->n; ++c) {
                sum[c] += value * tile->x[c][element];
            }
        }
    }
    for (int c = 0; c < tile->n; ++c) {
        tile->y[c][r] += sum[c];
    }
}

void bof4_list_add_slices(const struct bof4_list_view * view, int64_t matrix, int64_t row0, int64_t row1,
    const struct bof4_list_tile * tile) {
    const int64_t first = view->first + matrix % view->ne2 * view->stride[1] + matrix / view->ne2 * view->stride[2];
    for (int64_t r = row0; r < row1; ++r) {
        add_row(view, first + r * view->stride[0], r, tile);
    }
}
