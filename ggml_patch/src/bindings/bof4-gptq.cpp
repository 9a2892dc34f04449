#include "bof4-gptq.h"

#include "../format/bof4-type.h"
#include "../lists/bof4-list.h"

#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

// Rows fill vector lanes, so everything below is inlined into one function per type, which is compiled for three levels
// of x86-64.
#if defined(__GNUC__)
#define BOF4_INLINE static inline __attribute__((always_inline))
#else
#define BOF4_INLINE static inline
#endif
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define BOF4_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define BOF4_CLONES
#endif

namespace {

constexpr int R = bof4_gptq_tile_rows;
constexpr int PANEL = bof4_gptq_panel;

// Half of the rows of a tile: the compiler splits it into as many registers as the instruction set needs.
constexpr int LANES = 16;
#if defined(__GNUC__)
typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));
#else
struct lanes {
    float v[LANES];
    lanes & operator+=(const lanes & other) {
        for (int i = 0; i < LANES; ++i) {
            v[i] += other.v[i];
        }
        return *this;
    }
};
inline lanes operator*(float a, const lanes & b) {
    lanes c;
    for (int i = 0; i < LANES; ++i) {
        c.v[i] = a * b.v[i];
    }
    return c;
}
#endif

// Storage of a tile in processing order: [column][R] unless it says otherwise.
struct tile {
    std::vector<float> w, e;       // weights; errors w - q
    std::vector<float> level;      // level of the code; of an outlier, its value
    std::vector<float> target;     // [block][R]
    std::vector<float> gradient;   // [sub_block][R]
    std::vector<float> u;          // multipliers, [n / sub_block][R]
    std::vector<float> superscale; // superblock scales, [n / block][R]; unused where there are no scales of sub-blocks
    std::vector<uint32_t> outlier; // [column], one bit per row
    double loss[2][R];
};

// Entry (j, k) of a matrix in panels is at panel_of(k)[j * PANEL].
BOF4_INLINE const float * panel_of(const float * matrix, int64_t n, int64_t k) {
    return matrix + k / PANEL * PANEL * n + k % PANEL;
}

// out[c] += sum over j in [from, to) of matrix[j][c] e[j], for the `width` columns that `panel` points to.
BOF4_INLINE void accumulate(float * out, const float * panel, const float * e, int64_t from, int64_t to, int width) {
    constexpr int step = 4;
    for (int c = 0; c < width; c += step) {
        lanes sum[step][2] = {};
        for (int64_t j = from; j < to; ++j) {
            lanes e0, e1;
            std::memcpy(&e0, e + j * R, sizeof(e0));
            std::memcpy(&e1, e + j * R + LANES, sizeof(e1));
            for (int i = 0; i < step; ++i) {
                const float m = panel[j * PANEL + c + i];
                sum[i][0] += m * e0;
                sum[i][1] += m * e1;
            }
        }
        for (int i = 0; i < step; ++i) {
            for (int half = 0; half < 2; ++half) {
                float * place = out + (c + i) * R + half * LANES;
                lanes old;
                std::memcpy(&old, place, sizeof(old));
                old += sum[i][half];
                std::memcpy(place, &old, sizeof(old));
            }
        }
    }
}

// Nearest levels of t / (u unit); inverse is 1 / (u unit), or 0.
template <typename T> BOF4_INLINE void nearest(const float * t, const float * inverse, float * level) {
    float y[R];
    float found[R];
    for (int r = 0; r < R; ++r) {
        y[r] = t[r] * inverse[r];
        found[r] = (float) T::levels[0];
    }
    for (int c = 0; c < 15; ++c) {
        const float limit = 0.5f * (float) (T::levels[c] + T::levels[c + 1]);
        const float step = (float) (T::levels[c + 1] - T::levels[c]);
        for (int r = 0; r < R; ++r) {
            found[r] += y[r] > limit ? step : 0.0f;
        }
    }
    std::memcpy(level, found, sizeof(found));
}

template <typename T> BOF4_INLINE void invert(const float * u, float * inverse) {
    for (int r = 0; r < R; ++r) {
        const float whole = u[r] * T::unit;
        inverse[r] = std::fabs(whole) > std::numeric_limits<float>::min() ? 1.0f / whole : 0.0f;
    }
}

BOF4_INLINE float bf16(float x) {
    return ggml_bf16_to_fp32(ggml_fp32_to_bf16(x));
}

// The loss of a sub-block with the multipliers u, and the sums that least squares needs to improve them.
struct trial {
    float loss[R];
    float xk[R];
    float kk[R];
};

// Quantizes the columns of a sub-block one after another with the multipliers u: level[sub_block][R] and
// error[sub_block][R].
template <typename T>
BOF4_INLINE void try_sub_block(const bof4_gptq_job & job, const tile & t, int64_t k0, const float * target,
    const float * u, float * level, float * error, trial & result) {
    float inverse[R];
    invert<T>(u, inverse);
    const float * panel = panel_of(job.feedback, job.n, k0) + k0 * PANEL;
    std::memset(&result, 0, sizeof(result));
    for (int k = 0; k < T::sub_block; ++k) {
        lanes x[2];
        std::memcpy(x, target + k * R, sizeof(x));
        for (int j = 0; j < k; ++j) {
            lanes e[2];
            std::memcpy(e, error + j * R, sizeof(e));
            const float m = panel[j * PANEL + k];
            x[0] += m * e[0];
            x[1] += m * e[1];
        }
        float now[R];
        std::memcpy(now, x, sizeof(now));
        float * l = level + k * R;
        float * e = error + k * R;
        const float * w = t.w.data() + (k0 + k) * R;
        const float d = job.curvature[k0 + k];
        nearest<T>(now, inverse, l);
        for (int r = 0; r < R; ++r) {
            const float q = u[r] * l[r] * T::unit;
            const float off = now[r] - q;
            const float wk = d * l[r];
            e[r] = w[r] - q;
            result.loss[r] += d * off * off;
            result.xk[r] += wk * now[r];
            result.kk[r] += wk * l[r];
        }
        for (uint32_t mask = t.outlier[k0 + k]; mask != 0; mask &= mask - 1) {
            const int r = __builtin_ctz(mask);
            const float code_off = now[r] - u[r] * l[r] * T::unit;
            const float q = bf16(now[r]);
            const float off = now[r] - q;
            result.loss[r] += d * (off * off - code_off * code_off);
            result.xk[r] -= d * l[r] * now[r];
            result.kk[r] -= d * l[r] * l[r];
            l[r] = q;
            e[r] = w[r] - q;
        }
    }
}

// Keep the better of two trials, row by row.
BOF4_INLINE void keep_better(const trial & one, const float * u, trial & best, float * best_u) {
    for (int r = 0; r < R; ++r) {
        const bool better = one.loss[r] < best.loss[r];
        best.loss[r] = better ? one.loss[r] : best.loss[r];
        best.xk[r] = better ? one.xk[r] : best.xk[r];
        best.kk[r] = better ? one.kk[r] : best.kk[r];
        best_u[r] = better ? u[r] : best_u[r];
    }
}

// Choose the multipliers of a sub-block by its loss with them, feedback included, and quantize its columns.
template <typename T>
BOF4_INLINE void quantize_sub_block(
    const bof4_gptq_job & job, tile & t, int64_t k0, const float * target, const float * superscale) {
    float level[T::sub_block * R];
    float error[T::sub_block * R];
    float largest[R] = { 0 };
    for (int k = 0; k < T::sub_block; ++k) {
        const uint32_t skip = t.outlier[k0 + k];
        for (int r = 0; r < R; ++r) {
            const float x = target[k * R + r];
            largest[r] = std::fabs(x) > std::fabs(largest[r]) && !(skip >> r & 1) ? x : largest[r];
        }
    }
    float u[R];
    float best_u[R] = { 0 };
    trial one;
    trial best;
    std::fill_n(best.loss, R, std::numeric_limits<float>::infinity());
    constexpr float to_multiplier = 1.0f / ((float) BOF4_LEVEL_SCALE * T::unit);
    for (int i = 0; i < 2 * T::gptq.count; ++i) {
        const float top = T::gptq.first + T::gptq.step * (float) (i / 2);
        const float factor = (i % 2 ? -to_multiplier : to_multiplier) / top;
        for (int r = 0; r < R; ++r) {
            u[r] = T::snap(largest[r] * factor, superscale[r]);
        }
        try_sub_block<T>(job, t, k0, target, u, level, error, one);
        keep_better(one, u, best, best_u);
    }
    for (int i = 0; i < 2; ++i) {
        for (int r = 0; r < R; ++r) {
            u[r] = best.kk[r] > 0.0f ? T::snap(best.xk[r] / best.kk[r] / T::unit, superscale[r]) : best_u[r];
        }
        try_sub_block<T>(job, t, k0, target, u, level, error, one);
        keep_better(one, u, best, best_u);
    }
    try_sub_block<T>(job, t, k0, target, best_u, level, error, one);
    std::copy_n(level, T::sub_block * R, t.level.data() + k0 * R);
    std::copy_n(error, T::sub_block * R, t.e.data() + k0 * R);
    std::copy_n(best_u, R, t.u.data() + k0 / T::sub_block * R);
    for (int r = 0; r < R; ++r) {
        t.loss[0][r] += one.loss[r];
    }
}

template <typename T> BOF4_INLINE void choose_superscales(const bof4_gptq_job & job, tile & t, int64_t k0) {
    float x[T::block];
    for (int r = 0; r < R; ++r) {
        for (int k = 0; k < T::block; ++k) {
            x[k] = t.outlier[k0 + k] >> r & 1 ? 0.0f : t.target[k * R + r];
        }
        t.superscale[k0 / T::block * R + r] = T::superscale(x, job.curvature + k0);
    }
}

// The columns in order.
template <typename T> BOF4_INLINE void quantize_columns(const bof4_gptq_job & job, tile & t) {
    for (int64_t s = 0; s < job.n; s += T::block) {
        std::copy_n(t.w.data() + s * R, T::block * R, t.target.data());
        for (int c = 0; c < T::block; c += PANEL) {
            accumulate(t.target.data() + c * R, panel_of(job.feedback, job.n, s + c), t.e.data(), 0, s, PANEL);
        }
        if (T::block != T::sub_block) {
            choose_superscales<T>(job, t, s);
        }
        for (int b = 0; b < T::block; b += T::sub_block) {
            float * target = t.target.data() + b * R;
            accumulate(target, panel_of(job.feedback, job.n, s + b), t.e.data(), s, s + b, T::sub_block);
            quantize_sub_block<T>(job, t, s + b, target, t.superscale.data() + s / T::block * R);
        }
    }
}

// Give every column of a sub-block the level of least loss while all other columns stay.
template <typename T>
BOF4_INLINE void improve_levels(const bof4_gptq_job & job, tile & t, int64_t k0, const float * u) {
    const float * panel = panel_of(job.hessian, job.n, k0) + k0 * PANEL;
    float inverse[R];
    invert<T>(u, inverse);
    for (int k = 0; k < T::sub_block; ++k) {
        const float h = panel[k * PANEL + k];
        const float * w = t.w.data() + (k0 + k) * R;
        float * l = t.level.data() + (k0 + k) * R;
        float * e = t.e.data() + (k0 + k) * R;
        const float * g = t.gradient.data() + k * R;
        const uint32_t outliers = t.outlier[k0 + k];
        float wanted[R];
        float found[R];
        float change[R];
        for (int r = 0; r < R; ++r) {
            wanted[r] = w[r] - e[r] + g[r] / h;
        }
        nearest<T>(wanted, inverse, found);
        for (int r = 0; r < R; ++r) {
            change[r] = w[r] - u[r] * found[r] * T::unit - e[r];
        }
        for (uint32_t mask = outliers; mask != 0; mask &= mask - 1) {
            const int r = __builtin_ctz(mask);
            found[r] = bf16(wanted[r]);
            change[r] = w[r] - found[r] - e[r];
        }
        for (int r = 0; r < R; ++r) {
            // the level nearest to the optimum is the best one, except for the rounding of g
            const float difference = change[r] * (h * change[r] + 2.0f * g[r]);
            const bool better = difference < 0.0f;
            l[r] = better ? found[r] : l[r];
            change[r] = better ? change[r] : 0.0f;
            e[r] += change[r];
            t.loss[1][r] += better ? difference : 0.0f;
        }
        lanes c[2];
        std::memcpy(c, change, sizeof(c));
        for (int j = 0; j < T::sub_block; ++j) {
            lanes old[2];
            std::memcpy(old, t.gradient.data() + j * R, sizeof(old));
            const float m = panel[k * PANEL + j];
            old[0] += m * c[0];
            old[1] += m * c[1];
            std::memcpy(t.gradient.data() + j * R, old, sizeof(old));
        }
    }
}

// Give a sub-block the multiplier of least loss for its levels while all other sub-blocks stay.
template <typename T>
BOF4_INLINE void improve_multipliers(
    const bof4_gptq_job & job, tile & t, int64_t k0, float * u, const float * superscale) {
    const float * panel = panel_of(job.hessian, job.n, k0) + k0 * PANEL;
    float v[T::sub_block * R];
    float num[R] = { 0 };
    float den[R] = { 0 };
    for (int k = 0; k < T::sub_block; ++k) {
        const uint32_t skip = t.outlier[k0 + k];
        for (int r = 0; r < R; ++r) {
            v[k * R + r] = skip >> r & 1 ? 0.0f : t.level[(k0 + k) * R + r] * T::unit;
        }
    }
    for (int k = 0; k < T::sub_block; ++k) {
        float hv[R];
        lanes sum[2] = {};
        for (int j = 0; j < T::sub_block; ++j) {
            lanes other[2];
            std::memcpy(other, v + j * R, sizeof(other));
            sum[0] += panel[k * PANEL + j] * other[0];
            sum[1] += panel[k * PANEL + j] * other[1];
        }
        std::memcpy(hv, sum, sizeof(hv));
        for (int r = 0; r < R; ++r) {
            num[r] += t.gradient[k * R + r] * v[k * R + r];
            den[r] += hv[r] * v[k * R + r];
        }
    }
    for (int r = 0; r < R; ++r) {
        const float wanted = den[r] > 0.0f ? T::snap(u[r] + num[r] / den[r], superscale[r]) : u[r];
        const float du = wanted - u[r];
        const float difference = du * (du * den[r] - 2.0f * num[r]);
        if (difference < 0.0f) {
            t.loss[1][r] += difference;
            u[r] = wanted;
        }
    }
    for (int k = 0; k < T::sub_block; ++k) {
        const uint32_t skip = t.outlier[k0 + k];
        for (int r = 0; r < R; ++r) {
            const int64_t at = (k0 + k) * R + r;
            t.e[at] = skip >> r & 1 ? t.e[at] : t.w[at] - u[r] * t.level[at] * T::unit;
        }
    }
}

// Coordinate descent on the loss itself: each sub-block in turn, all others as they are.
template <typename T> BOF4_INLINE void sweep(const bof4_gptq_job & job, tile & t) {
    for (int64_t k0 = 0; k0 < job.n; k0 += T::sub_block) {
        std::fill_n(t.gradient.begin(), T::sub_block * R, 0.0f);
        accumulate(t.gradient.data(), panel_of(job.hessian, job.n, k0), t.e.data(), 0, job.n, T::sub_block);
        float * u = t.u.data() + k0 / T::sub_block * R;
        improve_levels<T>(job, t, k0, u);
        improve_multipliers<T>(job, t, k0, u, t.superscale.data() + k0 / T::block * R);
    }
}

template <typename T> BOF4_INLINE void encode_tile(const bof4_gptq_job & job, tile & t) {
    quantize_columns<T>(job, t);
    std::copy_n(t.loss[0], R, t.loss[1]);
    for (int i = 0; i < job.sweeps; ++i) {
        sweep<T>(job, t);
    }
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
    for (int c = 0; c < 16; ++c) {
        code_of[T::levels[c] + 128] = (uint8_t) c;
    }
    float * decoded = rows.decoded + row * job.n;
    auto * packed = (typename T::block_type *) rows.encoded + row * (job.n / T::block);
    for (int64_t s = 0; s < job.n; s += T::block) {
        float u[T::block / T::sub_block];
        uint8_t codes[T::block];
        for (int64_t k = s; k < s + T::block; ++k) {
            const int64_t column = job.order[k];
            const float multiplier = t.u[k / T::sub_block * R + r];
            const float level = t.level[k * R + r];
            const bool outlier = t.outlier[k] >> r & 1;
            u[column % T::block / T::sub_block] = multiplier;
            codes[column % T::block] = outlier ? (uint8_t) T::zero_code : code_of[(int) level + 128];
            decoded[column] = outlier ? level : multiplier * level * T::unit;
        }
        T::pack(packed + job.order[s] / T::block, t.superscale[s / T::block * R + r], u, codes);
    }
    if (rows.row_pointers != nullptr) {
        for (int32_t i = rows.row_pointers[row]; i < rows.row_pointers[row + 1]; ++i) {
            const int32_t column = bof4_entry_column(rows.entries[i]);
            rows.entries[i] = bof4_entry(column, t.level[(int64_t) place[column] * R + r]);
        }
    }
}

} // namespace

// Neither static nor templates: target_clones takes nothing else.
#define DEFINE_ENCODE_TILE(NAME, name) \
    void bof4_gptq_encode_tile_##name(const bof4_gptq_job & job, void * storage); \
    BOF4_CLONES void bof4_gptq_encode_tile_##name(const bof4_gptq_job & job, void * storage) { \
        encode_tile<bof4_type<GGML_TYPE_##NAME>>(job, *(tile *) storage); \
    }
BOF4_TYPES_GPTQ(DEFINE_ENCODE_TILE)
#undef DEFINE_ENCODE_TILE

namespace {

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

template <typename T> void encode_rows(
    const bof4_gptq_job & job, bof4_gptq_rows & rows, void (*encode_tile_of_type)(const bof4_gptq_job &, void *)) {
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
    t.superscale.resize(job.n / T::block * R);
    t.outlier.resize(job.n);
    rows.loss[0] = rows.loss[1] = 0.0;
    for (int64_t row = 0; row < rows.count; row += R) {
        const int count = (int) std::min<int64_t>(R, rows.count - row);
        load_tile(job, rows, place.data(), row, count, t);
        encode_tile_of_type(job, &t);
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
        BOF4_TYPES_GPTQ(GPTQ_CASE)
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
        BOF4_TYPES_GPTQ(GPTQ_CASE)
#undef GPTQ_CASE
        default: refuse(type);
    }
    return false;
}

void bof4_gptq_encode(const bof4_gptq_job & job, bof4_gptq_rows & rows) {
    switch (job.type) {
#define GPTQ_CASE(NAME, name) \
    case GGML_TYPE_##NAME: return encode_rows<bof4_type<GGML_TYPE_##NAME>>(job, rows, bof4_gptq_encode_tile_##name);
        BOF4_TYPES_GPTQ(GPTQ_CASE)
#undef GPTQ_CASE
        default: refuse(job.type);
    }
}
