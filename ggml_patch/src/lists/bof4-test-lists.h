// Outlier lists in upstream's test-backend-ops: every case of a BOF4 weight gets a twin whose weight has a list.
#pragma once

#include "bof4-list.h"
#include "ggml-backend.h"

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <typeinfo>
#include <vector>

// Few outliers in most rows, none in some and nothing but outliers in others.
static inline std::vector<int32_t> bof4_random_list(int64_t nrows, int64_t ncols, std::mt19937 & rng) {
    std::uniform_real_distribution<float> uniform;
    std::normal_distribution<float> normal;
    std::vector<int32_t> list { 0 };
    std::vector<int32_t> entries;
    for (int64_t r = 0; r < nrows; ++r) {
        const float p = r % 3 == 1 ? 0.0f : r % 11 == 5 ? 1.0f : 0.02f;
        for (int64_t j = 0; j < ncols; ++j) {
            if (uniform(rng) < p) {
                const uint32_t value = ggml_fp32_to_bf16(4.0f * normal(rng)).bits;
                entries.push_back((int32_t) ((uint32_t) j | value << 16));
            }
        }
        list.push_back((int32_t) entries.size());
    }
    list.insert(list.end(), entries.begin(), entries.end());
    return list;
}

template <typename test>
struct bof4_listed : public test {
    ggml_tensor * weight = nullptr;
    std::vector<int32_t> list;

    explicit bof4_listed(const test & plain) : test(plain) {}

    std::string vars() override {
        return test::vars() + ",list=1";
    }

    ggml_tensor * build_graph(ggml_context * ctx) override {
        // a fixed seed: the list is as long in every graph of a case
        std::mt19937 rng(1);
        ggml_tensor * out = test::build_graph(ctx);
        weight = out->src[0]->view_src ? out->src[0]->view_src : out->src[0];
        list = bof4_random_list(ggml_nrows(weight), weight->ne[0], rng);
        // the sentinel that follows it sees writes beyond its end
        ggml_tensor * t = this->ggml_new_tensor_1d(ctx, GGML_TYPE_I32, (int64_t) list.size());
        ggml_set_name(t, "list");
        ggml_bof4_attach_list(weight, t);
        ggml_bof4_link_list(out);
        return out;
    }

    void initialize_tensors(ggml_context * ctx) override {
        test::initialize_tensors(ctx); // takes the list for row numbers
        ggml_backend_tensor_set(ggml_bof4_list(weight), list.data(), 0, list.size() * sizeof(int32_t));
    }
};

template <typename test, typename cases>
static void bof4_add_listed(cases & test_cases) {
    const size_t n = test_cases.size();
    for (size_t i = 0; i < n; ++i) {
        auto & plain = *test_cases[i];
        if (typeid(plain) == typeid(test) && plain.vars().find("=bof4_") != std::string::npos) {
            test_cases.emplace_back(new bof4_listed<test>(static_cast<const test &>(plain)));
        }
    }
}
