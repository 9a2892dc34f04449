#include "bof4-cuda.cuh"
#include "ggml-cuda/unary.cuh"
#include "bof4/cuda/bof4-launch.cuh"
#include "bof4-mmvq.cuh"

// The product of src0 and src1: the node itself, or the operand to which it adds a bias. Else null.
static const ggml_tensor * product_before(
    const ggml_tensor * node, const ggml_tensor * src0, const ggml_tensor * src1) {
    const bool biased = node->op == GGML_OP_ADD || node->op == GGML_OP_ADD_ID;
    for (int i = 0; i < (biased ? 2 : 1); ++i) {
        const ggml_tensor * t = biased ? node->src[i] : node;
        if ((t->op == GGML_OP_MUL_MAT || t->op == GGML_OP_MUL_MAT_ID) && t->src[0] == src0 && t->src[1] == src1) {
            return t;
        }
    }
    return nullptr;
}

// The same for the last node of those that upstream fuses, which may be the gated unit of two products.
static const ggml_tensor * find_product(const ggml_tensor * dst, const ggml_tensor * src0, const ggml_tensor * src1) {
    if (dst->op != GGML_OP_GLU) {
        return product_before(dst, src0, src1);
    }
    const ggml_tensor * found = product_before(dst->src[1], src0, src1);
    return found ? found : product_before(dst->src[0], src0, src1);
}

static bof4_mul_mat_vec_weight weight_args(
    const ggml_tensor * weight, const ggml_tensor * product, const ggml_tensor * bias, bool experts) {
    bof4_mul_mat_vec_weight f = {};
    f.data = (const uint8_t *) weight->data;
    f.nb1 = (uint32_t) weight->nb[1];
    f.nb2 = (int64_t) weight->nb[2];
    f.nb3 = (int64_t) weight->nb[3];
    if (product != nullptr) {
        f.list = ggml_cuda_bof4_list(product);
    }
    if (bias != nullptr) {
        GGML_ASSERT(bias->type == GGML_TYPE_F32 && bias->ne[0] == weight->ne[1] && bias->nb[0] == sizeof(float));
        f.bias = (const float *) bias->data;
        // with experts one row of bias per expert, else one per column
        f.bias_s1 = experts ? 0 : bias->nb[1] / sizeof(float);
        f.bias_s2 = bias->nb[experts ? 1 : 2] / sizeof(float);
        f.bias_s3 = bias->nb[3] / sizeof(float);
    }
    return f;
}

static bool overlap(const ggml_tensor * a, const ggml_tensor * b) {
    const char *of_a = (const char *) a->data, *of_b = (const char *) b->data;
    return of_a < of_b + ggml_nbytes(b) && of_b < of_a + ggml_nbytes(a);
}

// Largest power of two, up to 16, of whose multiples all rows begin.
static int alignment_of_rows(const bof4_mul_mat_vec_weight & f, size_t row_size) {
    const uintptr_t all = (uintptr_t) f.data | f.nb1 | f.nb2 | f.nb3 | row_size | 16;
    return (int) (all & -all);
}

// Warps that share the chunks of a block's rows: as few as keep every SM busy, because each has the same work before and
// behind its chunks.
static int warps_of_block(int chunks, int64_t blocks) {
    const int64_t wanted = 12 * ggml_cuda_info().devices[ggml_cuda_get_device()].nsm;
    int warps = 1;
    while (warps < BOF4_MAX_WARPS && warps < chunks && warps * blocks < wanted) {
        ++warps;
    }
    // as few as take as many rounds
    const int rounds = (chunks + warps - 1) / warps;
    return (chunks + rounds - 1) / rounds;
}

template <typename step, int columns, int matrices, int rows>
static void launch(
    const bof4_mul_mat_vec_args & p, int64_t ne11, int64_t ne12, int64_t channels, int64_t z, cudaStream_t stream) {
    GGML_ASSERT(channels <= 65535 && z <= 65535);
    const dim3 blocks((unsigned) ((p.nrows + rows - 1) / rows), (unsigned) channels, (unsigned) z);
    const int warps = warps_of_block(step::chunks(p.n), (int64_t) blocks.x * blocks.y * blocks.z);
    bof4_launch(bof4_mul_mat_vec_kernel<step, columns, matrices, rows>, blocks, dim3(32, warps, 1),
        warps * step::template staged_bytes<rows * matrices>(), stream, p, ne11, ne12);
}

// One column: fewer rows for a block where there are not enough of them to keep every SM busy.
template <typename step, int matrices, int rows>
static void launch_column(
    const bof4_mul_mat_vec_args & p, int64_t ne11, int64_t ne12, int64_t channels, int64_t z, cudaStream_t stream) {
    if constexpr (step::may_have_fewer_rows && rows > 1) {
        const int64_t warps = (p.nrows + rows - 1) / rows * channels * z *
            std::min<int>(BOF4_MAX_WARPS, step::chunks(p.n));
        if (warps < 8 * (int64_t) ggml_cuda_info().devices[ggml_cuda_get_device()].nsm) {
            launch_column<step, matrices, rows / 2>(p, ne11, ne12, channels, z, stream);
            return;
        }
    }
    launch<step, 1, matrices, rows>(p, ne11, ne12, channels, z, stream);
}

template <typename step>
static void launch(const bof4_mul_mat_vec_args & p, int64_t columns, int64_t ne11, int64_t ne12, int64_t channels,
    int64_t z, cudaStream_t stream) {
    if (p.gate.data != nullptr) {
        GGML_ASSERT(columns == 1);
        launch_column<step, 2, step::rows(1) / 2>(p, ne11, ne12, channels, z, stream);
        return;
    }
    switch (columns) {
        case 1:  launch_column<step, 1, step::rows(1)>(p, ne11, ne12, channels, z, stream); break;
        case 2:  launch<step, 2, 1, step::rows(2)>(p, ne11, ne12, channels, z, stream); break;
        case 3:  launch<step, 3, 1, step::rows(3)>(p, ne11, ne12, channels, z, stream); break;
        case 4:  launch<step, 4, 1, step::rows(4)>(p, ne11, ne12, channels, z, stream); break;
        case 5:  launch<step, 5, 1, step::rows(5)>(p, ne11, ne12, channels, z, stream); break;
        case 6:  launch<step, 6, 1, step::rows(6)>(p, ne11, ne12, channels, z, stream); break;
        case 7:  launch<step, 7, 1, step::rows(7)>(p, ne11, ne12, channels, z, stream); break;
        case 8:  launch<step, 8, 1, step::rows(8)>(p, ne11, ne12, channels, z, stream); break;
        default: GGML_ABORT("%d columns: this product takes 1 to 8", (int) columns);
    }
}

template <typename layout>
static void quantize(ggml_cuda_pool & pool, const ggml_tensor * src1, bof4_mul_mat_vec_args & p,
    ggml_cuda_pool_alloc<int32_t> & qs, ggml_cuda_pool_alloc<float> & scales, cudaStream_t stream) {
    const int64_t n = src1->ne[0];
    p.act.stride = layout::stride(n);
    p.act.scale_stride = layout::scale_stride(n);
    p.act.qs = qs.alloc(pool, ggml_nrows(src1) * p.act.stride);
    p.act.scales = scales.alloc(pool, ggml_nrows(src1) * p.act.scale_stride);
    constexpr int warps = 4;
    const dim3 blocks((unsigned) ((layout::groups(n) + warps - 1) / warps), (unsigned) src1->ne[1],
        (unsigned) (src1->ne[2] * src1->ne[3]));
    bof4_launch(bof4_quantize_kernel<layout>, blocks, dim3(32, warps, 1), 0, stream, (const float *) src1->data, p.act,
        n, src1->ne[1], src1->ne[2], p.x_s1, p.x_s2, p.x_s3, /*dependents_read_more =*/p.ids != nullptr);
}

void ggml_cuda_bof4_mul_mat_vec_q(ggml_backend_cuda_context & ctx, const ggml_tensor * src0, const ggml_tensor * src1,
    const ggml_tensor * ids, ggml_tensor * dst, const ggml_cuda_mm_fusion_args_host * fusion) {
    GGML_ASSERT(src1->type == GGML_TYPE_F32 && dst->type == GGML_TYPE_F32);
    GGML_ASSERT(
        src0->nb[0] == ggml_type_size(src0->type) && src1->nb[0] == sizeof(float) && dst->nb[0] == sizeof(float));
    const ggml_tensor * product = find_product(dst, src0, src1);
    if (product != nullptr) {
        // upstream passes the third source of a product as ids: that of a mul_mat may be its list
        ids = product->op == GGML_OP_MUL_MAT_ID ? product->src[2] : nullptr;
    } else {
        // one expert, in temporary tensors: the caller adds the outliers of all experts
        GGML_ASSERT(fusion == nullptr && dst->op == GGML_OP_NONE);
    }
    GGML_ASSERT(fusion == nullptr || (fusion->x_scale == nullptr && fusion->gate_scale == nullptr));
    GGML_ASSERT(ids == nullptr || (ids->type == GGML_TYPE_I32 && ids->nb[0] == sizeof(int32_t) && src1->ne[3] == 1));

    const int64_t f = sizeof(float);
    bof4_mul_mat_vec_args p = {};
    p.up = weight_args(src0, product, fusion ? fusion->x_bias : nullptr, ids != nullptr);
    if (fusion != nullptr && fusion->gate != nullptr) {
        GGML_ASSERT(fusion->gate->type == src0->type && ggml_are_same_shape(fusion->gate, src0));
        const ggml_tensor * gate_product = find_product(dst, fusion->gate, src1);
        GGML_ASSERT(gate_product != nullptr);
        p.gate = weight_args(fusion->gate, gate_product, fusion->gate_bias, ids != nullptr);
        p.glu = fusion->glu_op;
        p.glu_limit = fusion->glu_limit;
    }
    p.x = (const float *) src1->data;
    p.x_s1 = src1->nb[1] / f;
    p.x_s2 = src1->nb[2] / f;
    p.x_s3 = src1->nb[3] / f;
    p.dst = (float *) dst->data;
    p.s1 = dst->nb[1] / f;
    p.s2 = dst->nb[2] / f;
    p.s3 = dst->nb[3] / f;
    p.n = (int32_t) src0->ne[0];
    p.nrows = (int32_t) src0->ne[1];
    p.nchannels_y = (int32_t) src1->ne[1];
    p.channel_ratio = (int32_t) (src1->ne[2] / src0->ne[2]);
    p.sample_ratio = (int32_t) (src1->ne[3] / src0->ne[3]);
    if (ids != nullptr) {
        p.ids = (const int32_t *) ids->data;
        p.ids_stride = ids->nb[1] / sizeof(int32_t);
    }

    // With a fused bias, the result may be allocated in the memory of the activations, which the graph does not read
    // after the product. That is harmless for their int8 copy, but outliers are multiplied with the activations
    // themselves: these are copied because blocks of threads would overwrite what other blocks still read.
    cudaStream_t stream = ctx.stream();
    ggml_cuda_pool_alloc<char> x_copy;
    if ((p.up.list.row_pointers != nullptr || p.gate.list.row_pointers != nullptr) && overlap(src1, dst)) {
        p.x = (const float *) x_copy.alloc(ctx.pool(), ggml_nbytes(src1));
        CUDA_CHECK(cudaMemcpyAsync(x_copy.get(), src1->data, ggml_nbytes(src1), cudaMemcpyDeviceToDevice, stream));
    }

    const int64_t columns = ids ? 1 : src1->ne[1];
    const int64_t channels = ids ? ids->ne[0] : src1->ne[2];
    const int64_t z = ids ? src1->ne[2] : src1->ne[3];
    ggml_cuda_pool_alloc<int32_t> qs;
    ggml_cuda_pool_alloc<float> scales;
    const size_t row_size = ggml_row_size(src0->type, p.n);
    int alignment = alignment_of_rows(p.up, row_size);
    if (p.gate.data != nullptr) {
        alignment = std::min(alignment, alignment_of_rows(p.gate, row_size));
    }
    bof4_dispatch(src0->type, "mul_mat", [&](auto type) {
        using traits = bof4_cuda_type<decltype(type)::value>;
        quantize<typename traits::act_layout>(ctx.pool(), src1, p, qs, scales, stream);
        const auto run = [&](auto step) {
            launch<decltype(step)>(p, columns, src1->ne[1], src1->ne[2], channels, z, stream);
        };
        if (alignment >= 16) {
            run(typename traits::template step<16>());
        } else if (alignment >= 4) {
            run(typename traits::template step<4>());
        } else {
            run(typename traits::template step<2>());
        }
    });
}
