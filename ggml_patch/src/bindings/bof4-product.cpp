// Products on the CPU backend.
#include "bof4-checks.h"
#include "bof4-cpu-backend.h"
#include "bof4-row-ranges.h"

#include "../lists/bof4-list.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <stdexcept>
#include <string>
#include <vector>

int bof4_vec_dot(int type_, const void * row, const float * activations, int64_t n, float * dst) {
    return bof4_guarded([&]() -> int {
        const ggml_type type = bof4_checked_type(type_);
        bof4_checked_row_size(type, n);
        const auto * traits = bof4_cpu_type_traits(type);
        if (traits->vec_dot == nullptr) {
            throw std::runtime_error(std::string("the CPU backend has no vec_dot for ") + ggml_type_name(type));
        }
        std::vector<uint8_t> encoded(bof4_checked_row_size(traits->vec_dot_type, n));
        bof4_cpu_type_traits(traits->vec_dot_type)->from_float(activations, encoded.data(), n);
        traits->vec_dot((int) n, dst, 0, row, 0, encoded.data(), 0, 1);
        return 0;
    });
}

int bof4_mul_mat(int type_, const void * weights, int64_t nrow, int64_t n_per_row, const int32_t * list, int64_t n_list,
    const float * activations, int64_t ncol, float * dst, int threads) {
    return bof4_guarded([&]() -> int {
        const ggml_type type = bof4_checked_type(type_);
        bof4_checked_row_size(type, n_per_row);

        if (list != nullptr) {
            if (const char * why = ggml_bof4_list_error(list, n_list, nrow, n_per_row)) {
                throw std::runtime_error(std::string("the outlier list is not valid: ") + why);
            }
        }
        ggml_init_params params = { ggml_tensor_overhead() * 4 + ggml_graph_overhead(), nullptr, /*no_alloc*/ true };
        ggml_context_ptr ctx(ggml_init(params));
        ggml_tensor * w = ggml_new_tensor_2d(ctx.get(), type, n_per_row, nrow);
        ggml_tensor * x = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_per_row, ncol);
        ggml_tensor * l = nullptr;
        if (list != nullptr) {
            l = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, n_list);
            ggml_bof4_list_attach(w, l);
        }
        ggml_tensor * y = ggml_mul_mat(ctx.get(), w, x);
        ggml_cgraph * graph = ggml_new_graph(ctx.get());
        ggml_build_forward_expand(graph, y);

        const ggml_backend_ptr backend = bof4_cpu_backend(bof4_thread_count(threads));
        if (!ggml_backend_supports_op(backend.get(), y)) {
            throw std::runtime_error(std::string("the CPU backend cannot multiply ") + ggml_type_name(type));
        }
        ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend.get()));
        ggml_backend_tensor_set(w, weights, 0, ggml_nbytes(w));
        ggml_backend_tensor_set(x, activations, 0, ggml_nbytes(x));
        if (l != nullptr) {
            ggml_backend_tensor_set(l, list, 0, ggml_nbytes(l));
        }
        if (ggml_backend_graph_compute(backend.get(), graph) != GGML_STATUS_SUCCESS) {
            throw std::runtime_error("the CPU backend failed to compute the product");
        }
        ggml_backend_tensor_get(y, dst, 0, ggml_nbytes(y));
        return 0;
    });
}
