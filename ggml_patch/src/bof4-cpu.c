// BOF4_S vec_dot against Q8_0: portable C, AVX2, AVX-512 VNNI and NEON, chosen by what the file is compiled for.
//
// 64 weights meet two Q8_0 blocks. Every kernel does the same: split 32 code bytes into two runs of 32
// nibbles, turn nibbles into int8 levels with one in-register table lookup, take exact integer dot
// products with the activations, and scale each by d * d8. The 1/127 of the levels is applied once a row.

#define GGML_COMMON_DECL_C
#include "ggml-common.h"

#include "bof4.h"
#include "bof4-cpu.h"
#include "bof4-levels.h"
#include "ggml-cpu-impl.h"
#include "simd-mappings.h"

#include <assert.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

void quantize_row_bof4_s(const float * x, void * y, int64_t k) {
    quantize_row_bof4_s_ref(x, y, k);
}

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)

static float row_dot(const block_bof4_s * x, const block_q8_0 * y, int nblocks) {
    // vpdpbusd wants one unsigned side: the table holds level + 128, and 128 * sum(y) is taken off again
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_xor_si128(_mm_loadu_si128((const __m128i *) bof4_s_levels), _mm_set1_epi8((char) 0x80)));
    const __m512i offset = _mm512_set1_epi8((char) 0x80);
    const __m512i nibble = _mm512_set1_epi8(0x0f);

    __m512 acc = _mm512_setzero_ps();
    for (int i = 0; i < nblocks; ++i) {
        const __m256i q = _mm256_loadu_si256((const __m256i *) x[i].qs);
        const __m512i codes = _mm512_and_si512(
            _mm512_inserti64x4(_mm512_castsi256_si512(q), _mm256_srli_epi16(q, 4), 1), nibble);
        const __m512i levels = _mm512_shuffle_epi8(table, codes);
        const __m512i act = _mm512_inserti64x4(
            _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *) y[2 * i].qs)),
            _mm256_loadu_si256((const __m256i *) y[2 * i + 1].qs), 1);

        const __m512i dot = _mm512_sub_epi32(
            _mm512_dpbusd_epi32(_mm512_setzero_si512(), levels, act),
            _mm512_dpbusd_epi32(_mm512_setzero_si512(), offset, act));

        const float d = GGML_CPU_FP16_TO_FP32(x[i].d);
        const __m512 scale = _mm512_mask_blend_ps(0xff00,
            _mm512_set1_ps(d * GGML_CPU_FP16_TO_FP32(y[2 * i].d)),
            _mm512_set1_ps(d * GGML_CPU_FP16_TO_FP32(y[2 * i + 1].d)));
        acc = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dot), acc);
    }
    return _mm512_reduce_add_ps(acc);
}

#elif defined(__AVX2__) && defined(__FMA__)

// sum of four int8 products in each int32
static inline __m256i dot_i8(__m256i levels, __m256i act) {
    // vpmaddubsw wants one unsigned side: |level|, with the level's sign moved onto the activation.
    // Pairs cannot saturate, 2 * 127 * 127 < 2^15, and no sign is lost: Q8_0 never holds -128.
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(levels), _mm256_sign_epi8(act, levels));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

static float row_dot(const block_bof4_s * x, const block_q8_0 * y, int nblocks) {
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *) bof4_s_levels));
    const __m256i nibble = _mm256_set1_epi8(0x0f);

    __m256 acc0 = _mm256_setzero_ps();
    __m256 acc1 = _mm256_setzero_ps();
    for (int i = 0; i < nblocks; ++i) {
        const __m256i q = _mm256_loadu_si256((const __m256i *) x[i].qs);
        const __m256i lo = _mm256_shuffle_epi8(table, _mm256_and_si256(q, nibble));
        const __m256i hi = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(q, 4), nibble));

        const __m256i dot0 = dot_i8(lo, _mm256_loadu_si256((const __m256i *) y[2 * i].qs));
        const __m256i dot1 = dot_i8(hi, _mm256_loadu_si256((const __m256i *) y[2 * i + 1].qs));

        const float d = GGML_CPU_FP16_TO_FP32(x[i].d);
        const __m256 scale0 = _mm256_set1_ps(d * GGML_CPU_FP16_TO_FP32(y[2 * i].d));
        const __m256 scale1 = _mm256_set1_ps(d * GGML_CPU_FP16_TO_FP32(y[2 * i + 1].d));
        acc0 = _mm256_fmadd_ps(scale0, _mm256_cvtepi32_ps(dot0), acc0);
        acc1 = _mm256_fmadd_ps(scale1, _mm256_cvtepi32_ps(dot1), acc1);
    }
    const __m256 acc = _mm256_add_ps(acc0, acc1);
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(acc), _mm256_extractf128_ps(acc, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    sum = _mm_add_ss(sum, _mm_movehdup_ps(sum));
    return _mm_cvtss_f32(sum);
}

#elif defined(__ARM_NEON) && defined(__aarch64__)

static float row_dot(const block_bof4_s * x, const block_q8_0 * y, int nblocks) {
    const int8x16_t table = vld1q_s8(bof4_s_levels);
    const uint8x16_t nibble = vdupq_n_u8(0x0f);

    float32x4_t acc0 = vdupq_n_f32(0.0f);
    float32x4_t acc1 = vdupq_n_f32(0.0f);
    for (int i = 0; i < nblocks; ++i) {
        const uint8x16_t q0 = vld1q_u8(x[i].qs);
        const uint8x16_t q1 = vld1q_u8(x[i].qs + 16);
        const int8_t * act0 = y[2 * i].qs;
        const int8_t * act1 = y[2 * i + 1].qs;

        // ggml_vdotq_s32 is vdotq_s32 where the processor has it, and widening multiplies elsewhere
        int32x4_t dot0 = ggml_vdotq_s32(vdupq_n_s32(0), vqtbl1q_s8(table, vandq_u8(q0, nibble)), vld1q_s8(act0));
        dot0 = ggml_vdotq_s32(dot0, vqtbl1q_s8(table, vandq_u8(q1, nibble)), vld1q_s8(act0 + 16));
        int32x4_t dot1 = ggml_vdotq_s32(vdupq_n_s32(0), vqtbl1q_s8(table, vshrq_n_u8(q0, 4)), vld1q_s8(act1));
        dot1 = ggml_vdotq_s32(dot1, vqtbl1q_s8(table, vshrq_n_u8(q1, 4)), vld1q_s8(act1 + 16));

        const float d = GGML_CPU_FP16_TO_FP32(x[i].d);
        acc0 = vfmaq_n_f32(acc0, vcvtq_f32_s32(dot0), d * GGML_CPU_FP16_TO_FP32(y[2 * i].d));
        acc1 = vfmaq_n_f32(acc1, vcvtq_f32_s32(dot1), d * GGML_CPU_FP16_TO_FP32(y[2 * i + 1].d));
    }
    return vaddvq_f32(vaddq_f32(acc0, acc1));
}

#else

static float row_dot(const block_bof4_s * x, const block_q8_0 * y, int nblocks) {
    float sum = 0.0f;
    for (int i = 0; i < nblocks; ++i) {
        int32_t dot0 = 0;
        int32_t dot1 = 0;
        for (int j = 0; j < QK_BOF4_S / 2; ++j) {
            dot0 += bof4_s_levels[x[i].qs[j] & 0xf] * y[2 * i].qs[j];
            dot1 += bof4_s_levels[x[i].qs[j] >> 4]  * y[2 * i + 1].qs[j];
        }
        const float d = GGML_CPU_FP16_TO_FP32(x[i].d);
        sum += d * GGML_CPU_FP16_TO_FP32(y[2 * i].d)     * (float) dot0;
        sum += d * GGML_CPU_FP16_TO_FP32(y[2 * i + 1].d) * (float) dot1;
    }
    return sum;
}

#endif

void ggml_vec_dot_bof4_s_q8_0(
        int n, float * s, size_t bs, const void * vx, size_t bx, const void * vy, size_t by, int nrc) {
    assert(n % QK_BOF4_S == 0);
    assert(nrc == 1);
    GGML_UNUSED(bs);
    GGML_UNUSED(bx);
    GGML_UNUSED(by);
    GGML_UNUSED(nrc);

    *s = row_dot(vx, vy, n / QK_BOF4_S) * (1.0f / BOF4_LEVEL_SCALE);
}
