// Vector operations of AVX-512 VNNI for bof4-gemm-vnni.h: 16 lanes are one register.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of its own _mm512_undefined_ps
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include <cstdint>

namespace {

using bytes = __m512i; // 64 of them
using ints = __m512i;
using floats = __m512;
using four = __m512i; // four bytes, in every lane

// Of 16-bit numbers: the caller masks the bits that come from the neighbouring byte.
template <int N> inline bytes shift_left(bytes v) {
    return _mm512_slli_epi16(v, N);
}
template <int N> inline bytes shift_right(bytes v) {
    return _mm512_srli_epi16(v, N);
}
inline bytes load_bytes(const void * p) {
    return _mm512_loadu_si512(p);
}
inline void store_bytes(void * p, bytes v) {
    _mm512_store_si512(p, v);
}
inline ints all_lanes(int32_t v) {
    return _mm512_set1_epi32(v);
}
inline four all_lanes_four(int32_t v) {
    return _mm512_set1_epi32(v);
}
inline ints add_dot(ints sum, bytes levels, four act) {
    return _mm512_dpbusd_epi32(sum, levels, act);
}
inline floats to_floats(ints v) {
    return _mm512_cvtepi32_ps(v);
}
inline ints to_ints(__m128i v) {
    return _mm512_cvtepi8_epi32(v);
}
inline floats from_bytes(__m128i v) {
    return to_floats(to_ints(v));
}
inline floats from_halves(const uint16_t * p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p));
}
inline floats all_lanes(float v) {
    return _mm512_set1_ps(v);
}
inline floats multiply(floats a, floats b) {
    return _mm512_mul_ps(a, b);
}
inline floats multiply_add(floats a, floats b, floats c) {
    return _mm512_fmadd_ps(a, b, c);
}
inline floats add(floats a, floats b) {
    return _mm512_add_ps(a, b);
}
inline floats load(const float * p) {
    return _mm512_load_ps(p);
}
inline void store(float * p, floats v) {
    _mm512_store_ps(p, v);
}
inline floats load_unaligned(const float * p) {
    return _mm512_loadu_ps(p);
}
inline void store_unaligned(float * p, floats v) {
    _mm512_storeu_ps(p, v);
}

// Forces a value into a register. GCC otherwise may load weights again for every column, which is more loads than the
// processor can execute beside the dot products.
inline void in_register(bytes & v) {
#if defined(__GNUC__)
    __asm__("" : "+v"(v));
#else
    (void) v;
#endif
}

inline __m512i repeat(__m128i table) {
    return _mm512_broadcast_i32x4(table);
}

#ifdef __AVX512VBMI__

// Bytes by the lower four bits of an index. vpermb takes six bits of it: with the table four times over, the two bits
// that belong to the other nibble have no effect.
inline bytes look_up(__m512i table, bytes index) {
    return _mm512_permutexvar_epi8(index, table);
}

// 6-bit numbers, each increased by a constant. vpermb looks both up at once: it uses the low six bits of an index.
struct six_bits {
    __m512i table;

    explicit six_bits(int constant) {
        alignas(64) int8_t numbers[64];
        for (int i = 0; i < 64; ++i) {
            numbers[i] = (int8_t) (i + constant);
        }
        table = _mm512_load_si512(numbers);
    }

    // The lower four bits of one byte, bits 4 and 5 of another.
    bytes join(bytes low, bytes high) const {
        constexpr int choose = 0xca;
        return _mm512_permutexvar_epi8(_mm512_ternarylogic_epi32(_mm512_set1_epi8(0x0f), low, high, choose), table);
    }
};

#else

inline bytes look_up(__m512i table, bytes index) {
    return _mm512_shuffle_epi8(table, _mm512_and_si512(index, _mm512_set1_epi8(0x0f)));
}

struct six_bits {
    __m512i constant;

    explicit six_bits(int constant) : constant(_mm512_set1_epi8((char) constant)) {}

    bytes join(bytes low, bytes high) const {
        const __m512i low4 = _mm512_and_si512(low, _mm512_set1_epi8(0x0f));
        return _mm512_add_epi8(_mm512_or_si512(low4, _mm512_and_si512(high, _mm512_set1_epi8(0x30))), constant);
    }
};

#endif

// For bof4-gemm-amx.h.

inline ints load_ints(const int32_t * p) {
    return _mm512_load_si512(p);
}
// 256 * high + low.
inline ints join_parts(ints high, ints low) {
    return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
}
// The lower word of a lane, in both of its words.
inline bytes in_both_words(ints v) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, v, _mm512_slli_epi32(v, 16));
}
// Words times factor / 2^15, to the nearest.
inline bytes scale_words(bytes v, bytes factor) {
    return _mm512_mulhrs_epi16(v, factor);
}
// The upper byte of every word, the lower one cleared.
inline bytes odd_bytes(bytes v) {
    return _mm512_and_si512(v, _mm512_set1_epi16((int16_t) 0xff00));
}
// The lower byte of every word from one, the upper one from the other.
inline bytes blend_bytes(bytes even, bytes odd) {
    constexpr int choose = 0xd8;
    return _mm512_ternarylogic_epi32(even, odd, _mm512_set1_epi16((int16_t) 0xff00), choose);
}

// The tiles of bof4-gemm-driver.h. In GEMV with six columns, the sums of types with sub-scales do not fit the 32
// registers.
template <bool SUB_SCALES>
struct tiles_of {
    enum {
        GROUPS = 2,
        GEMM_COLUMNS = 6,
        GEMV_COLUMNS = SUB_SCALES ? 5 : 6,
        USE_GEMV = SUB_SCALES ? 15 : 18,
        MAX_COLUMNS = 256,
    };
};

} // namespace
