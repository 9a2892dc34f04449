// What the kernels for AVX2 have in common. Private to bof4-gemm-avx2.cpp and bof4-gemm-avx2-k.cpp.
#pragma once

#include "bof4-repack-layout.h"

#ifdef BOF4_GEMM_AVX2

#include <immintrin.h>

#include <cstring>

namespace {

inline __m256i load(const void * p) {
    return _mm256_loadu_si256(static_cast<const __m256i *>(p));
}

inline __m256i broadcast4(const void * p) {
    int32_t four;
    memcpy(&four, p, sizeof(four));
    return _mm256_set1_epi32(four);
}

inline __m256i low(__m256i codes, __m256i levels) {
    return _mm256_shuffle_epi8(levels, _mm256_and_si256(codes, _mm256_set1_epi8(0x0f)));
}

inline __m256i high(__m256i codes, __m256i levels) {
    return low(_mm256_srli_epi16(codes, 4), levels);
}

// GCC takes a chain of integer additions apart, adds products to products and spills them: the accumulators are in use here.
inline void keep_order(__m256i & accumulator) {
#if defined(__GNUC__)
    __asm__("" : "+x"(accumulator));
#else
    (void) accumulator;
#endif
}

// Eight results of column t, rows 8 * r on, and what is in `plus`, unless that is NULL.
inline __m256 add(__m256 sum, const float * plus, int t, int r) {
    return plus ? _mm256_add_ps(sum, _mm256_load_ps(plus + t * BOF4_GROUP + 8 * r)) : sum;
}

} // namespace

#endif
