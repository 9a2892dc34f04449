// BOF4_K products on AVX2. What bof4-gemm-avx2.cpp says of the two ways around the missing instruction holds here.
//
// GEMM has 16-bit weights anyway, and a level times a block scale (127 * 32 at most) is one: scales cost nothing then, and the
// sum of 256 products with activations (less than 2^28) fits 32 bits: one conversion in 256.
//
// GEMV multiplies the 16-bit sums of a block of 16 by its scale as it widens them: vpmaddwd with the scale in both places.
// The offsets of its unsigned levels, -128 * sum(activations), come in with a vpmaddwd of their own.

#include "bof4-gemm-avx2.h"

#ifdef BOF4_GEMM_AVX2

namespace {

enum {
    STEPS = QK_BOF4_K / 8,      // of 64 bytes, 16 rows with 4 codes in low and 4 in high nibbles
    WIDTH = 6,                  // columns that share a pass over the weights
    CHUNK = 2,                  // superblocks that are unpacked at a time
    FEW   = 2,                  // columns; for more of them levels are looked up once
};

struct group {
    const bof4_k_pair * pairs;
    __m256i rows[2];            // masks of those that exist

    group(const void * groups, int64_t g, int64_t n_rows, int64_t n) {
        pairs = reinterpret_cast<const bof4_k_pair *>(static_cast<const char *>(groups) + g * bof4_k_group_bytes(n));
        const int64_t left = n_rows - g * BOF4_GROUP;
        const __m256i count = _mm256_set1_epi32(left >= BOF4_GROUP ? BOF4_GROUP : (int) left);
        rows[0] = _mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        rows[1] = _mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15));
    }
};

// Of eight rows, in float32.
inline __m256 scale_of(const bof4_k_head & head, int r) {
    const __m128i d = _mm_loadu_si128((const __m128i *) (head.d + 8 * r));
    return _mm256_mul_ps(_mm256_cvtph_ps(d), _mm256_set1_ps(BOF4_K_UNIT));
}

// Scale of block j of eight rows, twice in each 32-bit lane.
struct block_scales {
    alignas(32) int8_t s[BOF4_K_SUB_BLOCKS][BOF4_GROUP];

    explicit block_scales(const bof4_k_head & head) {
        const __m256i bias = _mm256_set1_epi8(32);
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
            // blocks 4k to 4k + 3, two in each register
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half) {
                const __m256i low = load(head.scales[k % 2 * 4 + 2 * half]);
                const __m256i high = load(head.scales[8 + 2 * half]);
                const __m256i low4 = _mm256_and_si256(_mm256_srli_epi16(low, k / 2 * 4), _mm256_set1_epi8(0x0f));
                const __m256i high2 = _mm256_and_si256(
                    k < 2 ? _mm256_slli_epi16(high, 4 - 2 * k) : _mm256_srli_epi16(high, 2 * k - 4), _mm256_set1_epi8(0x30));
                _mm256_store_si256((__m256i *) s[4 * k + 2 * half], _mm256_sub_epi8(_mm256_or_si256(low4, high2), bias));
            }
        }
    }

    __m256i of(int j, int r) const {
        const __m128i eight = _mm_loadl_epi64((const __m128i *) (s[j] + 8 * r));
        return _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(eight, eight));
    }
};

// The 16 levels plus `offset`, for vpshufb.
inline __m256i table(int offset) {
    const int8_t levels[16] = BOF4_K_LEVELS;
    const __m128i t = _mm_add_epi8(_mm_loadu_si128((const __m128i *) levels), _mm_set1_epi8((char) offset));
    return _mm256_broadcastsi128_si256(t);
}

// Block of the low nibbles of step i; that of the high ones is four later.
constexpr int block_of(int i) {
    return i / 16 * 8 + i % 16 / 4;
}

// T columns, one group of rows.
template <int T>
void gemv(const group & w, int64_t n_blocks, const bof4_k_act * const * x, const float * plus, float * const * y) {
    const __m256i levels = table(128);
    __m256 sum[2][T];
    for (int t = 0; t < T; ++t) {
        sum[0][t] = sum[1][t] = _mm256_setzero_ps();
    }
    for (int64_t b = 0; b < n_blocks; ++b) {
        const bof4_k_head & head = *bof4_k_head_of(w.pairs, b);
        const block_scales scales(head);
        for (int r = 0; r < 2; ++r) {
            const uint8_t * qs = bof4_k_codes(w.pairs, b) + r * 32;
            __m256i total[T][2];    // of high, of low parts of activations
            for (int t = 0; t < T; ++t) {
                total[t][0] = total[t][1] = _mm256_setzero_si256();
            }
            for (int i0 = 0; i0 < STEPS; i0 += 4) {
                const int j = block_of(i0);
                __m256i dot[2][T][2]; // [nibble][column][high, low part of activations]
                for (int t = 0; t < T; ++t) {
                    for (int h = 0; h < 2; ++h) {
                        dot[h][t][0] = dot[h][t][1] = _mm256_setzero_si256();
                    }
                }
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i) {
                    const __m256i codes = load(qs + (i0 + i) * 64);
                    const __m256i level[2] = { low(codes, levels), high(codes, levels) };
                    for (int h = 0; h < 2; ++h) {
                        for (int t = 0; t < T; ++t) {
                            const auto & half = x[t][b].u.half;
                            const int at = BOF4_K_SUB_BLOCK * (j + 4 * h) + 4 * i;
                            dot[h][t][0] = _mm256_add_epi16(dot[h][t][0],
                                _mm256_maddubs_epi16(level[h], broadcast4(half.high + at)));
                            dot[h][t][1] = _mm256_add_epi16(dot[h][t][1],
                                _mm256_maddubs_epi16(level[h], broadcast4(half.low + at)));
                            keep_order(dot[h][t][0]);
                            keep_order(dot[h][t][1]);
                        }
                    }
                }
                for (int h = 0; h < 2; ++h) {
                    const __m256i s = scales.of(j + 4 * h, r);
                    for (int t = 0; t < T; ++t) {
                        // the offset, -2^7 * sum, as 2^4 * (-2^3 * sum): the sum of 16 numbers fits 12 bits
                        const __m256i offset = _mm256_set1_epi32(x[t][b].offset[j + 4 * h] / 16 & 0xffff);
                        total[t][0] = _mm256_add_epi32(total[t][0], _mm256_add_epi32(
                            _mm256_madd_epi16(dot[h][t][0], s), _mm256_madd_epi16(offset, s)));
                        total[t][1] = _mm256_add_epi32(total[t][1], _mm256_madd_epi16(dot[h][t][1], s));
                    }
                }
            }
            const __m256 d = scale_of(head, r);
            for (int t = 0; t < T; ++t) {
                const __m256i all = _mm256_add_epi32(_mm256_slli_epi32(total[t][0], 4), total[t][1]);
                sum[r][t] = _mm256_fmadd_ps(
                    _mm256_cvtepi32_ps(all), _mm256_mul_ps(d, _mm256_set1_ps(x[t][b].d)), sum[r][t]);
            }
        }
    }
    for (int t = 0; t < T; ++t) {
        for (int r = 0; r < 2; ++r) {
            _mm256_maskstore_ps(y[t] + 8 * r, w.rows[r], add(sum[r][t], plus, t, r));
        }
    }
}

// CHUNK superblocks of a group as 16-bit products of level and block scale: of four neighbouring weights of a row, the first
// and third, then the others.
struct unpacked {
    alignas(64) int16_t weights[CHUNK][BOF4_K_SUB_BLOCKS][4][2][2][16];   // [superblock][block][step][pair][eight rows]
    alignas(64) float d[CHUNK][2][8];

    void fill(const group & w, int64_t b0, int64_t n) {
        const __m256i levels = table(0);
        for (int64_t b = 0; b < n; ++b) {
            const block_scales scales(*bof4_k_head_of(w.pairs, b0 + b));
            for (int r = 0; r < 2; ++r) {
                for (int i = 0; i < STEPS; ++i) {
                    const __m256i codes = load(bof4_k_codes(w.pairs, b0 + b) + i * 64 + r * 32);
                    const __m256i level[2] = { low(codes, levels), high(codes, levels) };
                    for (int h = 0; h < 2; ++h) {
                        const int j = block_of(i) + 4 * h;
                        const __m256i s = scales.of(j, r);
                        _mm256_store_si256((__m256i *) weights[b][j][i % 4][0][r],
                            _mm256_mullo_epi16(_mm256_srai_epi16(_mm256_slli_epi16(level[h], 8), 8), s));
                        _mm256_store_si256((__m256i *) weights[b][j][i % 4][1][r],
                            _mm256_mullo_epi16(_mm256_srai_epi16(level[h], 8), s));
                    }
                }
                _mm256_store_ps(d[b][r], scale_of(*bof4_k_head_of(w.pairs, b0 + b), r));
            }
        }
    }
};

// n superblocks of a group times T columns, added to y (or written there, for the first ones of a row), and `plus`.
template <int T>
void tile(const unpacked & w, const __m256i * rows, int64_t n, const bof4_k_act * const * columns, int64_t b0,
          const float * plus, float * const * y) {
    const bof4_k_act * x[T];
    alignas(32) float sum[T][2][8];
    for (int t = 0; t < T; ++t) {
        x[t] = columns[t] + b0;
        for (int r = 0; r < 2; ++r) {
            _mm256_store_ps(sum[t][r], b0 == 0 ? _mm256_setzero_ps() : _mm256_maskload_ps(y[t] + r * 8, rows[r]));
        }
    }
    for (int64_t b = 0; b < n; ++b) {
        __m256i dot[T][2];
        for (int t = 0; t < T; ++t) {
            dot[t][0] = dot[t][1] = _mm256_setzero_si256();
        }
        for (int j = 0; j < BOF4_K_SUB_BLOCKS; ++j) {
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 2
                for (int p = 0; p < 2; ++p) {
                    for (int t = 0; t < T; ++t) {
                        const __m256i act = broadcast4(x[t][b].u.q + BOF4_K_SUB_BLOCK * j + 4 * i + 2 * p);
                        for (int r = 0; r < 2; ++r) {
                            const __m256i weight = _mm256_load_si256((const __m256i *) w.weights[b][j][i][p][r]);
                            dot[t][r] = _mm256_add_epi32(dot[t][r], _mm256_madd_epi16(weight, act));
                            keep_order(dot[t][r]);
                        }
                    }
                }
            }
        }
        for (int t = 0; t < T; ++t) {
            for (int r = 0; r < 2; ++r) {
                const __m256 d = _mm256_mul_ps(_mm256_load_ps(w.d[b][r]), _mm256_set1_ps(x[t][b].d));
                _mm256_store_ps(sum[t][r], _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[t][r]), d, _mm256_load_ps(sum[t][r])));
            }
        }
    }
    for (int t = 0; t < T; ++t) {
        for (int r = 0; r < 2; ++r) {
            _mm256_maskstore_ps(y[t] + r * 8, rows[r], add(_mm256_load_ps(sum[t][r]), plus, t, r));
        }
    }
}

} // namespace

bool bof4_k_few(int64_t n_columns) {
    return n_columns <= FEW;
}

void bof4_k_gemm(const void * groups, int64_t n_rows, int64_t n, const bof4_k_act * const * x, const float * plus,
                 float * const * columns, int64_t n_columns, bool few) {
    const int64_t n_blocks = n / QK_BOF4_K;
    // as many columns in each tile, or one less
    const int64_t n_tiles = (n_columns + WIDTH - 1) / WIDTH;
    unpacked memory;
    for (int64_t b0 = 0; b0 < n_blocks; b0 += few ? n_blocks : (int64_t) CHUNK) {
        const int64_t n_chunk = b0 + CHUNK < n_blocks ? (int64_t) CHUNK : n_blocks - b0;
        for (int64_t g = 0; g * BOF4_GROUP < n_rows; ++g) {
            const group w(groups, g, n_rows, n);
            if (!few) {
                memory.fill(w, b0, n_chunk);
            }
            for (int64_t i = 0; i < n_tiles; ++i) {
                const int64_t c = i * n_columns / n_tiles;
                const int width = (int) ((i + 1) * n_columns / n_tiles - c);
                const bool last = few || b0 + n_chunk == n_blocks;
                const float * from = plus && last ? plus + (g * n_columns + c) * BOF4_GROUP : nullptr;
                float * y[WIDTH];
                for (int t = 0; t < width; ++t) {
                    y[t] = columns[c + t] + g * BOF4_GROUP;
                }
                if (few) {
                    width == 1 ? gemv<1>(w, n_blocks, x + c, from, y) : gemv<2>(w, n_blocks, x + c, from, y);
                    continue;
                }
                switch (width) {
                    case 6: tile<6>(memory, w.rows, n_chunk, x + c, b0, from, y); break;
                    case 5: tile<5>(memory, w.rows, n_chunk, x + c, b0, from, y); break;
                    case 4: tile<4>(memory, w.rows, n_chunk, x + c, b0, from, y); break;
                    case 3: tile<3>(memory, w.rows, n_chunk, x + c, b0, from, y); break;
                    case 2: tile<2>(memory, w.rows, n_chunk, x + c, b0, from, y); break;
                    case 1: tile<1>(memory, w.rows, n_chunk, x + c, b0, from, y); break;
                }
            }
        }
    }
}

#endif
