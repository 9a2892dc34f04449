#include "bof4-cuda.cuh"
#include "bof4-outliers.cuh"
#include "bof4/cuda/bof4-launch.cuh"
#include "ggml-cuda/mmid.cuh"

bof4_device_list ggml_cuda_bof4_list(const ggml_tensor * op) {
    if (ggml_bof4_list_of_op(op) == nullptr) {
        return bof4_device_list{};
    }
    const bof4_list_view view = ggml_bof4_list_view_of_op(op);
    bool whole = view.n == view.row_length && view.first % view.row_length == 0;
    for (const int64_t stride : view.stride) {
        whole = whole && stride % view.row_length == 0;
    }
    const auto rows = [&](int64_t elements) { return (int32_t) (elements / view.row_length); };
    return {
        view.row_pointers,
        view.entries,
        view.first,
        { view.stride[0], view.stride[1], view.stride[2] },
        (int32_t) view.row_length,
        (int32_t) view.n,
        whole,
        rows(view.first),
        { rows(view.stride[0]), rows(view.stride[1]), rows(view.stride[2]) },
    };
}

static unsigned n_tiles(int64_t n, int64_t size) {
    return (unsigned) ((n + size - 1) / size);
}

// matrices: of columns, or experts; max_columns: that one of them may have.
static void add_outliers(ggml_backend_cuda_context & ctx, const bof4_device_list & list, bof4_transpose_args columns,
    bof4_add_outliers_args args, int64_t max_columns, int64_t matrices) {
    const dim3 threads(BOF4_TILE, BOF4_TILE_WARPS, 1);
    cudaStream_t stream = ctx.stream();
    const int64_t mean_columns = columns.count / matrices;
    const int per_lane = mean_columns > 64 ? 4 : mean_columns > 16 ? 2 : 1;
    // the last matrix is read up to the end of a tile that begins at its last column
    const unsigned column_tiles = n_tiles(columns.count + 32 * per_lane, BOF4_TILE);
    columns.padded = args.padded = (int32_t) (column_tiles * BOF4_TILE);
    ggml_cuda_pool_alloc<nv_bfloat16> transposed(ctx.pool(), (int64_t) columns.n * columns.padded);
    GGML_ASSERT(matrices <= 65535 && column_tiles <= 65535);
    bof4_launch(bof4_transpose_kernel, dim3(n_tiles(columns.n, BOF4_TRANSPOSED), column_tiles, 1), threads, 0, stream,
        columns, transposed.get());
    const dim3 blocks(
        n_tiles(args.nrows, BOF4_TILE), n_tiles(max_columns + per_lane - 1, 32 * per_lane), (unsigned) matrices);
    const auto run = [&](auto kernel) {
        bof4_launch(kernel, blocks, threads, 0, stream, list, args, (const nv_bfloat16 *) transposed.get());
    };
    switch (per_lane) {
        case 4:  run(bof4_add_outliers_kernel<4>); break;
        case 2:  run(bof4_add_outliers_kernel<2>); break;
        default: run(bof4_add_outliers_kernel<1>); break;
    }
}

void ggml_cuda_bof4_add_outliers(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const bof4_device_list list = ggml_cuda_bof4_list(dst);
    if (list.row_pointers == nullptr || ggml_nelements(dst) == 0) {
        return;
    }
    const ggml_tensor * src0 = dst->src[0];
    const ggml_tensor * src1 = dst->src[1];
    GGML_ASSERT(src1->type == GGML_TYPE_F32 && dst->type == GGML_TYPE_F32);
    const int64_t f = sizeof(float);
    const int64_t s11 = src1->nb[1] / f, s12 = src1->nb[2] / f, s13 = src1->nb[3] / f;
    const int64_t s1 = dst->nb[1] / f, s2 = dst->nb[2] / f, s3 = dst->nb[3] / f;
    const float * x = (const float *) src1->data;
    float * y = (float *) dst->data;

    if (dst->op == GGML_OP_MUL_MAT) {
        const bof4_transpose_args columns = {
            x,
            (int32_t) src0->ne[0],
            (int32_t) ggml_nrows(src1),
            0,
            nullptr,
            (int32_t) src1->ne[1],
            (int32_t) src1->ne[2],
            s11,
            s12,
            s13,
        };
        const bof4_add_outliers_args args = {
            y,
            (int32_t) src0->ne[1],
            0,
            dst->ne[1],
            dst->ne[2],
            s1,
            s2,
            s3,
            (int32_t) (dst->ne[2] / src0->ne[2]),
            (int32_t) (dst->ne[3] / src0->ne[3]),
            nullptr,
            nullptr,
        };
        add_outliers(ctx, list, columns, args, dst->ne[1], dst->ne[2] * dst->ne[3]);
        return;
    }

    // experts: columns sorted by expert, as upstream sorts them for its own product
    const ggml_tensor * ids = dst->src[2];
    const int64_t n_experts = src0->ne[2], n_used = ids->ne[0], n_tokens = src1->ne[2];
    GGML_ASSERT(src1->ne[3] == 1 && dst->ne[1] == n_used && dst->nb[2] % dst->nb[1] == 0);
    GGML_ASSERT(s2 == n_used * s1);
    ggml_cuda_pool_alloc<int32_t> source(ctx.pool(), n_tokens * n_used);
    ggml_cuda_pool_alloc<int32_t> dst_rows(ctx.pool(), n_tokens * n_used);
    ggml_cuda_pool_alloc<int32_t> bounds(ctx.pool(), n_experts + 1);
    // sources are rows of src1, of which a token has src1->ne[1]
    ggml_cuda_launch_mm_ids_helper((const int32_t *) ids->data, source.get(), dst_rows.get(), bounds.get(),
        (int) n_experts, (int) n_tokens, (int) n_used, (int) src1->ne[1], (int) (ids->nb[1] / sizeof(int32_t)),
        (int) src1->ne[1], /*write_inverse =*/false, ctx.stream());
    const bof4_transpose_args columns = {
        x,
        (int32_t) src0->ne[0],
        (int32_t) (n_tokens * n_used),
        0,
        source.get(),
        (int32_t) src1->ne[1],
        (int32_t) src1->ne[2],
        s11,
        s12,
        0,
    };
    const bof4_add_outliers_args args = {
        y,
        (int32_t) src0->ne[1],
        0,
        1,
        1,
        s1,
        0,
        0,
        1,
        1,
        bounds.get(),
        dst_rows.get(),
    };
    add_outliers(ctx, list, columns, args, n_tokens, n_experts);
}
