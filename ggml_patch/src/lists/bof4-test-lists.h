// Outlier lists in upstream's test-backend-ops: every case of a BOF4 weight is repeated with a list.
#pragma once

#include "bof4-list.h"
#include "ggml-backend.h"

#include <cstdint>
#include <random>
#include <string>
#include <typeinfo>
#include <vector>

// 2 % outliers in most rows, none in some, and only outliers in others.
static inline std::vector<int32_t> bof4_list_random(int64_t nrows, int64_t ncols, std::mt19937 & rng) {
    std::uniform_real_distribution<float> uniform;
    std::normal_distribution<float> normal;
    std::vector<int32_t> list{ 0 };
    std::vector<int32_t> entries;
    for (int64_t r = 0; r < nrows; ++r) {
        const float p = r % 3 == 1 ? 0.0f : r % 11 == 5 ? 1.0f : 0.02f;
        for (int64_t j = 0; j < ncols; ++j) {
            if (uniform(rng) < p) {
                entries.push_back(bof4_entry(j, 4.0f * normal(rng)));
            }
        }
        list.push_back((int32_t) entries.size());
    }
    list.insert(list.end(), entries.begin(), entries.end());
    return list;
}

template <typename test>
struct bof4_list_test : public test {
    ggml_tensor * weight = nullptr;
    std::vector<int32_t> list;

    explicit bof4_list_test(const test & plain) : test(plain) {}

    std::string vars() override { return test::vars() + ",list=1"; }

    ggml_tensor * build_graph(ggml_context * ctx) override {
        // a fixed seed: the list is as long in every graph of a case
        std::mt19937 rng(1);
        ggml_tensor * out = test::build_graph(ctx);
        weight = out->src[0]->view_src ? out->src[0]->view_src : out->src[0];
        list = bof4_list_random(ggml_nrows(weight), weight->ne[0], rng);
        // upstream puts a sentinel behind it, which detects writes beyond its end
        ggml_tensor * t = this->ggml_new_tensor_1d(ctx, GGML_TYPE_I32, (int64_t) list.size());
        ggml_set_name(t, "list");
        ggml_bof4_list_attach(weight, t);
        ggml_bof4_list_link(out);
        return out;
    }

    void initialize_tensors(ggml_context * ctx) override {
        test::initialize_tensors(ctx); // fills the list, too, with row numbers
        ggml_backend_tensor_set(ggml_bof4_list_of_weight(weight), list.data(), 0, list.size() * sizeof(int32_t));
    }
};

template <typename test, typename cases>
static void bof4_list_add_tests(cases & test_cases) {
    const size_t n = test_cases.size();
    for (size_t i = 0; i < n; ++i) {
        auto & plain = *test_cases[i];
        if (typeid(plain) == typeid(test) && plain.vars().find("=bof4_") != std::string::npos) {
            test_cases.emplace_back(new bof4_list_test<test>(static_cast<const test &>(plain)));
        }
    }
}
