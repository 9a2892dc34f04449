// Outliers of sixteen rows that meet one column of activations, on AVX-512. Private to bof4-opq-cpu.c.
//
// First the products of entries and activations, one after the other as the list has them, then their sums by rows. Most rows have
// few outliers, each another number of them, and a branch for each would be mispredicted every time: there is none.
#pragma once

#include "bof4-opq.h"

#if defined(__AVX512F__)

#include <immintrin.h>

// Numbers that must be there to be read, whatever they are, behind the products of sixteen rows; and one in front of them.
enum { BOF4_BEHIND_PRODUCTS = 64 };

// p[i] = entry i times its activation, for four entries. (Of more at a time, the places would not fit the registers. Loads and
// inserts, because a gather instruction takes three times as long on Zen.)
static inline void bof4_four_products(const int32_t * e, const float * x, float * p) {
#define X(k) _mm_load_ss(x + bof4_entry_column(e[k]))
    __m128 act = X(0);
    act = _mm_insert_ps(act, X(1), 0x10);
    act = _mm_insert_ps(act, X(2), 0x20);
    act = _mm_insert_ps(act, X(3), 0x30);
#undef X
    const __m128i column_bits = _mm_set1_epi32(0xffff);
    const __m128 value = _mm_castsi128_ps(_mm_andnot_si128(column_bits, _mm_loadu_si128((const __m128i *) e)));
    _mm_storeu_ps(p, _mm_mul_ps(value, act));
}

// Rows of less than 16 * R products together: each is the difference of two running sums over them. (Single precision will do for so
// few: what it loses of a small row beside large ones is far less than rounding activations to int8 does.)
static inline __attribute__((always_inline)) __m512 bof4_sums_of_few(const int32_t * row_pointers, const float * p, const int R) {
    const __m512i zero = _mm512_setzero_si512();
    __m512 sum[4];  // lane j of sum[i]: of all products in front of 16 * i + j
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) {
        __m512 v = i == 0 ? _mm512_maskz_loadu_ps(0xfffe, p - 1) : _mm512_loadu_ps(p - 1 + 16 * i);
#define ADD_SHIFTED(k) v = _mm512_add_ps(v, _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(v), zero, 16 - k)))
        ADD_SHIFTED(1);
        ADD_SHIFTED(2);
        ADD_SHIFTED(4);
        ADD_SHIFTED(8);
#undef ADD_SHIFTED
        sum[i] = i == 0 ? v : _mm512_add_ps(v, _mm512_permutexvar_ps(_mm512_set1_epi32(15), sum[i - 1]));
    }
    __m512 at[2];
    for (int k = 0; k < 2; ++k) {
        const __m512i i = _mm512_sub_epi32(_mm512_loadu_si512(row_pointers + k), _mm512_set1_epi32(row_pointers[0]));
        at[k] = _mm512_permutex2var_ps(sum[0], i, sum[1]);
        if (R > 2) {
            const __m512 beyond = _mm512_permutex2var_ps(sum[2], i, sum[R - 1]);
            at[k] = _mm512_mask_blend_ps(_mm512_test_epi32_mask(i, _mm512_set1_epi32(32)), at[k], beyond);
        }
    }
    return _mm512_sub_ps(at[1], at[0]);
}

// At most sixteen products from p on.
static inline __m512 bof4_some_products(const float * p, int n) {
    return _mm512_maskz_loadu_ps((__mmask16) (n >= 16 ? 0xffff : n > 0 ? (1 << n) - 1 : 0), p);
}

// Rows of many products: a register for each, and then sixteen sums over registers at once.
static inline __m512 bof4_sums_of_many(const int32_t * row_pointers, const float * p) {
    __m512 v[16];
    for (int r = 0; r < 16; ++r) {
        const float * from = p + (row_pointers[r] - row_pointers[0]);
        const int n = row_pointers[r + 1] - row_pointers[r];
        v[r] = _mm512_add_ps(bof4_some_products(from, n), bof4_some_products(from + 16, n - 16));
        for (int i = 32; i < n; i += 16) {
            v[r] = _mm512_add_ps(v[r], bof4_some_products(from + i, n - i));
        }
    }
    // of 4 * k neighbouring lanes, rows 4 * k .. are put together first, then the four quarters
    __m512 four[4];
    for (int k = 0; k < 4; ++k) {
        const __m512 * a = v + 4 * k;
        const __m512d low  = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1])));
        const __m512d high = _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a[2], a[3]), _mm512_unpackhi_ps(a[2], a[3])));
        four[k] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)), _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
    }
#define HALVES(a, b) _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd))
    return HALVES(HALVES(four[0], four[1]), HALVES(four[2], four[3]));
#undef HALVES
}

// Lane r: the products of row r, row_pointers[r] .. row_pointers[r + 1] of the list, of which p holds the first row's first one.
static inline __m512 bof4_sums_of_rows(const int32_t * row_pointers, const float * p) {
    switch ((row_pointers[16] - row_pointers[0]) / 16) {
        case 0:
        case 1:  return bof4_sums_of_few(row_pointers, p, 2);
        case 2:  return bof4_sums_of_few(row_pointers, p, 3);
        case 3:  return bof4_sums_of_few(row_pointers, p, 4);
        default: return bof4_sums_of_many(row_pointers, p);
    }
}

#endif
