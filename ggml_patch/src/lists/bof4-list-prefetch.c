// Prefetching row pointers and entries.

#include "bof4-list-cpu.h"
#include "ggml-impl.h"

enum { LINE = 64 / sizeof(int32_t) }; // numbers in a cache line
enum { MAX_LINES = 128 };             // of entries at a time

static void prefetch(const int32_t * first, const int32_t * last) {
    for (const int32_t * line = first; line < last; line += LINE) {
        __builtin_prefetch(line);
    }
}

void bof4_list_prefetch_row_pointers(struct bof4_list_rows rows) {
    if (rows.n > 0) {
        prefetch(rows.row_pointers, rows.row_pointers + rows.n + LINE); // the end of the last row included
    }
}

void bof4_list_prefetch_entries(struct bof4_list_rows rows) {
    if (rows.n > 0) {
        const int32_t * p = rows.row_pointers;
        prefetch(rows.entries + p[0], rows.entries + MIN(p[rows.n], p[0] + MAX_LINES * LINE));
    }
}

void bof4_list_prefetch(
    const struct ggml_tensor * dst, const struct bof4_list_view * view, int64_t matrix, int64_t row0, int64_t row1) {
    if (!view->is_whole_rows || row0 >= row1) {
        return;
    }
    bof4_list_prefetch_entries(bof4_list_rows_of(view, matrix, row0, row1));
    const int64_t next_end = MIN(2 * row1 - row0, dst->src[0]->ne[1]);
    bof4_list_prefetch_row_pointers(bof4_list_rows_of(view, matrix, row1, next_end));
}
