// A product of ggml, set up once and timed many times.
#include "bof4-api.h"
#include "bof4-cpu-backend.h"
#include "bof4-timing.h"

#include "../format/bof4-blocks.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

struct bof4_timed_product {
    ggml_backend_ptr backend;
    ggml_context_ptr weights_ctx, ctx;
    ggml_backend_buffer_ptr weights_buffer, buffer;
    ggml_backend_buffer_type_t layout;
    ggml_cgraph * graph;
    ggml_type type;
    int64_t columns;
    int threads;
};

namespace {

// llama.cpp's test: is there a kernel for the operation where its weight is in such a buffer?
bool has_kernel(ggml_backend_dev_t cpu, ggml_backend_buffer_type_t buft, ggml_tensor * op) {
    const ggml_backend_buffer_ptr empty(ggml_backend_buft_alloc_buffer(buft, 0));
    op->src[0]->buffer = empty.get();
    const bool found = ggml_backend_dev_supports_op(cpu, op);
    op->src[0]->buffer = nullptr;
    return found;
}

ggml_backend_buffer_type_t repacked_layout(ggml_tensor * op) {
    for (auto * buft = bof4_cpu_extra_buffer_types(); buft && *buft; ++buft) {
        if (has_kernel(bof4_cpu_device(), *buft, op)) {
            return *buft;
        }
    }
    return ggml_backend_dev_buffer_type(bof4_cpu_device());
}

void build(bof4_timed_product & p, ggml_type type, const void * weights, int64_t nrow, int64_t n_per_row, int64_t ncol,
    int copies, bool repacked, int threads) {
    if (nrow <= 0 || ncol <= 0 || copies <= 0 || n_per_row <= 0 || n_per_row % ggml_blck_size(type) != 0) {
        throw std::runtime_error("no product of " + std::to_string(copies) + " x " + std::to_string(nrow) +
            " rows of " + std::to_string(n_per_row) + " and " + std::to_string(ncol) + " columns");
    }
    const size_t nodes = 2 * (size_t) copies + 8;
    const ggml_init_params params = { ggml_tensor_overhead() * nodes + ggml_graph_overhead_custom(nodes, false),
        nullptr, true };
    p.weights_ctx.reset(ggml_init(params));
    p.ctx.reset(ggml_init(params));
    p.graph = ggml_new_graph_custom(p.ctx.get(), nodes, false);
    ggml_tensor * x = ggml_new_tensor_2d(p.ctx.get(), GGML_TYPE_F32, n_per_row, ncol);
    std::vector<ggml_tensor *> matrices;
    for (int i = 0; i < copies; ++i) {
        matrices.push_back(ggml_new_tensor_2d(p.weights_ctx.get(), type, n_per_row, nrow));
        ggml_build_forward_expand(p.graph, ggml_mul_mat(p.ctx.get(), matrices.back(), x));
    }
    p.layout = repacked ? repacked_layout(ggml_graph_node(p.graph, 0))
                        : ggml_backend_dev_buffer_type(bof4_cpu_device());

    p.type = type;
    p.columns = ncol;
    p.threads = std::max(1, threads);
    p.backend = bof4_cpu_backend(p.threads);
    p.weights_buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(p.weights_ctx.get(), p.layout));
    p.buffer.reset(ggml_backend_alloc_ctx_tensors(p.ctx.get(), p.backend.get()));
    if (!p.weights_buffer || !p.buffer) {
        throw std::runtime_error("no memory for " + std::to_string(copies) + " matrices of " + ggml_type_name(type));
    }
    const bof4_silence quiet; // of a line for each matrix that is repacked
    for (ggml_tensor * matrix : matrices) {
        if (!ggml_backend_supports_op(p.backend.get(), ggml_graph_node(p.graph, 0))) {
            throw std::runtime_error(std::string("the CPU backend cannot multiply ") + ggml_type_name(type));
        }
        ggml_backend_tensor_set(matrix, weights, 0, ggml_nbytes(matrix));
    }
    std::vector<float> activations(ggml_nelements(x));
    for (size_t i = 0; i < activations.size(); ++i) {
        activations[i] = std::sin((float) i);
    }
    ggml_backend_tensor_set(x, activations.data(), 0, ggml_nbytes(x));
}

} // namespace

const char * bof4_timed_product_new(int type, const void * weights, int64_t nrow, int64_t n_per_row, int64_t ncol,
    int copies, int repacked, int threads, bof4_timed_product ** product) {
    thread_local std::string message;
    auto made = std::make_unique<bof4_timed_product>();
    try {
        if (type < 0 || type >= GGML_TYPE_COUNT || ggml_blck_size((ggml_type) type) == 0) {
            throw std::runtime_error("no ggml type has the number " + std::to_string(type));
        }
        build(*made, (ggml_type) type, weights, nrow, n_per_row, ncol, copies, repacked != 0, threads);
    } catch (const std::exception & e) {
        message = e.what();
        return message.c_str();
    }
    *product = made.release();
    return nullptr;
}

const char * bof4_timed_product_layout(const bof4_timed_product * product) {
    return ggml_backend_buft_name(product->layout);
}

static bool is_repacked(const bof4_timed_product * product) {
    return std::strcmp(bof4_timed_product_layout(product), "CPU_BOF4") == 0;
}

int64_t bof4_timed_product_prefetch(const bof4_timed_product * product) {
    if (is_repacked(product)) {
        return bof4_cpu_prefetch(product->type, BOF4_PREFETCH_GEMV, product->threads);
    }
    return ggml_is_bof4(product->type) ? bof4_cpu_prefetch(product->type, BOF4_PREFETCH_ROWS, product->threads)
                                       : (int64_t) BOF4_PREFETCH_NONE;
}

int bof4_timed_product_path(const bof4_timed_product * product) {
    return is_repacked(product) ? bof4_cpu_path(product->type, product->columns) : (int) BOF4_PATH_NONE;
}

double bof4_timed_product_ns(bof4_timed_product * product) {
    const auto start = std::chrono::steady_clock::now();
    if (ggml_backend_graph_compute(product->backend.get(), product->graph) != GGML_STATUS_SUCCESS) {
        return -1.0;
    }
    return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count();
}

void bof4_timed_product_free(bof4_timed_product * product) {
    delete product;
}
