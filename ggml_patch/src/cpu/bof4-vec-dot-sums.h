// What the vec_dot of all types have in common: the order of their sums, and ggml's interface.
#pragma once

#include "bof4-prefetch.h"
#include "bof4-vec-dot.h"

#include "ggml-impl.h"

#include <assert.h>
#include <math.h>
#include <stdint.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// a * b + c, rounded once where the processor can. Elsewhere no weights are repacked, so there is no other kernel that
// has to give the same bits.
static inline float bof4_multiply_add(float a, float b, float c) {
#if defined(FP_FAST_FMAF) || defined(__FP_FAST_FMAF)
    return fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

#if defined(__AVX2__)

static inline int32_t bof4_sum_of_lanes(__m256i v) {
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

#endif

// The cache lines of `bytes` bytes of blocks, `ahead` bytes behind them; 0: none.
static inline void bof4_prefetch_blocks(const void * blocks, int bytes, int64_t ahead) {
    if (ahead > 0) {
        for (int i = 0; i < bytes; i += 64) {
            __builtin_prefetch((const char *) blocks + ahead + i);
        }
    }
}

// ggml_vec_dot_NAME from the row_dot of a file: float row_dot(const block_NAME * x, const ACTIVATION * y, int nblocks,
// int64_t ahead), ahead: bytes to prefetch weights.
#define BOF4_DEFINE_VEC_DOT(NAME, name) \
    void ggml_vec_dot_##name( \
        int n, float * s, size_t bs, const void * vx, size_t bx, const void * vy, size_t by, int nrc) { \
        assert(n % QK_##NAME == 0); \
        assert(nrc == 1); \
        GGML_UNUSED(bs); \
        GGML_UNUSED(bx); \
        GGML_UNUSED(by); \
        GGML_UNUSED(nrc); \
        *s = row_dot(vx, vy, n / QK_##NAME, bof4_prefetch_rows_distance(GGML_TYPE_##NAME)); \
    }
