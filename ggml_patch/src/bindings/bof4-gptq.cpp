#include "bof4-gptq.h"

#include "../lists/bof4-list.h"
#include "bof4-gptq-types.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__GNUC__)
#define BOF4_INLINE static inline __attribute__((always_inline))
#else
#define BOF4_INLINE static inline
#endif

// X(NAME, name) for every type that is encoded here.
#define GPTQ_TYPES(X) \
    BOF4_TYPES_GPTQ(X) \
    BOF4_GPTQ_STOCK_TYPES(X)

namespace {

constexpr int R = bof4_gptq_tile_rows;
constexpr int PANEL = bof4_gptq_panel;

// Errors of so many columns (8 KiB), the rows of a panel that belong to them (16 KiB) and the sums (8 KiB) fit L1.
constexpr int64_t CHUNK = 64;

// Storage of a tile in processing order: [column][R] unless it says otherwise.
struct tile {
    std::vector<float> w, e;       // weights; errors w - q
    std::vector<float> level;      // level of the code; of an outlier, its value
    std::vector<float> target;     // [block][R]
    std::vector<float> gradient;   // [sub_block][R]
    std::vector<float> u;          // multipliers, [n / sub_block][R]
    std::vector<float> v;          // minimums, [n / sub_block][R]; 0 where the type has none
    std::vector<float> d, dmin;    // superblock scales, [n / block][R]; unused where there are no scales of sub-blocks
    std::vector<uint32_t> outlier; // [column], one bit per row
    double loss[2][R];
};

// Rows fill vector lanes; the functions of a tile are compiled for each of these.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define BOF4_GPTQ_LEVELS

#define BOF4_GPTQ_LANES 4
namespace level_1 {
#include "bof4-gptq-tile.h"
}
#undef BOF4_GPTQ_LANES

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define BOF4_GPTQ_LANES 8
namespace level_3 {
#include "bof4-gptq-tile.h"
}
#undef BOF4_GPTQ_LANES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#define BOF4_GPTQ_LANES 16
namespace level_4 {
#include "bof4-gptq-tile.h"
}
#undef BOF4_GPTQ_LANES
#pragma GCC pop_options

#else

#define BOF4_GPTQ_LANES 4
namespace level_1 {
#include "bof4-gptq-tile.h"
}
#undef BOF4_GPTQ_LANES

#endif

// Encodes a tile on this processor.
template <typename T> void encode_tile_here(const bof4_gptq_job & job, tile & t) {
#if defined(BOF4_GPTQ_LEVELS)
    if (__builtin_cpu_supports("x86-64-v4")) {
        return level_4::encode_tile<T>(job, t);
    }
    if (__builtin_cpu_supports("x86-64-v3")) {
        return level_3::encode_tile<T>(job, t);
    }
#endif
    level_1::encode_tile<T>(job, t);
}

void load_tile(
    const bof4_gptq_job & job, const bof4_gptq_rows & rows, const int32_t * place, int64_t row, int count, tile & t) {
    std::fill(t.w.begin(), t.w.end(), 0.0f);
    std::fill(t.outlier.begin(), t.outlier.end(), 0u);
    std::memset(t.loss, 0, sizeof(t.loss));
    for (int r = 0; r < count; ++r) {
        const float * x = rows.weights + (row + r) * job.n;
        for (int64_t k = 0; k < job.n; ++k) {
            t.w[k * R + r] = x[job.order[k]];
        }
        if (rows.row_pointers != nullptr) {
            for (int32_t i = rows.row_pointers[row + r]; i < rows.row_pointers[row + r + 1]; ++i) {
                t.outlier[place[bof4_entry_column(rows.entries[i])]] |= 1u << r;
            }
        }
    }
}

template <typename T> void store_row(
    const bof4_gptq_job & job, bof4_gptq_rows & rows, const int32_t * place, int64_t row, int r, const tile & t) {
    uint8_t code_of[256];
    if constexpr (T::is_uniform) {
        for (int level = T::lowest; level <= T::highest; ++level) {
            code_of[level + 128] = (uint8_t) (level - T::lowest);
        }
    } else {
        for (int c = 0; c < 16; ++c) {
            code_of[T::levels[c] + 128] = (uint8_t) c;
        }
    }
    float * decoded = rows.decoded + row * job.n;
    auto * packed = (typename T::block_type *) rows.encoded + row * (job.n / T::block);
    for (int64_t s = 0; s < job.n; s += T::block) {
        float u[T::sub_blocks];
        float v[T::sub_blocks];
        uint8_t codes[T::block];
        for (int64_t k = s; k < s + T::block; ++k) {
            const int64_t column = job.order[k];
            const float multiplier = t.u[k / T::sub_block * R + r];
            const float minimum = t.v[k / T::sub_block * R + r];
            const float level = t.level[k * R + r];
            const bool outlier = t.outlier[k] >> r & 1;
            u[column % T::block / T::sub_block] = multiplier;
            v[column % T::block / T::sub_block] = minimum;
            codes[column % T::block] = outlier ? (uint8_t) T::zero_code : code_of[(int) level + 128];
            decoded[column] = outlier ? level : multiplier * level * T::unit - minimum;
        }
        const int64_t superblock = s / T::block * R + r;
        T::pack(packed + job.order[s] / T::block, { t.d[superblock], t.dmin[superblock] }, u, v, codes);
    }
    if (rows.row_pointers != nullptr) {
        for (int32_t i = rows.row_pointers[row]; i < rows.row_pointers[row + 1]; ++i) {
            const int32_t column = bof4_entry_column(rows.entries[i]);
            rows.entries[i] = bof4_entry(column, t.level[(int64_t) place[column] * R + r]);
        }
    }
}

template <typename T> bool is_block_order(const int32_t * order, int64_t n) {
    std::vector<bool> seen(n, false);
    for (int64_t k = 0; k < n; ++k) {
        if (order[k] < 0 || order[k] >= n || seen[order[k]] ||
            order[k] / T::block != order[k / T::block * T::block] / T::block ||
            order[k] / T::sub_block != order[k / T::sub_block * T::sub_block] / T::sub_block) {
            return false;
        }
        seen[order[k]] = true;
    }
    return true;
}

template <typename T> void encode_rows(const bof4_gptq_job & job, bof4_gptq_rows & rows) {
    std::vector<int32_t> place(job.n);
    for (int64_t k = 0; k < job.n; ++k) {
        place[job.order[k]] = (int32_t) k;
    }
    tile t;
    t.w.resize(job.n * R);
    t.e.resize(job.n * R);
    t.level.resize(job.n * R);
    t.target.resize(T::block * R);
    t.gradient.resize(T::sub_block * R);
    t.u.resize(job.n / T::sub_block * R);
    t.v.resize(job.n / T::sub_block * R);
    t.d.resize(job.n / T::block * R);
    t.dmin.resize(job.n / T::block * R);
    t.outlier.resize(job.n);
    rows.loss[0] = rows.loss[1] = 0.0;
    for (int64_t row = 0; row < rows.count; row += R) {
        const int count = (int) std::min<int64_t>(R, rows.count - row);
        load_tile(job, rows, place.data(), row, count, t);
        encode_tile_here<T>(job, t);
        for (int r = 0; r < count; ++r) {
            store_row<T>(job, rows, place.data(), row + r, r, t);
            rows.loss[0] += t.loss[0][r];
            rows.loss[1] += t.loss[1][r];
        }
    }
}

} // namespace

bool bof4_gptq_can_encode(ggml_type type) {
    switch (type) {
#define GPTQ_CASE(NAME, name) case GGML_TYPE_##NAME:
        GPTQ_TYPES(GPTQ_CASE)
#undef GPTQ_CASE
        return true;
        default: return false;
    }
}

static void refuse(ggml_type type) {
    throw std::runtime_error(std::string("gptq does not encode the type ") + ggml_type_name(type));
}

bool bof4_gptq_is_block_order(ggml_type type, const int32_t * order, int64_t n) {
    switch (type) {
#define GPTQ_CASE(NAME, name) \
    case GGML_TYPE_##NAME: return is_block_order<bof4_type<GGML_TYPE_##NAME>>(order, n);
        GPTQ_TYPES(GPTQ_CASE)
#undef GPTQ_CASE
        default: refuse(type);
    }
    return false;
}

void bof4_gptq_encode(const bof4_gptq_job & job, bof4_gptq_rows & rows) {
    switch (job.type) {
#define GPTQ_CASE(NAME, name) \
    case GGML_TYPE_##NAME: return encode_rows<bof4_type<GGML_TYPE_##NAME>>(job, rows);
        GPTQ_TYPES(GPTQ_CASE)
#undef GPTQ_CASE
        default: refuse(job.type);
    }
}
