// Scale search, all types. A scale is tried by giving every weight its nearest level under it: with the least-squares
// scale for those levels k, sum(w x k) / sum(w k^2), the squared error falls by sum(w x k)^2 / sum(w k^2).

#include "bof4-encode.h"

#include <assert.h>
#include <limits.h>

// Compiled three times, for three levels of x86-64; the dynamic loader chooses the one that runs. All give the same
// bytes: no sum depends on the width of a vector, and contraction to fused operations is off (CMake).
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define BOF4_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), flatten))
#else
#define BOF4_CLONES
#endif

// Without these pragmas, a loop of 16 is unrolled before it can be vectorized.
#if defined(__GNUC__) && !defined(__clang__)
#define VECTORIZE _Pragma("GCC unroll 1")
#define UNROLL _Pragma("GCC unroll 16")
#else
#define UNROLL
#define VECTORIZE
#endif

// The result of trying one scale, with the nearest levels under it.
struct fit {
    float gain;   // by how much the squared error falls with the best scale for these levels
    float scale;  // that scale: the value of level 1
    float weight; // sum(w k^2): how much the error grows with the square of a step away from it
};

// a constant wherever it is passed, so that code is compiled for the type
typedef const struct bof4_encoding * encoding;

enum {
    MAX_SUB_BLOCKS = 16,
    // superblock scales that are tried: the largest scale of a sub-block is 20/32 to 36/32 of the largest that can be
    // stored
    FIRST_SUPERSCALE = 20,
    LAST_SUPERSCALE = 36,
    SUPERSCALES = 32,
    // importances from 2^-40 to 2^40 are used as they are
    ORDINARY_EXPONENT = 40,
};

// The importances of a block as the search calculates with them.
struct importance {
    const float * w; // of each weight
    // What a sub-block counts in its superblock, relative to its w: 1 for all where w are the importances as given.
    float factor[MAX_SUB_BLOCKS];
    float scaled[BOF4_MAX_BLOCK]; // w, where they are not the importances as given
};

// Bits of the largest importance of a weight other than zero.
static inline uint32_t largest_importance_bits(const float * x, const float * w, int n) {
    uint32_t largest = 0;
    for (int j = 0; j < n; ++j) {
        const uint32_t bits = bof4_magnitude_bits(x[j]) != 0 ? bof4_magnitude_bits(w[j]) : 0;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

// Importances so small or large that products of the search would underflow or overflow are multiplied by a power of
// two for each sub-block, which changes no other bit of the result. Sub-blocks whose weights have no importance at all
// would become zeros: theirs are ones, and in their superblock they count like the least important of the others.
static void scale_importance(
    encoding type, const float * x, const float * w, const uint32_t * largest_bits, struct importance * found) {
    int exponents[MAX_SUB_BLOCKS] = { 0 };
    int least = INT_MAX;
    int most = INT_MIN;
    for (int b = 0; b < type->sub_blocks; ++b) {
        if (largest_bits[b] != 0) {
            float largest;
            memcpy(&largest, &largest_bits[b], sizeof(largest));
            frexpf(largest, &exponents[b]);
            least = exponents[b] < least ? exponents[b] : least;
            most = exponents[b] > most ? exponents[b] : most;
        }
    }
    for (int b = 0; b < type->sub_blocks; ++b) {
        const bool has_importance = largest_bits[b] != 0;
        const int below = most == INT_MIN ? 0 : (has_importance ? exponents[b] : least) - most;
        found->factor[b] = ldexpf(1.0f, below);
        for (int j = b * type->sub_block; j < (b + 1) * type->sub_block; ++j) {
            // the importance of a weight of zero plays no part and could overflow
            const float scaled = bof4_magnitude_bits(x[j]) != 0 ? ldexpf(w[j], -exponents[b]) : 0.0f;
            found->scaled[j] = has_importance ? scaled : 1.0f;
        }
    }
    found->w = found->scaled;
}

// The importances w of the weights x of a block, 0 or more, as the search calculates with them.
static inline void prepare_importance(encoding type, const float * x, const float * w, struct importance * found) {
    const uint32_t lowest = (uint32_t) (127 - ORDINARY_EXPONENT) << 23;
    const uint32_t highest = (uint32_t) (127 + ORDINARY_EXPONENT) << 23;
    uint32_t largest_bits[MAX_SUB_BLOCKS];
    bool is_ordinary = true;
    for (int b = 0; b < type->sub_blocks; ++b) {
        const int at = b * type->sub_block;
        largest_bits[b] = largest_importance_bits(x + at, w + at, type->sub_block);
        found->factor[b] = 1.0f;
        is_ordinary = is_ordinary &&
            ((largest_bits[b] >= lowest && largest_bits[b] <= highest) ||
                bof4_largest_bits(x + at, type->sub_block) == 0);
    }
    found->w = w;
    if (!is_ordinary) {
        scale_importance(type, x, w, largest_bits, found);
    }
}

// sum(w x k) and sum(w k^2) for the nearest levels k of a sub-block where level 1 has the value 1 / inverse.
static inline void correlate(
    encoding type, const float * x, const float * w, float inverse, float * sum_xk, float * sum_kk) {
    const int n = type->sub_block;
    float level[BOF4_MAX_SUB_BLOCK];
    VECTORIZE
    for (int j = 0; j < n; ++j) {
        level[j] = (float) type->levels[0];
    }
    // level = lowest level + the steps whose midpoints are below: no branch, so it vectorizes
    UNROLL
    for (int c = 0; c < 15; ++c) {
        const float step = (float) (type->levels[c + 1] - type->levels[c]);
        VECTORIZE
        for (int j = 0; j < n; ++j) {
            level[j] += x[j] * inverse > type->midpoints[c] ? step : 0.0f;
        }
    }
    // eight partial sums: without -ffast-math a single one would not vectorize
    float xk[8] = { 0 };
    float kk[8] = { 0 };
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

static inline struct fit fit_of_scale(encoding type, const float * x, const float * w, float scale) {
    float xk;
    float kk;
    correlate(type, x, w, 1.0f / scale, &xk, &kk);
    if (!(kk > 0.0f)) {
        return (struct fit){ 0.0f, 0.0f, 0.0f };
    }
    return (struct fit){ xk * (xk / kk), xk / kk, kk };
}

// By how much the squared error falls with exactly this scale.
static inline float gain_of_scale(encoding type, const float * x, const float * w, float scale) {
    float xk;
    float kk;
    correlate(type, x, w, 1.0f / scale, &xk, &kk);
    return scale * (2.0f * xk - scale * kk);
}

// As bof4_checked_magnitude says.
static float largest_magnitude(const float * x, int n) {
    return bof4_checked_magnitude(bof4_largest_bits(x, n));
}

// The best fits of a sub-block with the largest magnitude m, the better sign first, among the scales of the type's
// grid, each refined once more.
static inline void search_fits(encoding type, const float * x, const float * w, float m, struct fit fits[2]) {
    const struct bof4_search_grid grid = type->search;
    struct fit best[2] = { { 0.0f, 0.0f, 0.0f }, { 0.0f, 0.0f, 0.0f } };
    for (int sign = 0; sign < 2; ++sign) {
        for (int i = 0; i < grid.count; ++i) {
            const float scale = (sign ? -m : m) / ((float) BOF4_LEVEL_SCALE * (grid.first + grid.step * (float) i));
            const struct fit found = fit_of_scale(type, x, w, scale);
            best[sign] = found.gain > best[sign].gain ? found : best[sign];
        }
        if (best[sign].gain > 0.0f) {
            const struct fit again = fit_of_scale(type, x, w, best[sign].scale);
            best[sign] = again.gain > best[sign].gain ? again : best[sign];
        }
    }
    const int better = best[1].gain > best[0].gain;
    fits[0] = best[better];
    fits[1] = best[1 - better];
}

// The fp16 bits of the only scale of a block; those of NaN where an x is not finite, of infinity where one is too
// large.
static inline uint16_t search_one_scale(encoding type, const float * x, const float * w) {
    const float m = largest_magnitude(x, type->block);
    if (!isfinite(m)) {
        return bof4_stored_scale(m);
    }
    struct importance importance;
    prepare_importance(type, x, w, &importance);
    struct fit fits[2];
    // more candidates lower the error on Gaussian weights by less than 0.2 % (bench/NOTES.md)
    search_fits(type, x, importance.w, m, fits);
    float scale = fits[0].gain > 0.0f ? fits[0].scale : m / BOF4_LEVEL_SCALE;
    const float most = BOF4_FP16_MAX / BOF4_LEVEL_SCALE;
    if (fabsf(scale) > most) {
        // it can be stored as `most` only, with which the other sign may be better
        const float gain = gain_of_scale(type, x, importance.w, most);
        scale = gain_of_scale(type, x, importance.w, -most) > gain ? -most : most;
    }
    return bof4_stored_scale(scale * (float) BOF4_LEVEL_SCALE);
}

// The best scale of a sub-block, in units of `unit`. Only the steps next to the two fits are tried, not all that can be
// stored: the error has one minimum for either sign, and the best step is next to it.
static inline int best_step(encoding type, const float * x, const float * w, float unit, const struct fit fits[2]) {
    int best = 0;
    float best_gain = 0.0f; // of scale 0, all weights zero
    for (int i = 0; i < 2; ++i) {
        const float at = fits[i].scale / unit;
        if (!(fabsf(at) > 0.0f) || !(fabsf(at) < 1e6f)) {
            continue;
        }
        const int middle = (int) bof4_clamped_scale(floorf(at), type);
        for (int s = middle - 1; s <= middle + 2; ++s) {
            if (s == 0 || s < -type->offset || s > type->offset - 1) {
                continue;
            }
            const float found = gain_of_scale(type, x, w, unit * (float) s);
            if (found > best_gain) {
                best_gain = found;
                best = s;
            }
        }
    }
    return best;
}

// The fits of a superblock by field, so that they are evaluated many at a time: the better one of each sub-block, then
// the others.
struct fit_fields {
    float gain[2 * MAX_SUB_BLOCKS];
    float scale[2 * MAX_SUB_BLOCKS];
    float weight[2 * MAX_SUB_BLOCKS];
};

static inline void set_fields(encoding type, const struct fit fits[][2], struct fit_fields * fields) {
    for (int b = 0; b < type->sub_blocks; ++b) {
        for (int i = 0; i < 2; ++i) {
            const int at = i * type->sub_blocks + b;
            fields->gain[at] = fits[b][i].gain;
            fields->scale[at] = fits[b][i].scale;
            fields->weight[at] = fits[b][i].weight;
        }
    }
}

// How far the error of a superblock falls with scales of sub-blocks that are whole numbers of `unit`, to second order.
static inline float expected_gain(encoding type, const struct fit_fields * fits, const float * factor, float unit) {
    const int n = type->sub_blocks;
    float gain[2 * MAX_SUB_BLOCKS];
    VECTORIZE
    for (int i = 0; i < 2 * n; ++i) {
        const float s = bof4_clamped_scale(rintf(fits->scale[i] / unit), type);
        const float off = fits->scale[i] - s * unit;
        const float found = fits->gain[i] - off * off * fits->weight[i];
        gain[i] = found > 0.0f ? found : 0.0f;
    }
    VECTORIZE
    for (int b = 0; b < n; ++b) {
        gain[b] = factor[b] * (gain[n + b] > gain[b] ? gain[n + b] : gain[b]);
    }
    float total = 0.0f;
    for (int b = 0; b < n; ++b) {
        total += gain[b];
    }
    return total;
}

// The fits of the sub-blocks, and the superblock scale (decoded) with which the error of the superblock falls most.
static inline float search_superscale(
    encoding type, const float * x, const struct importance * importance, struct fit fits[][2]) {
    const int n = type->sub_block;
    const float * w = importance->w;
    float largest = 0.0f;
    for (int b = 0; b < type->sub_blocks; ++b) {
        const float m = largest_magnitude(x + b * n, n);
        fits[b][0] = fits[b][1] = (struct fit){ 0.0f, 0.0f, 0.0f };
        if (m > 0.0f) {
            search_fits(type, x + b * n, w + b * n, m, fits[b]);
        }
        largest = fmaxf(largest, fabsf(fits[b][0].scale));
    }
    if (!(largest > 0.0f)) {
        return 0.0f;
    }
    struct fit_fields fields;
    set_fields(type, (const struct fit(*)[2]) fits, &fields);
    float best_gain = -INFINITY;
    float best_unit = largest;
    for (int i = FIRST_SUPERSCALE; i <= LAST_SUPERSCALE; ++i) {
        for (int sign = -1; sign <= 1; sign += 2) {
            const float unit = (float) sign * largest / (float) (i * type->offset / SUPERSCALES);
            const float gain = expected_gain(type, &fields, importance->factor, unit);
            if (gain > best_gain) {
                best_gain = gain;
                best_unit = unit;
            }
        }
    }
    // least squares for the scales of sub-blocks that this unit leads to
    float sum_xk = 0.0f;
    float sum_kk = 0.0f;
    for (int b = 0; b < type->sub_blocks; ++b) {
        const float s = (float) best_step(type, x + b * n, w + b * n, best_unit, fits[b]);
        if (s != 0.0f) {
            float xk;
            float kk;
            correlate(type, x + b * n, w + b * n, 1.0f / (best_unit * s), &xk, &kk);
            sum_xk += importance->factor[b] * (s * xk);
            sum_kk += importance->factor[b] * (s * s * kk);
        }
    }
    const float unit = sum_kk > 0.0f && sum_xk / sum_kk * best_unit > 0.0f ? sum_xk / sum_kk : best_unit;
    return GGML_FP16_TO_FP32(bof4_stored_scale(unit / type->unit));
}

// Scales of sub-blocks and codes; returns the fp16 bits of the superblock scale.
static inline uint16_t search_sub_scales(
    encoding type, const float * x, const float * w, int8_t * scales, uint8_t * codes) {
    const float m = largest_magnitude(x, type->block);
    const bool finite = isfinite(m);
    struct importance importance;
    struct fit fits[MAX_SUB_BLOCKS][2];
    float d = m;
    if (finite) {
        prepare_importance(type, x, w, &importance);
        d = search_superscale(type, x, &importance, fits);
    }
    for (int b = 0; b < type->sub_blocks; ++b) {
        const int at = b * type->sub_block;
        scales[b] = finite ? (int8_t) best_step(type, x + at, importance.w + at, d * type->unit, fits[b]) : 0;
        bof4_nearest_codes(x + at, type, d * type->unit * (float) scales[b], codes + at);
    }
    return bof4_stored_scale(d);
}

#define DEFINE_SEARCH_BLOCK_ONE_SCALE(NAME, name) \
    static void search_block_##name(const float * x, const float * w, block_##name * block) { \
        uint8_t codes[QK_##NAME]; \
        const uint16_t d = search_one_scale(&name##_encoding, x, w); \
        bof4_nearest_codes(x, &name##_encoding, bof4_value_per_level(d), codes); \
        name##_pack(block, d, codes); \
    }
#define DEFINE_SEARCH_BLOCK_SUB_SCALES(NAME, name) \
    BOF4_STATIC_ASSERT(NAME##_SUB_BLOCKS <= MAX_SUB_BLOCKS, "MAX_SUB_BLOCKS is that of all types"); \
    BOF4_CLONES \
    uint16_t name##_search_superscale(const float * x, const float * w) { \
        const float m = largest_magnitude(x, QK_##NAME); \
        if (!isfinite(m)) { \
            return bof4_stored_scale(m); \
        } \
        struct importance importance; \
        prepare_importance(&name##_encoding, x, w, &importance); \
        struct fit fits[MAX_SUB_BLOCKS][2]; \
        return bof4_stored_scale(search_superscale(&name##_encoding, x, &importance, fits)); \
    } \
    static void search_block_##name(const float * x, const float * w, block_##name * block) { \
        int8_t scales[NAME##_SUB_BLOCKS]; \
        uint8_t codes[QK_##NAME]; \
        const uint16_t d = search_sub_scales(&name##_encoding, x, w, scales, codes); \
        name##_pack(block, d, scales, codes); \
    }
BOF4_TYPES_ONE_SCALE(DEFINE_SEARCH_BLOCK_ONE_SCALE)
BOF4_TYPES_SUB_SCALES(DEFINE_SEARCH_BLOCK_SUB_SCALES)

// The importance of the weights of a block where there is no importance matrix.
static const float * ones(void) {
    static const float w[BOF4_MAX_BLOCK] = {
#define X16 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1
        X16, X16, X16, X16, X16, X16, X16, X16, X16, X16, X16, X16, X16, X16, X16, X16
#undef X16
    };
    return w;
}
BOF4_STATIC_ASSERT(BOF4_MAX_BLOCK == 256, "ones() has as many as the largest block has weights");

static bool are_importances(const float * w, int64_t n) {
    for (int64_t j = 0; j < n; ++j) {
        if (!bof4_is_importance(w[j])) {
            return false;
        }
    }
    return true;
}

#define DEFINE_QUANTIZE(NAME, name) \
    BOF4_CLONES \
    size_t quantize_##name(const float * src, void * dst, int64_t nrow, int64_t n_per_row, const float * imatrix) { \
        assert(n_per_row % QK_##NAME == 0); \
        block_##name * blocks = dst; \
        const bool valid = imatrix == NULL || are_importances(imatrix, n_per_row); \
        for (int64_t i = 0; i < nrow * n_per_row / QK_##NAME; ++i) { \
            const float * w = imatrix ? imatrix + i * QK_##NAME % n_per_row : ones(); \
            if (valid) { \
                search_block_##name(src + i * QK_##NAME, w, blocks + i); \
            } else { /* there is no way to return an error, but llama-quantize validates what it gets */ \
                memset(blocks + i, 0, sizeof(*blocks)); \
                blocks[i].d = BOF4_FP16_NAN; \
            } \
        } \
        return nrow * ggml_row_size(GGML_TYPE_##NAME, n_per_row); \
    }
BOF4_TYPES(DEFINE_QUANTIZE)
