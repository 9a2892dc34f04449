// Products of repacked weights through ggml's public API, linked against the built libraries: mul_mat and mul_mat_id
// with the weight in the extra buffer type of the CPU backend, against the same operation with the weight in an
// ordinary buffer; BOF4 types, with lists and without, and upstream's Q6_K where it is repacked. Both round activations
// alike and add in the same order, so that results are equal to the last bit, except those of Q6_K and of outliers of
// fewer than 8 columns, whose running sums begin with the first row of a thread.
//
// With the argument "tiles", the GEMM path uses tiles (bof4-gemm-amx.h): activations are numbers that are exact in int8,
// whether they have a scale for 32 or for 64.
//
// Exit code 77 where this processor has no kernels for repacked weights.

#include "lists/bof4-list.h"
#include "lists/bof4-test-lists.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

namespace {

std::mt19937 rng(11);

bool has_tiles = false; // the argument "tiles"

ggml_backend_buffer_type_t repacked() {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    const auto extra = (ggml_backend_dev_get_extra_bufts_t) ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(cpu), "ggml_backend_dev_get_extra_bufts");
    for (auto * buft = extra ? extra(cpu) : nullptr; buft && *buft; ++buft) {
        if (std::strcmp(ggml_backend_buft_name(*buft), "CPU_BOF4") == 0) {
            return *buft;
        }
    }
    return nullptr;
}

struct operation {
    ggml_type type;
    std::vector<int64_t> weight; // dimensions
    std::vector<int64_t> act;
    int64_t used; // experts for each token, or 0 for mul_mat
    bool listed;
    int threads;
};

std::vector<float> compute(const operation & o, ggml_backend_buffer_type_t buft, const std::vector<uint8_t> & weights,
    const std::vector<int32_t> & list, const std::vector<float> & x, const std::vector<int32_t> & chosen) {
    ggml_backend_ptr backend(ggml_backend_cpu_init());
    ggml_backend_cpu_set_n_threads(backend.get(), o.threads);
    const ggml_init_params params = { ggml_tensor_overhead() * 16 + ggml_graph_overhead(), nullptr, true };
    ggml_context_ptr weight_ctx(ggml_init(params)), ctx(ggml_init(params));

    ggml_tensor * weight = ggml_new_tensor(weight_ctx.get(), o.type, (int) o.weight.size(), o.weight.data());
    ggml_tensor * act = ggml_new_tensor(ctx.get(), GGML_TYPE_F32, (int) o.act.size(), o.act.data());
    ggml_tensor * ids = o.used ? ggml_new_tensor_2d(ctx.get(), GGML_TYPE_I32, o.used, o.act[2]) : nullptr;
    ggml_tensor * l = o.listed ? ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, (int64_t) list.size()) : nullptr;
    if (l) {
        ggml_bof4_list_attach(weight, l);
    }
    ggml_tensor * out = o.used ? ggml_mul_mat_id(ctx.get(), weight, act, ids) : ggml_mul_mat(ctx.get(), weight, act);
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, out);

    ggml_backend_buffer_ptr weight_buffer(ggml_backend_alloc_ctx_tensors_from_buft(weight_ctx.get(), buft));
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend.get()));
    ggml_backend_tensor_set(weight, weights.data(), 0, weights.size());
    std::vector<uint8_t> back(weights.size());
    ggml_backend_tensor_get(weight, back.data(), 0, back.size());
    GGML_ASSERT(back == weights);
    ggml_backend_tensor_set(act, x.data(), 0, ggml_nbytes(act));
    if (ids) {
        ggml_backend_tensor_set(ids, chosen.data(), 0, ggml_nbytes(ids));
    }
    if (l) {
        ggml_backend_tensor_set(l, list.data(), 0, ggml_nbytes(l));
    }
    GGML_ASSERT(ggml_backend_supports_op(backend.get(), out));
    GGML_ASSERT(ggml_backend_graph_compute(backend.get(), graph) == GGML_STATUS_SUCCESS);
    std::vector<float> result(ggml_nelements(out));
    ggml_backend_tensor_get(out, result.data(), 0, ggml_nbytes(out));
    return result;
}

// Not outliers of fewer than 8 columns, which may differ in the last bit, nor Q6_K: upstream's kernel adds in another
// order.
bool must_be_equal(const operation & o) {
    return o.type != GGML_TYPE_Q6_K && (!o.listed || (o.used == 0 && o.act[1] >= 8));
}

// The relative squared difference of the two results.
double difference(const operation & o, ggml_backend_buffer_type_t buft) {
    int64_t n_rows = 1, n_act = 1;
    for (size_t i = 1; i < o.weight.size(); ++i) {
        n_rows *= o.weight[i];
    }
    for (const int64_t ne : o.act) {
        n_act *= ne;
    }
    std::normal_distribution<float> normal;
    std::vector<float> w(n_rows * o.weight[0]), x(n_act);
    std::generate(w.begin(), w.end(), [&] { return normal(rng); });
    std::generate(x.begin(), x.end(), [&] { return normal(rng); });
    for (size_t i = 0; has_tiles && i < x.size(); ++i) {
        x[i] = (i % 32 == 0 ? 127.0f : (float) (rng() % 255) - 127.0f) / 64.0f;
    }
    std::vector<uint8_t> weights(ggml_row_size(o.type, o.weight[0]) * n_rows);
    ggml_get_type_traits(o.type)->from_float_ref(w.data(), weights.data(), (int64_t) w.size());
    std::vector<int32_t> chosen, all(o.used ? o.weight[2] : 0);
    for (size_t e = 0; e < all.size(); ++e) {
        all[e] = (int32_t) e;
    }
    for (int64_t t = 0; o.used && t < o.act[2]; ++t) {
        std::shuffle(all.begin(), all.end(), rng);
        chosen.insert(chosen.end(), all.begin(), all.begin() + o.used);
    }
    const std::vector<int32_t> list = bof4_list_random(n_rows, o.weight[0], rng);

    const auto y = compute(o, buft, weights, list, x, chosen);
    const auto expected = compute(o, ggml_backend_cpu_buffer_type(), weights, list, x, chosen);
    double error = 0.0, sum = 0.0;
    for (size_t i = 0; i < y.size(); ++i) {
        error += (double) (y[i] - expected[i]) * (y[i] - expected[i]);
        sum += (double) expected[i] * expected[i];
    }
    if (must_be_equal(o) && std::memcmp(y.data(), expected.data(), y.size() * sizeof(float)) != 0) {
        return INFINITY;
    }
    return std::isfinite(error) ? error / sum : INFINITY;
}

bool check(const char * name, const std::vector<operation> & operations, ggml_backend_buffer_type_t buft) {
    double worst = 0.0;
    for (const operation & o : operations) {
        worst = std::max(worst, difference(o, buft));
    }
    // squared: float32 rounding is 1e-14, a wrong activation or outlier 1e-5 and more
    const bool ok = worst < 1e-11;
    std::printf("%s: %zu cases, largest difference %.2g: %s\n", name, operations.size(), worst, ok ? "ok" : "FAILED");
    return ok;
}

} // namespace

int main(int argc, char ** argv) {
    has_tiles = argc > 1 && std::strcmp(argv[1], "tiles") == 0;
    ggml_backend_buffer_type_t buft = repacked();
    if (buft == nullptr) {
        std::printf("no kernels for repacked weights\n");
        return 77;
    }
    std::vector<operation> plain, batches, experts;
    std::vector<ggml_type> types = { GGML_TYPE_BOF4_S, GGML_TYPE_BOF4_K };
    if (has_tiles || ggml_cpu_has_avx512_vnni() || ggml_cpu_has_avx_vnni()) {
        types.push_back(GGML_TYPE_Q6_K);
    }
    for (const ggml_type type : types)
        for (const bool listed : { false, true }) {
            if (listed && !ggml_is_bof4(type)) {
                continue;
            }
            for (const int64_t rows : { 8, 31, 200 })
                for (const int64_t columns : { 1, 2, 7, 33, 512 })
                    for (const int threads : { 1, 2, 5 }) {
                        plain.push_back({ type, { 768, rows }, { 768, columns }, 0, listed, threads });
                    }
            for (const int64_t columns : { 1, 5, 40 })
                for (const int threads : { 1, 3 }) {
                    batches.push_back({ type, { 256, 40 }, { 256, columns, 3, 2 }, 0, listed, threads });
                    batches.push_back({ type, { 256, 40, 2 }, { 256, columns, 6 }, 0, listed, threads });
                    batches.push_back({ type, { 256, 40, 2, 3 }, { 256, columns, 4, 3 }, 0, listed, threads });
                }
            for (const int64_t rows : { 24, 100 })
                for (const int64_t tokens : { 1, 9, 100 })
                    for (const int64_t shared : { 0, 1 })
                        for (const int threads : { 1, 2, 4 }) {
                            experts.push_back(
                                { type, { 512, rows, 6 }, { 512, shared ? 1 : 3, tokens }, 3, listed, threads });
                        }
        }
    bool ok = check("mul_mat", plain, buft);
    ok &= check("mul_mat in batches", batches, buft);
    ok &= check("mul_mat_id", experts, buft);
    return ok ? 0 : 1;
}
