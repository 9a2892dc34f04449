// Weights with lists and their values in double precision for check_cuda.cpp, and the comparison of results.
#pragma once

#include "lists/bof4-list.h"
#include "cuda_on_host.h"
#include "ggml-cpp.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

inline std::mt19937 rng(11);

// Memory of this size, rounded up to 16 bytes, so that a sanitizer reports accesses behind its end. Kernels may read whole
// pieces of 16 bytes that begin inside: buffers of ggml's CUDA backend begin and end at multiples of 128.
struct exact_memory {
    void * data;
    explicit exact_memory(size_t bytes) : data(std::aligned_alloc(16, (bytes + 15) / 16 * 16)) {}
    exact_memory(const exact_memory &) = delete;
    ~exact_memory() { std::free(data); }
};

inline std::vector<std::unique_ptr<exact_memory>> memories;
inline ggml_context_ptr context;

inline void new_case() {
    memories.clear();
    context.reset(ggml_init({ 1 << 20, nullptr, true }));
}

// padding: bytes behind the tensor that kernels may read.
inline ggml_tensor * with_memory(ggml_tensor * t, size_t padding = 0) {
    memories.emplace_back(new exact_memory(ggml_nbytes(t) + padding));
    t->data = memories.back()->data;
    return t;
}

inline ggml_tensor * new_tensor(ggml_type type, std::vector<int64_t> ne) {
    return with_memory(ggml_new_tensor(context.get(), type, (int) ne.size(), ne.data()));
}

// A weight of random blocks with its list (density 0: none) and its values. Rows 1, 4, 7 .. of the list are empty; of
// the others, rows 5, 12, 19 .. consist of outliers only.
struct weight_of {
    ggml_tensor * tensor;
    std::vector<float> codes; // without the outliers
    std::vector<double> values;

    weight_of(ggml_type type, std::vector<int64_t> ne, double density) : tensor(new_tensor(type, ne)) {
        const int64_t n = ne[0], blck = ggml_blck_size(type), bytes = ggml_type_size(type);
        auto * data = (uint8_t *) tensor->data;
        for (size_t i = 0; i < ggml_nbytes(tensor); ++i) {
            data[i] = (uint8_t) rng();
        }
        codes.resize(ggml_nelements(tensor));
        for (size_t b = 0; b < codes.size() / blck; ++b) {
            const ggml_fp16_t d = ggml_compute_fp32_to_fp16(((float) (rng() % 2001) - 1000.0f) / 512.0f);
            std::memcpy(data + b * bytes, &d, sizeof(d));
            ggml_get_type_traits(type)->to_float(data + b * bytes, codes.data() + b * blck, blck);
        }
        values.assign(codes.begin(), codes.end());
        if (density == 0.0) {
            return;
        }
        std::uniform_real_distribution<double> uniform;
        std::normal_distribution<float> normal;
        std::vector<int32_t> list{ 0 }, entries;
        for (int64_t r = 0; r < ggml_nrows(tensor); ++r) {
            const double p = r % 3 == 1 ? 0.0 : r % 7 == 5 ? 1.0 : density;
            for (int64_t j = 0; j < n; ++j) {
                if (uniform(rng) < p) {
                    entries.push_back(bof4_entry(j, 100.0f * normal(rng)));
                    values[r * n + j] += bof4_entry_value(entries.back());
                }
            }
            list.push_back((int32_t) entries.size());
        }
        list.insert(list.end(), entries.begin(), entries.end());
        ggml_tensor * t = new_tensor(GGML_TYPE_I32, { (int64_t) list.size() });
        std::memcpy(t->data, list.data(), ggml_nbytes(t));
        ggml_bof4_list_attach(tensor, t);
    }

    // Element of the weight at which a row of a view of it begins.
    int64_t element(const ggml_tensor * view, int64_t r, int64_t i2 = 0, int64_t i3 = 0) const {
        const auto * at = (const char *) view->data + r * view->nb[1] + i2 * view->nb[2] + i3 * view->nb[3];
        return (at - (const char *) tensor->data) / ggml_type_size(tensor->type) * ggml_blck_size(tensor->type);
    }
};

// Whole numbers, the largest of every 64 of which is 127, times a power of two: quantized to int8 without error.
inline ggml_tensor * exact_activations(std::vector<int64_t> ne) {
    ggml_tensor * t = new_tensor(GGML_TYPE_F32, ne);
    for (int64_t i = 0; i < ggml_nelements(t); ++i) {
        const float unit = std::ldexp(1.0f, (int) (i / 128 % 3) - 1);
        ((float *) t->data)[i] = unit * (float) (i % 64 == 13 ? 127 : (int) (rng() % 255) - 127);
    }
    return t;
}

inline ggml_tensor * random_floats(std::vector<int64_t> ne, float scale) {
    ggml_tensor * t = new_tensor(GGML_TYPE_F32, ne);
    std::normal_distribution<float> normal(0.0f, scale);
    for (int64_t i = 0; i < ggml_nelements(t); ++i) {
        ((float *) t->data)[i] = normal(rng);
    }
    return t;
}

inline double worst = 0.0;
inline int cases = 0;

// magnitude: the scale of the error, e.g. the sum of the magnitudes of a product's terms
inline void compare(double y, double expected, double magnitude) {
    const double error = std::fabs(y - expected) / std::max(magnitude, 1e-30);
    worst = std::isfinite(error) ? std::max(worst, error) : INFINITY;
}

// sum over j of values[first + j] * x[j], and of the magnitudes
inline double product(
    const std::vector<double> & values, int64_t first, const float * x, int64_t n, double & magnitude) {
    double sum = 0.0;
    magnitude = 0.0;
    for (int64_t j = 0; j < n; ++j) {
        sum += values[first + j] * x[j];
        magnitude += std::fabs(values[first + j] * x[j]);
    }
    return sum;
}

inline bool report(const char * group, double tolerance) {
    const bool ok = worst <= tolerance;
    std::printf("%s: %d cases, largest error %.2g: %s\n", group, cases, worst, ok ? "ok" : "FAILED");
    worst = 0.0;
    cases = 0;
    return ok;
}
