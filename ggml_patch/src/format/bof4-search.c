// Scale search, both types. A scale is tried by giving every weight its nearest level under it: with the least-squares
// scale for those levels k, sum(w x k) / sum(w k^2), the squared error falls by sum(w x k)^2 / sum(w k^2).

#include "bof4-search.h"
#include "bof4-encode.h"

#include <assert.h>

// Compiled three times, for the vectors of three generations of processors; which one runs is decided when it is loaded. All
// give the same bytes: no sum depends on the width of a vector, and contraction to fused operations is off (CMake).
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define BOF4_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), flatten))
#else
#define BOF4_CLONES
#endif

// A loop of 16 would be unrolled before it could become vectors.
#if defined(__GNUC__) && !defined(__clang__)
#define VECTORIZE _Pragma("GCC unroll 1")
#define UNROLL _Pragma("GCC unroll 16")
#else
#define UNROLL
#define VECTORIZE
#endif

// What the nearest levels under some scale can do.
struct fit {
    float gain;     // by how much the squared error falls with the best scale for these levels
    float scale;    // that scale: what a level of 1 is worth
    float weight;   // sum(w k^2): how much the error grows with the square of a step away from it
};

// sum(w x k) and sum(w k^2) for the nearest levels where a level is worth 1 / inverse. n and levels are constants wherever
// this is called, so that it is compiled for them.
static inline void correlate(
        const float * x, const float * w, int n, const int8_t * levels, const float * midpoints, float inverse,
        float * sum_xk, float * sum_kk) {
    float level[QK_BOF4_S];
    VECTORIZE
    for (int j = 0; j < n; ++j) {
        level[j] = (float) levels[0];
    }
    // level = lowest level + the steps whose midpoints are below: no branch, so it vectorizes
    UNROLL
    for (int c = 0; c < 15; ++c) {
        const float step = (float) (levels[c + 1] - levels[c]);
        VECTORIZE
        for (int j = 0; j < n; ++j) {
            level[j] += x[j] * inverse > midpoints[c] ? step : 0.0f;
        }
    }
    // eight partial sums: without -ffast-math a single one would not vectorize
    float xk[8] = {0};
    float kk[8] = {0};
    VECTORIZE
    for (int j = 0; j < n; j += 8) {
        VECTORIZE
        for (int i = 0; i < 8; ++i) {
            const float wk = w[j + i] * level[j + i];
            xk[i] += wk * x[j + i];
            kk[i] += wk * level[j + i];
        }
    }
    *sum_xk = ((xk[0] + xk[4]) + (xk[1] + xk[5])) + ((xk[2] + xk[6]) + (xk[3] + xk[7]));
    *sum_kk = ((kk[0] + kk[4]) + (kk[1] + kk[5])) + ((kk[2] + kk[6]) + (kk[3] + kk[7]));
}

static inline struct fit fit_of_scale(
        const float * x, const float * w, int n, const int8_t * levels, const float * midpoints, float scale) {
    float xk;
    float kk;
    correlate(x, w, n, levels, midpoints, 1.0f / scale, &xk, &kk);
    if (!(kk > 0.0f)) {
        return (struct fit) { 0.0f, 0.0f, 0.0f };
    }
    return (struct fit) { xk * (xk / kk), xk / kk, kk };
}

// By how much the squared error falls with exactly this scale.
static inline float gain_of_scale(
        const float * x, const float * w, int n, const int8_t * levels, const float * midpoints, float scale) {
    float xk;
    float kk;
    correlate(x, w, n, levels, midpoints, 1.0f / scale, &xk, &kk);
    return scale * (2.0f * xk - scale * kk);
}

// Infinity or NaN where an element is not finite.
static float largest_magnitude(const float * x, int n) {
    const uint32_t bits = bof4_largest_bits(x, n);
    float largest;
    memcpy(&largest, &bits, sizeof(largest));
    return largest;
}

// The best fit of either sign, among scales under which the largest weight lands at `first`, `first` + `step`, ... times the
// largest level, each refined once more.
static inline struct fit search_fit(
        const float * x, const float * w, int n, const int8_t * levels, const float * midpoints,
        float m, float first, float step, int count, struct fit * other_sign) {
    struct fit best[2] = { { 0.0f, 0.0f, 0.0f }, { 0.0f, 0.0f, 0.0f } };
    for (int sign = 0; sign < 2; ++sign) {
        for (int i = 0; i < count; ++i) {
            const float scale = (sign ? -m : m) / ((float) BOF4_LEVEL_SCALE * (first + step * (float) i));
            const struct fit found = fit_of_scale(x, w, n, levels, midpoints, scale);
            best[sign] = found.gain > best[sign].gain ? found : best[sign];
        }
        if (best[sign].gain > 0.0f) {
            const struct fit again = fit_of_scale(x, w, n, levels, midpoints, best[sign].scale);
            best[sign] = again.gain > best[sign].gain ? again : best[sign];
        }
    }
    const int better = best[1].gain > best[0].gain;
    *other_sign = best[1 - better];
    return best[better];
}

BOF4_CLONES
uint16_t bof4_s_search_scale(const float * x, const float * w) {
    const float m = largest_magnitude(x, QK_BOF4_S);
    if (!isfinite(m)) {
        return BOF4_FP16_NAN;
    }
    struct fit other;
    // more candidates lower the error on Gaussian weights by less than 0.2 % (bench/NOTES.md)
    const struct fit best = search_fit(x, w, QK_BOF4_S, bof4_s_levels, bof4_s_midpoints, m, 0.72f, 0.05f, 13, &other);
    return bof4_stored_scale((best.gain > 0.0f ? best.scale : m / BOF4_LEVEL_SCALE) * (float) BOF4_LEVEL_SCALE);
}

// The best fits of a block of BOF4_K, the better sign first.
static inline void search_fits_of_k(const float * x, const float * w, float m, struct fit fits[2]) {
    fits[0] = search_fit(x, w, BOF4_K_SUB_BLOCK, bof4_k_levels, bof4_k_midpoints, m, 0.50f, 0.075f, 12, &fits[1]);
}

// Levels under all 64 scales that a block can have are rarely needed: the error has one dip for either sign, and the best
// step is one of those beside it.
static int best_step(const float * x, const float * w, float unit, const struct fit fits[2]) {
    int best = 0;
    float best_gain = 0.0f; // of scale 0, all weights zero
    for (int i = 0; i < 2; ++i) {
        const float at = fits[i].scale / unit;
        if (!(fabsf(at) > 0.0f) || !(fabsf(at) < 1e6f)) {
            continue;
        }
        const int middle = (int) fminf(fmaxf(floorf(at), -32.0f), 31.0f);
        for (int s = middle - 1; s <= middle + 2; ++s) {
            if (s == 0 || s < -32 || s > 31) {
                continue;
            }
            const float found = gain_of_scale(x, w, BOF4_K_SUB_BLOCK, bof4_k_levels, bof4_k_midpoints, unit * (float) s);
            if (found > best_gain) {
                best_gain = found;
                best = s;
            }
        }
    }
    return best;
}

BOF4_CLONES
int bof4_k_search_block(const float * x, const float * w, float d) {
    const float unit = d * BOF4_K_UNIT;
    const float m = largest_magnitude(x, BOF4_K_SUB_BLOCK);
    if (!(m > 0.0f) || !(fabsf(unit) > 0.0f)) {
        return 0;
    }
    struct fit fits[2];
    search_fits_of_k(x, w, m, fits);
    return best_step(x, w, unit, fits);
}

// How far the error of a superblock falls with block scales that are whole numbers of `unit`, to second order.
static float expected_gain(const struct fit fits[BOF4_K_SUB_BLOCKS][2], float unit) {
    float total = 0.0f;
    for (int b = 0; b < BOF4_K_SUB_BLOCKS; ++b) {
        float best = 0.0f;
        for (int i = 0; i < 2; ++i) {
            const struct fit * f = &fits[b][i];
            const float s = fminf(fmaxf(rintf(f->scale / unit), -32.0f), 31.0f);
            const float off = f->scale - s * unit;
            best = fmaxf(best, f->gain - off * off * f->weight);
        }
        total += best;
    }
    return total;
}

// The fits of the sixteen blocks, and the superblock scale (decoded) that serves them best.
static float search_superscale(const float * x, const float * w, struct fit fits[BOF4_K_SUB_BLOCKS][2]) {
    float largest = 0.0f;
    for (int b = 0; b < BOF4_K_SUB_BLOCKS; ++b) {
        const float * block_x = x + b * BOF4_K_SUB_BLOCK;
        const float m = largest_magnitude(block_x, BOF4_K_SUB_BLOCK);
        fits[b][0] = fits[b][1] = (struct fit) { 0.0f, 0.0f, 0.0f };
        if (m > 0.0f) {
            search_fits_of_k(block_x, w + b * BOF4_K_SUB_BLOCK, m, fits[b]);
        }
        largest = fmaxf(largest, fabsf(fits[b][0].scale));
    }
    if (!(largest > 0.0f)) {
        return 0.0f;
    }
    float best_gain = -INFINITY;
    float best_unit = largest;
    for (int steps = 20; steps <= 36; ++steps) {
        for (int sign = -1; sign <= 1; sign += 2) {
            const float unit = (float) sign * largest / (float) steps;
            const float gain = expected_gain((const struct fit (*)[2]) fits, unit);
            if (gain > best_gain) {
                best_gain = gain;
                best_unit = unit;
            }
        }
    }
    // least squares for the block scales that this unit leads to
    float sum_xk = 0.0f;
    float sum_kk = 0.0f;
    for (int b = 0; b < BOF4_K_SUB_BLOCKS; ++b) {
        const float * block_x = x + b * BOF4_K_SUB_BLOCK;
        const float * block_w = w + b * BOF4_K_SUB_BLOCK;
        const float s = (float) best_step(block_x, block_w, best_unit, fits[b]);
        if (s != 0.0f) {
            float xk;
            float kk;
            correlate(block_x, block_w, BOF4_K_SUB_BLOCK, bof4_k_levels, bof4_k_midpoints, 1.0f / (best_unit * s), &xk, &kk);
            sum_xk += s * xk;
            sum_kk += s * s * kk;
        }
    }
    const float unit = sum_kk > 0.0f && sum_xk / sum_kk * best_unit > 0.0f ? sum_xk / sum_kk : best_unit;
    return GGML_FP16_TO_FP32(bof4_stored_scale(unit / BOF4_K_UNIT));
}

BOF4_CLONES
uint16_t bof4_k_search_superscale(const float * x, const float * w) {
    if (!isfinite(largest_magnitude(x, QK_BOF4_K))) {
        return BOF4_FP16_NAN;
    }
    struct fit fits[BOF4_K_SUB_BLOCKS][2];
    return bof4_stored_scale(search_superscale(x, w, fits));
}

static void search_block_bof4_s(const float * x, const float * w, block_bof4_s * block) {
    const uint16_t d = bof4_s_search_scale(x, w);
    uint8_t codes[QK_BOF4_S];
    bof4_nearest_codes(x, QK_BOF4_S, bof4_s_midpoints, BOF4_S_ZERO_CODE,
        GGML_FP16_TO_FP32(d) / (float) BOF4_LEVEL_SCALE, codes);
    bof4_s_pack(block, d, codes);
}

static void search_block_bof4_k(const float * x, const float * w, block_bof4_k * block) {
    const bool finite = isfinite(largest_magnitude(x, QK_BOF4_K));
    struct fit fits[BOF4_K_SUB_BLOCKS][2];
    const float d = finite ? search_superscale(x, w, fits) : NAN;
    int8_t scales[BOF4_K_SUB_BLOCKS] = {0};
    uint8_t codes[QK_BOF4_K];
    for (int b = 0; b < BOF4_K_SUB_BLOCKS; ++b) {
        const int at = b * BOF4_K_SUB_BLOCK;
        scales[b] = finite ? (int8_t) best_step(x + at, w + at, d * BOF4_K_UNIT, fits[b]) : 0;
        bof4_nearest_codes(x + at, BOF4_K_SUB_BLOCK, bof4_k_midpoints, BOF4_K_ZERO_CODE,
            d * BOF4_K_UNIT * (float) scales[b], codes + at);
    }
    bof4_k_pack(block, bof4_stored_scale(d), scales, codes);
}

static const float * ones(void) {
    static const float w[QK_BOF4_K] = {
#define X16 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1
        X16, X16, X16, X16, X16, X16, X16, X16, X16, X16, X16, X16, X16, X16, X16, X16
#undef X16
    };
    return w;
}

BOF4_CLONES
size_t quantize_bof4_s(const float * src, void * dst, int64_t nrow, int64_t n_per_row, const float * imatrix) {
    assert(n_per_row % QK_BOF4_S == 0);
    block_bof4_s * blocks = dst;
    for (int64_t i = 0; i < nrow * n_per_row / QK_BOF4_S; ++i) {
        search_block_bof4_s(
            src + i * QK_BOF4_S, imatrix ? imatrix + i * QK_BOF4_S % n_per_row : ones(), blocks + i);
    }
    return nrow * ggml_row_size(GGML_TYPE_BOF4_S, n_per_row);
}

BOF4_CLONES
size_t quantize_bof4_k(const float * src, void * dst, int64_t nrow, int64_t n_per_row, const float * imatrix) {
    assert(n_per_row % QK_BOF4_K == 0);
    block_bof4_k * blocks = dst;
    for (int64_t i = 0; i < nrow * n_per_row / QK_BOF4_K; ++i) {
        search_block_bof4_k(
            src + i * QK_BOF4_K, imatrix ? imatrix + i * QK_BOF4_K % n_per_row : ones(), blocks + i);
    }
    return nrow * ggml_row_size(GGML_TYPE_BOF4_K, n_per_row);
}
