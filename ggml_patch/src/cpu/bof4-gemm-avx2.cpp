// BOF4_S products on AVX2, without an instruction for dot products of bytes.
//
// vpmaddubsw, the nearest to one, adds two products of an unsigned and a signed byte and saturates at 16 bits, which two
// products of a level and a Q8_0 activation exceed. Two ways around it, of four instructions for 32 products both:
//
// GEMM widens levels and activations to 16 bits, once for all that they meet: vpmaddwd and vpaddd for 16 products, nothing
// else in the loop. 16 rows of 512 weights are 16 KiB, which stay in the nearest cache while all columns come by. Two registers
// of weights (16 rows) meet WIDTH columns in 2 * WIDTH accumulators.
//
// GEMV has to look levels up as it goes, and does better with bytes: the activation is 16 * high + low, |high| and |low| at
// most 8, so that the sums of a whole Q8_0 block (16 products of level + 128) fit 16 bits: vpmaddubsw and vpaddw for each
// part, the widening to 32 bits once a block. The accumulators of low and high nibbles, of high and low parts, are four.

#include "bof4-gemm-avx2.h"

#ifdef BOF4_GEMM_AVX2

namespace {

enum {
    STEPS = QK_BOF4_S / 8,      // of 64 bytes, 16 rows with 4 codes in low and 4 in high nibbles
    WIDTH = 6,                  // columns that share a pass over the weights
    CHUNK = 8,                  // blocks that are unpacked at a time
    FEW   = 2,                  // columns; for more of them levels are looked up once
};

struct group {
    const bof4_s_pair * pairs;
    __m256i rows[2];            // masks of those that exist

    group(const void * groups, int64_t g, int64_t n_rows, int64_t n) {
        pairs = reinterpret_cast<const bof4_s_pair *>(static_cast<const char *>(groups) + g * bof4_s_group_bytes(n));
        const int64_t left = n_rows - g * BOF4_GROUP;
        const __m256i count = _mm256_set1_epi32(left >= BOF4_GROUP ? BOF4_GROUP : (int) left);
        rows[0] = _mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        rows[1] = _mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15));
    }
};

inline __m256 scales(const uint16_t * d) {
    return _mm256_mul_ps(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) d)), _mm256_set1_ps(1.0f / BOF4_LEVEL_SCALE));
}

// The 16 levels plus `offset`, for vpshufb.
inline __m256i table(int offset) {
    const int8_t levels[16] = BOF4_S_LEVELS;
    const __m128i t = _mm_add_epi8(_mm_loadu_si128((const __m128i *) levels), _mm_set1_epi8((char) offset));
    return _mm256_broadcastsi128_si256(t);
}

// T columns, one group of rows.
template <int T>
void gemv(const group & w, int64_t n_blocks, const bof4_s_act * const * x, const float * plus, float * const * y) {
    const __m256i levels = table(128);
    __m256 sum[2][T];
    for (int t = 0; t < T; ++t) {
        sum[0][t] = sum[1][t] = _mm256_setzero_ps();
    }
    for (int64_t b = 0; b < n_blocks; ++b) {
#pragma GCC unroll 2
        for (int r = 0; r < 2; ++r) {
            const uint8_t * qs = bof4_s_codes(w.pairs, b) + r * 32;
            __m256i dot[2][T][2]; // [half of the block][column][high, low part of activations]
            for (int t = 0; t < T; ++t) {
                for (int h = 0; h < 2; ++h) {
                    dot[h][t][0] = dot[h][t][1] = _mm256_setzero_si256();
                }
            }
#pragma GCC unroll 8
            for (int i = 0; i < STEPS; ++i) {
                const __m256i codes = load(qs + i * 64);
                const __m256i level[2] = { low(codes, levels), high(codes, levels) };
                for (int h = 0; h < 2; ++h) {
                    for (int t = 0; t < T; ++t) {
                        const auto & half = x[t][b].u.half;
                        dot[h][t][0] = _mm256_add_epi16(dot[h][t][0],
                            _mm256_maddubs_epi16(level[h], broadcast4(half.high + 32 * h + 4 * i)));
                        dot[h][t][1] = _mm256_add_epi16(dot[h][t][1],
                            _mm256_maddubs_epi16(level[h], broadcast4(half.low + 32 * h + 4 * i)));
                        keep_order(dot[h][t][0]);
                        keep_order(dot[h][t][1]);
                    }
                }
            }
            const __m256 d = scales(bof4_s_scales(w.pairs, b) + 8 * r);
            for (int t = 0; t < T; ++t) {
                __m256 part = _mm256_setzero_ps();
                for (int h = 0; h < 2; ++h) {
                    const __m256i total = _mm256_add_epi32(
                        _mm256_add_epi32(
                            _mm256_madd_epi16(dot[h][t][0], _mm256_set1_epi16(16)),
                            _mm256_madd_epi16(dot[h][t][1], _mm256_set1_epi16(1))),
                        _mm256_set1_epi32(x[t][b].offset[h]));
                    part = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), _mm256_set1_ps(x[t][b].d[h]), part);
                }
                sum[r][t] = _mm256_fmadd_ps(part, d, sum[r][t]);
            }
        }
    }
    for (int t = 0; t < T; ++t) {
        for (int r = 0; r < 2; ++r) {
            _mm256_maskstore_ps(y[t] + 8 * r, w.rows[r], add(sum[r][t], plus, t, r));
        }
    }
}

// CHUNK blocks of a group as 16-bit levels: of four neighbouring weights of a row, the first and third, then the others.
struct unpacked {
    alignas(64) int16_t levels[CHUNK][2][STEPS][2][2][16];    // [block][half][step][pair][eight rows]
    alignas(64) float d[CHUNK][2][8];

    void fill(const group & w, int64_t b0, int64_t n) {
        const __m256i levels8 = table(0);
        for (int64_t b = 0; b < n; ++b) {
            for (int i = 0; i < STEPS; ++i) {
                for (int r = 0; r < 2; ++r) {
                    const __m256i codes = load(bof4_s_codes(w.pairs, b0 + b) + i * 64 + r * 32);
                    const __m256i level[2] = { low(codes, levels8), high(codes, levels8) };
                    for (int h = 0; h < 2; ++h) {
                        _mm256_store_si256((__m256i *) levels[b][h][i][0][r],
                            _mm256_srai_epi16(_mm256_slli_epi16(level[h], 8), 8));
                        _mm256_store_si256((__m256i *) levels[b][h][i][1][r], _mm256_srai_epi16(level[h], 8));
                    }
                }
            }
            for (int r = 0; r < 2; ++r) {
                _mm256_store_ps(d[b][r], scales(bof4_s_scales(w.pairs, b0 + b) + 8 * r));
            }
        }
    }
};

// n blocks of a group times T columns, added to y (or written there, for the first blocks of a row), and `plus`.
template <int T>
void tile(const unpacked & w, const __m256i * rows, int64_t n, const bof4_s_act * const * columns, int64_t b0,
          const float * plus, float * const * y) {
    const bof4_s_act * x[T];
    alignas(32) float sum[T][2][8];
    for (int t = 0; t < T; ++t) {
        x[t] = columns[t] + b0;
        for (int r = 0; r < 2; ++r) {
            _mm256_store_ps(sum[t][r], b0 == 0 ? _mm256_setzero_ps() : _mm256_maskload_ps(y[t] + r * 8, rows[r]));
        }
    }
    for (int64_t b = 0; b < n; ++b) {
        __m256 part[T][2];
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
            __m256i dot[T][2];
            for (int t = 0; t < T; ++t) {
                dot[t][0] = dot[t][1] = _mm256_setzero_si256();
            }
#pragma GCC unroll 8
            for (int i = 0; i < STEPS; ++i) {
#pragma GCC unroll 2
                for (int p = 0; p < 2; ++p) {
                    for (int t = 0; t < T; ++t) {
                        const __m256i act = broadcast4(x[t][b].u.q + h * 32 + 4 * i + 2 * p);
                        for (int r = 0; r < 2; ++r) {
                            const __m256i level = _mm256_load_si256((const __m256i *) w.levels[b][h][i][p][r]);
                            dot[t][r] = _mm256_add_epi32(dot[t][r], _mm256_madd_epi16(level, act));
                            keep_order(dot[t][r]);
                        }
                    }
                }
            }
            for (int t = 0; t < T; ++t) {
                const __m256 d = _mm256_set1_ps(x[t][b].d[h]);
                for (int r = 0; r < 2; ++r) {
                    const __m256 v = _mm256_cvtepi32_ps(dot[t][r]);
                    part[t][r] = h == 0 ? _mm256_mul_ps(v, d) : _mm256_fmadd_ps(v, d, part[t][r]);
                }
            }
        }
        for (int r = 0; r < 2; ++r) {
            const __m256 d = _mm256_load_ps(w.d[b][r]);
            for (int t = 0; t < T; ++t) {
                _mm256_store_ps(sum[t][r], _mm256_fmadd_ps(part[t][r], d, _mm256_load_ps(sum[t][r])));
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

bool bof4_s_few(int64_t n_columns) {
    return n_columns <= FEW;
}

void bof4_s_gemm(const void * groups, int64_t n_rows, int64_t n, const bof4_s_act * const * x, const float * plus,
                 float * const * columns, int64_t n_columns, bool few) {
    const int64_t n_blocks = n / QK_BOF4_S;
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
