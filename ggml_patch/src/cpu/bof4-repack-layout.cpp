// Repacking rows and quantizing activations, for the kernels of all instruction sets.

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"

#include "bof4-repack-layout.h"
#include "ggml-cpu-impl.h"
#include "simd-mappings.h"

#include <cmath>
#include <cstring>
#include <type_traits>

#ifdef BOF4_GEMM

namespace {

// f(part of a block, its place in the group, bytes of it) for all parts of a block of row r. No primary definition.
template <ggml_type type> struct parts;

template <> struct parts<GGML_TYPE_BOF4_S> {
    using block = block_bof4_s;
    template <typename B, typename H, typename C, typename F>
    static void each(B & row, H & head, C & codes, int64_t r, const F & f) {
        f(&row.d, &head.d[r], sizeof(row.d));
        for (int i = 0; i < QK_BOF4_S / 8; ++i) {
            f(row.qs + 4 * i, codes.qs[i][r], 4);
        }
    }
};

template <> struct parts<GGML_TYPE_BOF4_K> {
    using block = block_bof4_k;
    template <typename B, typename H, typename C, typename F>
    static void each(B & row, H & head, C & codes, int64_t r, const F & f) {
        f(&row.d, &head.d[r], sizeof(row.d));
        for (int j = 0; j < BOF4_K_SUB_SCALE_BYTES; ++j) {
            f(&row.scales[j], &head.scales[j][r], 1);
        }
        for (int i = 0; i < QK_BOF4_K / 8; ++i) {
            f(row.qs + 4 * i, codes.qs[i][r], 4);
        }
    }
};

template <> struct parts<GGML_TYPE_Q6_K> {
    using block = block_q6_K;
    template <typename B, typename H, typename C, typename F>
    static void each(B & row, H & head, C & codes, int64_t r, const F & f) {
        f(&row.d, &head.d[r], sizeof(row.d));
        for (int j = 0; j < QK_K / 16; ++j) {
            f(&row.scales[j], &head.scales[j][r], 1);
        }
        for (int i = 0; i < 4; ++i) {
            auto & part = codes.parts[i];
            for (int k = 0; k < 4; ++k) {
                f(row.qh + 4 * (4 * i + k), part.qh[k][r], 4);
                f(row.ql + 4 * (i / 2 * 16 + i % 2 * 4 + k), part.ql[0][k][r], 4);
                f(row.ql + 4 * (i / 2 * 16 + i % 2 * 4 + k + 8), part.ql[1][k][r], 4);
            }
        }
    }
};

// The largest magnitude. Floats without their signs order like their bits, and an integer maximum vectorizes.
template <int N>
float largest_magnitude(const float * x) {
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

// q = the integers nearest to x * scale, ties to even. (rintf, and no addition of 1.5 * 2^23: that a compiler would
// fuse with the product, which must be rounded first, as upstream does it.)
template <int N>
void round_all(const float * x, float scale, int8_t * q) {
    for (int i = 0; i < N; ++i) {
        q[i] = (int8_t) (int) rintf(x[i] * scale);
    }
}

template <int N>
int32_t sum_of(const int8_t * q) {
    int32_t sum = 0;
    for (int i = 0; i < N; ++i) {
        sum += q[i];
    }
    return sum;
}

// Stores N activations, from number `at` of the block on, in the format that the kernels read.
template <int N, int BLOCK>
void store_act(bof4_act_bytes::numbers<BLOCK> & y, int at, const int8_t * q, bool) {
    memcpy(y.q + at, q, N);
}

template <int N, int BLOCK>
void store_act(bof4_act_words::numbers<BLOCK> & y, int at, const int8_t * q, bool use_gemv) {
    if (use_gemv) {
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
        to[i] = q[i];
        to[i + 1] = q[i + 2];
        to[i + 2] = q[i + 1];
        to[i + 3] = q[i + 3];
    }
}

void quantize_block(const float * x, bof4_s_act_block & y, bool use_gemv) {
    for (int h = 0; h < 2; ++h, x += QK8_0) {
        // exactly the scales of Q8_0, which differ in the last bit between architectures
        const float most = largest_magnitude<QK8_0>(x);
        const float d = most / 127.0f;
#if defined(__aarch64__)
        const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
#else
        const float inverse = most != 0.0f ? 127.0f / most : 0.0f;
#endif
        int8_t q[QK8_0];
        round_all<QK8_0>(x, inverse, q);
        store_act<QK8_0>(y, h * QK8_0, q, use_gemv);
        y.d[h] = GGML_CPU_FP16_TO_FP32(GGML_CPU_FP32_TO_FP16(d));
        y.offset[h] = -128 * sum_of<QK8_0>(q);
    }
}

// N activations as Q8_K has 256; returns their scale.
template <int N>
float quantize_run(const float * x, int8_t * q) {
    const float most = largest_magnitude<N>(x);
    const float inverse = most != 0.0f ? 127.0f / most : 0.0f;
    round_all<N>(x, inverse, q);
    return most != 0.0f ? 1.0f / inverse : 0.0f;
}

void quantize_block(const float * x, bof4_k_act_block & y, bool use_gemv) {
    int8_t q[QK_K];
    y.d[0] = quantize_run<QK_K>(x, q);
    store_act<QK_K>(y, 0, q, use_gemv);
    constexpr int parts = std::extent<decltype(y.offset)>();
    for (int j = 0; j < parts; ++j) {
        y.offset[j] = -128 * sum_of<QK_K / parts>(q + QK_K / parts * j);
    }
}

} // namespace

template <int RUN>
void bof4_act_pieces<RUN>::quantize(const float * x, void * row, int64_t n, int64_t from, int64_t to) {
    auto * y = static_cast<char *>(row);
    for (int64_t i = from; i < to; i += RUN) {
        int8_t q[RUN];
        const float d = quantize_run<RUN>(x + i, q);
        memcpy(y + scale_at(n, i / RUN), &d, sizeof(d));
        for (int j = 0; j < RUN; j += PIECE) {
            memcpy(y + at(i + j), q + j, PIECE);
        }
    }
}

template struct bof4_act_pieces<QK_BOF4_S>;
template struct bof4_act_pieces<QK_BOF4_K>;

template <ggml_type type>
void bof4_repacked<type>::repack_group(const void * rows, int64_t n_rows, int64_t n, void * group) {
    const auto * blocks = static_cast<const typename parts<type>::block *>(rows);
    const int64_t n_blocks = n / bof4_layout<type>::BLOCK;
    auto * pairs = static_cast<pair *>(group);
    if (n_rows < BOF4_GROUP || n_blocks % 2) {
        memset(group, 0, group_bytes(n));
    }
    // block by block: the 16 rows are read as 16 sequential streams, and the group is written as one
    for (int64_t b = 0; b < n_blocks; ++b) {
        for (int64_t r = 0; r < n_rows; ++r) {
            parts<type>::each(blocks[r * n_blocks + b], pairs[b / 2].head[b % 2], pairs[b / 2].codes[b % 2], r,
                [](const void * row, void * place, size_t width) { memcpy(place, row, width); });
        }
    }
}

template <ggml_type type>
void bof4_repacked<type>::unpack_group(const void * group, int64_t n_rows, int64_t n, void * rows) {
    auto * blocks = static_cast<typename parts<type>::block *>(rows);
    const int64_t n_blocks = n / bof4_layout<type>::BLOCK;
    const auto * pairs = static_cast<const pair *>(group);
    for (int64_t r = 0; r < n_rows; ++r) {
        for (int64_t b = 0; b < n_blocks; ++b) {
            parts<type>::each(blocks[r * n_blocks + b], bof4_head(pairs, b), bof4_codes(pairs, b), r,
                [](void * row, const void * place, size_t width) { memcpy(row, place, width); });
        }
    }
}

template <ggml_type type>
size_t bof4_repacked<type>::act_row_at(int64_t n, int64_t row, bool) {
    return row * (n / bof4_layout<type>::BLOCK) * sizeof(typename bof4_layout<type>::act);
}

template <ggml_type type>
size_t bof4_repacked<type>::act_bytes(int64_t n, int64_t n_rows, bool use_gemv) {
    return act_row_at(n, n_rows, use_gemv);
}

template <ggml_type type>
void bof4_repacked<type>::quantize_act(const float * x, void * row, int64_t, int64_t from, int64_t to, bool use_gemv) {
    constexpr int block = bof4_layout<type>::BLOCK;
    auto * blocks = static_cast<typename bof4_layout<type>::act *>(row);
    for (int64_t b = from / block; b < to / block; ++b) {
        quantize_block(x + b * block, blocks[b], use_gemv);
    }
}

#define BOF4_INSTANTIATE(NAME, name) template struct bof4_repacked<GGML_TYPE_##NAME>;
BOF4_TYPES_REPACKED(BOF4_INSTANTIATE)
BOF4_INSTANTIATE(Q6_K, q6_k)

#endif
