// Sixteen lanes for the kernels that have vpdpbusd: one register of AVX-512, or two of AVX-VNNI. Private to
// bof4-gemm-vnni.cpp and bof4-gemm-vnni-k.cpp.
#pragma once

#include "bof4-repack-layout.h"

#ifdef BOF4_GEMM_VNNI

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of its own _mm512_undefined_ps
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include <cstring>

namespace {

#ifdef BOF4_GEMM_AVX512

using bytes  = __m512i;         // 64 of them
using ints   = __m512i;
using floats = __m512;
using four   = __m512i;         // four bytes, in every lane
using mask   = __mmask16;       // of lanes

inline mask first_lanes(int64_t n) { return n >= 16 ? 0xffff : (mask) ((1u << n) - 1); }

inline bytes  load_bytes(const void * p)                        { return _mm512_loadu_si512(p); }
inline void   store_bytes(void * p, bytes v)                    { _mm512_store_si512(p, v); }
// Of 16-bit numbers: what comes from the neighbour is for the caller to drop.
template <int N> inline bytes shift_left(bytes v)               { return _mm512_slli_epi16(v, N); }
template <int N> inline bytes shift_right(bytes v)              { return _mm512_srli_epi16(v, N); }
inline ints   all_lanes(int32_t v)                              { return _mm512_set1_epi32(v); }
inline four   all_lanes_four(int32_t v)                         { return _mm512_set1_epi32(v); }
inline ints   add_dot(ints sum, bytes levels, four act)             { return _mm512_dpbusd_epi32(sum, levels, act); }
inline floats to_floats(ints v)                                 { return _mm512_cvtepi32_ps(v); }
inline floats from_bytes(__m128i v)                             { return to_floats(_mm512_cvtepi8_epi32(v)); }
inline floats from_halves(const uint16_t * p)                   { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p)); }
inline floats all_lanes(float v)                                { return _mm512_set1_ps(v); }
inline floats multiply(floats a, floats b)                      { return _mm512_mul_ps(a, b); }
inline floats add(floats a, floats b)                           { return _mm512_add_ps(a, b); }
inline floats multiply_add(floats a, floats b, floats c)        { return _mm512_fmadd_ps(a, b, c); }
inline floats load(const float * p)                             { return _mm512_load_ps(p); }
inline void   store(float * p, floats v)                        { _mm512_store_ps(p, v); }
inline floats load(const float * p, mask m)                     { return _mm512_maskz_loadu_ps(m, p); }
inline void   store(float * p, mask m, floats v)                { _mm512_mask_storeu_ps(p, m, v); }

#else

struct bytes  { __m256i a, b; };
struct ints   { __m256i a, b; };
struct floats { __m256  a, b; };
using four  = __m256i;
struct mask   { __m256i a, b; };

inline mask first_lanes(int64_t n) {
    const __m256i count = _mm256_set1_epi32(n > 16 ? 16 : (int) n);
    return { _mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
             _mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)) };
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
template <int N> inline bytes shift_left(bytes v)  { return { _mm256_slli_epi16(v.a, N), _mm256_slli_epi16(v.b, N) }; }
template <int N> inline bytes shift_right(bytes v) { return { _mm256_srli_epi16(v.a, N), _mm256_srli_epi16(v.b, N) }; }
inline ints   all_lanes(int32_t v)                              { return { _mm256_set1_epi32(v), _mm256_set1_epi32(v) }; }
inline four   all_lanes_four(int32_t v)                         { return _mm256_set1_epi32(v); }
inline ints   add_dot(ints sum, bytes levels, four act) {
    return { _mm256_dpbusd_avx_epi32(sum.a, levels.a, act), _mm256_dpbusd_avx_epi32(sum.b, levels.b, act) };
}
inline floats to_floats(ints v)                                 { return { _mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b) }; }
inline floats from_bytes(__m128i v) {
    return to_floats({ _mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(v, v)) });
}
inline floats from_halves(const uint16_t * p) {
    return { _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) (p + 8))) };
}
inline floats all_lanes(float v)                                { return { _mm256_set1_ps(v), _mm256_set1_ps(v) }; }
inline floats multiply(floats x, floats y)                      { return { _mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b) }; }
inline floats add(floats x, floats y)                           { return { _mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b) }; }
inline floats multiply_add(floats x, floats y, floats z)        { return { _mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b) }; }
inline floats load(const float * p)                             { return { _mm256_load_ps(p), _mm256_load_ps(p + 8) }; }
inline void   store(float * p, floats v)                        { _mm256_store_ps(p, v.a); _mm256_store_ps(p + 8, v.b); }
inline floats load(const float * p, mask m)                     { return { _mm256_maskload_ps(p, m.a), _mm256_maskload_ps(p + 8, m.b) }; }
inline void   store(float * p, mask m, floats v)                { _mm256_maskstore_ps(p, m.a, v.a); _mm256_maskstore_ps(p + 8, m.b, v.b); }

#endif

// Says that a value is in a register from here on. GCC loads weights anew for every column otherwise, when it thinks that it
// has registers too few: more loads than the processor does beside the products.
#if defined(__GNUC__) && defined(BOF4_GEMM_AVX512)
inline void in_register(bytes & v) { __asm__("" : "+v"(v)); }
#elif defined(__GNUC__)
inline void in_register(bytes & v) { __asm__("" : "+x"(v.a), "+x"(v.b)); }
#else
inline void in_register(bytes &) {}
#endif

// Four activations, the same for every lane.
inline four broadcast(const int8_t * q) {
    int32_t v;
    memcpy(&v, q, sizeof(v));
    return all_lanes_four(v);
}

// Codes to level + 128, 64 at a time.
struct lookup {
#ifdef BOF4_GEMM_AVX512
    __m512i table;

    explicit lookup(const int8_t * levels)
        : table(_mm512_broadcast_i32x4(_mm_xor_si128(_mm_loadu_si128((const __m128i *) levels), _mm_set1_epi8((char) 0x80)))) {}

#ifdef __AVX512VBMI__
    // vpermb takes six bits of an index: with the table four times over, the two that belong to the other nibble do no harm
    bytes low(bytes codes) const  { return _mm512_permutexvar_epi8(codes, table); }
    bytes high(bytes codes) const { return _mm512_permutexvar_epi8(_mm512_srli_epi16(codes, 4), table); }
#else
    bytes low(bytes codes) const  { return _mm512_shuffle_epi8(table, _mm512_and_si512(codes, _mm512_set1_epi8(0x0f))); }
    bytes high(bytes codes) const { return low(_mm512_srli_epi16(codes, 4)); }
#endif
#else
    __m256i table;

    explicit lookup(const int8_t * levels)
        : table(_mm256_broadcastsi128_si256(_mm_xor_si128(_mm_loadu_si128((const __m128i *) levels), _mm_set1_epi8((char) 0x80)))) {}

    __m256i low8(__m256i codes) const { return _mm256_shuffle_epi8(table, _mm256_and_si256(codes, _mm256_set1_epi8(0x0f))); }
    bytes low(bytes codes) const  { return { low8(codes.a), low8(codes.b) }; }
    bytes high(bytes codes) const { return { low8(_mm256_srli_epi16(codes.a, 4)), low8(_mm256_srli_epi16(codes.b, 4)) }; }
#endif
};

// Numbers of six bits, to each of which a constant is added: the lower four bits of one byte, bits 4 and 5 of another.
struct six_bits {
#if defined(BOF4_GEMM_AVX512) && defined(__AVX512VBMI__)
    __m512i table;          // vpermb takes six bits of an index, and so drops the others

    explicit six_bits(int constant) {
        alignas(64) int8_t numbers[64];
        for (int i = 0; i < 64; ++i) {
            numbers[i] = (int8_t) (i + constant);
        }
        table = _mm512_load_si512(numbers);
    }

    bytes join(bytes four, bytes two) const {
        constexpr int choose = 0xca;
        return _mm512_permutexvar_epi8(_mm512_ternarylogic_epi32(_mm512_set1_epi8(0x0f), four, two, choose), table);
    }
#elif defined(BOF4_GEMM_AVX512)
    __m512i constant;

    explicit six_bits(int constant) : constant(_mm512_set1_epi8((char) constant)) {}

    bytes join(bytes four, bytes two) const {
        const __m512i low = _mm512_and_si512(four, _mm512_set1_epi8(0x0f));
        return _mm512_add_epi8(_mm512_or_si512(low, _mm512_and_si512(two, _mm512_set1_epi8(0x30))), constant);
    }
#else
    __m256i constant;

    explicit six_bits(int constant) : constant(_mm256_set1_epi8((char) constant)) {}

    __m256i join8(__m256i four, __m256i two) const {
        const __m256i low = _mm256_and_si256(four, _mm256_set1_epi8(0x0f));
        return _mm256_add_epi8(_mm256_or_si256(low, _mm256_and_si256(two, _mm256_set1_epi8(0x30))), constant);
    }
    bytes join(bytes four, bytes two) const { return { join8(four.a, two.a), join8(four.b, two.b) }; }
#endif
};

} // namespace

#endif
