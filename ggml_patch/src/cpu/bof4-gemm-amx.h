// The GEMM path on AMX tiles (bof4-tiles-amx.h), over the vector operations of bof4-gemm-vnni.h.
//
// A tile instruction multiplies 16 columns, 16 rows and 64 weights of int8 (32 of bf16): 16384 products in 16 cycles.
// If scales were applied to every 64 weights, or 16, results would have to leave the tiles each time, which takes
// longer than the products. So weights are multiplied by their scales as they are unpacked, 256 at a time (a span):
//
//   BOF4_K, Q6_K   level * sub-block scale, at most 4096, is 256 * high + low: two int8 matrices, exact. Their products
//                  are added in two tiles over a superblock. Then 256 * high + low becomes a float, is multiplied by
//                  the scales of weights and activations, and is added to the sum of the row, as in the other kernels:
//                  with the same bits, while sums of a superblock are below 2^24
//   BOF4_S         level * scale as bf16, with activations in bf16. Sums are float32 in the tiles. Both are rounded to
//                  8 bits, and products still have a fifth of the (squared) error that activations in int8 have
//
// Two tiles of columns are multiplied at a time. Two groups of 16 rows are unpacked at a time: their 16 KiB stay in L1
// while the activations of all columns come from L2.
#pragma once

#include "bof4-gemm-vnni.h"
#include "bof4-tiles-amx.h"
#ifdef BOF4_GEMM_TWIN
#include "bof4-tiles-portable.h"
#endif

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace {

enum {
    TILE_SPAN = 256,
    TILE_GROUPS = 2, // that are unpacked at a time
};

// Sums of TILE_GROUPS groups and one column.
using group_sums = float[TILE_GROUPS][16];

// n at most 16 * TILE_GROUPS; without a call for all of them.
inline void copy_rows(float * to, const float * from, int64_t n) {
    if (n == 16 * TILE_GROUPS) {
        for (int i = 0; i < TILE_GROUPS; ++i) {
            store_unaligned(to + 16 * i, load_unaligned(from + 16 * i));
        }
    } else {
        memcpy(to, from, n * sizeof(float));
    }
}

// 16 columns of activations: pieces of 1 KiB, one after the other.
using act_tile = const char *;

// A span of 16 rows as tiles: of int8 those with high and low parts alternate, each 64 weights, of bf16 each has 32.
struct unpacked_span {
    alignas(64) uint8_t tiles[8][16][64];
    alignas(64) float scale[16]; // of int8
};

// Stores level * factor / 2^7 of four weights a row, weights i to i + 3 of the span.
inline void store_parts(unpacked_span & to, int i, bytes levels, bytes factor) {
    const bytes even = scale_words(shift_left<8>(levels), factor);
    const bytes odd = scale_words(odd_bytes(levels), factor);
    auto * part = to.tiles + i / 64 * 2;
    store_bytes(part[0][i % 64 / 4], blend_bytes(shift_right<8>(even), odd));
    store_bytes(part[1][i % 64 / 4], blend_bytes(even, shift_left<8>(odd)));
}

// Unpacks blocks [b0, b0 + n) of a group, at most a span, as level * sub-block scale.
template <ggml_type type>
[[gnu::noinline]] void unpack_int8(unpacked_span & to, const bof4_block_pair<type> * group, int64_t b0, int64_t n) {
    using layout = bof4_layout<type>;
    enum { DOT = layout::DOT, DOTS = layout::BLOCK / DOT };
    static_assert((int) layout::BLOCK == (int) TILE_SPAN, "a span has one scale");
    const decoder<type> decode(0);
    for (int64_t b = 0; b < n; ++b) {
        const auto & head = bof4_head(group, b0 + b);
        const auto & codes = bof4_codes(group, b0 + b);
        store(to.scale, bof4_kernel<type>::scales(head));
        // of level * 2^8, a product divided by 2^15
        const auto factor_of = [&](int j) { return shift_left<7>(in_both_words(to_ints(decode.sub_scale(head, j)))); };
#pragma GCC unroll 8
        for (int k = 0; k < DOTS / 2; ++k) {
            const int j = bof4_low_dot<layout>(k), j2 = j + layout::NIBBLES / DOT;
            const auto factor = factor_of(j), factor2 = factor_of(j2);
#pragma GCC unroll 8
            for (int i = 0; i < DOT; i += 4) {
                bytes low, high;
                decode.step(codes, k, i / 4, low, high);
                store_parts(to, DOT * j + i, low, factor);
                store_parts(to, DOT * j2 + i, high, factor2);
            }
        }
    }
}

// level * scale of weights of 16 rows as bf16. Cut off, which takes half of the instructions of rounding to nearest:
// what is lost on average, two thirds of 2^-8 (of significands from 1 to 2: 2^-8 over 1.5), is in the factor. The
// squared error is 1.1 times that of rounding.
template <ggml_type type>
struct bf16_unpacker {
    using layout = bof4_layout<type>;
    static_assert((int) layout::DOT == 32 && (int) layout::NIBBLES == 32, "a tile has one nibble of each byte");
    static constexpr float MEAN_LOSS = 1.0f + 2.0f / 3.0f / 256.0f;

    const float_table levels{ layout::LEVELS };

    // Two of four rows of weights that bytes have in their low (NIBBLE 0) or high nibbles (1).
    template <int NIBBLE> void store_four(uint8_t (*row)[64], bytes codes, floats scale) const {
        const auto weight = [&](auto nibble) { return multiply(levels.look_up<decltype(nibble)::value>(codes), scale); };
        using std::integral_constant;
        store_bytes(row[0],
            cut_to_bf16(weight(integral_constant<int, NIBBLE>()), weight(integral_constant<int, NIBBLE + 2>())));
        store_bytes(row[1],
            cut_to_bf16(weight(integral_constant<int, NIBBLE + 4>()), weight(integral_constant<int, NIBBLE + 6>())));
    }

    // Blocks [b0, b0 + n) of a group, at most a span.
    [[gnu::noinline]] void unpack(unpacked_span & to, const bof4_block_pair<type> * group, int64_t b0, int64_t n) const {
        for (int64_t b = 0; b < n; ++b) {
            const auto & codes = bof4_codes(group, b0 + b);
            const floats scale = multiply(bof4_kernel<type>::scales(bof4_head(group, b0 + b)), all_lanes(MEAN_LOSS));
#pragma GCC unroll 8
            for (int i = 0; i < layout::BLOCK / 8; ++i) {
                const bytes eight = load_bytes(codes.qs[i]);
                store_four<0>(to.tiles[2 * b] + 2 * i, eight, scale);
                store_four<1>(to.tiles[2 * b + 1] + 2 * i, eight, scale);
            }
        }
    }
};

template <ggml_type type>
void unpack_span(unpacked_span & to, const bof4_block_pair<type> * group, int64_t b0, int64_t n) {
    if constexpr (bof4_layout<type>::HAS_SUB_SCALES) {
        unpack_int8<type>(to, group, b0, n);
    } else {
        bf16_unpacker<type>().unpack(to, group, b0, n);
    }
}

// Products in int8 of a span of 16 rows and up to 32 columns that have left the tiles, and the sums they belong to.
struct tile_results {
    alignas(64) int32_t high[32][16]; // [column][row]
    alignas(64) int32_t low[32][16];
    int columns;
    const float * row_scale;
    const float * column_scale;
    group_sums * sums; // of the first column, from the group on

    // Of columns [c0, c1).
    void add_to_sums(int c0, int c1) const {
        const floats scale = load(row_scale);
        const float * const d = column_scale; // (GCC would load both anew after each store)
        group_sums * const to = sums;
        for (int64_t c = c0; c < c1; ++c) {
            const floats total = to_floats(join_parts(load_ints(high[c]), load_ints(low[c])));
            store(to[c][0], multiply_add(total, multiply(scale, all_lanes(d[c])), load(to[c][0])));
        }
    }
};

// `to` = products of a span in int8 and T tiles of columns; meanwhile, `before` is added to its sums.
template <int T, typename tiles>
[[gnu::noinline]] BOF4_TILE_CODE void multiply_int8(
    tiles & tile, const unpacked_span & w, const act_tile * x, const tile_results & before, tile_results & to) {
    enum { STEPS = TILE_SPAN / 64 };
    const int columns_of_step = before.columns / STEPS;
    tile.template zero<0>();
    tile.template zero<1>();
    if constexpr (T == 2) {
        tile.template zero<2>();
        tile.template zero<3>();
    }
    for (int s = 0; s < STEPS; ++s) {
        tile.template load<4>(x[0] + 1024 * s, 64);
        tile.template load<6>(w.tiles[2 * s], 64);
        tile.template add_products_signed<0, 4, 6>();
        if constexpr (T == 2) {
            tile.template load<5>(x[1] + 1024 * s, 64);
            tile.template add_products_signed<2, 5, 6>();
        }
        tile.template load<7>(w.tiles[2 * s + 1], 64);
        tile.template add_products_unsigned<1, 4, 7>();
        if constexpr (T == 2) {
            tile.template add_products_unsigned<3, 5, 7>();
        }
        before.add_to_sums(columns_of_step * s, columns_of_step * (s + 1));
    }
    tile.template store<0>(to.high[0], 64);
    tile.template store<1>(to.low[0], 64);
    if constexpr (T == 2) {
        tile.template store<2>(to.high[16], 64);
        tile.template store<3>(to.low[16], 64);
    }
    to.columns = T * 16;
}

// Adds products of `steps` * 32 weights in bf16, R groups and T tiles of columns to sums.
template <int R, int T, typename tiles>
[[gnu::noinline]] BOF4_TILE_CODE void multiply_bf16(
    tiles & tile, const unpacked_span * w, int steps, const act_tile * x, group_sums * sums) {
    constexpr int64_t stride = sizeof(group_sums);
    tile.template load<0>(sums[0][0], stride);
    if constexpr (R == 2) {
        tile.template load<1>(sums[0][1], stride);
    }
    if constexpr (T == 2) {
        tile.template load<2>(sums[16][0], stride);
    }
    if constexpr (R == 2 && T == 2) {
        tile.template load<3>(sums[16][1], stride);
    }
    for (int s = 0; s < steps; ++s) {
        tile.template load<4>(x[0] + 1024 * s, 64);
        tile.template load<6>(w[0].tiles[s], 64);
        tile.template add_products_bf16<0, 4, 6>();
        if constexpr (R == 2) {
            tile.template load<7>(w[1].tiles[s], 64);
            tile.template add_products_bf16<1, 4, 7>();
        }
        if constexpr (T == 2) {
            tile.template load<5>(x[1] + 1024 * s, 64);
            tile.template add_products_bf16<2, 5, 6>();
        }
        if constexpr (R == 2 && T == 2) {
            tile.template add_products_bf16<3, 5, 7>();
        }
    }
    tile.template store<0>(sums[0][0], stride);
    if constexpr (R == 2) {
        tile.template store<1>(sums[0][1], stride);
    }
    if constexpr (T == 2) {
        tile.template store<2>(sums[16][0], stride);
    }
    if constexpr (R == 2 && T == 2) {
        tile.template store<3>(sums[16][1], stride);
    }
}

template <ggml_type type>
using tile_acts = std::conditional_t<bof4_layout<type>::HAS_SUB_SCALES, bof4_act_pieces_int8, bof4_act_pieces_bf16>;

// At most BOF4_MAX_COLUMNS columns of a product.
template <ggml_type type, typename tiles>
class tile_product {
    using acts = tile_acts<type>;
    using pair = bof4_block_pair<type>;
    enum {
        BLOCKS = TILE_SPAN / bof4_layout<type>::BLOCK, // of a span
        TILES = BOF4_MAX_COLUMNS / 16,
        ACT_BYTES = TILE_SPAN * sizeof(typename acts::element), // of a span
        MAX_PIECES = TILE_SPAN * sizeof(uint16_t) / acts::PIECE, // of all types: GCC 12 merges their functions, and warns
        // Activations that are read for all rows: 1 MiB, half of the L2 of the processors with AMX.
        SPANS = (1 << 20) / (ACT_BYTES * BOF4_MAX_COLUMNS),
    };

    const char * groups;
    int64_t n_rows;
    int64_t n;
    const float * outlier_sums; // of the first column and the first group, or NULL
    int64_t outlier_stride;     // from group to group
    float * const * y;
    int n_columns;

    tiles tile;
    const char * x[BOF4_MAX_COLUMNS];            // the last one repeated to fill a tile
    bool is_in_place[TILES];                     // can a tile be read from the columns where they are?
    unpacked_span weights[TILE_GROUPS];
    tile_results results[2]; // of int8
    float column_scales[bof4_layout<type>::HAS_SUB_SCALES ? SPANS : 1][BOF4_MAX_COLUMNS];
    alignas(64) group_sums sums[BOF4_MAX_COLUMNS];
    alignas(64) char gathered[2][MAX_PIECES][16][acts::PIECE];

    int n_tiles() const { return (n_columns + 15) / 16; }
    int64_t weights_of(int64_t span) const { return std::min<int64_t>(TILE_SPAN, n - span * TILE_SPAN); }
    int64_t rows_of(int64_t g, int n_groups) const {
        return std::min<int64_t>(n_groups * BOF4_GROUP, n_rows - g * BOF4_GROUP);
    }

    const pair * group_at(int64_t g) const {
        return reinterpret_cast<const pair *>(groups + g * bof4_repacked<type>::group_bytes(n));
    }

    // The weights to unpack next: the processor's prefetcher does not see where a span ends.
    void prefetch_span(int64_t g, int64_t span) const {
        if (g * BOF4_GROUP >= n_rows) {
            return;
        }
        const int64_t b0 = span * BLOCKS, b1 = b0 + weights_of(span) / bof4_layout<type>::BLOCK;
        const pair * group = group_at(g);
        const auto * from = b0 % 2 == 0 ? reinterpret_cast<const char *>(group + b0 / 2)
                                        : reinterpret_cast<const char *>(&bof4_codes(group, b0));
        const auto * to = reinterpret_cast<const char *>(&bof4_codes(group, b1 - 1) + 1);
        for (; from < to; from += 64) {
            __builtin_prefetch(from);
        }
    }

    // A span of a tile of columns: where they are, or copied.
    act_tile columns_of(int t, int64_t span, char (&copy)[MAX_PIECES][16][acts::PIECE]) const {
        const char * const * from = x + 16 * t;
        const size_t at = acts::at(span * TILE_SPAN);
        if (is_in_place[t]) {
            return from[0] + at;
        }
        for (int64_t p = 0; p < weights_of(span) * (int64_t) sizeof(typename acts::element) / acts::PIECE; ++p) {
            for (int c = 0; c < 16; ++c) {
                memcpy(copy[p][c], from[c] + at + p * acts::STRIDE, acts::PIECE);
            }
        }
        return copy[0][0];
    }

    // (Sums of rows and columns that are not there are not used.)
    void load_sums(int64_t g, int n_groups, bool first) {
        memset(sums, 0, n_tiles() * 16 * sizeof(sums[0]));
        const int64_t n_rows_here = rows_of(g, n_groups);
        for (int c = 0; !first && c < n_columns; ++c) {
            copy_rows(sums[c][0], y[c] + g * BOF4_GROUP, n_rows_here);
        }
    }

    void store_sums(int64_t g, int n_groups, bool last) {
        const int64_t n_rows_here = rows_of(g, n_groups);
        for (int c = 0; c < n_columns; ++c) {
            for (int r = 0; last && outlier_sums && r < n_groups; ++r) {
                const float * addend = outlier_sums + (g + r) * outlier_stride + c * BOF4_GROUP;
                store(sums[c][r], add(load(sums[c][r]), load(addend)));
            }
            copy_rows(y[c] + g * BOF4_GROUP, sums[c][0], n_rows_here);
        }
    }

    // The results are at c * stride: by the time they are stored, their lines are in the cache.
    void prefetch_results(int64_t g, int n_groups) const {
        const int64_t bytes = rows_of(g, n_groups) * sizeof(float);
        for (int c = 0; c < n_columns; ++c) {
            const char * to = reinterpret_cast<const char *>(y[c] + g * BOF4_GROUP);
            for (int64_t i = 0; i < bytes; i += 64) {
                __builtin_prefetch(to + i, 1);
            }
        }
    }

    // Of spans [s0, s1): read from the columns once for all groups.
    void load_column_scales(int64_t s0, int64_t s1) {
        for (int c = 0; c < n_tiles() * 16; ++c) {
            for (int64_t s = s0; s < s1; ++s) {
                memcpy(&column_scales[s - s0][c], x[c] + acts::scale_at(n, s), sizeof(float));
            }
        }
    }

    // Products of a span, of n_groups groups and the tiles of columns from t on, of which there are T.
    template <int T>
    BOF4_TILE_CODE void multiply(int64_t span, int64_t s0, int n_groups, int t, const act_tile * columns, int & next) {
        if constexpr (bof4_layout<type>::HAS_SUB_SCALES) {
            for (int r = 0; r < n_groups; ++r, next ^= 1) {
                tile_results & to = results[next];
                to.row_scale = weights[r].scale;
                to.column_scale = column_scales[span - s0] + 16 * t;
                to.sums = reinterpret_cast<group_sums *>(sums[16 * t][r]);
                multiply_int8<T>(tile, weights[r], columns, results[next ^ 1], to);
            }
        } else {
            const int steps = (int) weights_of(span) / 32;
            if (n_groups == 2) {
                multiply_bf16<2, T>(tile, weights, steps, columns, sums + 16 * t);
            } else {
                multiply_bf16<1, T>(tile, weights, steps, columns, sums + 16 * t);
            }
        }
    }

    // s0: the first span of column_scales.
    BOF4_TILE_CODE void multiply_groups(int64_t span, int64_t s0, int n_groups) {
        int next = 0; // of results, to be written
        results[1].columns = 0;
        results[1].row_scale = weights[0].scale;
        int t = 0;
        for (; t + 2 <= n_tiles(); t += 2) {
            const act_tile columns[2] = { columns_of(t, span, gathered[0]), columns_of(t + 1, span, gathered[1]) };
            multiply<2>(span, s0, n_groups, t, columns, next);
        }
        if (t < n_tiles()) {
            const act_tile columns = columns_of(t, span, gathered[0]);
            multiply<1>(span, s0, n_groups, t, &columns, next);
        }
        results[next ^ 1].add_to_sums(0, results[next ^ 1].columns);
    }

  public:
    tile_product(const void * groups, int64_t n_rows, int64_t n, const void * const * columns,
        const float * outlier_sums, int64_t outlier_stride, float * const * y, int n_columns)
        : groups(static_cast<const char *>(groups)),
          n_rows(n_rows),
          n(n),
          outlier_sums(outlier_sums),
          outlier_stride(outlier_stride),
          y(y),
          n_columns(n_columns) {
        for (int c = 0; c < n_tiles() * 16; ++c) {
            x[c] = static_cast<const char *>(columns[std::min(c, n_columns - 1)]);
        }
        // (columns behind the last one are not used)
        for (int t = 0; t < n_tiles(); ++t) {
            is_in_place[t] = reinterpret_cast<uintptr_t>(x[16 * t]) % acts::STRIDE == 0;
            for (int c = 16 * t + 1; c < std::min(16 * t + 16, n_columns); ++c) {
                is_in_place[t] &= x[c] - x[c - 1] == acts::PIECE;
            }
        }
    }

    BOF4_TILE_CODE void compute() {
        const int64_t n_groups = (n_rows + BOF4_GROUP - 1) / BOF4_GROUP;
        const int64_t n_spans = (n + TILE_SPAN - 1) / TILE_SPAN;
        for (int64_t s0 = 0; s0 < n_spans; s0 += SPANS) {
            const int64_t s1 = std::min<int64_t>(s0 + SPANS, n_spans);
            if constexpr (bof4_layout<type>::HAS_SUB_SCALES) {
                load_column_scales(s0, s1);
            }
            for (int64_t g = 0; g < n_groups; g += TILE_GROUPS) {
                const int count = (int) std::min<int64_t>(TILE_GROUPS, n_groups - g);
                load_sums(g, count, s0 == 0);
                for (int64_t s = s0; s < s1; ++s) {
                    for (int r = 0; r < count; ++r) {
                        const pair * group = group_at(g + r);
                        unpack_span<type>(weights[r], group, s * BLOCKS, weights_of(s) / bof4_layout<type>::BLOCK);
                        s + 1 < s1 ? prefetch_span(g + r, s + 1) : prefetch_span(g + r + TILE_GROUPS, s0);
                    }
                    if (s + 1 == s1) {
                        prefetch_results(g, count);
                    }
                    multiply_groups(s, s0, count);
                }
                store_sums(g, count, s1 == n_spans);
            }
        }
    }
};

// The functions of bof4_gemm_kernels that differ where the GEMM path uses tiles.
template <ggml_type type, typename tiles>
struct bof4_tile_kernel {
    using acts = tile_acts<type>;

    // By roofline, one tile of columns costs what the GEMV path needs for ten.
    enum { USE_GEMV = 12 };

    static bool use_gemv(int64_t n_columns) { return n_columns <= USE_GEMV; }

    static size_t act_bytes(int64_t n, int64_t n_rows, bool use_gemv) {
        return use_gemv ? bof4_repacked<type>::act_bytes(n, n_rows, true) : acts::bytes(acts::pieces(n), n_rows);
    }

    static size_t act_row_at(int64_t n, int64_t row, bool use_gemv) {
        return use_gemv ? bof4_repacked<type>::act_row_at(n, row, true) : acts::row_at(acts::pieces(n), row);
    }

    static void quantize_act(const float * x, void * row, int64_t n, int64_t from, int64_t to, bool use_gemv) {
        if (use_gemv) {
            bof4_repacked<type>::quantize_act(x, row, n, from, to, true);
        } else {
            acts::quantize(x, row, n, from, to);
        }
    }

    BOF4_TILE_CODE static void gemm(const void * groups, int64_t n_rows, int64_t n, const void * const * x,
        const float * outlier_sums, float * const * y, int64_t n_columns, bool use_gemv, int64_t prefetch) {
        if (use_gemv) {
            bof4_gemm<bof4_kernel<type>>(groups, n_rows, n, x, outlier_sums, y, n_columns, true, prefetch);
            return;
        }
        for (int64_t c = 0; c < n_columns; c += BOF4_MAX_COLUMNS) {
            tile_product<type, tiles> product(groups, n_rows, n, x + c,
                outlier_sums ? outlier_sums + c * BOF4_GROUP : nullptr, n_columns * BOF4_GROUP, y + c,
                (int) std::min<int64_t>(BOF4_MAX_COLUMNS, n_columns - c));
            product.compute();
        }
    }
};

} // namespace
