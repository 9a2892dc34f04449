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

// X(NAME, name) for every type that is encoded here.
#define GPTQ_TYPES(X) \
    BOF4_TYPES_GPTQ(X) \
    BOF4_GPTQ_STOCK_TYPES(X)

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
    std::vector<float> v;          // minimums, [n / sub_block][R]; 0 where the type has none
    std::vector<float> d, dmin;    // superblock scales, [n / block][R]; unused where there are no scales of sub-blocks
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

// Nearest levels of (t + v) / (u unit); inverse is 1 / (u unit), or 0.
template <typename T> BOF4_INLINE void nearest(const float * t, const float * v, const float * inverse, float * level) {
    float y[R];
    float found[R];
    for (int r = 0; r < R; ++r) {
        y[r] = (T::has_minimum ? t[r] + v[r] : t[r]) * inverse[r];
    }
    if constexpr (T::is_uniform) {
        for (int r = 0; r < R; ++r) {
            level[r] = bof4_round(std::min(std::max(y[r], (float) T::lowest), (float) T::highest));
        }
        return;
    } else {
        for (int r = 0; r < R; ++r) {
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
}

template <typename T> BOF4_INLINE void invert(const float * u, float * inverse) {
    for (int r = 0; r < R; ++r) {
        const float whole = u[r] * T::unit;
        inverse[r] = std::fabs(whole) > std::numeric_limits<float>::min() ? 1.0f / whole : 0.0f;
    }
}

// What the levels decode to.
template <typename T> BOF4_INLINE void decode(const float * u, const float * v, const float * level, float * q) {
    for (int r = 0; r < R; ++r) {
        q[r] = u[r] * level[r] * T::unit - (T::has_minimum ? v[r] : 0.0f);
    }
}

BOF4_INLINE float bf16(float x) {
    return ggml_bf16_to_fp32(ggml_fp32_to_bf16(x));
}

// The loss of a sub-block with the multipliers u and minimums v, and the sums that least squares needs to improve them:
// of weighted products of targets x, levels k and 1. x1 and k1 are filled where there are minimums.
struct trial {
    float loss[R];
    float xk[R];
    float kk[R];
    float x1[R];
    float k1[R];
};

// Quantizes the columns of a sub-block one after another with the multipliers u and minimums v: level[sub_block][R] and
// error[sub_block][R].
template <typename T>
BOF4_INLINE void try_sub_block(const bof4_gptq_job & job, const tile & t, int64_t k0, const float * target,
    const float * u, const float * v, float * level, float * error, trial & result) {
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
        nearest<T>(now, v, inverse, l);
        float q[R];
        decode<T>(u, v, l, q);
        for (int r = 0; r < R; ++r) {
            const float off = now[r] - q[r];
            const float wk = d * l[r];
            e[r] = w[r] - q[r];
            result.loss[r] += d * off * off;
            result.xk[r] += wk * now[r];
            result.kk[r] += wk * l[r];
            if constexpr (T::has_minimum) {
                result.x1[r] += d * now[r];
                result.k1[r] += wk;
            }
        }
        for (uint32_t mask = t.outlier[k0 + k]; mask != 0; mask &= mask - 1) {
            const int r = __builtin_ctz(mask);
            const float code_off = now[r] - u[r] * l[r] * T::unit;
            const float value = bf16(now[r]);
            const float off = now[r] - value;
            result.loss[r] += d * (off * off - code_off * code_off);
            result.xk[r] -= d * l[r] * now[r];
            result.kk[r] -= d * l[r] * l[r];
            l[r] = value;
            e[r] = w[r] - value;
        }
    }
}

// Keep the better of two trials, row by row.
BOF4_INLINE void keep_better(
    const trial & one, const float * u, const float * v, trial & best, float * best_u, float * best_v) {
    for (int r = 0; r < R; ++r) {
        const bool better = one.loss[r] < best.loss[r];
        best.loss[r] = better ? one.loss[r] : best.loss[r];
        best.xk[r] = better ? one.xk[r] : best.xk[r];
        best.kk[r] = better ? one.kk[r] : best.kk[r];
        best.x1[r] = better ? one.x1[r] : best.x1[r];
        best.k1[r] = better ? one.k1[r] : best.k1[r];
        best_u[r] = better ? u[r] : best_u[r];
        best_v[r] = better ? v[r] : best_v[r];
    }
}

// The multipliers and minimums that fit the levels of a trial best, as they can be stored. weight: the sum of the
// curvatures of the sub-block.
template <typename T>
BOF4_INLINE void refit(const trial & best, float weight, const float * best_u, const float * best_v, const float * d,
    const float * dmin, float * u, float * v) {
    if constexpr (T::has_minimum) {
        for (int r = 0; r < R; ++r) {
            const float determinant = weight * best.kk[r] - best.k1[r] * best.k1[r];
            const float fitted = (weight * best.xk[r] - best.x1[r] * best.k1[r]) / determinant;
            const bool has_fit = determinant > 1e-6f * weight * best.kk[r];
            u[r] = T::snap(has_fit ? fitted : best_u[r], d[r]);
            // the minimum belongs to the multiplier that is stored; where it may not be negative, the multiplier alone
            v[r] = (u[r] * best.k1[r] - best.x1[r]) / weight;
            if (v[r] < T::least_minimum && best.kk[r] > 0.0f) {
                u[r] = T::snap(best.xk[r] / best.kk[r], d[r]);
            }
            v[r] = T::snap_minimum(v[r], dmin[r]);
        }
    } else {
        for (int r = 0; r < R; ++r) {
            u[r] = best.kk[r] > 0.0f ? T::snap(best.xk[r] / best.kk[r] / T::unit, d[r]) : best_u[r];
            v[r] = best_v[r];
        }
    }
}

// The multipliers and minimums with which the i-th trial of the grid is made. least and most: the range of the targets,
// largest: the one of largest magnitude.
template <typename T>
BOF4_INLINE void from_grid(int i, const float * least, const float * most, const float * largest, const float * d,
    const float * dmin, float * u, float * v) {
    if constexpr (T::has_minimum) {
        const float part = T::gptq.first + T::gptq.step * (float) i; // of the range that the levels span
        for (int r = 0; r < R; ++r) {
            const float low = std::min(least[r], -T::least_minimum);
            const float range = (most[r] - low) * part;
            u[r] = T::snap(range / (float) (T::highest - T::lowest), d[r]);
            v[r] = T::snap_minimum(-low - 0.5f * (1.0f - part) * (most[r] - low), dmin[r]);
        }
    } else {
        const float to_multiplier = 1.0f / (T::top * T::unit);
        const float factor = (i % 2 ? -to_multiplier : to_multiplier) /
            (T::gptq.first + T::gptq.step * (float) (i / 2));
        for (int r = 0; r < R; ++r) {
            u[r] = T::snap(largest[r] * factor, d[r]);
            v[r] = 0.0f;
        }
    }
}

// Choose the multipliers and minimums of a sub-block by its loss with them, feedback included, and quantize its columns.
template <typename T>
BOF4_INLINE void quantize_sub_block(
    const bof4_gptq_job & job, tile & t, int64_t k0, const float * target, const float * d, const float * dmin) {
    float level[T::sub_block * R];
    float error[T::sub_block * R];
    float largest[R] = { 0 };
    float least[R] = { 0 };
    float most[R] = { 0 };
    if constexpr (T::has_minimum) {
        std::copy_n(target, R, least);
        std::copy_n(target, R, most);
    }
    float weight = 0.0f;
    for (int k = 0; k < T::sub_block; ++k) {
        weight += job.curvature[k0 + k];
        const uint32_t skip = t.outlier[k0 + k];
        for (int r = 0; r < R; ++r) {
            const float x = target[k * R + r];
            largest[r] = std::fabs(x) > std::fabs(largest[r]) && !(skip >> r & 1) ? x : largest[r];
            if constexpr (T::has_minimum) {
                least[r] = std::min(least[r], x);
                most[r] = std::max(most[r], x);
            }
        }
    }
    float u[R];
    float v[R];
    float best_u[R] = { 0 };
    float best_v[R] = { 0 };
    trial one;
    trial best = {};
    std::fill_n(best.loss, R, std::numeric_limits<float>::infinity());
    constexpr int trials = T::has_minimum ? T::gptq.count : 2 * T::gptq.count;
    constexpr int refits = T::has_minimum ? 3 : 2;
    for (int i = 0; i < trials + refits; ++i) {
        if (i < trials) {
            from_grid<T>(i, least, most, largest, d, dmin, u, v);
        } else {
            refit<T>(best, weight, best_u, best_v, d, dmin, u, v);
        }
        try_sub_block<T>(job, t, k0, target, u, v, level, error, one);
        keep_better(one, u, v, best, best_u, best_v);
    }
    try_sub_block<T>(job, t, k0, target, best_u, best_v, level, error, one);
    std::copy_n(level, T::sub_block * R, t.level.data() + k0 * R);
    std::copy_n(error, T::sub_block * R, t.e.data() + k0 * R);
    std::copy_n(best_u, R, t.u.data() + k0 / T::sub_block * R);
    std::copy_n(best_v, R, t.v.data() + k0 / T::sub_block * R);
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
        const bof4_superscales found = T::superscales(x, job.curvature + k0);
        t.d[k0 / T::block * R + r] = found.d;
        t.dmin[k0 / T::block * R + r] = found.dmin;
    }
}

// The columns in order.
template <typename T> BOF4_INLINE void quantize_columns(const bof4_gptq_job & job, tile & t) {
    for (int64_t s = 0; s < job.n; s += T::block) {
        std::copy_n(t.w.data() + s * R, T::block * R, t.target.data());
        constexpr int width = std::min<int>(T::block, PANEL);
        for (int c = 0; c < T::block; c += width) {
            accumulate(t.target.data() + c * R, panel_of(job.feedback, job.n, s + c), t.e.data(), 0, s, width);
        }
        if (T::block != T::sub_block) {
            choose_superscales<T>(job, t, s);
        }
        for (int b = 0; b < T::block; b += T::sub_block) {
            float * target = t.target.data() + b * R;
            accumulate(target, panel_of(job.feedback, job.n, s + b), t.e.data(), s, s + b, T::sub_block);
            quantize_sub_block<T>(
                job, t, s + b, target, t.d.data() + s / T::block * R, t.dmin.data() + s / T::block * R);
        }
    }
}

// Give every column of a sub-block the level of least loss while all other columns stay.
template <typename T>
BOF4_INLINE void improve_levels(const bof4_gptq_job & job, tile & t, int64_t k0, const float * u, const float * v) {
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
        nearest<T>(wanted, v, inverse, found);
        float q[R];
        decode<T>(u, v, found, q);
        for (int r = 0; r < R; ++r) {
            change[r] = w[r] - q[r] - e[r];
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

// Change multipliers by du and minimums by dv for the levels l of a sub-block: its decoded weights change by du l - dv,
// and with H the Hessian and g = H e the loss by du (du lHl - 2 gl) + dv (dv 1H1 + 2 g1 - 2 du lH1).
template <typename T>
BOF4_INLINE void improve_multipliers(
    const bof4_gptq_job & job, tile & t, int64_t k0, float * u, float * v, const float * d, const float * dmin) {
    const float * panel = panel_of(job.hessian, job.n, k0) + k0 * PANEL;
    float l[T::sub_block * R];
    float gl[R] = { 0 };
    float lhl[R] = { 0 };
    float g1[R] = { 0 };
    float lh1[R] = { 0 };
    float h11 = 0.0f;
    for (int k = 0; k < T::sub_block; ++k) {
        const uint32_t skip = t.outlier[k0 + k];
        for (int r = 0; r < R; ++r) {
            l[k * R + r] = skip >> r & 1 ? 0.0f : t.level[(k0 + k) * R + r] * T::unit;
        }
    }
    for (int k = 0; k < T::sub_block; ++k) {
        float hl[R];
        lanes sum[2] = {};
        for (int j = 0; j < T::sub_block; ++j) {
            lanes other[2];
            std::memcpy(other, l + j * R, sizeof(other));
            sum[0] += panel[k * PANEL + j] * other[0];
            sum[1] += panel[k * PANEL + j] * other[1];
            h11 += panel[k * PANEL + j];
        }
        std::memcpy(hl, sum, sizeof(hl));
        for (int r = 0; r < R; ++r) {
            gl[r] += t.gradient[k * R + r] * l[k * R + r];
            lhl[r] += hl[r] * l[k * R + r];
            if constexpr (T::has_minimum) {
                g1[r] += t.gradient[k * R + r];
                lh1[r] += hl[r];
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        float wanted = lhl[r] > 0.0f ? u[r] + gl[r] / lhl[r] : u[r];
        float difference = 0.0f;
        float du = 0.0f;
        float minimum = 0.0f;
        if constexpr (T::has_minimum) {
            const float determinant = h11 * lhl[r] - lh1[r] * lh1[r];
            if (determinant > 1e-6f * h11 * lhl[r]) {
                wanted = u[r] + (h11 * gl[r] - lh1[r] * g1[r]) / determinant;
            }
            du = T::snap(wanted, d[r]) - u[r];
            minimum = h11 > 0.0f ? T::snap_minimum(v[r] + (du * lh1[r] - g1[r]) / h11, dmin[r]) : v[r];
            const float dv = minimum - v[r];
            difference = dv * (dv * h11 + 2.0f * g1[r] - 2.0f * du * lh1[r]);
        } else {
            du = (lhl[r] > 0.0f ? T::snap(wanted, d[r]) : u[r]) - u[r];
        }
        difference += du * (du * lhl[r] - 2.0f * gl[r]);
        if (difference < 0.0f) {
            t.loss[1][r] += difference;
            u[r] = lhl[r] > 0.0f || T::has_minimum ? T::snap(wanted, d[r]) : u[r];
            v[r] = T::has_minimum ? minimum : v[r];
        }
    }
    for (int k = 0; k < T::sub_block; ++k) {
        const uint32_t skip = t.outlier[k0 + k];
        float q[R];
        decode<T>(u, v, t.level.data() + (k0 + k) * R, q);
        for (int r = 0; r < R; ++r) {
            const int64_t at = (k0 + k) * R + r;
            t.e[at] = skip >> r & 1 ? t.e[at] : t.w[at] - q[r];
        }
    }
}

// Coordinate descent on the loss itself: each sub-block in turn, all others as they are.
template <typename T> BOF4_INLINE void sweep(const bof4_gptq_job & job, tile & t) {
    for (int64_t k0 = 0; k0 < job.n; k0 += T::sub_block) {
        std::fill_n(t.gradient.begin(), T::sub_block * R, 0.0f);
        accumulate(t.gradient.data(), panel_of(job.hessian, job.n, k0), t.e.data(), 0, job.n, T::sub_block);
        float * u = t.u.data() + k0 / T::sub_block * R;
        float * v = t.v.data() + k0 / T::sub_block * R;
        const int64_t superblock = k0 / T::block * R;
        improve_levels<T>(job, t, k0, u, v);
        improve_multipliers<T>(job, t, k0, u, v, t.d.data() + superblock, t.dmin.data() + superblock);
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

} // namespace

// Neither static nor templates: target_clones takes nothing else.
#define DEFINE_ENCODE_TILE(NAME, name) \
    void bof4_gptq_encode_tile_##name(const bof4_gptq_job & job, void * storage); \
    BOF4_CLONES void bof4_gptq_encode_tile_##name(const bof4_gptq_job & job, void * storage) { \
        encode_tile<bof4_type<GGML_TYPE_##NAME>>(job, *(tile *) storage); \
    }
GPTQ_TYPES(DEFINE_ENCODE_TILE)
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
    t.v.resize(job.n / T::sub_block * R);
    t.d.resize(job.n / T::block * R);
    t.dmin.resize(job.n / T::block * R);
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
    case GGML_TYPE_##NAME: return encode_rows<bof4_type<GGML_TYPE_##NAME>>(job, rows, bof4_gptq_encode_tile_##name);
        GPTQ_TYPES(GPTQ_CASE)
#undef GPTQ_CASE
        default: refuse(job.type);
    }
}
