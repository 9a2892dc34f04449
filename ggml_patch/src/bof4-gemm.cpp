// Interleaving rows and activations: what the kernels of every instruction set share.

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"

#include "bof4-gemm.h"
#include "quants.h"
#include "ggml-cpu-impl.h"
#include "simd-mappings.h"

#include <cstring>

#ifdef BOF4_GEMM

static size_t scales_bytes(int64_t n_blocks) {
    return GGML_PAD(n_blocks * BOF4_GROUP * sizeof(uint16_t), 64);
}

size_t bof4_s_group_bytes(int64_t n) {
    const int64_t n_blocks = n / QK_BOF4_S;
    return scales_bytes(n_blocks) + n_blocks * BOF4_GROUP * (QK_BOF4_S / 2);
}

void bof4_s_interleave(const block_bof4_s * rows, int64_t n_rows, int64_t n, void * group) {
    const int64_t n_blocks = n / QK_BOF4_S;
    auto * d  = static_cast<uint16_t *>(group);
    auto * qs = reinterpret_cast<uint32_t *>(static_cast<char *>(group) + scales_bytes(n_blocks));
    constexpr int dwords = QK_BOF4_S / 8;
    if (n_rows < BOF4_GROUP) {
        memset(group, 0, bof4_s_group_bytes(n));
    }
    // a block at a time: 16 rows are 16 streams, each read in order; writes are one
    for (int64_t b = 0; b < n_blocks; ++b) {
        for (int64_t r = 0; r < n_rows; ++r) {
            const block_bof4_s & block = rows[r * n_blocks + b];
            uint32_t codes[dwords];
            memcpy(codes, block.qs, sizeof(codes));
            d[b * BOF4_GROUP + r] = block.d;
            for (int i = 0; i < dwords; ++i) {
                qs[(b * dwords + i) * BOF4_GROUP + r] = codes[i];
            }
        }
    }
}

void bof4_s_deinterleave(const void * group, int64_t n_rows, int64_t n, block_bof4_s * rows) {
    const int64_t n_blocks = n / QK_BOF4_S;
    const auto * d  = static_cast<const uint16_t *>(group);
    const auto * qs = reinterpret_cast<const uint32_t *>(static_cast<const char *>(group) + scales_bytes(n_blocks));
    constexpr int dwords = QK_BOF4_S / 8;
    for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t b = 0; b < n_blocks; ++b) {
            block_bof4_s & block = rows[r * n_blocks + b];
            uint32_t codes[dwords];
            for (int i = 0; i < dwords; ++i) {
                codes[i] = qs[(b * dwords + i) * BOF4_GROUP + r];
            }
            block.d = d[b * BOF4_GROUP + r];
            memcpy(block.qs, codes, sizeof(codes));
        }
    }
}

// The form in which the kernels want 32 numbers.
static void store_act(struct bof4_s_act * y, int h, const int8_t * q, bool few) {
#if defined(BOF4_GEMM_AVX2)
    if (few) {
        for (int i = 0; i < QK8_0; ++i) {
            // low is -8 .. 7, high -8 .. 8
            const int low = ((q[i] + 8) & 15) - 8;
            y->u.half.low[h * QK8_0 + i] = (int8_t) low;
            y->u.half.high[h * QK8_0 + i] = (int8_t) ((q[i] - low) / 16);
        }
        return;
    }
    for (int i = 0; i < QK8_0; i += 4) {
        int16_t * to = y->u.q + h * QK8_0 + i;
        to[0] = q[i];
        to[1] = q[i + 2];
        to[2] = q[i + 1];
        to[3] = q[i + 3];
    }
#else
    memcpy(y->q + h * QK8_0, q, QK8_0);
    GGML_UNUSED(few);
#endif
}

void bof4_s_quantize_act(const float * x, struct bof4_s_act * y, int64_t n, bool few) {
    for (int64_t b = 0; b < n / QK_BOF4_S; ++b) {
        block_q8_0 q[2];
        quantize_row_q8_0(x + b * QK_BOF4_S, q, QK_BOF4_S);
        for (int h = 0; h < 2; ++h) {
            store_act(y + b, h, q[h].qs, few);
            y[b].d[h] = GGML_CPU_FP16_TO_FP32(q[h].d);
            int32_t sum = 0;
            for (int i = 0; i < QK8_0; ++i) {
                sum += q[h].qs[i];
            }
            y[b].offset[h] = -128 * sum;
        }
    }
}

#endif
