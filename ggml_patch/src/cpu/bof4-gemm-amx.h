// The GEMM path on AMX tiles (bof4-tiles-amx.h), over the vector operations of bof4-gemm-vnni.h.
//
// A tile instruction multiplies 16 columns, 16 rows and 64 weights: 16384 int8 products in 16 cycles. Scales must not be
// applied to every 64 weights, or 16: results would have to leave the tiles each time. So weights are multiplied by
// their scales before, as 16-bit integers for 256 weights of a row (a span) with one scale, which are two int8 matrices:
//
//   weight = (256 * high + low) * scale of the span
//   BOF4_K, Q6_K   256 * high + low = level * sub-block scale, at most 4096: exact. scale = d
//   BOF4_S         256 * high + low = level * 256 * d / (largest d of the span), rounded: 2^-16 of the largest weight
//
// Products with high and with low are added in two tiles over the span, exactly. Then the tiles are stored, and
// 256 * high + low becomes a float, is multiplied by both scales and added to the sums of the rows. Of BOF4_K and Q6_K
// these are the same numbers, added in the same order, as those of the other kernels, so they have the same bits (while
// sums of a superblock are below 2^24). Those of BOF4_S have other activations: one scale for 256 instead of 32.
//
// A pair of tiles of columns is multiplied with 16 rows at a time: 16 tile loads and 16 tile products in 256 cycles,
// while the results of the previous pair are added. Two groups of 16 rows are unpacked at a time: their 16 KiB stay in
// L1 while the activations of all columns come from L2.
#pragma once

#include "bof4-gemm-vnni.h"
#include "bof4-tiles-amx.h"
#ifdef BOF4_GEMM_TWIN
#include "bof4-tiles-portable.h"
#endif

#include <algorithm>
#include <cstring>

namespace {

// 16 columns of activations: row c of a tile begins at base + c * stride.
struct act_tile {
    const char * base;
    int64_t stride;
};

// 256 weights of 16 rows.
struct unpacked_span {
    enum { STEP = 64, STEPS = BOF4_ACT_SPAN / STEP }; // weights of a tile, tiles of a span

    struct step {
        alignas(64) uint8_t high[16][64]; // row k of a tile has weights 4 k to 4 k + 3 of each row
        alignas(64) uint8_t low[16][64];
    } steps[STEPS];
    alignas(64) float scale[16];
};

// Stores four weights a row, weights i to i + 3 of those from `to` on.
inline void set_weights(unpacked_span::step * to, int i, bytes levels, bytes factor) {
    const bytes even = scale_words(shift_left<8>(levels), factor);
    const bytes odd = scale_words(odd_bytes(levels), factor);
    const int step = i / unpacked_span::STEP, row = i % unpacked_span::STEP / 4;
    store_bytes(to[step].high[row], blend_bytes(shift_right<8>(even), odd));
    store_bytes(to[step].low[row], blend_bytes(even, shift_left<8>(odd)));
}

// Unpacks blocks [b0, b0 + n) of a group.
template <ggml_type type>
[[gnu::noinline]] void unpack_span(unpacked_span & to, const bof4_block_pair<type> * group, int64_t b0, int64_t n) {
    using layout = bof4_layout<type>;
    enum { DOT = layout::DOT };
    const decoder<type> decode(0);
    // The factor of a level is the quotient of its scale and that of the span, times 2^7: levels are multiplied as
    // level * 2^8, and scale_words divides by 2^15.
    floats per_scale = all_lanes(0.0f);
    if constexpr (layout::HAS_SUB_SCALES) {
        store(to.scale, bof4_kernel<type>::scales(bof4_head(group, b0)));
    } else {
        floats largest = all_lanes(1e-30f); // where all scales are zero
        for (int64_t b = 0; b < n; ++b) {
            const floats d = from_halves(bof4_head(group, b0 + b).d);
            largest = maximum(largest, maximum(d, multiply(d, all_lanes(-1.0f))));
        }
        per_scale = divide(all_lanes(32767.0f), largest);
        store(to.scale, multiply(largest, all_lanes(layout::UNIT * 128.0f / 32767.0f)));
    }
    for (int64_t b = 0; b < n; ++b) {
        const auto & head = bof4_head(group, b0 + b);
        const auto & codes = bof4_codes(group, b0 + b);
        unpacked_span::step * const steps = to.steps + b * (layout::BLOCK / unpacked_span::STEP);
        const auto factor_of = [&](int j) {
            if constexpr (layout::HAS_SUB_SCALES) {
                return shift_left<7>(in_both_words(to_ints(decode.sub_scale(head, j))));
            } else {
                (void) j;
                return in_both_words(nearest(multiply(from_halves(head.d), per_scale)));
            }
        };
#pragma GCC unroll 8
        for (int k = 0; k < layout::BLOCK / DOT / 2; ++k) {
            const int j = bof4_low_dot<layout>(k), j2 = j + layout::NIBBLES / DOT;
            const bytes factor = factor_of(j), factor2 = factor_of(j2);
            for (int i = 0; i < DOT; i += 4) {
                bytes low, high;
                decode.step(codes, k, i / 4, low, high);
                set_weights(steps, DOT * j + i, low, factor);
                set_weights(steps, DOT * j2 + i, high, factor2);
            }
        }
    }
}

enum { TILE_GROUPS = 2 }; // groups of rows that are unpacked at a time

// Products of a span of 16 rows and up to 32 columns that have left the tiles, and the sums that they belong to.
struct tile_results {
    alignas(64) int32_t high[32][16]; // [column][row]
    alignas(64) int32_t low[32][16];
    int columns;
    const float * row_scale;
    const char * const * column_scale; // a float at each
    float (*sums)[TILE_GROUPS][16];    // of the group, of the first column

    // Of columns [c0, c1).
    void add_to_sums(int c0, int c1) const {
        const floats scale = load(row_scale);
        const char * const * const d_of = column_scale; // (GCC would load them anew after each store)
        float(*const to)[TILE_GROUPS][16] = sums;
        for (int64_t c = c0; c < c1; ++c) {
            float d;
            memcpy(&d, d_of[c], sizeof(d));
            const floats total = to_floats(join_parts(load_ints(high[c]), load_ints(low[c])));
            store(to[c][0], multiply_add(total, multiply(scale, all_lanes(d)), load(to[c][0])));
        }
    }
};

// `to` = products of a span and T tiles of columns; meanwhile, `before` is added to its sums.
template <int T, typename tiles>
[[gnu::noinline]] BOF4_TILE_CODE void multiply_span(
    tiles & tile, const unpacked_span & w, int steps, const act_tile * x, const tile_results & before, tile_results & to) {
    const int columns = before.columns;
    const int columns_of_step = (columns + steps - 1) / steps;
    int added = 0;
    tile.template zero<0>();
    tile.template zero<1>();
    if constexpr (T == 2) {
        tile.template zero<2>();
        tile.template zero<3>();
    }
    for (int s = 0; s < steps; ++s) {
        const int64_t at = s * unpacked_span::STEP;
        tile.template load<4>(x[0].base + at, x[0].stride);
        tile.template load<6>(w.steps[s].high, 64);
        tile.template add_products_signed<0, 4, 6>();
        if constexpr (T == 2) {
            tile.template load<5>(x[1].base + at, x[1].stride);
            tile.template add_products_signed<2, 5, 6>();
        }
        tile.template load<7>(w.steps[s].low, 64);
        tile.template add_products_unsigned<1, 4, 7>();
        if constexpr (T == 2) {
            tile.template add_products_unsigned<3, 5, 7>();
        }
        const int end = std::min(added + columns_of_step, columns);
        before.add_to_sums(added, end);
        added = end;
    }
    tile.template store<0>(to.high[0], 64);
    tile.template store<1>(to.low[0], 64);
    if constexpr (T == 2) {
        tile.template store<2>(to.high[16], 64);
        tile.template store<3>(to.low[16], 64);
    }
    to.columns = T * 16;
}

// At most BOF4_MAX_COLUMNS columns of a product.
template <ggml_type type, typename tiles>
class tile_product {
    enum {
        BLOCKS = BOF4_ACT_SPAN / bof4_layout<type>::BLOCK, // of a span
        TILES = BOF4_MAX_COLUMNS / 16,
        SPANS = 16, // of activations that are read for all rows: 1 MiB, half of the L2 of the processors with AMX
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
    const char * column_scale[BOF4_MAX_COLUMNS]; // of the span
    bool is_strided[TILES];                      // can a tile be read from the columns where they are?
    unpacked_span weights[TILE_GROUPS];
    tile_results results[2];
    alignas(64) float sums[BOF4_MAX_COLUMNS][TILE_GROUPS][16];
    alignas(64) char gathered[2][16][BOF4_ACT_SPAN];

    int64_t blocks() const { return n / bof4_layout<type>::BLOCK; }
    int n_tiles() const { return (n_columns + 15) / 16; }
    int64_t rows_of(int64_t g, int n_groups) const {
        return std::min<int64_t>(n_groups * BOF4_GROUP, n_rows - g * BOF4_GROUP);
    }

    // A tile of columns from byte `at` on: where they are, or copied.
    act_tile columns_of(int t, int64_t at, char (&copy)[16][BOF4_ACT_SPAN]) const {
        const char * const * from = x + 16 * t;
        if (is_strided[t]) {
            return { from[0] + at, from[1] - from[0] };
        }
        const size_t bytes = std::min<int64_t>(BOF4_ACT_SPAN, n - at);
        for (int c = 0; c < 16; ++c) {
            memcpy(copy[c], from[c] + at, bytes);
        }
        return { copy[0], BOF4_ACT_SPAN };
    }

    // Sums of rows that are not there or of columns that are not are not used.
    void load_sums(int64_t g, int n_groups, bool first) {
        for (int c = 0; c < n_tiles() * 16; ++c) {
            memset(sums[c], 0, sizeof(sums[c]));
            if (!first && c < n_columns) {
                memcpy(sums[c], y[c] + g * BOF4_GROUP, rows_of(g, n_groups) * sizeof(float));
            }
        }
    }

    void store_sums(int64_t g, int n_groups, bool last) {
        for (int c = 0; c < n_columns; ++c) {
            for (int r = 0; last && outlier_sums && r < n_groups; ++r) {
                const float * addend = outlier_sums + (g + r) * outlier_stride + c * BOF4_GROUP;
                store(sums[c][r], add(load(sums[c][r]), load(addend)));
            }
            memcpy(y[c] + g * BOF4_GROUP, sums[c], rows_of(g, n_groups) * sizeof(float));
        }
    }

    BOF4_TILE_CODE void multiply_groups(int64_t s, int n_groups) {
        const int64_t at = s * BOF4_ACT_SPAN;
        const int steps = (int) (std::min<int64_t>(BOF4_ACT_SPAN, n - at) / unpacked_span::STEP);
        for (int c = 0; c < n_tiles() * 16; ++c) {
            column_scale[c] = x[c] + bof4_tile_act_row::scales_at(n) + s * sizeof(float);
        }
        int next = 0;
        results[1].columns = 0;
        results[1].row_scale = weights[0].scale;
        for (int t = 0; t < n_tiles(); t += 2) {
            const bool two = t + 1 < n_tiles();
            const act_tile columns[2] = {
                columns_of(t, at, gathered[0]),
                columns_of(two ? t + 1 : t, at, gathered[1]),
            };
            for (int r = 0; r < n_groups; ++r, next ^= 1) {
                tile_results & to = results[next];
                to.row_scale = weights[r].scale;
                to.column_scale = column_scale + 16 * t;
                to.sums = reinterpret_cast<float (*)[TILE_GROUPS][16]>(sums[16 * t][r]);
                if (two) {
                    multiply_span<2>(tile, weights[r], steps, columns, results[next ^ 1], to);
                } else {
                    multiply_span<1>(tile, weights[r], steps, columns, results[next ^ 1], to);
                }
            }
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
        for (int t = 0; t < n_tiles(); ++t) {
            is_strided[t] = true;
            for (int c = 16 * t + 1; c < 16 * t + 16; ++c) {
                is_strided[t] &= x[c] - x[c - 1] == x[16 * t + 1] - x[16 * t];
            }
        }
    }

    BOF4_TILE_CODE void compute() {
        const size_t group_bytes = bof4_repacked<type>::group_bytes(n);
        const int64_t n_groups = (n_rows + BOF4_GROUP - 1) / BOF4_GROUP;
        const int64_t n_spans = (n + BOF4_ACT_SPAN - 1) / BOF4_ACT_SPAN;
        for (int64_t s0 = 0; s0 < n_spans; s0 += SPANS) {
            const int64_t s1 = std::min<int64_t>(s0 + SPANS, n_spans);
            for (int64_t g = 0; g < n_groups; g += TILE_GROUPS) {
                const int count = (int) std::min<int64_t>(TILE_GROUPS, n_groups - g);
                load_sums(g, count, s0 == 0);
                for (int64_t s = s0; s < s1; ++s) {
                    for (int r = 0; r < count; ++r) {
                        const auto * group = reinterpret_cast<const bof4_block_pair<type> *>(
                            groups + (g + r) * group_bytes);
                        unpack_span<type>(
                            weights[r], group, s * BLOCKS, std::min<int64_t>(BLOCKS, blocks() - s * BLOCKS));
                    }
                    multiply_groups(s, count);
                }
                store_sums(g, count, s1 == n_spans);
            }
        }
    }
};

// The functions of bof4_gemm_kernels that differ where the GEMM path uses tiles.
template <ggml_type type, typename tiles>
struct bof4_tile_kernel {
    // Two spans of 16 columns cost about what the GEMV path needs for ten.
    enum { USE_GEMV = 12 };

    static bool use_gemv(int64_t n_columns) { return n_columns <= USE_GEMV; }

    static size_t act_row_bytes(int64_t n, bool use_gemv) {
        return use_gemv ? bof4_repacked<type>::act_row_bytes(n, true) : bof4_tile_act_row::bytes(n);
    }

    static void quantize_act(const float * x, void * row, int64_t n, int64_t from, int64_t to, bool use_gemv) {
        if (use_gemv) {
            bof4_repacked<type>::quantize_act(x, row, n, from, to, true);
        } else {
            bof4_tile_act_row::quantize(x, row, n, from, to);
        }
    }

    BOF4_TILE_CODE static void gemm(const void * groups, int64_t n_rows, int64_t n, const void * const * x,
        const float * outlier_sums, float * const * y, int64_t n_columns, bool use_gemv) {
        if (use_gemv) {
            bof4_gemm<bof4_kernel<type>>(groups, n_rows, n, x, outlier_sums, y, n_columns, true);
            return;
        }
        for (int64_t c = 0; c < n_columns; c += BOF4_MAX_COLUMNS) {
            const int64_t count = std::min<int64_t>(BOF4_MAX_COLUMNS, n_columns - c);
            tile_product<type, tiles> product(groups, n_rows, n, x + c,
                outlier_sums ? outlier_sums + c * BOF4_GROUP : nullptr, n_columns * BOF4_GROUP, y + c, (int) count);
            product.compute();
        }
    }
};

} // namespace
