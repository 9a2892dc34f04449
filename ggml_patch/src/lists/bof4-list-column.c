// Outliers of whole rows times one column of activations.

#include "bof4-list-tile.h"

// s[i + 1] = s[i] + entry i times its activation, s[0] = 0. The sum over any run of entries is then one difference, and
// rows with few outliers, of varying number, cost no mispredicted branch. In double precision, because in float the sum
// of a row of small values would be lost in the rounding of the rows before it.
//
// Meanwhile memory from `next` on is prefetched, a cache line per eight entries: the sums are compute bound and leave
// the memory bus idle.
static void running_sums(const int32_t * entries, int n, const float * x, double * s, const char * next) {
    bof4_list_running_sum sum = bof4_list_running_sum_zero();
    int i = 0;
    s[0] = 0.0;
    for (; i + 8 <= n; i += 8) {
        if (BOF4_LIST_USE_PREFETCH_AHEAD) {
            __builtin_prefetch(next + i * 8);
        }
        sum = bof4_list_add_8(sum, entries + i, x, s + 1 + i);
    }
    for (; i < n; ++i) {
        s[i + 1] = s[i] + (double) bof4_entry_value(entries[i]) * (double) x[bof4_entry_column(entries[i])];
    }
}

static float row_sum(const int32_t * entries, int32_t n, const float * x) {
    double sum = 0.0;
    for (int32_t i = 0; i < n; ++i) {
        sum += (double) bof4_entry_value(entries[i]) * (double) x[bof4_entry_column(entries[i])];
    }
    return (float) sum;
}

void bof4_list_add_column(struct bof4_list_rows rows, const float * x, float * y, const char * next) {
    enum { MAX_ENTRIES = 1024, LINE = 64 / sizeof(double) };
    // s[1] begins a cache line: running sums are stored eight at a time
    _Alignas(64) double buffer[LINE + MAX_ENTRIES];
    double * const s = buffer + LINE - 1;
    const int32_t * p = rows.row_pointers;
    int64_t end;
    for (int64_t r0 = 0; r0 < rows.n; r0 = end) {
        end = rows.n;
        while (p[end] - p[r0] > MAX_ENTRIES && end > r0 + 1) {
            end = r0 + (end - r0) / 2;
        }
        const int32_t n = p[end] - p[r0];
        if (n > MAX_ENTRIES) {
            y[r0] += row_sum(rows.entries + p[r0], n, x);
        } else if (n > 0) {
            running_sums(rows.entries + p[r0], n, x, s, next);
            for (int64_t r = r0; r < end; ++r) {
                y[r] += (float) (s[p[r + 1] - p[r0]] - s[p[r] - p[r0]]);
            }
        }
    }
}
