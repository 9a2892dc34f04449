// A buffer type of the CPU backend for repacked weights of BOF4 types and of Q6_K, and mul_mat and mul_mat_id on them.
//
// For each weight, llama.cpp calls supports_op of every extra buffer type of the CPU with the operation that uses
// the weight, and loads the weight through set_tensor of the first that returns true; set_tensor repacks. The
// operation then finds its kernels by tensor->extra.

#include "bof4-repack.h"

#include "bof4-gemm.h"
#include "bof4-huge-pages.h"
#include "bof4-parallel.h"
#include "bof4-path.h"
#include "bof4-repack-plan.h"
#include "ggml-backend-impl.h"
#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "traits.h"

#include <algorithm>
#include <array>

namespace {

bool is_mul_mat(const ggml_tensor * op) {
    return op->op == GGML_OP_MUL_MAT || op->op == GGML_OP_MUL_MAT_ID;
}

class traits : public ggml::cpu::tensor_traits {
  public:
    const bof4_gemm_kernels * kernels = nullptr;

    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override {
        if (!is_mul_mat(op)) {
            return false;
        }
        size = bof4_repack_plan(*kernels, const_cast<ggml_tensor *>(op), nullptr, n_threads).work_size();
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        if (!is_mul_mat(op)) {
            return false;
        }
        bof4_repack_plan(*kernels, op, params->wdata, params->nth).compute(params);
        return true;
    }
};

// nullptr for a type that is not repacked.
traits * traits_of(ggml_type type) {
    static std::array<traits, GGML_TYPE_COUNT> all = [] {
        std::array<traits, GGML_TYPE_COUNT> found;
        for (int t = 0; t < GGML_TYPE_COUNT; ++t) {
            found[t].kernels = bof4_gemm_kernels_of((ggml_type) t);
        }
        return found;
    }();
    return all[type].kernels ? &all[type] : nullptr;
}

int64_t groups_of(const ggml_tensor * weight) {
    return (weight->ne[1] + BOF4_GROUP - 1) / BOF4_GROUP;
}

// Not with fewer rows than half a group: padding to 16 rows would more than double the size.
bool can_repack(const ggml_tensor * weight) {
    return traits_of(weight->type) != nullptr && weight->ne[1] >= BOF4_GROUP / 2 && weight->view_src == nullptr &&
        ggml_is_contiguous(weight);
}

bool is_repacked(const ggml_tensor * weight) {
    return weight->buffer && weight->buffer->buft == ggml_backend_cpu_bof4_buffer_type();
}

class buffer_type : public ggml::cpu::extra_buffer_type {
  public:
    bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) override {
        if (!is_mul_mat(op)) {
            return false;
        }
        const ggml_tensor * weight = op->src[0];
        const ggml_tensor * act = op->src[1];
        // the columns of a matrix must be neighbours
        const bool in_order = weight->ne[2] == 1 || weight->ne[3] == act->ne[3];
        return is_repacked(weight) && can_repack(weight) && in_order && act->type == GGML_TYPE_F32 &&
            act->nb[0] == sizeof(float) && (act->buffer == nullptr || ggml_backend_buft_is_host(act->buffer->buft));
    }

    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        if (!is_mul_mat(op) || !is_repacked(op->src[0])) {
            return nullptr;
        }
        return static_cast<ggml::cpu::tensor_traits *>(op->src[0]->extra);
    }
};

// Calls f(kernels, offset of the rows in the plain tensor, number of rows, group) for every group, on all cores.
template <typename F>
void each_group(const ggml_tensor * weight, const F & f) {
    const bof4_gemm_kernels & kernels = *traits_of(weight->type)->kernels;
    const int64_t n_groups = groups_of(weight);
    const int64_t all = n_groups * weight->ne[2] * weight->ne[3];
    const size_t group_bytes = kernels.group_bytes(weight->ne[0]);
    const size_t row_bytes = ggml_row_size(weight->type, weight->ne[0]);
    // at least 256 KiB at a time: starting a thread costs as much as repacking these
    const int64_t chunk = 1 + (1 << 18) / (int64_t) group_bytes;
    bof4_parallel_for(all, chunk, [&](int64_t i) {
        const int64_t row = i % n_groups * BOF4_GROUP;
        f(kernels, (i / n_groups * weight->ne[1] + row) * row_bytes, std::min<int64_t>(BOF4_GROUP, weight->ne[1] - row),
            static_cast<char *>(weight->data) + i * group_bytes);
    });
}

ggml_status init_tensor(ggml_backend_buffer_t, ggml_tensor * tensor) {
    tensor->extra = can_repack(tensor) ? traits_of(tensor->type) : nullptr;
    return GGML_STATUS_SUCCESS;
}

void set_tensor(ggml_backend_buffer_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    GGML_ASSERT(tensor->extra && offset == 0 && size == ggml_nbytes(tensor));
    each_group(tensor, [&](const bof4_gemm_kernels & kernels, size_t rows, int64_t n_rows, void * group) {
        kernels.repack_group(static_cast<const char *>(data) + rows, n_rows, tensor->ne[0], group);
    });
}

void get_tensor(ggml_backend_buffer_t, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    GGML_ASSERT(tensor->extra && offset == 0 && size == ggml_nbytes(tensor));
    each_group(tensor, [&](const bof4_gemm_kernels & kernels, size_t rows, int64_t n_rows, void * group) {
        kernels.unpack_group(group, n_rows, tensor->ne[0], static_cast<char *>(data) + rows);
    });
}

const char * get_name(ggml_backend_buffer_type_t) {
    return "CPU_BOF4";
}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    if (buffer == nullptr) {
        return nullptr;
    }
    bof4_request_huge_pages(ggml_backend_buffer_get_base(buffer), size);
    buffer->buft = buft;
    buffer->iface.init_tensor = init_tensor;
    buffer->iface.set_tensor = set_tensor;
    buffer->iface.get_tensor = get_tensor;
    buffer->iface.cpy_tensor = nullptr;
    return buffer;
}

size_t get_alignment(ggml_backend_buffer_type_t) {
    return 64;
}

size_t get_alloc_size(ggml_backend_buffer_type_t, const ggml_tensor * tensor) {
    if (!can_repack(tensor)) {
        return ggml_nbytes(tensor);
    }
    const size_t group_bytes = traits_of(tensor->type)->kernels->group_bytes(tensor->ne[0]);
    return groups_of(tensor) * tensor->ne[2] * tensor->ne[3] * group_bytes;
}

} // namespace

int bof4_repack_path(ggml_type type, int64_t n_columns) {
    const bof4_gemm_kernels * kernels = bof4_gemm_kernels_of(type);
    if (kernels == nullptr || kernels->use_gemv(n_columns)) {
        return kernels != nullptr;
    }
    const int chosen = kernels->has_choice ? bof4_path_chosen(type) : 0;
    return n_columns < BOF4_PATH_LEAST_COLUMNS ? std::max(0, chosen) : chosen;
}

ggml_backend_buffer_type_t ggml_backend_cpu_bof4_buffer_type(void) {
    if (bof4_gemm_kernels_of(GGML_TYPE_BOF4_S) == nullptr) {
        return nullptr;
    }
    static ggml_backend_buffer_type type = {
        /* .iface   = */ { get_name, alloc_buffer, get_alignment, nullptr, get_alloc_size, nullptr },
        /* .device  = */ ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0),
        /* .context = */ new buffer_type(),
    };
    return &type;
}
