// Prefetching weights that are read as one stream from memory, one column of activations at a time.
//
// How far ahead is best depends on the processor: nothing on Zen 4, 1 to 2 KiB on Granite Rapids (1.14 to 1.19 of the
// speed without), 4 to 8 KiB on Zen 3 (1.3 to 1.5). So the distance is chosen while a model runs: the first
// operations with one column try each distance in turns, and the one with the smallest mean time per byte is used
// from then on. The environment variable BOF4_PREFETCH, a number of bytes, replaces the choice.
#pragma once

#include "ggml.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Less is a few microseconds, and may come from a cache: no sample.
enum { BOF4_PREFETCH_LEAST_BYTES = 1 << 17 };

#ifdef __cplusplus
extern "C" {
#endif

// What reads weights: GEMV of repacked weights, or the row kernels of bof4-vec-dot.h. Their strides differ, and so do
// their choices.
enum bof4_prefetch_reader { BOF4_PREFETCH_GEMV, BOF4_PREFETCH_ROWS };

// For one operation.
struct bof4_prefetch_trial {
    int64_t distance; // bytes ahead; 0: none
    int number;       // of the distance that is tried, or -1: it is chosen
};

// n_threads: that read at the same time, for which a choice holds.
struct bof4_prefetch_trial bof4_prefetch_next(enum ggml_type type, enum bof4_prefetch_reader reader, int n_threads);

// What a trial took.
void bof4_prefetch_add(enum ggml_type type, enum bof4_prefetch_reader reader, int n_threads,
    struct bof4_prefetch_trial trial, double ns_per_byte);

// The distance in bytes, or -1 while it is being chosen.
int64_t bof4_prefetch_chosen(enum ggml_type type, enum bof4_prefetch_reader reader, int n_threads);

// Nanoseconds of a steady clock.
double bof4_prefetch_clock(void);

// Row kernels are called without their operation, so ggml's mul_mat announces it: its first thread before all others
// multiply, and each thread before and after a chunk of rows.
void bof4_prefetch_begin_rows(enum ggml_type type, bool is_one_column, int n_threads);
void bof4_prefetch_begin_chunk(enum ggml_type type);
void bof4_prefetch_end_chunk(enum ggml_type type, int64_t n_bytes);

// What the row kernels of the operation use.
int64_t bof4_prefetch_rows_distance(enum ggml_type type);

#ifdef __cplusplus
}

// What GEMV calls as it reads the cache lines of a group in order: lines(n) prefetches the next n lines.
struct bof4_no_prefetch {
    void lines(int) const {}
};
struct bof4_prefetch_ahead {
    const char * at;

    void lines(int n) {
        for (int i = 0; i < n; ++i, at += 64) {
            __builtin_prefetch(at);
        }
    }
};
#endif
