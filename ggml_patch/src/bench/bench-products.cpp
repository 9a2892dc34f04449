#include "bench-products.h"

#include "../lists/bof4-list.h"
#include "bof4-format.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>

const std::vector<weight_type> & weight_types() {
    static const std::vector<weight_type> types = {
#define BOF4_WEIGHT_TYPES(NAME, name) \
    { #name, GGML_TYPE_##NAME, false, 0.0 }, { #name "+opq", GGML_TYPE_##NAME, false, 0.002 },
        BOF4_TYPES_CUDA(BOF4_WEIGHT_TYPES)
#undef BOF4_WEIGHT_TYPES
            { "q4_0", GGML_TYPE_Q4_0, true, 0.0 },
        { "iq4_nl", GGML_TYPE_IQ4_NL, true, 0.0 },
        { "iq4_xs", GGML_TYPE_IQ4_XS, true, 0.0 },
        { "q4_k", GGML_TYPE_Q4_K, true, 0.0 },
        { "mxfp4", GGML_TYPE_MXFP4, true, 0.0 },
    };
    return types;
}

const std::vector<shape> & shapes() {
    static const std::vector<shape> table = {
        { "1b", "q/o", 2048, 2048 },
        { "1b", "k/v", 512, 2048 },
        { "1b", "gate/up", 8192, 2048 },
        { "1b", "down", 2048, 8192 },
        { "8b", "q/o", 4096, 4096 },
        { "8b", "k/v", 1024, 4096 },
        { "8b", "gate/up", 14336, 4096 },
        { "8b", "down", 4096, 14336 },
        { "70b", "q/o", 8192, 8192 },
        { "70b", "k/v", 1024, 8192 },
        { "70b", "gate/up", 28672, 8192 },
        { "70b", "down", 8192, 28672 },
        // Qwen3-30B-A3B: 8 of 128 experts
        { "moe", "gate/up", 768, 2048, 128, 8, false },
        { "moe", "down", 2048, 768, 128, 8, true },
    };
    return table;
}

// A random list with about the fraction p of the weights of each row.
static std::vector<int32_t> random_list(int64_t rows, int64_t columns, double p, std::mt19937 & rng) {
    std::geometric_distribution<int64_t> gap(p);
    std::normal_distribution<float> normal(0.0f, 0.1f); // five standard deviations of the weights
    std::vector<int32_t> list = { 0 };
    std::vector<int32_t> entries;
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t j = gap(rng); j < columns; j += 1 + gap(rng)) {
            entries.push_back(bof4_entry(j, normal(rng)));
        }
        list.push_back((int32_t) entries.size());
    }
    list.insert(list.end(), entries.begin(), entries.end());
    return list;
}

encoded::encoded(const weight_type & type, const shape & shape, int64_t distinct, uint32_t seed) {
    const int64_t rows = shape.experts * shape.rows, columns = shape.columns;
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal(0.0f, 0.02f);
    distinct = std::min(distinct, rows);
    std::vector<float> values(distinct * columns);
    std::generate(values.begin(), values.end(), [&] { return normal(rng); });
    const size_t row_bytes = ggml_row_size(type.type, columns);
    weight.resize(rows * row_bytes);
    ggml_quantize_chunk(type.type, values.data(), weight.data(), 0, distinct, columns, nullptr);
    for (int64_t r = distinct; r < rows; ++r) {
        memcpy(weight.data() + r * row_bytes, weight.data() + (r - distinct) * row_bytes, row_bytes);
    }
    if (type.outliers > 0) {
        list = random_list(rows, columns, type.outliers, rng);
    }
}

// The leafs of a graph (weights, lists and inputs) count, too.
static size_t graph_size(size_t products) {
    return 4 * products + 8;
}

static ggml_context_ptr new_context(size_t tensors) {
    const size_t graph = ggml_graph_overhead_custom(graph_size(tensors), false);
    return ggml_context_ptr(ggml_init({ tensors * ggml_tensor_overhead() + graph, nullptr, true }));
}

static ggml_backend_buffer_ptr allocate(ggml_context_ptr & context, ggml_backend_t backend) {
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(context.get(), backend));
    if (!buffer) {
        throw std::runtime_error("not enough memory");
    }
    return buffer;
}

rotating_weight::rotating_weight(
    ggml_backend_t backend, const weight_type & type, const shape & shape, const encoded & data, int copies)
    : context(new_context(2 * copies)) {
    for (int i = 0; i < copies; ++i) {
        ggml_tensor * weight = ggml_new_tensor_3d(context.get(), type.type, shape.columns, shape.rows, shape.experts);
        if (!data.list.empty()) {
            ggml_bof4_list_attach(weight, ggml_new_tensor_1d(context.get(), GGML_TYPE_I32, (int64_t) data.list.size()));
        }
        weights.push_back(weight);
    }
    buffer = allocate(context, backend);
    ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    for (ggml_tensor * weight : weights) {
        ggml_backend_tensor_set(weight, data.weight.data(), 0, data.weight.size());
        if (ggml_tensor * list = ggml_bof4_list_of_weight(weight)) {
            ggml_backend_tensor_set(list, data.list.data(), 0, data.list.size() * sizeof(int32_t));
        }
    }
}

static std::vector<float> activations(int64_t n) {
    std::mt19937 rng(7);
    std::normal_distribution<float> normal;
    std::vector<float> values(n);
    const int64_t drawn = std::min<int64_t>(n, 99991);
    std::generate(values.begin(), values.begin() + drawn, [&] { return normal(rng); });
    for (int64_t i = drawn; i < n; ++i) {
        values[i] = values[i - drawn];
    }
    return values;
}

std::vector<int32_t> ids_of_product(const shape & shape, int64_t tokens, int64_t product) {
    std::vector<int32_t> ids(tokens * shape.used);
    for (size_t i = 0; i < ids.size(); ++i) {
        ids[i] = (int32_t) ((product * (int64_t) ids.size() + (int64_t) i) % shape.experts);
    }
    return ids;
}

// Tensors of the activations and, of a mixture, of the experts of each token; without data.
struct operands {
    ggml_tensor * input;
    std::vector<ggml_tensor *> ids; // of each product; empty: no mixture

    operands(ggml_context * context, const shape & shape, int64_t columns, int products) {
        if (!shape.is_mixture()) {
            input = ggml_new_tensor_2d(context, GGML_TYPE_F32, shape.columns, columns);
            return;
        }
        const int64_t inputs_of_token = shape.input_per_expert ? shape.used : 1;
        input = ggml_new_tensor_3d(context, GGML_TYPE_F32, shape.columns, inputs_of_token, columns);
        for (int i = 0; i < products; ++i) {
            ids.push_back(ggml_new_tensor_2d(context, GGML_TYPE_I32, shape.used, columns));
        }
    }

    // Of a mixture, products of one copy of the weight use different experts.
    void set(const shape & shape, int64_t columns, size_t copies) const {
        const std::vector<float> values = activations(ggml_nelements(input));
        ggml_backend_tensor_set(input, values.data(), 0, ggml_nbytes(input));
        for (size_t i = 0; i < ids.size(); ++i) {
            const std::vector<int32_t> chosen = ids_of_product(shape, columns, (int64_t) (i / copies));
            ggml_backend_tensor_set(ids[i], chosen.data(), 0, ggml_nbytes(ids[i]));
        }
    }

    ggml_tensor * product(ggml_context * context, ggml_tensor * weight, int i) const {
        return ids.empty() ? ggml_mul_mat(context, weight, input) : ggml_mul_mat_id(context, weight, input, ids[i]);
    }
};

product_graph::product_graph(
    ggml_backend_t backend, const rotating_weight & weight, const shape & shape, int64_t columns, int products)
    : products(products),
      backend(backend),
      context(new_context(2 * products + 1)) {
    const operands operands(context.get(), shape, columns, products);
    inputs = allocate(context, backend);
    operands.set(shape, columns, weight.copies());

    graph = ggml_new_graph_custom(context.get(), graph_size(products), false);
    for (int i = 0; i < products; ++i) {
        ggml_tensor * product = operands.product(context.get(), weight.copy(i), i);
        if (!result) {
            ggml_backend_buffer_type_t type = ggml_backend_get_default_buffer_type(backend);
            result.reset(ggml_backend_buft_alloc_buffer(type, ggml_backend_buft_get_alloc_size(type, product)));
            if (!result) {
                throw std::runtime_error("not enough memory");
            }
        }
        ggml_backend_tensor_alloc(result.get(), product, ggml_backend_buffer_get_base(result.get()));
        ggml_build_forward_expand(graph, product);
    }
}

bool product_graph::supported() const {
    return ggml_backend_supports_op(backend, ggml_graph_node(graph, 0));
}

void product_graph::enqueue() {
    if (ggml_backend_graph_compute_async(backend, graph) != GGML_STATUS_SUCCESS) {
        throw std::runtime_error("the backend failed to compute the product");
    }
}

static std::vector<float> product_on(
    ggml_backend_t backend, const weight_type & type, const shape & shape, const encoded & data, int64_t columns) {
    rotating_weight weight(backend, type, shape, data, 1);
    ggml_context_ptr context = new_context(3);
    const operands operands(context.get(), shape, columns, 1);
    ggml_tensor * product = operands.product(context.get(), weight.copy(0), 0);
    ggml_backend_buffer_ptr buffer = allocate(context, backend);
    operands.set(shape, columns, 1);
    ggml_cgraph * graph = ggml_new_graph_custom(context.get(), graph_size(1), false);
    ggml_build_forward_expand(graph, product);
    if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
        throw std::runtime_error("the backend failed to compute the product");
    }
    std::vector<float> result(ggml_nelements(product));
    ggml_backend_tensor_get(product, result.data(), 0, ggml_nbytes(product));
    return result;
}

difference compare(ggml_backend_t backend, ggml_backend_t reference, const weight_type & type, const shape & shape,
    const encoded & data, int64_t columns) {
    const std::vector<float> expected = product_on(reference, type, shape, data, columns);
    const std::vector<float> found = product_on(backend, type, shape, data, columns);
    double squares = 0, errors = 0, largest = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
        const double error = (double) found[i] - expected[i];
        squares += (double) expected[i] * expected[i];
        errors += error * error;
        // this comparison keeps a NaN as the largest
        largest = std::abs(error) <= largest ? largest : std::abs(error);
    }
    return { errors / squares, largest / std::sqrt(squares / (double) expected.size()) };
}
