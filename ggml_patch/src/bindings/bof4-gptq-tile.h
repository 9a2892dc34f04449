// How gptq encodes a tile of rows: compiled by bof4-gptq.cpp once for each level of x86-64, in a namespace of its own.
// Functions that are merely inlined into a clone would not do: GCC splits vectors into those of the instruction set that
// the function was written for, before it inlines it.
//
// No #pragma once. The includer defines BOF4_GPTQ_LANES, the floats of a vector register, and the storage of a tile.

// As many rows as a vector register has floats; memory has R floats for each column.
constexpr int LANES = BOF4_GPTQ_LANES;
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

BOF4_INLINE lanes load(const float * from) {
    lanes x;
    std::memcpy(&x, from, sizeof(x));
    return x;
}

BOF4_INLINE void store(float * to, const lanes & x) {
    std::memcpy(to, &x, sizeof(x));
}

BOF4_INLINE void add_to(float * to, const lanes & x) {
    lanes sum = load(to);
    sum += x;
    store(to, sum);
}

// x += m y, float32 [R] each.
BOF4_INLINE void add_product(float * x, float m, const float * y) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r += LANES) {
        add_to(x + r, m * load(y + r));
    }
}

// Entry (j, k) of a matrix in panels is at panel_of(k)[j * PANEL].
BOF4_INLINE const float * panel_of(const float * matrix, int64_t n, int64_t k) {
    return matrix + k / PANEL * PANEL * n + k % PANEL;
}

// Fetch errors and rows of a panel into L2.
BOF4_INLINE void prefetch(const float * panel, const float * e, int64_t from, int64_t to, int width) {
#if defined(__GNUC__)
    constexpr int line = 64 / sizeof(float);
    for (int64_t j = from; j < to; ++j) {
        for (int c = 0; c < width; c += line) {
            __builtin_prefetch(panel + j * PANEL + c, 0, 2);
        }
        for (int r = 0; r < R; r += line) {
            __builtin_prefetch(e + j * R + r, 0, 2);
        }
    }
#endif
}

// sums[c] += sum over j in [from, to) of matrix[j][c] e[j], for the `width` columns that `panel` points to. Four columns
// and two registers of rows at a time: eight accumulators, as many as hide the latency of a multiply-add on AVX2.
// What the next chunk needs is fetched meanwhile, whether there is one or not: with a number that depends on it, gcc 12
// makes a loop that is a fifth slower.
BOF4_INLINE void accumulate_chunk(
    float * sums, const float * panel, const float * e, int64_t from, int64_t to, int width) {
    const int passes = R / (2 * LANES) * (width / 4);
    int pass = 0;
    for (int r = 0; r < R; r += 2 * LANES) {
        for (int c = 0; c < width; c += 4) {
            prefetch(panel, e, to + CHUNK * pass / passes, to + CHUNK * (pass + 1) / passes, width);
            ++pass;
            float * sum = sums + c * R + r;
            lanes a0 = load(sum), a1 = load(sum + LANES);
            lanes b0 = load(sum + R), b1 = load(sum + R + LANES);
            lanes c0 = load(sum + 2 * R), c1 = load(sum + 2 * R + LANES);
            lanes d0 = load(sum + 3 * R), d1 = load(sum + 3 * R + LANES);
            for (int64_t j = from; j < to; ++j) {
                const lanes e0 = load(e + j * R + r);
                const lanes e1 = load(e + j * R + r + LANES);
                const float * m = panel + j * PANEL + c;
                a0 += m[0] * e0;
                a1 += m[0] * e1;
                b0 += m[1] * e0;
                b1 += m[1] * e1;
                c0 += m[2] * e0;
                c1 += m[2] * e1;
                d0 += m[3] * e0;
                d1 += m[3] * e1;
            }
            store(sum, a0);
            store(sum + LANES, a1);
            store(sum + R, b0);
            store(sum + R + LANES, b1);
            store(sum + 2 * R, c0);
            store(sum + 2 * R + LANES, c1);
            store(sum + 3 * R, d0);
            store(sum + 3 * R + LANES, d1);
        }
    }
}

// out[c] += sum over j in [from, to) of matrix[j][c] e[j]. In chunks of j, because each error is read for every four
// columns, and each cache line of the matrix, too: from L1 then, where all of them together would come from L3.
BOF4_INLINE void accumulate(float * out, const float * panel, const float * e, int64_t from, int64_t to, int width) {
    float sums[PANEL * R];
    std::memset(sums, 0, width * R * sizeof(float));
    for (int64_t j = from; j < to; j += CHUNK) {
        accumulate_chunk(sums, panel, e, j, std::min(to, j + CHUNK), width);
    }
    for (int i = 0; i < width * R; i += LANES) {
        add_to(out + i, load(sums + i));
    }
}

// now = target + sum over j below k of column[j] error[j], float32 [R]. column: entries PANEL apart.
BOF4_INLINE void corrected(float * now, const float * target, const float * column, const float * error, int k) {
    for (int r = 0; r < R; r += 2 * LANES) {
        lanes x0 = load(target + r);
        lanes x1 = load(target + r + LANES);
        for (int j = 0; j < k; ++j) {
            x0 += column[j * PANEL] * load(error + j * R + r);
            x1 += column[j * PANEL] * load(error + j * R + r + LANES);
        }
        store(now + r, x0);
        store(now + r + LANES, x1);
    }
}

// sum = sum over j of row[j] l[j], float32 [R].
BOF4_INLINE void product(float * sum, const float * row, const float * l, int count) {
    for (int r = 0; r < R; r += 2 * LANES) {
        lanes x0 = {};
        lanes x1 = {};
        for (int j = 0; j < count; ++j) {
            x0 += row[j] * load(l + j * R + r);
            x1 += row[j] * load(l + j * R + r + LANES);
        }
        store(sum + r, x0);
        store(sum + r + LANES, x1);
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
        float now[R];
        corrected(now, target + k * R, panel + k, error, k);
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
        for (int j = 0; j < T::sub_block; ++j) {
            add_product(t.gradient.data() + j * R, panel[k * PANEL + j], change);
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
        product(hl, panel + k * PANEL, l, T::sub_block);
        for (int j = 0; j < T::sub_block; ++j) {
            h11 += panel[k * PANEL + j];
        }
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

template <typename T> __attribute__((noinline)) static void encode_tile(const bof4_gptq_job & job, tile & t) {
    quantize_columns<T>(job, t);
    std::copy_n(t.loss[0], R, t.loss[1]);
    for (int i = 0; i < job.sweeps; ++i) {
        sweep<T>(job, t);
    }
}
