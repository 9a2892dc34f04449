// BOF4_S vec_dot against Q8_0: portable C, AVX2, AVX-512 VNNI and NEON, chosen by what the file is compiled for.
//
// 64 weights are multiplied with two Q8_0 blocks. Every kernel does the same: split 32 code bytes into two runs of 32
// nibbles, turn nibbles into int8 levels with one in-register table lookup, take exact integer dot products with the
// activations, and scale them by d8 and d / 127 as add_block does.

#define GGML_COMMON_DECL_C
#include "ggml-common.h"

#include "bof4-vec-dot-sums.h"
#include "../format/bof4-levels.h"
#include "ggml-cpu-impl.h"
#include "simd-mappings.h"

enum { AT_ONCE = 8 }; // blocks that become lanes of one vector on x86

// Adds a block, from the integer products of its halves. Every kernel, here and in the GEMM kernels, does these
// operations in this order, block after block, so that a product has the same bits whether its weight is repacked or
// not, and for any number of columns.
static inline float add_block(float sum, int32_t dot0, int32_t dot1, const block_bof4_s * x, const block_q8_0 * y) {
    const float part = bof4_multiply_add(
        (float) dot1, GGML_CPU_FP16_TO_FP32(y[1].d), (float) dot0 * GGML_CPU_FP16_TO_FP32(y[0].d));
    return bof4_multiply_add(part, GGML_CPU_FP16_TO_FP32(x->d) * (1.0f / BOF4_LEVEL_SCALE), sum);
}

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

// What add_block does, for eight blocks whose integer products are known: of first halves and of second ones.
static inline float add_eight(float sum, __m256i dot0, __m256i dot1, const block_bof4_s * x, const block_q8_0 * y) {
#define EIGHT(p, step) \
    _mm256_cvtph_ps( \
        _mm_setr_epi16((short) (p)[0].d, (short) (p)[step].d, (short) (p)[2 * step].d, (short) (p)[3 * step].d, \
            (short) (p)[4 * step].d, (short) (p)[5 * step].d, (short) (p)[6 * step].d, (short) (p)[7 * step].d))
    const __m256 d = _mm256_mul_ps(EIGHT(x, 1), _mm256_set1_ps(1.0f / BOF4_LEVEL_SCALE));
    const __m256 d0 = EIGHT(y, 2);
    const __m256 d1 = EIGHT(y + 1, 2);
#undef EIGHT
    float part[AT_ONCE], scale[AT_ONCE];
    _mm256_storeu_ps(part, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot1), d1, _mm256_mul_ps(_mm256_cvtepi32_ps(dot0), d0)));
    _mm256_storeu_ps(scale, d);
    for (int k = 0; k < AT_ONCE; ++k) {
        sum = bof4_multiply_add(part[k], scale[k], sum);
    }
    return sum;
}

#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__) && \
    defined(__FMA__) && defined(__F16C__)

// Products of a block in lanes: of the first half in eight of them, of the second in the others.
static inline __m512i block_dot(const block_bof4_s * x, const block_q8_0 * y) {
    // vpdpbusd needs one unsigned operand: the table holds level + 128, and 128 * sum(y) is subtracted again
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_xor_si128(_mm_loadu_si128((const __m128i *) bof4_s_levels), _mm_set1_epi8((char) 0x80)));
    const __m512i offset = _mm512_set1_epi8((char) 0x80);
    const __m512i nibble = _mm512_set1_epi8(0x0f);

    const __m256i q = _mm256_loadu_si256((const __m256i *) x->qs);
    const __m512i codes = _mm512_and_si512(
        _mm512_inserti64x4(_mm512_castsi256_si512(q), _mm256_srli_epi16(q, 4), 1), nibble);
    const __m512i act = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *) y[0].qs)),
        _mm256_loadu_si256((const __m256i *) y[1].qs), 1);
    return _mm512_sub_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_shuffle_epi8(table, codes), act),
        _mm512_dpbusd_epi32(_mm512_setzero_si512(), offset, act));
}

static float row_dot(const block_bof4_s * x, const block_q8_0 * y, int nblocks, int64_t ahead) {
    float sum = 0.0f;
    int i = 0;
    for (; i + AT_ONCE <= nblocks; i += AT_ONCE) {
        bof4_prefetch_blocks(x + i, AT_ONCE * sizeof(*x), ahead);
        // neighbours are added while the blocks become lanes
        __m512i four[2];
        for (int f = 0; f < 2; ++f) {
            __m512i two[2];
            for (int t = 0; t < 2; ++t) {
                const int k = i + 4 * f + 2 * t;
                const __m512i a = block_dot(x + k, y + 2 * k);
                const __m512i b = block_dot(x + k + 1, y + 2 * k + 2);
                two[t] = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            }
            four[f] = _mm512_add_epi32(_mm512_unpacklo_epi64(two[0], two[1]), _mm512_unpackhi_epi64(two[0], two[1]));
        }
        // first halves of blocks 0 to 3, second ones of them, then the same of blocks 4 to 7
        const __m512i all = _mm512_add_epi32(
            _mm512_shuffle_i32x4(four[0], four[1], 0x88), _mm512_shuffle_i32x4(four[0], four[1], 0xdd));
        const __m512i in_order = _mm512_shuffle_i32x4(all, all, 0xd8);
        sum = add_eight(
            sum, _mm512_castsi512_si256(in_order), _mm512_extracti64x4_epi64(in_order, 1), x + i, y + 2 * i);
    }
    for (; i < nblocks; ++i) {
        const __m512i dot = block_dot(x + i, y + 2 * i);
        sum = add_block(sum, bof4_sum_of_lanes(_mm512_castsi512_si256(dot)),
            bof4_sum_of_lanes(_mm512_extracti64x4_epi64(dot, 1)), x + i, y + 2 * i);
    }
    return sum;
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

// sum of four int8 products in each int32
static inline __m256i dot_i8(__m256i levels, __m256i act) {
    // vpmaddubsw needs one unsigned operand: |level|, with the level's sign moved onto the activation.
    // Pairs cannot saturate, 2 * 127 * 127 < 2^15, and no sign is lost: Q8_0 never holds -128.
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(levels), _mm256_sign_epi8(act, levels));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

// Products of the halves of a block, in lanes.
static inline void block_dot(const block_bof4_s * x, const block_q8_0 * y, __m256i * dot0, __m256i * dot1) {
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *) bof4_s_levels));
    const __m256i nibble = _mm256_set1_epi8(0x0f);
    const __m256i q = _mm256_loadu_si256((const __m256i *) x->qs);
    const __m256i lo = _mm256_shuffle_epi8(table, _mm256_and_si256(q, nibble));
    const __m256i hi = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(q, 4), nibble));
    *dot0 = dot_i8(lo, _mm256_loadu_si256((const __m256i *) y[0].qs));
    *dot1 = dot_i8(hi, _mm256_loadu_si256((const __m256i *) y[1].qs));
}

static float row_dot(const block_bof4_s * x, const block_q8_0 * y, int nblocks, int64_t ahead) {
    float sum = 0.0f;
    int i = 0;
    for (; i + AT_ONCE <= nblocks; i += AT_ONCE) {
        bof4_prefetch_blocks(x + i, AT_ONCE * sizeof(*x), ahead);
        // neighbours are added while the blocks become lanes: first half, second half, of a block and the next
        __m256i four[2];
        for (int f = 0; f < 2; ++f) {
            __m256i two[2];
            for (int t = 0; t < 2; ++t) {
                __m256i a[2], b[2];
                const int k = i + 4 * f + 2 * t;
                block_dot(x + k, y + 2 * k, a, a + 1);
                block_dot(x + k + 1, y + 2 * k + 2, b, b + 1);
                two[t] = _mm256_hadd_epi32(_mm256_hadd_epi32(a[0], a[1]), _mm256_hadd_epi32(b[0], b[1]));
            }
            four[f] = _mm256_add_epi32(
                _mm256_permute2x128_si256(two[0], two[1], 0x20), _mm256_permute2x128_si256(two[0], two[1], 0x31));
        }
        // blocks 0 1 4 5 2 3 6 7, then in order
        const __m256 left = _mm256_castsi256_ps(four[0]), right = _mm256_castsi256_ps(four[1]);
        const __m256i dot0 = _mm256_castps_si256(_mm256_shuffle_ps(left, right, 0x88));
        const __m256i dot1 = _mm256_castps_si256(_mm256_shuffle_ps(left, right, 0xdd));
        sum = add_eight(
            sum, _mm256_permute4x64_epi64(dot0, 0xd8), _mm256_permute4x64_epi64(dot1, 0xd8), x + i, y + 2 * i);
    }
    for (; i < nblocks; ++i) {
        __m256i dot0, dot1;
        block_dot(x + i, y + 2 * i, &dot0, &dot1);
        sum = add_block(sum, bof4_sum_of_lanes(dot0), bof4_sum_of_lanes(dot1), x + i, y + 2 * i);
    }
    return sum;
}

#elif defined(__ARM_NEON) && defined(__aarch64__)

// Products of the halves of a block, in lanes.
static inline void block_dot(const block_bof4_s * x, const block_q8_0 * y, int32x4_t * dot0, int32x4_t * dot1) {
    const int8x16_t table = vld1q_s8(bof4_s_levels);
    const uint8x16_t nibble = vdupq_n_u8(0x0f);
    const uint8x16_t q0 = vld1q_u8(x->qs);
    const uint8x16_t q1 = vld1q_u8(x->qs + 16);
    // ggml_vdotq_s32 is vdotq_s32 where the processor has it, and widening multiplies elsewhere
    *dot0 = ggml_vdotq_s32(vdupq_n_s32(0), vqtbl1q_s8(table, vandq_u8(q0, nibble)), vld1q_s8(y[0].qs));
    *dot0 = ggml_vdotq_s32(*dot0, vqtbl1q_s8(table, vandq_u8(q1, nibble)), vld1q_s8(y[0].qs + 16));
    *dot1 = ggml_vdotq_s32(vdupq_n_s32(0), vqtbl1q_s8(table, vshrq_n_u8(q0, 4)), vld1q_s8(y[1].qs));
    *dot1 = ggml_vdotq_s32(*dot1, vqtbl1q_s8(table, vshrq_n_u8(q1, 4)), vld1q_s8(y[1].qs + 16));
}

static inline float32x4_t four_halves(
    const ggml_half * a, const ggml_half * b, const ggml_half * c, const ggml_half * d) {
    uint16x4_t v = vld1_dup_u16(a);
    v = vld1_lane_u16(b, v, 1);
    v = vld1_lane_u16(c, v, 2);
    v = vld1_lane_u16(d, v, 3);
    return vcvt_f32_f16(vreinterpret_f16_u16(v));
}

static float row_dot(const block_bof4_s * x, const block_q8_0 * y, int nblocks, int64_t ahead) {
    float sum = 0.0f;
    int i = 0;
    for (; i + 4 <= nblocks; i += 4, x += 4, y += 8) {
        bof4_prefetch_blocks(x, 4 * sizeof(*x), ahead);
        // neighbours are added while the blocks become lanes
        int32x4_t dot0[4], dot1[4];
        for (int k = 0; k < 4; ++k) {
            block_dot(x + k, y + 2 * k, dot0 + k, dot1 + k);
        }
        const int32x4_t all0 = vpaddq_s32(vpaddq_s32(dot0[0], dot0[1]), vpaddq_s32(dot0[2], dot0[3]));
        const int32x4_t all1 = vpaddq_s32(vpaddq_s32(dot1[0], dot1[1]), vpaddq_s32(dot1[2], dot1[3]));
        // what add_block does, for four
        const float32x4_t d = vmulq_n_f32(four_halves(&x[0].d, &x[1].d, &x[2].d, &x[3].d), 1.0f / BOF4_LEVEL_SCALE);
        float32x4_t part = vmulq_f32(vcvtq_f32_s32(all0), four_halves(&y[0].d, &y[2].d, &y[4].d, &y[6].d));
        part = vfmaq_f32(part, vcvtq_f32_s32(all1), four_halves(&y[1].d, &y[3].d, &y[5].d, &y[7].d));
        sum = bof4_multiply_add(vgetq_lane_f32(part, 0), vgetq_lane_f32(d, 0), sum);
        sum = bof4_multiply_add(vgetq_lane_f32(part, 1), vgetq_lane_f32(d, 1), sum);
        sum = bof4_multiply_add(vgetq_lane_f32(part, 2), vgetq_lane_f32(d, 2), sum);
        sum = bof4_multiply_add(vgetq_lane_f32(part, 3), vgetq_lane_f32(d, 3), sum);
    }
    for (; i < nblocks; ++i, ++x, y += 2) {
        int32x4_t dot0, dot1;
        block_dot(x, y, &dot0, &dot1);
        sum = add_block(sum, vaddvq_s32(dot0), vaddvq_s32(dot1), x, y);
    }
    return sum;
}

#else

static float row_dot(const block_bof4_s * x, const block_q8_0 * y, int nblocks, int64_t ahead) {
    float sum = 0.0f;
    for (int i = 0; i < nblocks; ++i) {
        bof4_prefetch_blocks(x + i, sizeof(*x), ahead);
        int32_t dot0 = 0;
        int32_t dot1 = 0;
        for (int j = 0; j < QK_BOF4_S / 2; ++j) {
            dot0 += bof4_s_levels[x[i].qs[j] & 0xf] * y[2 * i].qs[j];
            dot1 += bof4_s_levels[x[i].qs[j] >> 4] * y[2 * i + 1].qs[j];
        }
        sum = add_block(sum, dot0, dot1, x + i, y + 2 * i);
    }
    return sum;
}

#endif

BOF4_DEFINE_VEC_DOT(BOF4_S, bof4_s)
