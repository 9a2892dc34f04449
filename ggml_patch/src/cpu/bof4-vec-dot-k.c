// BOF4_K vec_dot against Q8_K: portable C, AVX2, AVX-512 VNNI and NEON, chosen by what the file is compiled for.
//
// 256 weights are multiplied with one Q8_K block. Nibbles become int8 levels with one in-register table lookup; the
// integer dot product of each 16 of them is multiplied with their 6-bit scale, still as integers, and one float scale
// applies to all 256.

#define GGML_COMMON_DECL_C
#include "ggml-common.h"

#include "bof4-vec-dot-sums.h"
#include "../format/bof4-levels.h"
#include "ggml-cpu-impl.h"
#include "simd-mappings.h"

// Adds a superblock, from the integer sum of its products. As in bof4-vec-dot-s.c, every kernel does these operations
// in this order, here and in the GEMM kernels.
static inline float add_superblock(float sum, int32_t total, const block_bof4_k * x, const block_q8_K * y) {
    return bof4_multiply_add((float) total, GGML_CPU_FP16_TO_FP32(x->d) * BOF4_K_UNIT * y->d, sum);
}

#if defined(__AVX2__)

// The sixteen scales of sub-blocks in order. The load reads four codes beyond them, which nothing uses.
static inline __m128i sub_block_scales(const block_bof4_k * x) {
    const __m128i packed = _mm_loadu_si128((const __m128i *) x->scales);
    const __m128i nibble = _mm_set1_epi8(0x0f);
    const __m128i low = _mm_unpacklo_epi64(
        _mm_and_si128(packed, nibble), _mm_and_si128(_mm_srli_epi16(packed, 4), nibble));
    const __m128i high = _mm_and_si128(
        _mm_srlv_epi32(_mm_shuffle_epi32(packed, 0xaa), _mm_setr_epi32(0, 2, 4, 6)), _mm_set1_epi8(0x03));
    return _mm_sub_epi8(_mm_or_si128(low, _mm_slli_epi16(high, 4)), _mm_set1_epi8(BOF4_K_SUB_SCALE_OFFSET));
}

#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__) && \
    defined(__FMA__) && defined(__F16C__)

static inline __m256i superblock_dot(const block_bof4_k * x, const block_q8_K * y) {
    // vpdpbusd needs one unsigned operand: the table holds level + 128, and the 128 is subtracted again with the sums
    // of 16 activations that Q8_K has
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_xor_si128(_mm_loadu_si128((const __m128i *) bof4_k_levels), _mm_set1_epi8((char) 0x80)));
    const __m512i nibble = _mm512_set1_epi8(0x0f);
    const __m512i zero = _mm512_setzero_si512();
    // four lanes of dot products belong to one sub-block
    const __m512i first_four = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);

    const __m128i scales = sub_block_scales(x);
    const __m512i scales32 = _mm512_cvtepi8_epi32(scales);
    const __m256i offsets = _mm256_madd_epi16(
        _mm256_cvtepi8_epi16(scales), _mm256_loadu_si256((const __m256i *) y->bsums));
    __m512i sum = _mm512_sub_epi32(zero, _mm512_slli_epi32(_mm512_zextsi256_si512(offsets), 7));
    for (int h = 0; h < 2; ++h) {
        const __m512i q = _mm512_loadu_si512(x->qs + 64 * h);
        const __m512i lo = _mm512_shuffle_epi8(table, _mm512_and_si512(q, nibble));
        const __m512i hi = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(q, 4), nibble));
        const __m512i dot_lo = _mm512_dpbusd_epi32(zero, lo, _mm512_loadu_si512(y->qs + 128 * h));
        const __m512i dot_hi = _mm512_dpbusd_epi32(zero, hi, _mm512_loadu_si512(y->qs + 128 * h + 64));
        const __m512i at = _mm512_add_epi32(first_four, _mm512_set1_epi32(8 * h));
        sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(dot_lo, _mm512_permutexvar_epi32(at, scales32)));
        sum = _mm512_add_epi32(sum,
            _mm512_mullo_epi32(dot_hi, _mm512_permutexvar_epi32(_mm512_add_epi32(at, _mm512_set1_epi32(4)), scales32)));
    }
    return _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1));
}

#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

// Two sub-blocks of 16, each in a 128-bit lane of its own: the sum of their products with the activations, times their
// scales.
static inline __m256i dot_two_sub_blocks(__m256i levels, __m256i act, __m256i scales) {
    // vpmaddubsw needs one unsigned operand: |level|, with the level's sign moved onto the activation.
    // Pairs cannot saturate, 2 * 127 * 127 < 2^15, and no sign is lost: Q8_K never holds -128.
    return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(levels), _mm256_sign_epi8(act, levels)), scales);
}

static inline __m256i superblock_dot(const block_bof4_k * x, const block_q8_K * y) {
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *) bof4_k_levels));
    const __m256i nibble = _mm256_set1_epi8(0x0f);
    // scale 2 p for the lower lane and 2 p + 1 for the upper one, as 16 bits
    const __m256i first_pair = _mm256_setr_epi8(
        0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3);
    const __m256i next_pair = _mm256_set1_epi8(4);

    const __m256i scales = _mm256_cvtepi8_epi16(sub_block_scales(x));
    __m256i sum = _mm256_setzero_si256();
    for (int h = 0; h < 2; ++h) {
        // sub-blocks 8 h to 8 h + 7, in both lanes
        const __m256i eight = h == 0 ? _mm256_permute4x64_epi64(scales, 0x44) : _mm256_permute4x64_epi64(scales, 0xee);
        __m256i at = first_pair;
        for (int t = 0; t < 2; ++t) {
            const __m256i q = _mm256_loadu_si256((const __m256i *) (x->qs + 64 * h + 32 * t));
            const __m256i lo = _mm256_shuffle_epi8(table, _mm256_and_si256(q, nibble));
            const __m256i hi = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(q, 4), nibble));
            const int8_t * act = y->qs + 128 * h + 32 * t;
            const __m256i after_next = _mm256_add_epi8(at, _mm256_slli_epi16(next_pair, 1));
            sum = _mm256_add_epi32(
                sum, dot_two_sub_blocks(lo, _mm256_loadu_si256((const __m256i *) act), _mm256_shuffle_epi8(eight, at)));
            sum = _mm256_add_epi32(sum,
                dot_two_sub_blocks(
                    hi, _mm256_loadu_si256((const __m256i *) (act + 64)), _mm256_shuffle_epi8(eight, after_next)));
            at = _mm256_add_epi8(at, next_pair);
        }
    }
    return sum;
}

#elif defined(__ARM_NEON) && defined(__aarch64__)

// The sixteen scales of sub-blocks in order, as 16 bits. The load reads four codes beyond them, which nothing uses.
static inline int16x8x2_t sub_block_scales(const block_bof4_k * x) {
    static const int8_t low_shifts[16] = { 0, 0, 0, 0, 0, 0, 0, 0, -4, -4, -4, -4, -4, -4, -4, -4 };
    static const int8_t high_shifts[16] = { 4, 4, 4, 4, 2, 2, 2, 2, 0, 0, 0, 0, -2, -2, -2, -2 };
    const uint8x16_t packed = vld1q_u8(x->scales);
    const uint64x2_t nibbles = vdupq_laneq_u64(vreinterpretq_u64_u8(packed), 0);
    const uint32x4_t fields = vdupq_laneq_u32(vreinterpretq_u32_u8(packed), 2);
    const uint8x16_t low = vshlq_u8(vreinterpretq_u8_u64(nibbles), vld1q_s8(low_shifts));
    const uint8x16_t high = vshlq_u8(vreinterpretq_u8_u32(fields), vld1q_s8(high_shifts));
    const uint8x16_t all = vandq_u8(vbslq_u8(vdupq_n_u8(0x0f), low, high), vdupq_n_u8(0x3f));
    const uint8x8_t bias = vdup_n_u8(BOF4_K_SUB_SCALE_OFFSET);
    return (int16x8x2_t){ {
        vreinterpretq_s16_u16(vsubl_u8(vget_low_u8(all), bias)),
        vreinterpretq_s16_u16(vsubl_u8(vget_high_u8(all), bias)),
    } };
}

// ADD_SUB_BLOCK: adds the products of a sub-block, times its scale, which is a lane of those of four sub-blocks.
#ifdef __ARM_FEATURE_DOTPROD

typedef int32x4_t four_scales;

static inline four_scales to_four_scales(int16x4_t s) {
    return vmovl_s16(s);
}

#define ADD_SUB_BLOCK(sum, levels, act, scales, lane) \
    sum = vmlaq_laneq_s32(sum, vdotq_s32(vdupq_n_s32(0), levels, act), scales, lane)

#else

typedef int16x4_t four_scales;

static inline four_scales to_four_scales(int16x4_t s) {
    return s;
}

// Pairs fit into 16 bits, as in dot_two_sub_blocks, and the multiplication with the scale widens them to 32: neighbours
// need not be added.
static inline int16x8_t pair_products(int8x16_t levels, int8x16_t act) {
    return vmlal_high_s8(vmull_s8(vget_low_s8(levels), vget_low_s8(act)), levels, act);
}

#define ADD_SUB_BLOCK(sum, levels, act, scales, lane) \
    do { \
        const int16x8_t pairs = pair_products(levels, act); \
        sum = vmlal_lane_s16(sum, vget_low_s16(pairs), scales, lane); \
        sum = vmlal_high_lane_s16(sum, pairs, scales, lane); \
    } while (0)

#endif

static float row_dot(const block_bof4_k * x, const block_q8_K * y, int nblocks, int64_t ahead) {
    const int8x16_t table = vld1q_s8(bof4_k_levels);
    const uint8x16_t nibble = vdupq_n_u8(0x0f);

    float all = 0.0f;
    for (int i = 0; i < nblocks; ++i) {
        bof4_prefetch_blocks(x + i, sizeof(*x), ahead);
        const int16x8x2_t scales = sub_block_scales(x + i);
        int32x4_t sum_lo = vdupq_n_s32(0);
        int32x4_t sum_hi = vdupq_n_s32(0);
        for (int h = 0; h < 2; ++h) {
            const four_scales scales_lo = to_four_scales(vget_low_s16(scales.val[h]));
            const four_scales scales_hi = to_four_scales(vget_high_s16(scales.val[h]));
            // a macro: the number of a lane must be a constant even without optimization
#define TWO_SUB_BLOCKS(b) \
    do { \
        const uint8x16_t q = vld1q_u8(x[i].qs + 64 * h + BOF4_K_SUB_BLOCK * b); \
        const int8_t * act = y[i].qs + 128 * h + BOF4_K_SUB_BLOCK * b; \
        ADD_SUB_BLOCK(sum_lo, vqtbl1q_s8(table, vandq_u8(q, nibble)), vld1q_s8(act), scales_lo, b); \
        ADD_SUB_BLOCK(sum_hi, vqtbl1q_s8(table, vshrq_n_u8(q, 4)), vld1q_s8(act + 64), scales_hi, b); \
    } while (0)
            TWO_SUB_BLOCKS(0);
            TWO_SUB_BLOCKS(1);
            TWO_SUB_BLOCKS(2);
            TWO_SUB_BLOCKS(3);
#undef TWO_SUB_BLOCKS
        }
        all = add_superblock(all, vaddvq_s32(vaddq_s32(sum_lo, sum_hi)), x + i, y + i);
    }
    return all;
}

#else

static float row_dot(const block_bof4_k * x, const block_q8_K * y, int nblocks, int64_t ahead) {
    float sum = 0.0f;
    for (int i = 0; i < nblocks; ++i) {
        bof4_prefetch_blocks(x + i, sizeof(*x), ahead);
        int32_t total = 0;
        for (int h = 0; h < 2; ++h) {
            for (int b = 0; b < 4; ++b) {
                // both nibbles of a byte while it is in a register; they belong to sub-blocks four apart
                const uint8_t * qs = x[i].qs + 64 * h + BOF4_K_SUB_BLOCK * b;
                const int8_t * act = y[i].qs + 128 * h + BOF4_K_SUB_BLOCK * b;
                int32_t lo = 0, hi = 0;
                for (int j = 0; j < BOF4_K_SUB_BLOCK; ++j) {
                    lo += bof4_k_levels[qs[j] & 0xf] * act[j];
                    hi += bof4_k_levels[qs[j] >> 4] * act[64 + j];
                }
                total += bof4_k_scale(x + i, 8 * h + b) * lo + bof4_k_scale(x + i, 8 * h + b + 4) * hi;
            }
        }
        sum = add_superblock(sum, total, x + i, y + i);
    }
    return sum;
}

#endif

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

// superblock_dot leaves its sum in eight lanes; those of four superblocks are added together.
static float row_dot(const block_bof4_k * x, const block_q8_K * y, int nblocks, int64_t ahead) {
    float sum = 0.0f;
    int i = 0;
    for (; i + 4 <= nblocks; i += 4) {
        bof4_prefetch_blocks(x + i, 4 * sizeof(*x), ahead);
        __m256i dot[4];
        for (int k = 0; k < 4; ++k) {
            dot[k] = superblock_dot(x + i + k, y + i + k);
        }
        const __m256i lanes = _mm256_hadd_epi32(_mm256_hadd_epi32(dot[0], dot[1]), _mm256_hadd_epi32(dot[2], dot[3]));
        const __m128i total = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
        // what add_superblock does, for four
        const __m128 d = _mm_mul_ps(_mm_cvtph_ps(_mm_setr_epi16((short) x[i].d, (short) x[i + 1].d, (short) x[i + 2].d,
                                        (short) x[i + 3].d, 0, 0, 0, 0)),
            _mm_set1_ps(BOF4_K_UNIT));
        float part[4], scale[4];
        _mm_storeu_ps(part, _mm_cvtepi32_ps(total));
        _mm_storeu_ps(scale, _mm_mul_ps(d, _mm_setr_ps(y[i].d, y[i + 1].d, y[i + 2].d, y[i + 3].d)));
        for (int k = 0; k < 4; ++k) {
            sum = bof4_multiply_add(part[k], scale[k], sum);
        }
    }
    for (; i < nblocks; ++i) {
        sum = add_superblock(sum, bof4_sum_of_lanes(superblock_dot(x + i, y + i)), x + i, y + i);
    }
    return sum;
}

#endif

BOF4_DEFINE_VEC_DOT(BOF4_K, bof4_k)
