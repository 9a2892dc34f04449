// The Vulkan backend where upstream's tests do not go, because the CPU does not compute it: products with half-precision
// activations against double precision, and what the device refuses. GGML_BACKEND_PATH names the backend's library.
//
// Prints a line for each: "product TYPE COLUMNS ERROR", the largest |product - exact| / (|row| |activations|), and
// "supports WHAT 0|1".

#include "lists/bof4-list.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

namespace {

constexpr int64_t N = 512, ROWS = 48, MATRICES = 3;

ggml_context_ptr new_context() {
    return ggml_context_ptr(ggml_init({ 64 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }));
}

double product_error(ggml_backend_t backend, ggml_type type, int64_t columns) {
    std::mt19937 rng(3);
    std::normal_distribution<float> normal;
    std::vector<float> weights(N * ROWS), decoded(N * ROWS), products(ROWS * columns);
    std::generate(weights.begin(), weights.end(), [&] { return normal(rng); });
    std::vector<ggml_fp16_t> activations(N * columns);
    std::generate(activations.begin(), activations.end(), [&] { return ggml_fp32_to_fp16(normal(rng)); });
    std::vector<uint8_t> blocks(ggml_row_size(type, N) * ROWS);
    ggml_quantize_chunk(type, weights.data(), blocks.data(), 0, ROWS, N, nullptr);
    ggml_get_type_traits(type)->to_float(blocks.data(), decoded.data(), N * ROWS);

    const ggml_context_ptr ctx = new_context();
    ggml_tensor * w = ggml_new_tensor_2d(ctx.get(), type, N, ROWS);
    ggml_tensor * x = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F16, N, columns);
    ggml_tensor * y = ggml_mul_mat(ctx.get(), w, x);
    ggml_cgraph * graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, y);
    const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend));
    ggml_backend_tensor_set(w, blocks.data(), 0, blocks.size());
    ggml_backend_tensor_set(x, activations.data(), 0, activations.size() * sizeof(ggml_fp16_t));
    if (!ggml_backend_supports_op(backend, y) || ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
        return INFINITY;
    }
    ggml_backend_tensor_get(y, products.data(), 0, products.size() * sizeof(float));

    double worst = 0;
    for (int64_t j = 0; j < columns; ++j) {
        for (int64_t i = 0; i < ROWS; ++i) {
            double exact = 0, row = 0, column = 0;
            for (int64_t k = 0; k < N; ++k) {
                const double a = decoded[i * N + k], b = ggml_fp16_to_fp32(activations[j * N + k]);
                exact += a * b;
                row += a * a;
                column += b * b;
            }
            worst = std::max(worst, std::fabs(products[j * ROWS + i] - exact) / std::sqrt(row * column));
        }
    }
    return worst;
}

void print_support(ggml_backend_t backend, const char * what, ggml_tensor * op) {
    printf("supports %s %d\n", what, ggml_backend_supports_op(backend, op));
}

// Without data: whether an operation is supported depends on shapes, types and where a view begins.
void print_supports(ggml_backend_t backend) {
    const ggml_context_ptr ctx = new_context();
    ggml_tensor * w = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_BOF4_S, N, ROWS, MATRICES);
    ggml_tensor * listed = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_BOF4_S, N, ROWS, MATRICES);
    ggml_bof4_list_attach(listed, ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, ROWS * MATRICES + 1));
    ggml_tensor * x = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, N, 1, MATRICES);
    ggml_tensor * half = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F16, N, 1, MATRICES);
    ggml_tensor * ids = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_I32, 1, MATRICES);
    // without the first row, of 34 bytes
    ggml_tensor * narrow = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_BOF4_S, QK_BOF4_S, ROWS);
    ggml_tensor * slice = ggml_view_2d(ctx.get(), narrow, QK_BOF4_S, ROWS - 1, narrow->nb[1], narrow->nb[1]);

    print_support(backend, "product", ggml_mul_mat(ctx.get(), w, x));
    print_support(backend, "listed", ggml_mul_mat(ctx.get(), listed, x));
    print_support(backend, "half", ggml_mul_mat(ctx.get(), w, half));
    print_support(backend, "listed-half", ggml_mul_mat(ctx.get(), listed, half));
    print_support(backend, "experts", ggml_mul_mat_id(ctx.get(), w, x, ids));
    print_support(backend, "experts-half", ggml_mul_mat_id(ctx.get(), w, half, ids));
    print_support(
        backend, "slice", ggml_mul_mat(ctx.get(), slice, ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, QK_BOF4_S)));
}

} // namespace

int main() {
    ggml_backend_load_all();
    ggml_backend_dev_t device = ggml_backend_dev_by_name("Vulkan0");
    if (device == nullptr) {
        fprintf(stderr, "there is no Vulkan0\n");
        return 1;
    }
    const ggml_backend_ptr backend(ggml_backend_dev_init(device, nullptr));
    for (const ggml_type type : { GGML_TYPE_BOF4_S, GGML_TYPE_BOF4_K }) {
        for (const int64_t columns : { 1, 3, 16 }) {
            printf("product %s %d %.3g\n", ggml_type_name(type), (int) columns,
                product_error(backend.get(), type, columns));
        }
    }
    print_supports(backend.get());
    return 0;
}
