// The BOF4 types and their outlier lists in ggml's Vulkan backend: what its hooks call. Included in ggml-vulkan.cpp.
#pragma once

#include "../lists/bof4-list.h"

// The hooks also fit an older upstream (the previous pin), whose backend is built without the types.
#if __has_include("ggml-vulkan/ggml-vulkan-common.h")
#define BOF4_VULKAN
#include "ggml-vulkan/ggml-vulkan-common.h"

#include <array>
#include <cstdint>
#include <map>
#include <mutex>

#define BOF4_CASE(NAME, name) case GGML_TYPE_##NAME:

// Cases of a switch over types.
#define BOF4_VULKAN_CASES BOF4_TYPES_VULKAN(BOF4_CASE)

// As in bof4-add-outliers.comp.
enum { BOF4_LIST_MUL_MAT, BOF4_LIST_MUL_MAT_ID, BOF4_LIST_GET_ROWS, BOF4_LIST_OPERATIONS };
static constexpr uint32_t BOF4_LIST_WORKGROUP = 64;

struct bof4_list_push_constants {
    uint32_t offset_list, offset_b, offset_ids, offset_d;
    uint32_t entries;
    uint32_t row_length;
    uint32_t first, n;
    uint32_t stride_a[3];
    uint32_t ne[4];
    uint32_t stride_d[3];
    uint32_t stride_b[3];
    uint32_t ne_b1;
    uint32_t repeat[2];
    uint32_t stride_ids[3];
};
static_assert(sizeof(bof4_list_push_constants) <= 128, "devices guarantee 128 bytes");

// Pipelines of lists, of each device: devices live as long as the process.
static vk_pipeline & ggml_vk_bof4_list_pipeline(const vk_device & device, uint32_t operation) {
    static std::mutex mutex;
    static std::map<const vk_device_struct *, std::array<vk_pipeline, BOF4_LIST_OPERATIONS>> pipelines;
    const std::lock_guard<std::mutex> lock(mutex);
    return pipelines[device.get()][operation];
}

// Shared memory that bof4-types.glsl (block_a_cache) takes for 32 weights of a row, or 0 for another type.
static uint32_t ggml_vk_bof4_cache_size(ggml_type type) {
    switch (type) {
        case GGML_TYPE_BOF4_S: return 32 + sizeof(float);
        case GGML_TYPE_BOF4_K: return 32 + 2 * sizeof(float);
        default:               return 0;
    }
}

// Size of the workgroups of products with few columns: NVIDIA's and Intel's GPUs do better with four subgroups where
// there are not many rows, as with upstream's types; Intel's with one, where activations are q8_1.
static uint32_t ggml_vk_bof4_workgroups(const vk_device & device, ggml_type b_type, uint32_t m, uint32_t k) {
    const bool is_intel = device->vendor_id == VK_VENDOR_ID_INTEL;
    const bool is_nvidia = device->vendor_id == VK_VENDOR_ID_NVIDIA &&
        device->architecture != vk_device_architecture::NVIDIA_PRE_TURING;
    const bool is_large = (is_nvidia || is_intel) && m <= 8192 && k >= 1024 && !(is_intel && b_type == GGML_TYPE_Q8_1);
    return is_large ? DMMV_WG_SIZE_LARGE : DMMV_WG_SIZE_SUBGROUP;
}

// Pipelines of products with few columns. Activations are q8_1 only on devices with integer dot products.
static vk_pipeline ggml_vk_bof4_mul_mat_vec(
    ggml_backend_vk_context * ctx, ggml_type type, ggml_type b_type, uint32_t n_columns, uint32_t m, uint32_t k) {
    const vk_device & device = ctx->device;
    const uint32_t w = ggml_vk_bof4_workgroups(device, b_type, m, k);
    return b_type == GGML_TYPE_Q8_1 ? device->pipeline_dequant_mul_mat_vec_q8_1_f32[w][type][n_columns - 1]
        : b_type == GGML_TYPE_F16   ? device->pipeline_dequant_mul_mat_vec_f16_f32[w][type][n_columns - 1]
                                    : device->pipeline_dequant_mul_mat_vec_f32_f32[w][type][n_columns - 1];
}

static vk_pipeline ggml_vk_bof4_mul_mat_vec_id(
    ggml_backend_vk_context * ctx, ggml_type type, ggml_type b_type, uint32_t m, uint32_t k) {
    const vk_device & device = ctx->device;
    const uint32_t w = ggml_vk_bof4_workgroups(device, b_type, m, k);
    return b_type == GGML_TYPE_Q8_1 ? device->pipeline_dequant_mul_mat_vec_id_q8_1_f32[w][type]
                                    : device->pipeline_dequant_mul_mat_vec_id_f32[w][type];
}

// Pipelines of copies between these types and F32; null for others.
static vk_pipeline ggml_vk_bof4_copy(const ggml_backend_vk_context * ctx, ggml_type from, ggml_type to) {
    return from == GGML_TYPE_F32 && ggml_is_bof4(to) ? ctx->device->pipeline_cpy_f32_quant[to]
        : to == GGML_TYPE_F32 && ggml_is_bof4(from)  ? ctx->device->pipeline_cpy_quant_f32[from]
                                                     : nullptr;
}

// Whether the device copies floats to a tensor of these types, or the reverse.
static bool ggml_vk_bof4_supports_copy(const ggml_tensor * op) {
    const ggml_type from = op->src[0]->type;
    if (op->op == GGML_OP_SET_ROWS) {
        const ggml_type index = op->src[1]->type;
        return (from == GGML_TYPE_F32 || from == GGML_TYPE_F16) && (index == GGML_TYPE_I32 || index == GGML_TYPE_I64);
    }
    return from == GGML_TYPE_F32 || op->type == GGML_TYPE_F32;
}

// Whether the device computes an operation with such weights. Sizes of tensors have been checked.
static bool ggml_vk_bof4_supports_product(const vk_device & device, const ggml_tensor * op) {
    const ggml_tensor * weight = op->src[0];
    const ggml_tensor * list = ggml_bof4_list_of_op(op);
    if (list != nullptr) {
        // the pass for lists counts elements of the weight in 32 bits
        const ggml_tensor * whole = weight->view_src ? weight->view_src : weight;
        if (ggml_nelements(whole) > UINT32_MAX || op->type != GGML_TYPE_F32) {
            return false;
        }
    }
    // shaders take a weight where it begins: a slice whose beginning the device cannot bind would abort
    if (weight->view_src != nullptr) {
        const size_t alignment = device->properties.limits.minStorageBufferOffsetAlignment;
        if (weight->view_offs % alignment != 0) {
            return false;
        }
    }
    if (op->op == GGML_OP_GET_ROWS) {
        return weight->nb[0] == ggml_type_size(weight->type);
    }
    if (op->op == GGML_OP_MUL_MAT_ID) {
        if (!device->mul_mat_id_s[weight->type] || ggml_get_op_params_i32(op, 3) == GGML_PREC_F32) {
            return false;
        }
    }
    const ggml_tensor * a = op->op == GGML_OP_MUL_MAT ? weight : op->src[2];
    const ggml_tensor * b = op->src[1];
    // the pass for lists and the experts' products with few columns read floats
    const bool is_half = b->type == GGML_TYPE_F16 && op->op == GGML_OP_MUL_MAT && list == nullptr;
    return a->ne[3] == b->ne[3] && ggml_vk_dim01_contiguous(weight) && (b->type == GGML_TYPE_F32 || is_half);
}

// Whether an operation is one with these types; the device then computes it where the other function says so.
static bool ggml_vk_bof4_is_op(const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_MUL_MAT:
        case GGML_OP_MUL_MAT_ID:
        case GGML_OP_GET_ROWS:   return ggml_is_bof4(op->src[0]->type);
        case GGML_OP_SET_ROWS:   return ggml_is_bof4(op->type);
        case GGML_OP_CPY:
        case GGML_OP_CONT:
        case GGML_OP_DUP:        return ggml_is_bof4(op->src[0]->type) != ggml_is_bof4(op->type);
        default:                 return false;
    }
}

static bool ggml_vk_bof4_supports_op(const vk_device & device, const ggml_tensor * op) {
    const bool is_product = op->op == GGML_OP_MUL_MAT || op->op == GGML_OP_MUL_MAT_ID || op->op == GGML_OP_GET_ROWS;
    return is_product ? ggml_vk_bof4_supports_product(device, op) : ggml_vk_bof4_supports_copy(op);
}

// Adds the outliers to the result of an operation, where its weight has a list. A pass of its own: rows have few
// outliers, and the lists' products need none of the tiles.
static void ggml_vk_bof4_add_outliers(ggml_backend_vk_context * ctx, vk_context & subctx, const ggml_tensor * dst) {
    const ggml_tensor * list = ggml_bof4_list_of_op(dst);
    if (list == nullptr || ggml_nelements(dst) == 0) {
        return;
    }
    const bof4_list_view view = ggml_bof4_list_view_of_op(dst);
    const ggml_tensor * weight = dst->src[0];
    const ggml_tensor * whole = weight->view_src ? weight->view_src : weight;
    const ggml_tensor * b = dst->src[1];
    const ggml_tensor * ids = dst->op == GGML_OP_MUL_MAT_ID ? dst->src[2] : b;
    const uint32_t operation = dst->op == GGML_OP_MUL_MAT ? BOF4_LIST_MUL_MAT
        : dst->op == GGML_OP_MUL_MAT_ID                   ? BOF4_LIST_MUL_MAT_ID
                                                          : BOF4_LIST_GET_ROWS;
    vk_pipeline pipeline = ggml_vk_bof4_list_pipeline(ctx->device, operation);
    ggml_pipeline_request_descriptor_sets(ctx, pipeline, 1);

    bof4_list_push_constants p = {};
    const auto offset = [&](const ggml_tensor * tensor) {
        return (uint32_t) (get_misalign_bytes(ctx, tensor) / ggml_type_size(tensor->type));
    };
    p.offset_list = offset(list);
    p.offset_b = offset(b);
    p.offset_ids = offset(ids);
    p.offset_d = offset(dst);
    p.entries = (uint32_t) ggml_nrows(whole) + 1;
    p.row_length = (uint32_t) view.row_length;
    p.first = (uint32_t) view.first;
    p.n = (uint32_t) view.n;
    for (int i = 0; i < 3; ++i) {
        p.stride_a[i] = (uint32_t) view.stride[i];
        p.stride_d[i] = (uint32_t) (dst->nb[i + 1] / ggml_type_size(dst->type));
        p.stride_b[i] = (uint32_t) (b->nb[i + 1] / ggml_type_size(b->type));
        p.stride_ids[i] = (uint32_t) (ids->nb[i] / ggml_type_size(ids->type));
    }
    for (int i = 0; i < 4; ++i) {
        p.ne[i] = (uint32_t) dst->ne[i];
    }
    p.ne_b1 = (uint32_t) b->ne[1];
    p.repeat[0] = (uint32_t) (dst->ne[2] / weight->ne[2]);
    p.repeat[1] = (uint32_t) (dst->ne[3] / weight->ne[3]);

    const auto & most = ctx->device->properties.limits.maxComputeWorkGroupCount;
    const bool is_rows = operation == BOF4_LIST_GET_ROWS;
    const std::array<uint32_t, 3> elements = { p.ne[is_rows ? 1 : 0], is_rows ? 1 : std::min(p.ne[1], most[1]),
        std::min(p.ne[2] * p.ne[3], most[2]) };
    ggml_vk_sync_buffers(ctx, subctx);
    ggml_vk_dispatch_pipeline(ctx, subctx, pipeline,
        { ggml_vk_tensor_subbuffer(ctx, list, true), ggml_vk_tensor_subbuffer(ctx, b, true),
            ggml_vk_tensor_subbuffer(ctx, ids, true), ggml_vk_tensor_subbuffer(ctx, dst, true) },
        p, elements);
}

#else
#include <cstddef>

#define BOF4_VULKAN_CASES

static inline uint32_t ggml_vk_bof4_cache_size(ggml_type) {
    return 0;
}

static inline bool ggml_vk_bof4_is_op(const ggml_tensor * op) {
    return (op->op == GGML_OP_MUL_MAT || op->op == GGML_OP_MUL_MAT_ID || op->op == GGML_OP_GET_ROWS) &&
        ggml_is_bof4(op->src[0]->type);
}

template <typename device>
static bool ggml_vk_bof4_supports_op(const device &, const ggml_tensor *) {
    return false;
}

template <typename... arguments>
static std::nullptr_t ggml_vk_bof4_copy(arguments...) {
    return nullptr;
}

template <typename... arguments>
static std::nullptr_t ggml_vk_bof4_mul_mat_vec(arguments...) {
    return nullptr;
}

template <typename... arguments>
static std::nullptr_t ggml_vk_bof4_mul_mat_vec_id(arguments...) {
    return nullptr;
}

template <typename context, typename subcontext>
static void ggml_vk_bof4_add_outliers(context, subcontext &, const ggml_tensor *) {}

#endif
