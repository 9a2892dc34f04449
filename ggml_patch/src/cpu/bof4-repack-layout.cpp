// Interleaving rows and activations: what the kernels of every instruction set share.

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"

#include "bof4-repack-layout.h"
#include "ggml-cpu-impl.h"
#include "simd-mappings.h"

#include <cmath>
#include <cstring>

#ifdef BOF4_GEMM

// Bytes of n blocks in pairs, whose codes begin after `head` bytes.
static size_t bytes_of(int64_t n, size_t pair, size_t head) {
    return n / 2 * pair + n % 2 * (head + (pair - head) / 2);
}

size_t bof4_s_group_bytes(int64_t n) {
    return bytes_of(n / QK_BOF4_S, sizeof(bof4_s_pair), offsetof(bof4_s_pair, qs));
}

size_t bof4_k_group_bytes(int64_t n) {
    return bytes_of(n / QK_BOF4_K, sizeof(bof4_k_pair), offsetof(bof4_k_pair, qs));
}

void bof4_s_interleave(const block_bof4_s * rows, int64_t n_rows, int64_t n, void * group) {
    const int64_t n_blocks = n / QK_BOF4_S;
    auto * pairs = static_cast<bof4_s_pair *>(group);
    if (n_rows < BOF4_GROUP || n_blocks % 2) {
        memset(group, 0, bof4_s_group_bytes(n));
    }
    // a block at a time: 16 rows are 16 streams, each read in order; writes are one
    for (int64_t b = 0; b < n_blocks; ++b) {
        for (int64_t r = 0; r < n_rows; ++r) {
            const block_bof4_s & block = rows[r * n_blocks + b];
            pairs[b / 2].d[b % 2][r] = block.d;
            for (int i = 0; i < QK_BOF4_S / 8; ++i) {
                memcpy(pairs[b / 2].qs[b % 2][i][r], block.qs + 4 * i, 4);
            }
        }
    }
}

void bof4_s_deinterleave(const void * group, int64_t n_rows, int64_t n, block_bof4_s * rows) {
    const int64_t n_blocks = n / QK_BOF4_S;
    const auto * pairs = static_cast<const bof4_s_pair *>(group);
    for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t b = 0; b < n_blocks; ++b) {
            block_bof4_s & block = rows[r * n_blocks + b];
            block.d = pairs[b / 2].d[b % 2][r];
            for (int i = 0; i < QK_BOF4_S / 8; ++i) {
                memcpy(block.qs + 4 * i, pairs[b / 2].qs[b % 2][i][r], 4);
            }
        }
    }
}

void bof4_k_interleave(const block_bof4_k * rows, int64_t n_rows, int64_t n, void * group) {
    const int64_t n_blocks = n / QK_BOF4_K;
    auto * pairs = static_cast<bof4_k_pair *>(group);
    if (n_rows < BOF4_GROUP || n_blocks % 2) {
        memset(group, 0, bof4_k_group_bytes(n));
    }
    for (int64_t b = 0; b < n_blocks; ++b) {
        bof4_k_head & head = pairs[b / 2].head[b % 2];
        for (int64_t r = 0; r < n_rows; ++r) {
            const block_bof4_k & block = rows[r * n_blocks + b];
            head.d[r] = block.d;
            for (int j = 0; j < 12; ++j) {
                head.scales[j][r] = block.scales[j];
            }
            for (int i = 0; i < QK_BOF4_K / 8; ++i) {
                memcpy(pairs[b / 2].qs[b % 2][i][r], block.qs + 4 * i, 4);
            }
        }
    }
}

void bof4_k_deinterleave(const void * group, int64_t n_rows, int64_t n, block_bof4_k * rows) {
    const int64_t n_blocks = n / QK_BOF4_K;
    const auto * pairs = static_cast<const bof4_k_pair *>(group);
    for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t b = 0; b < n_blocks; ++b) {
            block_bof4_k & block = rows[r * n_blocks + b];
            const bof4_k_head & head = pairs[b / 2].head[b % 2];
            block.d = head.d[r];
            for (int j = 0; j < 12; ++j) {
                block.scales[j] = head.scales[j][r];
            }
            for (int i = 0; i < QK_BOF4_K / 8; ++i) {
                memcpy(block.qs + 4 * i, pairs[b / 2].qs[b % 2][i][r], 4);
            }
        }
    }
}

#ifdef BOF4_GEMM_Q6
size_t bof4_q6_group_bytes(int64_t n) {
    return bytes_of(n / QK_K, sizeof(bof4_q6_pair), offsetof(bof4_q6_pair, codes));
}

// f(part of a block, its place in the group, bytes of it) for all of them.
template <typename block, typename pair, typename F>
static void each_part_of_q6(block & from, pair & to, int64_t b, int64_t r, const F & f) {
    f(&from.d, &to.head[b].d[r], sizeof(from.d));
    for (int j = 0; j < QK_K / 16; ++j) {
        f(&from.scales[j], &to.head[b].scales[j][r], 1);
    }
    for (int i = 0; i < 4; ++i) {
        auto & steps = to.codes[b][i];
        for (int k = 0; k < 4; ++k) {
            f(from.qh + 4 * (4 * i + k), steps.qh[k][r], 4);
            f(from.ql + 4 * (i / 2 * 16 + i % 2 * 4 + k), steps.ql[0][k][r], 4);
            f(from.ql + 4 * (i / 2 * 16 + i % 2 * 4 + k + 8), steps.ql[1][k][r], 4);
        }
    }
}

void bof4_q6_interleave(const block_bof4_q6 * rows, int64_t n_rows, int64_t n, void * group) {
    const int64_t n_blocks = n / QK_K;
    if (n_rows < BOF4_GROUP || n_blocks % 2) {
        memset(group, 0, bof4_q6_group_bytes(n));
    }
    for (int64_t b = 0; b < n_blocks; ++b) {
        for (int64_t r = 0; r < n_rows; ++r) {
            each_part_of_q6(static_cast<const block_q6_K *>(rows)[r * n_blocks + b], static_cast<bof4_q6_pair *>(group)[b / 2],
                b % 2, r, [](const void * row, void * place, size_t width) { memcpy(place, row, width); });
        }
    }
}

void bof4_q6_deinterleave(const void * group, int64_t n_rows, int64_t n, block_bof4_q6 * rows) {
    const int64_t n_blocks = n / QK_K;
    for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t b = 0; b < n_blocks; ++b) {
            each_part_of_q6(static_cast<block_q6_K *>(rows)[r * n_blocks + b], static_cast<const bof4_q6_pair *>(group)[b / 2],
                b % 2, r, [](void * row, const void * place, size_t width) { memcpy(row, place, width); });
        }
    }
}

void bof4_q6_quantize_act(const float * x, bof4_q6_act * y, int64_t n, bool few) {
    bof4_k_quantize_act(x, y, n, few);
}
#endif

// The largest magnitude. Among floats without their signs it is the largest integer, and that a compiler knows how to find
// in vectors.
template <int N>
static float largest(const float * x) {
    uint32_t most = 0;
    for (int i = 0; i < N; ++i) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof(bits));
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    float value;
    memcpy(&value, &most, sizeof(value));
    return value;
}

// q = the integers nearest to x * scale, ties to even. (rintf, and no addition of 1.5 * 2^23: that a compiler would fuse with
// the product, which must be rounded first, as upstream does it.)
template <int N>
static void round_all(const float * x, float scale, int8_t * q) {
    for (int i = 0; i < N; ++i) {
        q[i] = (int8_t) (int) rintf(x[i] * scale);
    }
}

template <int N>
static int32_t sum_of(const int8_t * q) {
    int32_t sum = 0;
    for (int i = 0; i < N; ++i) {
        sum += q[i];
    }
    return sum;
}

// N numbers in the form in which the kernels want them, the first of them number `at` of its block.
template <int N, typename act>
static void store_act(act & y, int at, const int8_t * q, bool few) {
#if defined(BOF4_GEMM_AVX2)
    if (few) {
        for (int i = 0; i < N; ++i) {
            // low is -8 .. 7, high -8 .. 8
            const int low = ((q[i] + 8) & 15) - 8;
            y.u.half.low[at + i] = (int8_t) low;
            y.u.half.high[at + i] = (int8_t) ((q[i] - low) / 16);
        }
        return;
    }
    int16_t * to = y.u.q + at;
    for (int i = 0; i < N; i += 4) {
        to[i]     = q[i];
        to[i + 1] = q[i + 2];
        to[i + 2] = q[i + 1];
        to[i + 3] = q[i + 3];
    }
#else
    memcpy(y.q + at, q, N);
    GGML_UNUSED(few);
#endif
}

void bof4_s_quantize_act(const float * x, struct bof4_s_act * y, int64_t n, bool few) {
    for (int64_t b = 0; b < n / QK_BOF4_S; ++b) {
        for (int h = 0; h < 2; ++h, x += QK8_0) {
            // the very scales of Q8_0, which differ in the last bit between architectures
            const float most = largest<QK8_0>(x);
            const float d = most / 127.0f;
#if defined(__aarch64__)
            const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
#else
            const float inverse = most != 0.0f ? 127.0f / most : 0.0f;
#endif
            int8_t q[QK8_0];
            round_all<QK8_0>(x, inverse, q);
            store_act<QK8_0>(y[b], h * QK8_0, q, few);
            y[b].d[h] = GGML_CPU_FP16_TO_FP32(GGML_CPU_FP32_TO_FP16(d));
            y[b].offset[h] = -128 * sum_of<QK8_0>(q);
        }
    }
}

void bof4_k_quantize_act(const float * x, struct bof4_k_act * y, int64_t n, bool few) {
    for (int64_t b = 0; b < n / QK_BOF4_K; ++b, x += QK_BOF4_K) {
        const float most = largest<QK_BOF4_K>(x);
        const float inverse = most != 0.0f ? 127.0f / most : 0.0f;
        int8_t q[QK_BOF4_K];
        round_all<QK_BOF4_K>(x, inverse, q);
        store_act<QK_BOF4_K>(y[b], 0, q, few);
        y[b].d = most != 0.0f ? 1.0f / inverse : 0.0f;
        for (int j = 0; j < BOF4_K_SUB_BLOCKS; ++j) {
            y[b].offset[j] = -128 * sum_of<BOF4_K_SUB_BLOCK>(q + BOF4_K_SUB_BLOCK * j);
        }
    }
}

#endif
