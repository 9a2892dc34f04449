// Scale search: scales that minimize the squared error of the nearest levels, weighted by the importance of each
// weight.
#pragma once

#include "bof4-blocks.h"

#include <float.h>
#include <stdbool.h>

// Scales that an encoder tries: those with which the largest weight is `first`, `first` + `step`, ... (`count` of them)
// times the largest level, of either sign.
struct bof4_search_grid {
    float first;
    float step;
    int count;
};

// May a column have this importance? Finite, and 0 or more.
static inline bool bof4_is_importance(float w) {
    return w >= 0.0f && w <= FLT_MAX;
}

#ifdef __cplusplus
extern "C" {
#endif

// Types with scales of sub-blocks: the fp16 bits of the scale d of a superblock of weights x with importances w of 0 or
// more (where all are equal, any constant will do). fp16 NaN where an x is not finite, infinity where one is too large.
#define BOF4_DECLARE_SEARCH_SUPERSCALE(NAME, name) \
    GGML_API uint16_t name##_search_superscale(const float * x, const float * w);
BOF4_TYPES_SUB_SCALES(BOF4_DECLARE_SEARCH_SUPERSCALE)
#undef BOF4_DECLARE_SEARCH_SUPERSCALE

#ifdef __cplusplus
}
#endif
