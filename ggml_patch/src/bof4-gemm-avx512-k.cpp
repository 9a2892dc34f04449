// BOF4_K products on AVX-512 VNNI. What bof4-gemm-avx512.cpp says of vpdpbusd and of the two ways through the weights holds here.
//
// Every 16 weights have a scale of their own: four vpdpbusd are followed by a conversion and a fused multiply-add, for which
// unpacking makes floats of d times block scale. That is six instructions where the dot product needs four, and still less
// than to multiply the scales into 16-bit weights (eight). The activations' scale comes in once in 256.

#include "bof4-gemm.h"

#ifdef BOF4_GEMM_AVX512

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of its own _mm512_undefined_ps
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include <cstring>

namespace {

enum {
    STEPS  = QK_BOF4_K / 8,     // loads of codes in a superblock of 16 rows: 4 weights a row in low, 4 in high nibbles
    WIDTH  = 5,                 // columns that share a pass over the weights; with six, sums leave the registers
    CHUNK  = 2,                 // superblocks that are unpacked at a time
    DIRECT = 15,                // up to so many columns, unpacking to memory does not pay
};

struct group {
    const bof4_k_head * head;
    const uint8_t * qs;
    __mmask16 rows;             // those that exist

    group(const void * groups, int64_t g, int64_t n_rows, int64_t n) {
        const auto * base = static_cast<const uint8_t *>(groups) + g * bof4_k_group_bytes(n);
        head = reinterpret_cast<const bof4_k_head *>(base);
        qs   = base + bof4_k_group_bytes(n) - n / QK_BOF4_K * STEPS * 64;
        const int64_t left = n_rows - g * BOF4_GROUP;
        rows = left >= BOF4_GROUP ? 0xffff : (__mmask16) ((1u << left) - 1);
    }
};

// Codes to level + 128.
struct lookup {
    __m512i table;

    lookup() {
        const int8_t levels[16] = BOF4_K_LEVELS;
        table = _mm512_broadcast_i32x4(
            _mm_xor_si128(_mm_loadu_si128((const __m128i *) levels), _mm_set1_epi8((char) 0x80)));
    }
#ifdef __AVX512VBMI__
    // vpermb takes six bits of an index: with the table four times over, the two that belong to the other nibble do no harm
    __m512i low(__m512i codes) const {
        return _mm512_permutexvar_epi8(codes, table);
    }
    __m512i high(__m512i codes) const {
        return _mm512_permutexvar_epi8(_mm512_srli_epi16(codes, 4), table);
    }
#else
    __m512i low(__m512i codes) const {
        return _mm512_shuffle_epi8(table, _mm512_and_si512(codes, _mm512_set1_epi8(0x0f)));
    }
    __m512i high(__m512i codes) const {
        return low(_mm512_srli_epi16(codes, 4));
    }
#endif
};

inline __m512i broadcast4(const int8_t * q) {
    int32_t four;
    memcpy(&four, q, sizeof(four));
    return _mm512_set1_epi32(four);
}

// The 16 block scales of 16 rows, times d * 2^-12: scale[j * stride] belongs to block j.
inline void scales(const bof4_k_head & head, float (* scale)[16], int stride) {
    const __m512 d = _mm512_mul_ps(
        _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) head.d)), _mm512_set1_ps(BOF4_K_UNIT));
    const __m512i low[2] = { _mm512_loadu_si512(head.scales[0]), _mm512_loadu_si512(head.scales[4]) };
    const __m512i high = _mm512_loadu_si512(head.scales[8]);
    // blocks 4k to 4k + 3 of all rows in the quarters of a register
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
        const __m512i low4 = _mm512_and_si512(_mm512_srli_epi16(low[k % 2], k / 2 * 4), _mm512_set1_epi8(0x0f));
        const __m512i high2 = _mm512_and_si512(
            k < 2 ? _mm512_slli_epi16(high, 4 - 2 * k) : _mm512_srli_epi16(high, 2 * k - 4), _mm512_set1_epi8(0x30));
        const __m512i s = _mm512_sub_epi8(_mm512_or_si512(low4, high2), _mm512_set1_epi8(32));
#define SCALE(i) _mm512_store_ps(scale[(4 * k + i) * stride], \
            _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32(s, i)))))
        SCALE(0);
        SCALE(1);
        SCALE(2);
        SCALE(3);
#undef SCALE
    }
}

// Block of the low nibbles of step i; that of the high ones is four later.
constexpr int block_of(int i) {
    return i / 16 * 8 + i % 16 / 4;
}

// T columns, one group of rows.
template <int T>
void gemv(const group & w, int64_t n_blocks, const bof4_k_act * const * x, float * const * y) {
    const lookup level;
    __m512 sum[T];
    for (int t = 0; t < T; ++t) {
        sum[t] = _mm512_setzero_ps();
    }
    for (int64_t b = 0; b < n_blocks; ++b) {
        const uint8_t * qs = w.qs + b * STEPS * 64;
        alignas(64) float scale[BOF4_K_SUBS][16];
        scales(w.head[b], scale, 1);
        __m512 part[T];
        for (int t = 0; t < T; ++t) {
            part[t] = _mm512_setzero_ps();
        }
        for (int i0 = 0; i0 < STEPS; i0 += 4) {
            const int j = block_of(i0);
            const int at = BOF4_K_SUB * j;
            __m512i dot0[T], dot1[T];
            for (int t = 0; t < T; ++t) {
                dot0[t] = _mm512_set1_epi32(x[t][b].offset[j]);
                dot1[t] = _mm512_set1_epi32(x[t][b].offset[j + 4]);
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                const __m512i codes = _mm512_loadu_si512(qs + (i0 + i) * 64);
                const __m512i lo = level.low(codes);
                const __m512i hi = level.high(codes);
                for (int t = 0; t < T; ++t) {
                    dot0[t] = _mm512_dpbusd_epi32(dot0[t], lo, broadcast4(x[t][b].q + at + 4 * i));
                    dot1[t] = _mm512_dpbusd_epi32(dot1[t], hi, broadcast4(x[t][b].q + at + 64 + 4 * i));
                }
            }
            for (int t = 0; t < T; ++t) {
                part[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot0[t]), _mm512_load_ps(scale[j]), part[t]);
                part[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot1[t]), _mm512_load_ps(scale[j + 4]), part[t]);
            }
        }
        for (int t = 0; t < T; ++t) {
            sum[t] = _mm512_fmadd_ps(part[t], _mm512_set1_ps(x[t][b].d), sum[t]);
        }
    }
    for (int t = 0; t < T; ++t) {
        _mm512_mask_storeu_ps(y[t], w.rows, sum[t]);
    }
}

// CHUNK superblocks of R groups as bytes: level + 128 of four weights a row, block by block.
template <int R>
struct unpacked {
    alignas(64) uint8_t levels[CHUNK][BOF4_K_SUBS][4][R][64];
    alignas(64) float scale[CHUNK][BOF4_K_SUBS][R][16];

    void fill(const group * w, int64_t b0, int64_t n) {
        const lookup level;
        for (int r = 0; r < R; ++r) {
            for (int64_t b = 0; b < n; ++b) {
                for (int i = 0; i < STEPS; ++i) {
                    const __m512i codes = _mm512_loadu_si512(w[r].qs + ((b0 + b) * STEPS + i) * 64);
                    _mm512_store_si512(levels[b][block_of(i)][i % 4][r], level.low(codes));
                    _mm512_store_si512(levels[b][block_of(i) + 4][i % 4][r], level.high(codes));
                }
                scales(w[r].head[b0 + b], scale[b][0] + r, R);
            }
        }
    }
};

// n superblocks of R groups times T columns, added to y (or written there, for the first ones of a row).
template <int R, int T>
void tile(const unpacked<R> & w, const __mmask16 * rows, int64_t n, const bof4_k_act * const * columns, int64_t b0,
          float * const * y, bool first) {
    const bof4_k_act * x[T];
    alignas(64) float sum[T][R][16];
    for (int t = 0; t < T; ++t) {
        x[t] = columns[t] + b0;
        for (int r = 0; r < R; ++r) {
            _mm512_store_ps(sum[t][r], first ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(rows[r], y[t] + r * 16));
        }
    }
    for (int64_t b = 0; b < n; ++b) {
        __m512 part[T][R];
        for (int t = 0; t < T; ++t) {
            for (int r = 0; r < R; ++r) {
                part[t][r] = _mm512_setzero_ps();
            }
        }
        for (int j = 0; j < BOF4_K_SUBS; ++j) {
            __m512i dot[T][R];
            for (int t = 0; t < T; ++t) {
                for (int r = 0; r < R; ++r) {
                    dot[t][r] = _mm512_set1_epi32(x[t][b].offset[j]);
                }
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                for (int t = 0; t < T; ++t) {
                    const __m512i act = broadcast4(x[t][b].q + BOF4_K_SUB * j + 4 * i);
                    for (int r = 0; r < R; ++r) {
                        dot[t][r] = _mm512_dpbusd_epi32(dot[t][r], _mm512_load_si512(w.levels[b][j][i][r]), act);
                    }
                }
            }
            for (int r = 0; r < R; ++r) {
                const __m512 scale = _mm512_load_ps(w.scale[b][j][r]);
                for (int t = 0; t < T; ++t) {
                    part[t][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t][r]), scale, part[t][r]);
                }
            }
        }
        for (int t = 0; t < T; ++t) {
            const __m512 d = _mm512_set1_ps(x[t][b].d);
            for (int r = 0; r < R; ++r) {
                _mm512_store_ps(sum[t][r], _mm512_fmadd_ps(part[t][r], d, _mm512_load_ps(sum[t][r])));
            }
        }
    }
    for (int t = 0; t < T; ++t) {
        for (int r = 0; r < R; ++r) {
            _mm512_mask_storeu_ps(y[t] + r * 16, rows[r], _mm512_load_ps(sum[t][r]));
        }
    }
}

template <int R>
void tiles(const unpacked<R> & w, const __mmask16 * rows, int64_t n, const bof4_k_act * const * x, int64_t b0,
           float * const * columns, int64_t row0, int64_t n_columns, bool first) {
    // as many columns in each tile, or one less: a last tile of one would cost as much as one of three
    const int64_t n_tiles = (n_columns + WIDTH - 1) / WIDTH;
    for (int64_t i = 0; i < n_tiles; ++i) {
        const int64_t c = i * n_columns / n_tiles;
        float * y[WIDTH];
        const int width = (int) ((i + 1) * n_columns / n_tiles - c);
        for (int t = 0; t < width; ++t) {
            y[t] = columns[c + t] + row0;
        }
        switch (width) {
            case 5: tile<R, 5>(w, rows, n, x + c, b0, y, first); break;
            case 4: tile<R, 4>(w, rows, n, x + c, b0, y, first); break;
            case 3: tile<R, 3>(w, rows, n, x + c, b0, y, first); break;
            case 2: tile<R, 2>(w, rows, n, x + c, b0, y, first); break;
            case 1: tile<R, 1>(w, rows, n, x + c, b0, y, first); break;
        }
    }
}

void few_columns(const void * groups, int64_t n_rows, int64_t n, const bof4_k_act * const * x, float * const * columns,
                 int64_t n_columns) {
    const int64_t n_blocks = n / QK_BOF4_K;
    const int64_t n_tiles = (n_columns + WIDTH - 1) / WIDTH;
    for (int64_t g = 0; g * BOF4_GROUP < n_rows; ++g) {
        const group w(groups, g, n_rows, n);
        for (int64_t i = 0; i < n_tiles; ++i) {
            const int64_t c = i * n_columns / n_tiles;
            const int width = (int) ((i + 1) * n_columns / n_tiles - c);
            float * y[WIDTH];
            for (int t = 0; t < width; ++t) {
                y[t] = columns[c + t] + g * BOF4_GROUP;
            }
            switch (width) {
                case 5: gemv<5>(w, n_blocks, x + c, y); break;
                case 4: gemv<4>(w, n_blocks, x + c, y); break;
                case 3: gemv<3>(w, n_blocks, x + c, y); break;
                case 2: gemv<2>(w, n_blocks, x + c, y); break;
                case 1: gemv<1>(w, n_blocks, x + c, y); break;
            }
        }
    }
}

template <int R>
void many_columns(const void * groups, int64_t g, int64_t n_rows, int64_t n, const bof4_k_act * const * x, float * const * y,
                  int64_t n_columns, int64_t b0, unpacked<R> & memory) {
    const int64_t n_chunk = b0 + CHUNK < n / QK_BOF4_K ? (int64_t) CHUNK : n / QK_BOF4_K - b0;
    group w[2] = { group(groups, g, n_rows, n), group(groups, g + R - 1, n_rows, n) };
    const __mmask16 rows[2] = { w[0].rows, w[1].rows };
    memory.fill(w, b0, n_chunk);
    tiles<R>(memory, rows, n_chunk, x, b0, y, g * BOF4_GROUP, n_columns, b0 == 0);
}

} // namespace

bool bof4_k_few(int64_t n_columns) {
    return n_columns <= DIRECT;
}

// The activations have one form here, whatever the number of columns.
void bof4_k_gemm(const void * groups, int64_t n_rows, int64_t n, const bof4_k_act * const * x, float * const * y,
                 int64_t n_columns, bool) {
    if (bof4_k_few(n_columns)) {
        few_columns(groups, n_rows, n, x, y, n_columns);
        return;
    }
    const int64_t n_groups = (n_rows + BOF4_GROUP - 1) / BOF4_GROUP;
    unpacked<2> memory;
    for (int64_t b0 = 0; b0 < n / QK_BOF4_K; b0 += CHUNK) {
        int64_t g = 0;
        for (; g + 2 <= n_groups; g += 2) {
            many_columns<2>(groups, g, n_rows, n, x, y, n_columns, b0, memory);
        }
        if (g < n_groups) {
            unpacked<1> half;
            many_columns<1>(groups, g, n_rows, n, x, y, n_columns, b0, half);
        }
    }
}

#endif
