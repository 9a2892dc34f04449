// BOF4_K products on AVX-512 VNNI and on AVX-VNNI, and those of upstream's Q6_K, which differ in how numbers and scales of blocks are
// read only. What bof4-gemm-vnni.cpp says of vpdpbusd and of the two ways through the weights holds here.
//
// Every 16 weights have a scale of their own: four vpdpbusd are followed by a conversion and a fused multiply-add, for which
// unpacking makes floats of the block scales. That is six instructions where the dot product needs four, and still less
// than to multiply the scales into 16-bit weights (eight). The numbers remain integers all the same: a block times its scale is
// below 2^23, and the sum of sixteen is exact below 2^24, where the products of models end at 2^20. (Beyond, it is rounded as
// any float.) The superblock's and the activations' scales come in once in 256.

#include "bof4-repack-layout.h"

#ifdef BOF4_GEMM_VNNI

#include "bof4-gemm-vnni.h"

namespace {

enum {
    STEPS  = QK_BOF4_K / 8,     // loads of codes in a superblock of 16 rows: 4 weights a row in low, 4 in high nibbles
    CHUNK  = 2,                 // superblocks that are unpacked at a time
#ifdef BOF4_GEMM_AVX512
    GROUPS = 2,                 // of rows and
    WIDTH  = 5,                 // columns that share a pass over unpacked weights; with six, sums leave the registers
    NARROW = 5,                 // columns that share a pass over codes
    DIRECT = 15,                // up to so many columns, unpacking to memory does not pay
#else
    GROUPS = 1,                 // half as many registers, and they are half as wide
    WIDTH  = 3,
    NARROW = 2,
    DIRECT = 2,
#endif
};

const int8_t levels16[16] = BOF4_K_LEVELS;

// How a type is read: the 16 scales of blocks, scale[j * stride] of block j, the scale of the superblock, and numbers + 128.
struct bof4_k {
    using pair = bof4_k_pair;
    using head = bof4_k_head;
    static constexpr auto group_bytes = bof4_k_group_bytes;

    lookup level{levels16};

    // d * 2^-12 of 16 rows.
    static floats scale_of(const head & h) {
        return multiply(from_halves(h.d), all_lanes(BOF4_K_UNIT));
    }

    static void block_scales(const head & h, float (* scale)[16], int stride) {
#pragma GCC unroll 16
        for (int j = 0; j < BOF4_K_SUB_BLOCKS; ++j) {
            const __m128i low = _mm_loadu_si128((const __m128i *) h.scales[j % 8]);
            const __m128i high = _mm_loadu_si128((const __m128i *) h.scales[8 + j % 4]);
            const __m128i low4 = _mm_and_si128(j < 8 ? low : _mm_srli_epi16(low, 4), _mm_set1_epi8(0x0f));
            const __m128i high2 = _mm_and_si128(
                j < 8 ? _mm_slli_epi16(high, 4 - j / 4 * 2) : _mm_srli_epi16(high, j / 4 * 2 - 4), _mm_set1_epi8(0x30));
            const __m128i s = _mm_sub_epi8(_mm_or_si128(low4, high2), _mm_set1_epi8(32));
            store(scale[j * stride], from_bytes(s));
        }
    }

    static constexpr int step_at(int i) {
        return i;
    }

    // Four weights a row of each of two blocks.
    void step(const pair * pairs, int64_t b, int i, bytes & lo, bytes & hi) const {
        const bytes codes = load_bytes(pairs[(size_t) b / 2].qs[b & 1][i]);
        lo = level.low(codes);
        hi = level.high(codes);
    }
};

struct q6 {
    using pair = bof4_q6_pair;
    using head = bof4_q6_head;
    static constexpr auto group_bytes = bof4_q6_group_bytes;

    six_bits level{96};     // 32 is zero

    static floats scale_of(const head & h) {
        return from_halves(h.d);
    }

    static void block_scales(const head & h, float (* scale)[16], int stride) {
        for (int j = 0; j < BOF4_K_SUB_BLOCKS; ++j) {
            store(scale[j * stride], from_bytes(_mm_loadu_si128((const __m128i *) h.scales[j])));
        }
    }

    // Steps in the order in which they lie in memory.
    static constexpr int step_at(int i) {
        return (i & ~12) | (i & 4) << 1 | (i & 8) >> 1;
    }

    static const bof4_q6_pair::bof4_q6_steps & steps(const pair * pairs, int64_t b, int i) {
        return pairs[(size_t) b / 2].codes[b & 1][i / 16 * 2 + i % 8 / 4];
    }

    void step(const pair * pairs, int64_t b, int i, bytes & lo, bytes & hi) const {
        const bool second = i % 16 >= 8;
        const bytes two = load_bytes(steps(pairs, b, i).qh[i % 4]);
        const bytes four = load_bytes(steps(pairs, b, i).ql[second][i % 4]);
        lo = level.join(four, second ? shift_left<2>(two) : shift_left<4>(two));
        hi = level.join(shift_right<4>(four), second ? shift_right<2>(two) : two);
    }
};

template <typename type>
struct group {
    const typename type::pair * pairs;
    mask rows;                  // those that exist

    group(const void * groups, int64_t g, int64_t n_rows, int64_t n) {
        pairs = reinterpret_cast<const typename type::pair *>(static_cast<const char *>(groups) + g * type::group_bytes(n));
        rows = first_lanes(n_rows - g * BOF4_GROUP);
    }

    const typename type::head & head(int64_t b) const {
        return pairs[(size_t) b / 2].head[b & 1];
    }
};

// Block of the low nibbles of step i; that of the high ones is four later.
constexpr int block_of(int i) {
    return i / 16 * 8 + i % 16 / 4;
}

// T columns, one group of rows.
template <typename type, int T>
void gemv(const group<type> & w, int64_t n_blocks, const bof4_k_act * const * x, const float * plus, float * const * y) {
    const type read;
    floats sum[T];
    for (int t = 0; t < T; ++t) {
        sum[t] = all_lanes(0.0f);
    }
    for (int64_t b = 0; b < n_blocks; ++b) {
        const auto & head = w.head(b);
        alignas(64) float scale[BOF4_K_SUB_BLOCKS][16];
        type::block_scales(head, scale, 1);
        floats part[T];
        for (int t = 0; t < T; ++t) {
            part[t] = all_lanes(0.0f);
        }
#pragma GCC unroll 8
        for (int at = 0; at < STEPS; at += 4) {
            const int i0 = type::step_at(at);
            const int j = block_of(i0);
            const int first = BOF4_K_SUB_BLOCK * j;
            ints dot0[T], dot1[T];
            for (int t = 0; t < T; ++t) {
                dot0[t] = all_lanes(x[t][b].offset[j]);
                dot1[t] = all_lanes(x[t][b].offset[j + 4]);
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                bytes lo, hi;
                read.step(w.pairs, b, i0 + i, lo, hi);
                for (int t = 0; t < T; ++t) {
                    dot0[t] = add_dot(dot0[t], lo, broadcast(x[t][b].q + first + 4 * i));
                    dot1[t] = add_dot(dot1[t], hi, broadcast(x[t][b].q + first + 64 + 4 * i));
                }
            }
            for (int t = 0; t < T; ++t) {
                part[t] = multiply_add(to_floats(dot0[t]), load(scale[j]), part[t]);
                part[t] = multiply_add(to_floats(dot1[t]), load(scale[j + 4]), part[t]);
            }
        }
        const floats d = type::scale_of(head);
        for (int t = 0; t < T; ++t) {
            sum[t] = multiply_add(part[t], multiply(d, all_lanes(x[t][b].d)), sum[t]);
        }
    }
    for (int t = 0; t < T; ++t) {
        store(y[t], w.rows, plus ? add(sum[t], load(plus + t * BOF4_GROUP)) : sum[t]);
    }
}

// CHUNK superblocks of R groups as bytes: level + 128 of four weights a row, block by block.
template <typename type, int R>
struct unpacked {
    alignas(64) uint8_t levels[CHUNK][BOF4_K_SUB_BLOCKS][4][R][64];
    alignas(64) float scale[CHUNK][BOF4_K_SUB_BLOCKS][R][16];
    alignas(64) float d[CHUNK][R][16];

    void fill(const group<type> * w, int64_t b0, int64_t n) {
        const type read;
        for (int r = 0; r < R; ++r) {
            for (int64_t b = 0; b < n; ++b) {
                for (int i = 0; i < STEPS; ++i) {
                    bytes lo, hi;
                    read.step(w[r].pairs, b0 + b, i, lo, hi);
                    store_bytes(levels[b][block_of(i)][i % 4][r], lo);
                    store_bytes(levels[b][block_of(i) + 4][i % 4][r], hi);
                }
                type::block_scales(w[r].head(b0 + b), scale[b][0] + r, R);
                store(d[b][r], type::scale_of(w[r].head(b0 + b)));
            }
        }
    }
};

// n superblocks of R groups times T columns, added to y (or written there, for the first ones of a row), and `plus`.
template <typename weights, int R, int T>
void tile(const weights & w, const mask * rows, int64_t n, const bof4_k_act * const * columns, int64_t b0,
          const float * plus, int64_t n_columns, float * const * y) {
    const bof4_k_act * x[T];
    alignas(64) float sum[T][R][16];
    for (int t = 0; t < T; ++t) {
        x[t] = columns[t] + b0;
        for (int r = 0; r < R; ++r) {
            store(sum[t][r], b0 == 0 ? all_lanes(0.0f) : load(y[t] + r * 16, rows[r]));
        }
    }
    for (int64_t b = 0; b < n; ++b) {
        floats part[T][R];
        for (int t = 0; t < T; ++t) {
            for (int r = 0; r < R; ++r) {
                part[t][r] = all_lanes(0.0f);
            }
        }
        for (int j = 0; j < BOF4_K_SUB_BLOCKS; ++j) {
            ints dot[T][R];
            for (int t = 0; t < T; ++t) {
                for (int r = 0; r < R; ++r) {
                    dot[t][r] = all_lanes(x[t][b].offset[j]);
                }
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                bytes level[R];
                for (int r = 0; r < R; ++r) {
                    level[r] = load_bytes(w.levels[b][j][i][r]);
                    in_register(level[r]);
                }
                for (int t = 0; t < T; ++t) {
                    const four act = broadcast(x[t][b].q + BOF4_K_SUB_BLOCK * j + 4 * i);
                    for (int r = 0; r < R; ++r) {
                        dot[t][r] = add_dot(dot[t][r], level[r], act);
                    }
                }
            }
            for (int r = 0; r < R; ++r) {
                const floats scale = load(w.scale[b][j][r]);
                for (int t = 0; t < T; ++t) {
                    part[t][r] = multiply_add(to_floats(dot[t][r]), scale, part[t][r]);
                }
            }
        }
        for (int t = 0; t < T; ++t) {
            for (int r = 0; r < R; ++r) {
                const floats d = multiply(load(w.d[b][r]), all_lanes(x[t][b].d));
                store(sum[t][r], multiply_add(part[t][r], d, load(sum[t][r])));
            }
        }
    }
    for (int t = 0; t < T; ++t) {
        for (int r = 0; r < R; ++r) {
            const floats all = load(sum[t][r]);
            store(y[t] + r * 16, rows[r], plus ? add(all, load(plus + (r * n_columns + t) * BOF4_GROUP)) : all);
        }
    }
}

template <int R, typename weights>
void tiles(const weights & w, const mask * rows, int64_t n, const bof4_k_act * const * x, int64_t b0,
           const float * plus, float * const * columns, int64_t row0, int64_t n_columns) {
    // as many columns in each tile, or one less: a last tile of one would cost as much as one of three
    const int64_t n_tiles = (n_columns + WIDTH - 1) / WIDTH;
    for (int64_t i = 0; i < n_tiles; ++i) {
        const int64_t c = i * n_columns / n_tiles;
        const float * from = plus ? plus + c * BOF4_GROUP : nullptr;
        float * y[WIDTH];
        const int width = (int) ((i + 1) * n_columns / n_tiles - c);
        for (int t = 0; t < width; ++t) {
            y[t] = columns[c + t] + row0;
        }
        switch (width) {
            case 5: tile<weights, R, 5>(w, rows, n, x + c, b0, from, n_columns, y); break;
            case 4: tile<weights, R, 4>(w, rows, n, x + c, b0, from, n_columns, y); break;
            case 3: tile<weights, R, 3>(w, rows, n, x + c, b0, from, n_columns, y); break;
            case 2: tile<weights, R, 2>(w, rows, n, x + c, b0, from, n_columns, y); break;
            case 1: tile<weights, R, 1>(w, rows, n, x + c, b0, from, n_columns, y); break;
        }
    }
}

template <typename type>
void few_columns(const void * groups, int64_t n_rows, int64_t n, const bof4_k_act * const * x, const float * plus,
                 float * const * columns, int64_t n_columns) {
    const int64_t n_blocks = n / QK_BOF4_K;
    const int64_t n_tiles = (n_columns + NARROW - 1) / NARROW;
    for (int64_t g = 0; g * BOF4_GROUP < n_rows; ++g) {
        const group<type> w(groups, g, n_rows, n);
        for (int64_t i = 0; i < n_tiles; ++i) {
            const int64_t c = i * n_columns / n_tiles;
            const int width = (int) ((i + 1) * n_columns / n_tiles - c);
            const float * from = plus ? plus + (g * n_columns + c) * BOF4_GROUP : nullptr;
            float * y[NARROW];
            for (int t = 0; t < width; ++t) {
                y[t] = columns[c + t] + g * BOF4_GROUP;
            }
            switch (width) {
                case 5: gemv<type, 5>(w, n_blocks, x + c, from, y); break;
                case 4: gemv<type, 4>(w, n_blocks, x + c, from, y); break;
                case 3: gemv<type, 3>(w, n_blocks, x + c, from, y); break;
                case 2: gemv<type, 2>(w, n_blocks, x + c, from, y); break;
                case 1: gemv<type, 1>(w, n_blocks, x + c, from, y); break;
            }
        }
    }
}

template <typename type, int R>
void many_columns(const void * groups, int64_t g, int64_t n_rows, int64_t n, const bof4_k_act * const * x,
                  const float * plus, float * const * y, int64_t n_columns, int64_t b0, unpacked<type, R> & memory) {
    const int64_t n_chunk = b0 + CHUNK < n / QK_BOF4_K ? (int64_t) CHUNK : n / QK_BOF4_K - b0;
    group<type> w[2] = { { groups, g, n_rows, n }, { groups, g + R - 1, n_rows, n } };
    const mask rows[2] = { w[0].rows, w[1].rows };
    memory.fill(w, b0, n_chunk);
    const bool last = b0 + n_chunk == n / QK_BOF4_K;
    plus = plus && last ? plus + g * n_columns * BOF4_GROUP : nullptr;
    tiles<R>(memory, rows, n_chunk, x, b0, plus, y, g * BOF4_GROUP, n_columns);
}

template <typename type>
void gemm(const void * groups, int64_t n_rows, int64_t n, const bof4_k_act * const * x, const float * plus,
          float * const * y, int64_t n_columns) {
    if (n_columns <= DIRECT) {
        few_columns<type>(groups, n_rows, n, x, plus, y, n_columns);
        return;
    }
    const int64_t n_groups = (n_rows + BOF4_GROUP - 1) / BOF4_GROUP;
    unpacked<type, GROUPS> memory;
    for (int64_t b0 = 0; b0 < n / QK_BOF4_K; b0 += CHUNK) {
        int64_t g = 0;
        for (; g + GROUPS <= n_groups; g += GROUPS) {
            many_columns<type, GROUPS>(groups, g, n_rows, n, x, plus, y, n_columns, b0, memory);
        }
        if (g < n_groups) {
            unpacked<type, 1> last;
            many_columns<type, 1>(groups, g, n_rows, n, x, plus, y, n_columns, b0, last);
        }
    }
}

} // namespace

// The activations have one form here, whatever the number of columns.

bool bof4_k_few(int64_t n_columns) {
    return n_columns <= DIRECT;
}

void bof4_k_gemm(const void * groups, int64_t n_rows, int64_t n, const bof4_k_act * const * x, const float * plus,
                 float * const * y, int64_t n_columns, bool) {
    gemm<bof4_k>(groups, n_rows, n, x, plus, y, n_columns);
}

bool bof4_q6_few(int64_t n_columns) {
    return n_columns <= DIRECT;
}

void bof4_q6_gemm(const void * groups, int64_t n_rows, int64_t n, const bof4_q6_act * const * x, const float * plus,
                  float * const * y, int64_t n_columns, bool) {
    gemm<q6>(groups, n_rows, n, x, plus, y, n_columns);
}

#endif
