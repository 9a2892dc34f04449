// Vector operations of the functions that apply lists: AVX-512, and portable C that compilers vectorize. All branches
// on the instruction set are in this header. The two add in the same order, except where a comment says otherwise.
#pragma once

#include "bof4-list.h"

#include <string.h>

// Lanes of a vector: rows, or columns, that are computed together.
enum { BOF4_LIST_LANES = 16 };

#if defined(__AVX512F__)

#include <immintrin.h>

// Tiles of 32 columns whose sums fit the registers: a row's entries are read, and its number of entries mispredicted,
// once for all.
enum { BOF4_LIST_TILES = 4 };

// Whether running sums leave time for prefetches of other memory.
enum { BOF4_LIST_USE_PREFETCH_AHEAD = 1 };

// p[i] += v[i]
static inline void bof4_list_add_to(float * p, const float * v) {
    _mm512_storeu_ps(p, _mm512_add_ps(_mm512_loadu_ps(p), _mm512_loadu_ps(v)));
}

static inline __m512 bof4_list_values(int32_t entry) {
    return _mm512_castsi512_ps(_mm512_set1_epi32((int) ((uint32_t) entry & 0xffff0000u)));
}

// Sums of 16 columns.
typedef __m512 bof4_list_sums_16;

static inline bof4_list_sums_16 bof4_list_zero_16(void) {
    return _mm512_setzero_ps();
}

// Adds the entry times its activations, x[c][column of the entry] for 16 columns c. Loads and inserts: a gather
// instruction takes three times as long on Zen.
static inline bof4_list_sums_16 bof4_list_add_16(bof4_list_sums_16 sums, int32_t entry, const float * const * x) {
    const int32_t j = bof4_entry_column(entry);
    const __m512 act = _mm512_setr_ps(x[0][j], x[1][j], x[2][j], x[3][j], x[4][j], x[5][j], x[6][j], x[7][j], x[8][j],
        x[9][j], x[10][j], x[11][j], x[12][j], x[13][j], x[14][j], x[15][j]);
    return _mm512_fmadd_ps(bof4_list_values(entry), act, sums);
}

static inline void bof4_list_store_16(bof4_list_sums_16 sums, float * p) {
    _mm512_storeu_ps(p, sums);
}

// Sums of 32 columns, of packed pairs of bf16: 16 in the low halves, 16 in the high halves.
typedef struct {
    __m512 low, high;
} bof4_list_sums_32;

static inline bof4_list_sums_32 bof4_list_zero_32(void) {
    const bof4_list_sums_32 zero = { _mm512_setzero_ps(), _mm512_setzero_ps() };
    return zero;
}

// Adds the value of the entry times 16 packed pairs of activations.
static inline bof4_list_sums_32 bof4_list_add_32(bof4_list_sums_32 sums, int32_t entry, const uint32_t * packed) {
    const __m512i act = _mm512_loadu_si512(packed);
    const __m512i high = _mm512_and_si512(_mm512_set1_epi32((int) 0xffff0000), act);
    const __m512 value = bof4_list_values(entry);
    sums.low = _mm512_fmadd_ps(value, _mm512_castsi512_ps(_mm512_slli_epi32(act, 16)), sums.low);
    sums.high = _mm512_fmadd_ps(value, _mm512_castsi512_ps(high), sums.high);
    return sums;
}

static inline void bof4_list_store_32(bof4_list_sums_32 sums, float * low, float * high) {
    _mm512_storeu_ps(low, sums.low);
    _mm512_storeu_ps(high, sums.high);
}

// Packed pairs of bf16, rounded to nearest, ties away from zero.
static inline void bof4_list_pack_bf16(const float * low, const float * high, uint32_t * packed) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512i l = _mm512_srli_epi32(_mm512_add_epi32(_mm512_loadu_si512(low), half), 16);
    const __m512i h = _mm512_add_epi32(_mm512_loadu_si512(high), half);
    const int select = 0xca; // bits of the second operand where the first has ones, else bits of the third
    _mm512_storeu_si512(packed, _mm512_ternarylogic_epi32(_mm512_set1_epi32((int) 0xffff0000), h, l, select));
}

// out[16 * j + c] = in[c][j] for 16 x 16 numbers of 32 bits. Four rows are combined by loads, which do not occupy the
// shuffle unit; two rounds of shuffles within 128 bits remain.
static inline void bof4_list_transpose_16x16(const void * const * in, void * out) {
    for (int q = 0; q < 4; ++q) {
        __m512 rows[4];
        for (int r = 0; r < 4; ++r) {
#define PART(i) _mm_loadu_ps((const float *) in[r + 4 * i] + 4 * q)
            __m512 v = _mm512_castps128_ps512(PART(0));
            v = _mm512_insertf32x4(v, PART(1), 1);
            v = _mm512_insertf32x4(v, PART(2), 2);
            rows[r] = _mm512_insertf32x4(v, PART(3), 3);
#undef PART
        }
        const __m512 a = _mm512_unpacklo_ps(rows[0], rows[1]);
        const __m512 b = _mm512_unpackhi_ps(rows[0], rows[1]);
        const __m512 c = _mm512_unpacklo_ps(rows[2], rows[3]);
        const __m512 d = _mm512_unpackhi_ps(rows[2], rows[3]);
        float * to = (float *) out + 4 * q * BOF4_LIST_LANES;
        _mm512_storeu_ps(to, _mm512_shuffle_ps(a, c, 0x44));
        _mm512_storeu_ps(to + BOF4_LIST_LANES, _mm512_shuffle_ps(a, c, 0xee));
        _mm512_storeu_ps(to + 2 * BOF4_LIST_LANES, _mm512_shuffle_ps(b, d, 0x44));
        _mm512_storeu_ps(to + 3 * BOF4_LIST_LANES, _mm512_shuffle_ps(b, d, 0xee));
    }
}

// A running sum in double precision, kept in all lanes.
typedef __m512d bof4_list_running_sum;

static inline bof4_list_running_sum bof4_list_running_sum_zero(void) {
    return _mm512_setzero_pd();
}

// s[i] = sum + products 0 .. i of eight entries with their activations; returns s[7]. The eight products are added in
// three steps, of neighbours at distance 1, 2 and 4, before the sum is added: another order than the portable one.
static inline bof4_list_running_sum bof4_list_add_8(
    bof4_list_running_sum sum, const int32_t * entries, const float * x, double * s) {
    const __m512i zero = _mm512_setzero_si512();
    const __m256i entry = _mm256_loadu_si256((const __m256i *) entries);
    const __m256 value = _mm256_castsi256_ps(_mm256_andnot_si256(_mm256_set1_epi32(0xffff), entry));
#define X(k) x[bof4_entry_column(entries[k])]
    const __m256 act = _mm256_setr_ps(X(0), X(1), X(2), X(3), X(4), X(5), X(6), X(7));
#undef X
    __m512d sums = _mm512_mul_pd(_mm512_cvtps_pd(value), _mm512_cvtps_pd(act));
#define ADD_SHIFTED(k) \
    sums = _mm512_add_pd(sums, _mm512_castsi512_pd(_mm512_alignr_epi64(_mm512_castpd_si512(sums), zero, 8 - k)))
    ADD_SHIFTED(1);
    ADD_SHIFTED(2);
    ADD_SHIFTED(4);
#undef ADD_SHIFTED
    sums = _mm512_add_pd(sums, sum);
    _mm512_storeu_pd(s, sums);
    return _mm512_permutexvar_pd(_mm512_set1_epi64(7), sums);
}

#else

enum { BOF4_LIST_USE_PREFETCH_AHEAD = 0 };

static inline void bof4_list_add_to(float * p, const float * v) {
    for (int i = 0; i < BOF4_LIST_LANES; ++i) {
        p[i] += v[i];
    }
}

// An array, not vectors: GCC 12 rounds some of the products before it adds them, others not, and results of a file must
// remain the same to the last bit.
typedef struct {
    float v[BOF4_LIST_LANES];
} bof4_list_sums_16;

static inline bof4_list_sums_16 bof4_list_zero_16(void) {
    const bof4_list_sums_16 zero = { { 0.0f } };
    return zero;
}

static inline bof4_list_sums_16 bof4_list_add_16(bof4_list_sums_16 sums, int32_t entry, const float * const * x) {
    const float value = bof4_entry_value(entry);
    for (int c = 0; c < BOF4_LIST_LANES; ++c) {
        sums.v[c] += value * x[c][bof4_entry_column(entry)];
    }
    return sums;
}

static inline void bof4_list_store_16(bof4_list_sums_16 sums, float * p) {
    memcpy(p, sums.v, sizeof(sums.v));
}

// Vectors of the compiler, of 32 bytes for AVX and of 16 bytes for SSE and NEON: GCC 12 vectorizes arrays of 16 floats
// only in part for NEON (35 instructions per entry instead of 26).
#if defined(__AVX__)
enum { BOF4_LIST_PART = 8, BOF4_LIST_TILES = 2 };
#else
enum { BOF4_LIST_PART = 4, BOF4_LIST_TILES = 1 };
#endif
enum { BOF4_LIST_PARTS = BOF4_LIST_LANES / BOF4_LIST_PART };
typedef float bof4_list_floats __attribute__((vector_size(4 * BOF4_LIST_PART)));
typedef uint32_t bof4_list_bits __attribute__((vector_size(4 * BOF4_LIST_PART)));
typedef struct {
    bof4_list_floats low[BOF4_LIST_PARTS], high[BOF4_LIST_PARTS];
} bof4_list_sums_32;

static inline bof4_list_sums_32 bof4_list_zero_32(void) {
    const bof4_list_sums_32 zero = { { { 0.0f } }, { { 0.0f } } };
    return zero;
}

static inline bof4_list_sums_32 bof4_list_add_32(bof4_list_sums_32 sums, int32_t entry, const uint32_t * packed) {
    const float value = bof4_entry_value(entry);
    for (int i = 0; i < BOF4_LIST_PARTS; ++i) {
        bof4_list_bits act;
        memcpy(&act, packed + BOF4_LIST_PART * i, sizeof(act));
        sums.low[i] += value * (bof4_list_floats) (act << 16);
        sums.high[i] += value * (bof4_list_floats) (act & 0xffff0000u);
    }
    return sums;
}

static inline void bof4_list_store_32(bof4_list_sums_32 sums, float * low, float * high) {
    memcpy(low, sums.low, sizeof(sums.low));
    memcpy(high, sums.high, sizeof(sums.high));
}

static inline void bof4_list_pack_bf16(const float * low, const float * high, uint32_t * packed) {
    const uint32_t half = 0x8000;
    uint32_t l[BOF4_LIST_LANES];
    uint32_t h[BOF4_LIST_LANES];
    memcpy(l, low, sizeof(l));
    memcpy(h, high, sizeof(h));
    for (int j = 0; j < BOF4_LIST_LANES; ++j) {
        packed[j] = ((l[j] + half) >> 16) | ((h[j] + half) & 0xffff0000u);
    }
}

#if defined(__AVX__)

#include <immintrin.h>

static inline void bof4_list_transpose_16x16(const void * const * in, void * out) {
    // as with AVX-512: two rows are combined by loads, two rounds of shuffles within 128 bits remain
    for (int half = 0; half < BOF4_LIST_LANES; half += 8) {
        for (int j = 0; j < BOF4_LIST_LANES; j += 4) {
            __m256 rows[4];
            for (int r = 0; r < 4; ++r) {
                const __m128 low = _mm_loadu_ps((const float *) in[half + r] + j);
                const __m128 high = _mm_loadu_ps((const float *) in[half + r + 4] + j);
                rows[r] = _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
            }
            const __m256 a = _mm256_unpacklo_ps(rows[0], rows[1]);
            const __m256 b = _mm256_unpackhi_ps(rows[0], rows[1]);
            const __m256 c = _mm256_unpacklo_ps(rows[2], rows[3]);
            const __m256 d = _mm256_unpackhi_ps(rows[2], rows[3]);
            float * to = (float *) out + j * BOF4_LIST_LANES + half;
            _mm256_storeu_ps(to, _mm256_shuffle_ps(a, c, 0x44));
            _mm256_storeu_ps(to + BOF4_LIST_LANES, _mm256_shuffle_ps(a, c, 0xee));
            _mm256_storeu_ps(to + 2 * BOF4_LIST_LANES, _mm256_shuffle_ps(b, d, 0x44));
            _mm256_storeu_ps(to + 3 * BOF4_LIST_LANES, _mm256_shuffle_ps(b, d, 0xee));
        }
    }
}

#elif defined(__ARM_NEON) && defined(__aarch64__)

#include <arm_neon.h>

static inline void bof4_list_transpose_16x16(const void * const * in, void * out) {
    for (int i = 0; i < BOF4_LIST_LANES; i += 4) {
        for (int j = 0; j < BOF4_LIST_LANES; j += 4) {
            uint32x4_t rows[4];
            for (int r = 0; r < 4; ++r) {
                rows[r] = vld1q_u32((const uint32_t *) in[i + r] + j);
            }
            const uint64x2_t a = vreinterpretq_u64_u32(vtrn1q_u32(rows[0], rows[1]));
            const uint64x2_t b = vreinterpretq_u64_u32(vtrn2q_u32(rows[0], rows[1]));
            const uint64x2_t c = vreinterpretq_u64_u32(vtrn1q_u32(rows[2], rows[3]));
            const uint64x2_t d = vreinterpretq_u64_u32(vtrn2q_u32(rows[2], rows[3]));
            uint32_t * to = (uint32_t *) out + j * BOF4_LIST_LANES + i;
            vst1q_u32(to, vreinterpretq_u32_u64(vtrn1q_u64(a, c)));
            vst1q_u32(to + BOF4_LIST_LANES, vreinterpretq_u32_u64(vtrn1q_u64(b, d)));
            vst1q_u32(to + 2 * BOF4_LIST_LANES, vreinterpretq_u32_u64(vtrn2q_u64(a, c)));
            vst1q_u32(to + 3 * BOF4_LIST_LANES, vreinterpretq_u32_u64(vtrn2q_u64(b, d)));
        }
    }
}

#else

static inline void bof4_list_transpose_16x16(const void * const * in, void * out) {
    // eight columns at a time: sixteen of them, a power of two apart, would conflict in the sets of L1
    for (int half = 0; half < BOF4_LIST_LANES; half += 8) {
        for (int j = 0; j < BOF4_LIST_LANES; ++j) {
            for (int c = half; c < half + 8; ++c) {
                memcpy((char *) out + 4 * (j * BOF4_LIST_LANES + c), (const char *) in[c] + 4 * j, 4);
            }
        }
    }
}

#endif

#if defined(__AVX2__)

// A running sum in double precision, kept in all lanes.
typedef __m256d bof4_list_running_sum;

static inline bof4_list_running_sum bof4_list_running_sum_zero(void) {
    return _mm256_setzero_pd();
}

// Sums 0 .. i of four numbers.
static inline __m256d bof4_list_prefix_sums(__m256d v) {
    const __m256d zero = _mm256_setzero_pd();
    v = _mm256_add_pd(v, _mm256_blend_pd(_mm256_permute4x64_pd(v, 0x90), zero, 1));
    return _mm256_add_pd(v, _mm256_permute2f128_pd(v, v, 0x08));
}

// As that of AVX-512, with the same order of additions: one addition of eight depends on the entries before.
static inline bof4_list_running_sum bof4_list_add_8(
    bof4_list_running_sum sum, const int32_t * entries, const float * x, double * s) {
    const __m256i entry = _mm256_loadu_si256((const __m256i *) entries);
    const __m256 value = _mm256_castsi256_ps(_mm256_andnot_si256(_mm256_set1_epi32(0xffff), entry));
#define X(k) x[bof4_entry_column(entries[k])]
    const __m128 low = _mm_setr_ps(X(0), X(1), X(2), X(3)), high = _mm_setr_ps(X(4), X(5), X(6), X(7));
#undef X
    const __m256d first = bof4_list_prefix_sums(
        _mm256_mul_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(value)), _mm256_cvtps_pd(low)));
    const __m256d second = _mm256_add_pd(
        bof4_list_prefix_sums(_mm256_mul_pd(_mm256_cvtps_pd(_mm256_extractf128_ps(value, 1)), _mm256_cvtps_pd(high))),
        _mm256_permute4x64_pd(first, 0xff));
    _mm256_storeu_pd(s, _mm256_add_pd(first, sum));
    _mm256_storeu_pd(s + 4, _mm256_add_pd(second, sum));
    return _mm256_add_pd(sum, _mm256_permute4x64_pd(second, 0xff));
}

#else

typedef double bof4_list_running_sum;

static inline bof4_list_running_sum bof4_list_running_sum_zero(void) {
    return 0.0;
}

static inline bof4_list_running_sum bof4_list_add_8(
    bof4_list_running_sum sum, const int32_t * entries, const float * x, double * s) {
    for (int i = 0; i < 8; ++i) {
        sum += (double) bof4_entry_value(entries[i]) * (double) x[bof4_entry_column(entries[i])];
        s[i] = sum;
    }
    return sum;
}

#endif

#endif
