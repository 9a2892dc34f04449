// Outlier lists through ggml's public API: products and rows against double precision, for whole weights, views,
// slices, reshapes and experts; linked against the built libraries.
//
//     check_lists            check everything, one line a group, exit code 1 on a failure
//     check_lists lose OP    build a graph that would lose a list: must abort (the caller checks)
//
// Activations are small integers with a 127 in every 32, which Q8_0 represents exactly: only float rounding remains.

#include "lists/bof4-list.h"
#include "format/bof4-blocks.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

namespace {

std::mt19937 rng(7);

// A weight of nrows rows with its list, and what it decodes to.
struct weight_data {
    int64_t n, nrows;
    std::vector<uint8_t> blocks;
    std::vector<int32_t> list;
    std::vector<double> values;

    // density: outliers a weight; every third row has none, and every fifth is full of them
    weight_data(int64_t n, int64_t nrows, double density) : n(n), nrows(nrows) {
        std::normal_distribution<float> normal;
        std::uniform_real_distribution<double> uniform;
        std::vector<float> x(n * nrows);
        std::vector<int32_t> entries;
        std::vector<std::pair<size_t, float>> outliers;
        list.push_back(0);
        for (int64_t r = 0; r < nrows; ++r) {
            // rows of small and of large weights alternate: running sums over large ones must not round small ones away
            const float scale = r % 2 ? 1e4f : 1.0f;
            const double p = density == 0.0 || r % 3 == 1 ? 0.0 : r % 5 == 4 ? 1.0 : density;
            for (int64_t j = 0; j < n; ++j) {
                x[r * n + j] = scale * normal(rng);
                if (uniform(rng) < p) {
                    entries.push_back(bof4_entry(j, 8.0f * scale * normal(rng)));
                    outliers.emplace_back(r * n + j, bof4_entry_value(entries.back()));
                    x[r * n + j] = 0.0f;
                }
            }
            list.push_back((int32_t) entries.size());
        }
        list.insert(list.end(), entries.begin(), entries.end());
        blocks.resize(ggml_row_size(GGML_TYPE_BOF4_S, n) * nrows);
        quantize_row_bof4_s_ref(x.data(), blocks.data(), n * nrows);
        std::vector<float> decoded(n * nrows);
        dequantize_row_bof4_s(blocks.data(), decoded.data(), n * nrows);
        values.assign(decoded.begin(), decoded.end());
        for (const auto & [at, value] : outliers) {
            values[at] += value;
        }
    }
};

std::vector<float> exact_activations(int64_t count) {
    std::uniform_int_distribution<int> integer(-127, 127);
    std::vector<float> x(count);
    for (int64_t i = 0; i < count; ++i) {
        x[i] = i % 32 == 0 ? 127.0f : (float) integer(rng);
    }
    return x;
}

struct session {
    ggml_context_ptr ctx;
    ggml_backend_ptr backend;
    ggml_tensor * weight;
    ggml_tensor * list;

    session(const weight_data & data, std::vector<int64_t> ne, int threads)
        : ctx(make()),
          backend(ggml_backend_cpu_init()) {
        ne.resize(4, 1);
        weight = ggml_new_tensor(ctx.get(), GGML_TYPE_BOF4_S, 4, ne.data());
        list = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, data.list.size());
        ggml_set_name(weight, "weight");
        ggml_bof4_list_attach(weight, list);
        ggml_backend_cpu_set_n_threads(backend.get(), threads);
    }

    static ggml_context * make() {
        return ggml_init({ ggml_tensor_overhead() * 32 + ggml_graph_overhead(), nullptr, true });
    }

    std::vector<float> compute(
        ggml_tensor * result, const weight_data & data, std::vector<std::pair<ggml_tensor *, const void *>> inputs) {
        ggml_cgraph * graph = ggml_new_graph(ctx.get());
        ggml_build_forward_expand(graph, result);
        ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend.get()));
        ggml_backend_tensor_set(weight, data.blocks.data(), 0, ggml_nbytes(weight));
        ggml_backend_tensor_set(list, data.list.data(), 0, ggml_nbytes(list));
        for (const auto & [t, p] : inputs) {
            ggml_backend_tensor_set(t, p, 0, ggml_nbytes(t));
        }
        GGML_ASSERT(ggml_backend_supports_op(backend.get(), result));
        GGML_ASSERT(ggml_backend_graph_compute(backend.get(), graph) == GGML_STATUS_SUCCESS);
        std::vector<float> out(ggml_nelements(result));
        ggml_backend_tensor_get(result, out.data(), 0, ggml_nbytes(result));
        return out;
    }
};

double worst = 0.0;
int cases = 0;

void compare(float got, double expected, double magnitude) {
    const double error = std::fabs(got - expected) / std::max(magnitude, 1e-30);
    worst = std::isfinite(error) ? std::max(worst, error) : INFINITY;
}

// element(i0, i1, i2, i3) of the operand, as a position in the weight
using place = std::function<int64_t(int64_t, int64_t, int64_t, int64_t)>;

void check_mul_mat(const weight_data & data, std::vector<int64_t> ne, int64_t columns, int64_t repeat2, int threads,
    const std::function<ggml_tensor *(ggml_context *, ggml_tensor *)> & view, const place & at) {
    session s(data, ne, threads);
    ggml_tensor * a = view(s.ctx.get(), s.weight);
    ggml_tensor * b = ggml_new_tensor_4d(s.ctx.get(), GGML_TYPE_F32, a->ne[0], columns, a->ne[2] * repeat2, a->ne[3]);
    const std::vector<float> x = exact_activations(ggml_nelements(b));
    const std::vector<float> y = s.compute(ggml_mul_mat(s.ctx.get(), a, b), data, { { b, x.data() } });
    for (int64_t i3 = 0; i3 < b->ne[3]; ++i3)
        for (int64_t i2 = 0; i2 < b->ne[2]; ++i2)
            for (int64_t i1 = 0; i1 < columns; ++i1)
                for (int64_t r = 0; r < a->ne[1]; ++r) {
                    const int64_t column = i1 + columns * (i2 + b->ne[2] * i3);
                    double sum = 0.0, magnitude = 0.0;
                    for (int64_t j = 0; j < a->ne[0]; ++j) {
                        const double p = data.values[at(j, r, i2 / repeat2, i3)] * x[column * a->ne[0] + j];
                        sum += p;
                        magnitude += std::fabs(p);
                    }
                    compare(y[column * a->ne[1] + r], sum, magnitude);
                }
    ++cases;
}

void check_mul_mat_id(const weight_data & data, int64_t rows, int64_t experts, int64_t used, int64_t shared,
    int64_t tokens, int threads) {
    session s(data, { data.n, rows, experts }, threads);
    ggml_tensor * b = ggml_new_tensor_3d(s.ctx.get(), GGML_TYPE_F32, data.n, shared ? 1 : used, tokens);
    ggml_tensor * ids = ggml_new_tensor_2d(s.ctx.get(), GGML_TYPE_I32, used, tokens);
    const std::vector<float> x = exact_activations(ggml_nelements(b));
    std::vector<int32_t> chosen;
    for (int64_t t = 0; t < tokens; ++t) {
        std::vector<int32_t> all(experts);
        for (int64_t e = 0; e < experts; ++e) {
            all[e] = (int32_t) e;
        }
        std::shuffle(all.begin(), all.end(), rng);
        chosen.insert(chosen.end(), all.begin(), all.begin() + used);
    }
    const std::vector<float> y = s.compute(
        ggml_mul_mat_id(s.ctx.get(), s.weight, b, ids), data, { { b, x.data() }, { ids, chosen.data() } });
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t u = 0; u < used; ++u)
            for (int64_t r = 0; r < rows; ++r) {
                const float * xs = x.data() + (t * b->ne[1] + (shared ? 0 : u)) * data.n;
                double sum = 0.0, magnitude = 0.0;
                for (int64_t j = 0; j < data.n; ++j) {
                    const double p = data.values[(chosen[t * used + u] * rows + r) * data.n + j] * xs[j];
                    sum += p;
                    magnitude += std::fabs(p);
                }
                compare(y[(t * used + u) * rows + r], sum, magnitude);
            }
    ++cases;
}

void check_get_rows(const weight_data & data, std::vector<int64_t> ne, int threads,
    const std::function<ggml_tensor *(ggml_context *, ggml_tensor *)> & view, const place & at) {
    session s(data, ne, threads);
    ggml_tensor * a = view(s.ctx.get(), s.weight);
    const int64_t wanted = 9;
    ggml_tensor * rows = ggml_new_tensor_2d(s.ctx.get(), GGML_TYPE_I32, wanted, a->ne[2]);
    std::uniform_int_distribution<int32_t> row(0, (int32_t) a->ne[1] - 1);
    std::vector<int32_t> ids(ggml_nelements(rows));
    for (int32_t & id : ids) {
        id = row(rng);
    }
    const std::vector<float> y = s.compute(ggml_get_rows(s.ctx.get(), a, rows), data, { { rows, ids.data() } });
    for (int64_t i2 = 0; i2 < a->ne[2]; ++i2)
        for (int64_t i = 0; i < wanted; ++i)
            for (int64_t j = 0; j < a->ne[0]; ++j) {
                const double expected = data.values[at(j, ids[i2 * wanted + i], i2, 0)];
                compare(y[(i2 * wanted + i) * a->ne[0] + j], expected, std::fabs(expected) + 1e-6);
            }
    ++cases;
}

bool report(const char * group, double tolerance) {
    const bool ok = worst < tolerance;
    std::printf("%s: %d cases, largest error %.2g: %s\n", group, cases, worst, ok ? "ok" : "FAILED");
    worst = 0.0;
    cases = 0;
    return ok;
}

int lose(const std::string & op) {
    const weight_data data(64, 4, 0.1);
    session s(data, { 64, 4 }, 1);
    ggml_context * ctx = s.ctx.get();
    ggml_tensor * result = op == "cont" ? ggml_cast(ctx, s.weight, GGML_TYPE_F32)
        : op == "add"                   ? ggml_add(ctx, s.weight, ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 64, 4))
        : op == "out_prod"              ? ggml_out_prod(ctx, s.weight, ggml_new_tensor_2d(ctx, GGML_TYPE_F32, 3, 4))
                                        : nullptr;
    GGML_ASSERT(result != nullptr);
    s.compute(result, data, {});
    return 0;
}

} // namespace

int main(int argc, char ** argv) {
    if (argc == 3 && std::string(argv[1]) == "lose") {
        return lose(argv[2]);
    }
    const auto whole = [](ggml_context *, ggml_tensor * w) { return w; };
    const double rounding = 2e-6;
    bool ok = true;

    for (const int64_t n : { 64, 192, 576 })
        for (const int64_t rows : { 1, 7, 33, 130 })
            for (const double density : { 0.0, 0.01, 0.3 }) {
                const weight_data data(n, rows, density);
                for (const int64_t columns : { 1, 2, 15, 17, 64, 512 })
                    for (const int threads : { 1, 2, 4 }) {
                        if (columns * rows > 20000 && threads == 4) {
                            continue;
                        }
                        check_mul_mat(data, { n, rows }, columns, 1, threads, whole,
                            [=](int64_t j, int64_t r, int64_t, int64_t) { return r * n + j; });
                    }
            }
    ok &= report("mul_mat", rounding);

    {
        const int64_t n = 192, rows = 10, m = 6;
        const weight_data data(n, rows * m, 0.05);
        for (const int64_t columns : { 1, 5, 40 })
            for (const int threads : { 1, 3 }) {
                check_mul_mat(data, { n, rows, m }, columns, 1, threads, whole,
                    [=](int64_t j, int64_t r, int64_t i2, int64_t) { return (i2 * rows + r) * n + j; });
                check_mul_mat(data, { n, rows, m }, columns, 3, threads, whole,
                    [=](int64_t j, int64_t r, int64_t i2, int64_t) { return (i2 * rows + r) * n + j; });
                check_mul_mat(data, { n, rows, 3, 2 }, columns, 2, threads, whole,
                    [=](int64_t j, int64_t r, int64_t i2, int64_t i3) { return ((i3 * 3 + i2) * rows + r) * n + j; });
            }
        ok &= report("mul_mat in batches", rounding);

        for (const int64_t columns : { 1, 5, 40 })
            for (const int threads : { 1, 3 }) {
                // rows 13 to 39
                check_mul_mat(
                    data, { n, rows * m }, columns, 1, threads,
                    [=](ggml_context * ctx, ggml_tensor * w) {
                        return ggml_view_2d(ctx, w, n, 27, w->nb[1], 13 * w->nb[1]);
                    },
                    [=](int64_t j, int64_t r, int64_t, int64_t) { return (13 + r) * n + j; });
                // columns 64 to 191
                check_mul_mat(
                    data, { n, rows * m }, columns, 1, threads,
                    [=](ggml_context * ctx, ggml_tensor * w) {
                        return ggml_view_2d(ctx, w, 128, rows * m, w->nb[1], w->nb[0]);
                    },
                    [=](int64_t j, int64_t r, int64_t, int64_t) { return r * n + 64 + j; });
                // every second row, and a view of that view
                check_mul_mat(
                    data, { n, rows * m }, columns, 1, threads,
                    [=](ggml_context * ctx, ggml_tensor * w) {
                        ggml_tensor * v = ggml_view_2d(ctx, w, n, rows * m / 2, 2 * w->nb[1], w->nb[1]);
                        return ggml_view_2d(ctx, v, 64, 11, v->nb[1], 3 * v->nb[1] + 2 * v->nb[0]);
                    },
                    [=](int64_t j, int64_t r, int64_t, int64_t) { return (1 + 2 * (3 + r)) * n + 128 + j; });
                // longer rows: three of the weight in one; shorter rows: a third each
                check_mul_mat(
                    data, { n, rows * m }, columns, 1, threads,
                    [=](ggml_context * ctx, ggml_tensor * w) { return ggml_reshape_2d(ctx, w, 3 * n, rows * m / 3); },
                    [=](int64_t j, int64_t r, int64_t, int64_t) { return r * 3 * n + j; });
                check_mul_mat(
                    data, { n, rows * m }, columns, 1, threads,
                    [=](ggml_context * ctx, ggml_tensor * w) { return ggml_reshape_2d(ctx, w, 64, rows * m * 3); },
                    [=](int64_t j, int64_t r, int64_t, int64_t) { return r * 64 + j; });
                // rows and matrices exchanged
                check_mul_mat(
                    data, { n, rows, m }, columns, 1, threads,
                    [=](ggml_context * ctx, ggml_tensor * w) { return ggml_permute(ctx, w, 0, 2, 1, 3); },
                    [=](int64_t j, int64_t r, int64_t i2, int64_t) { return (r * rows + i2) * n + j; });
            }
        ok &= report("mul_mat of views", rounding);

        for (const int threads : { 1, 3 }) {
            check_get_rows(data, { n, rows * m }, threads, whole,
                [=](int64_t j, int64_t r, int64_t, int64_t) { return r * n + j; });
            check_get_rows(data, { n, rows, m }, threads, whole,
                [=](int64_t j, int64_t r, int64_t i2, int64_t) { return (i2 * rows + r) * n + j; });
            check_get_rows(
                data, { n, rows * m }, threads,
                [=](ggml_context * ctx, ggml_tensor * w) {
                    return ggml_view_2d(ctx, w, 128, 20, w->nb[1], 13 * w->nb[1] + w->nb[0]);
                },
                [=](int64_t j, int64_t r, int64_t, int64_t) { return (13 + r) * n + 64 + j; });
            check_get_rows(
                data, { n, rows * m }, threads,
                [=](ggml_context * ctx, ggml_tensor * w) { return ggml_reshape_2d(ctx, w, 2 * n, rows * m / 2); },
                [=](int64_t j, int64_t r, int64_t, int64_t) { return r * 2 * n + j; });
        }
        ok &= report("get_rows", 1e-6);
    }

    for (const int64_t rows : { 1, 21, 64 })
        for (const double density : { 0.0, 0.02 }) {
            const weight_data data(128, rows * 5, density);
            for (const int64_t tokens : { 1, 7, 50 })
                for (const int64_t shared : { 0, 1 })
                    for (const int threads : { 1, 2, 4 }) {
                        check_mul_mat_id(data, rows, 5, 2, shared, tokens, threads);
                    }
        }
    ok &= report("mul_mat_id", rounding);

    return ok ? 0 : 1;
}
