// Vector operations of AVX-VNNI for bof4-gemm-vnni.h: 16 lanes are two registers, and there are half as many as in
// AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

struct bytes {
    __m256i a, b;
}; // 64 of them
struct ints {
    __m256i a, b;
};
struct floats {
    __m256 a, b;
};
using four = __m256i; // four bytes, in every lane

// Of 16-bit numbers: the caller masks the bits that come from the neighbouring byte.
template <int N> inline bytes shift_left(bytes v) {
    return { _mm256_slli_epi16(v.a, N), _mm256_slli_epi16(v.b, N) };
}
template <int N> inline bytes shift_right(bytes v) {
    return { _mm256_srli_epi16(v.a, N), _mm256_srli_epi16(v.b, N) };
}

inline bytes load_bytes(const void * p) {
    const auto * v = static_cast<const __m256i *>(p);
    return { _mm256_loadu_si256(v), _mm256_loadu_si256(v + 1) };
}
inline void store_bytes(void * p, bytes v) {
    auto * to = static_cast<__m256i *>(p);
    _mm256_store_si256(to, v.a);
    _mm256_store_si256(to + 1, v.b);
}
inline ints all_lanes(int32_t v) {
    return { _mm256_set1_epi32(v), _mm256_set1_epi32(v) };
}
inline four all_lanes_four(int32_t v) {
    return _mm256_set1_epi32(v);
}
#if defined(__AVXVNNI__)
inline ints add_dot(ints sum, bytes levels, four act) {
    return { _mm256_dpbusd_avx_epi32(sum.a, levels.a, act), _mm256_dpbusd_avx_epi32(sum.b, levels.b, act) };
}
#else
// vpdpbusd for tests on processors without it: products of bytes 0 and 2 of each lane, then of 1 and 3.
inline __m256i add_dot_half(__m256i sum, __m256i levels, __m256i act) {
    const __m256i even = _mm256_madd_epi16(
        _mm256_and_si256(levels, _mm256_set1_epi16(0xff)), _mm256_srai_epi16(_mm256_slli_epi16(act, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(levels, 8), _mm256_srai_epi16(act, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}
inline ints add_dot(ints sum, bytes levels, four act) {
    return { add_dot_half(sum.a, levels.a, act), add_dot_half(sum.b, levels.b, act) };
}
#endif
inline floats to_floats(ints v) {
    return { _mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b) };
}
inline ints to_ints(__m128i v) {
    return { _mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(v, v)) };
}
inline floats from_bytes(__m128i v) {
    return to_floats(to_ints(v));
}
inline floats from_halves(const uint16_t * p) {
    const auto * v = (const __m128i *) p;
    return { _mm256_cvtph_ps(_mm_loadu_si128(v)), _mm256_cvtph_ps(_mm_loadu_si128(v + 1)) };
}
inline floats all_lanes(float v) {
    return { _mm256_set1_ps(v), _mm256_set1_ps(v) };
}
inline floats multiply(floats x, floats y) {
    return { _mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b) };
}
inline floats multiply_add(floats x, floats y, floats z) {
    return { _mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b) };
}
inline floats add(floats x, floats y) {
    return { _mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b) };
}
inline floats load(const float * p) {
    return { _mm256_load_ps(p), _mm256_load_ps(p + 8) };
}
inline void store(float * p, floats v) {
    _mm256_store_ps(p, v.a);
    _mm256_store_ps(p + 8, v.b);
}
inline floats load_unaligned(const float * p) {
    return { _mm256_loadu_ps(p), _mm256_loadu_ps(p + 8) };
}
inline void store_unaligned(float * p, floats v) {
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
}

// See bof4-gemm-avx512.h.
inline void in_register(bytes & v) {
#if defined(__GNUC__)
    __asm__("" : "+x"(v.a), "+x"(v.b));
#else
    (void) v;
#endif
}

inline __m256i repeat(__m128i table) {
    return _mm256_broadcastsi128_si256(table);
}

inline __m256i look_up_half(__m256i table, __m256i index) {
    return _mm256_shuffle_epi8(table, _mm256_and_si256(index, _mm256_set1_epi8(0x0f)));
}

// Bytes by the lower four bits of an index.
inline bytes look_up(__m256i table, bytes index) {
    return { look_up_half(table, index.a), look_up_half(table, index.b) };
}

// 6-bit numbers, each increased by a constant.
struct six_bits {
    __m256i constant;

    explicit six_bits(int constant) : constant(_mm256_set1_epi8((char) constant)) {}

    __m256i join_half(__m256i low, __m256i high) const {
        const __m256i low4 = _mm256_and_si256(low, _mm256_set1_epi8(0x0f));
        return _mm256_add_epi8(_mm256_or_si256(low4, _mm256_and_si256(high, _mm256_set1_epi8(0x30))), constant);
    }

    // The lower four bits of one byte, bits 4 and 5 of another.
    bytes join(bytes low, bytes high) const { return { join_half(low.a, high.a), join_half(low.b, high.b) }; }
};

// For bof4-gemm-amx.h, see bof4-gemm-avx512.h.
inline ints load_ints(const int32_t * p) {
    const auto * v = (const __m256i *) p;
    return { _mm256_load_si256(v), _mm256_load_si256(v + 1) };
}
inline ints join_parts(ints high, ints low) {
    return { _mm256_add_epi32(_mm256_slli_epi32(high.a, 8), low.a),
        _mm256_add_epi32(_mm256_slli_epi32(high.b, 8), low.b) };
}
inline bytes in_both_words(ints v) {
    return { _mm256_blend_epi16(v.a, _mm256_slli_epi32(v.a, 16), 0xaa),
        _mm256_blend_epi16(v.b, _mm256_slli_epi32(v.b, 16), 0xaa) };
}
inline bytes scale_words(bytes v, bytes factor) {
    return { _mm256_mulhrs_epi16(v.a, factor.a), _mm256_mulhrs_epi16(v.b, factor.b) };
}
inline bytes odd_bytes(bytes v) {
    const __m256i mask = _mm256_set1_epi16((int16_t) 0xff00);
    return { _mm256_and_si256(v.a, mask), _mm256_and_si256(v.b, mask) };
}
inline bytes blend_bytes(bytes even, bytes odd) {
    const __m256i mask = _mm256_set1_epi16((int16_t) 0xff00);
    return { _mm256_blendv_epi8(even.a, odd.a, mask), _mm256_blendv_epi8(even.b, odd.b, mask) };
}

// The tiles of bof4-gemm-driver.h.
template <bool SUB_SCALES>
struct tiles_of {
    enum {
        GROUPS = 1,
        GEMM_COLUMNS = SUB_SCALES ? 3 : 6,
        GEMV_COLUMNS = 2,
        USE_GEMV = 2,
        MAX_COLUMNS = 128,
    };
};

} // namespace
