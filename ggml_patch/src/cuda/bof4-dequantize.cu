#include "bof4-cuda.cuh"
#include "bof4-dequantize.cuh"
#include "bof4/cuda/bof4-launch.cuh"

enum { THREADS = 128 }; // of a block

template <ggml_type type, typename T>
static void dequantize_rows(const void * x, T * y, int64_t n_words, int64_t ne1, int64_t ne2, int64_t ne3, int64_t s1,
    int64_t s2, int64_t s3, cudaStream_t stream) {
    GGML_ASSERT((uintptr_t) y % sizeof(bof4_vec4<T>) == 0);
    const dim3 blocks(
        (unsigned) ((n_words + THREADS - 1) / THREADS), (unsigned) std::min<int64_t>(ne1 * ne2 * ne3, 65535), 1);
    bof4_launch(bof4_dequantize_kernel<type, T>, blocks, dim3(THREADS, 1, 1), 0, stream, (const uint8_t *) x, y,
        n_words, ne1, ne2, ne3, s1, s2, s3);
}

template <ggml_type type, typename T> static void dequantize(const void * x, T * y, int64_t k, cudaStream_t stream) {
    dequantize_rows<type>(x, y, k / 8, 1, 1, 1, 0, 0, 0, stream);
}

template <ggml_type type, typename T>
static void dequantize_nc(const void * x, T * y, int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3, int64_t s1,
    int64_t s2, int64_t s3, cudaStream_t stream) {
    dequantize_rows<type>(x, y, ne0 / 8, ne1, ne2, ne3, s1, s2, s3, stream);
}

template <typename T> to_t_cuda_t<T> ggml_cuda_bof4_to(ggml_type type) {
    switch (type) {
#define BOF4_DEQUANTIZE_CASE(NAME, name) \
    case GGML_TYPE_##NAME: return dequantize<GGML_TYPE_##NAME, T>;
        BOF4_TYPES_CUDA(BOF4_DEQUANTIZE_CASE)
#undef BOF4_DEQUANTIZE_CASE
        default: return nullptr;
    }
}

template <typename T> to_t_nc_cuda_t<T> ggml_cuda_bof4_to_nc(ggml_type type) {
    switch (type) {
#define BOF4_DEQUANTIZE_CASE(NAME, name) \
    case GGML_TYPE_##NAME: return dequantize_nc<GGML_TYPE_##NAME, T>;
        BOF4_TYPES_CUDA(BOF4_DEQUANTIZE_CASE)
#undef BOF4_DEQUANTIZE_CASE
        default: return nullptr;
    }
}

template to_t_cuda_t<float> ggml_cuda_bof4_to<float>(ggml_type);
template to_t_cuda_t<half> ggml_cuda_bof4_to<half>(ggml_type);
template to_t_cuda_t<nv_bfloat16> ggml_cuda_bof4_to<nv_bfloat16>(ggml_type);
template to_t_nc_cuda_t<float> ggml_cuda_bof4_to_nc<float>(ggml_type);
template to_t_nc_cuda_t<half> ggml_cuda_bof4_to_nc<half>(ggml_type);
template to_t_nc_cuda_t<nv_bfloat16> ggml_cuda_bof4_to_nc<nv_bfloat16>(ggml_type);

template <ggml_type type, typename T> static void get_rows(
    const bof4_get_rows_args & args, void * dst, cudaStream_t stream) {
    GGML_ASSERT((uintptr_t) dst % sizeof(bof4_vec4<T>) == 0);
    GGML_ASSERT(args.s1 % 4 == 0 && args.s2 % 4 == 0 && args.s3 % 4 == 0);
    const int64_t n = args.ne10 * args.ne11 * args.ne12;
    if (n > 0) {
        const dim3 blocks((unsigned) std::min<int64_t>(n, INT32_MAX), 1, 1);
        bof4_launch(bof4_get_rows_kernel<type, T>, blocks, dim3(THREADS, 1, 1), 0, stream, args, (T *) dst);
    }
}

template <ggml_type type> static void get_rows(
    const bof4_get_rows_args & args, ggml_tensor * dst, cudaStream_t stream) {
    switch (dst->type) {
        case GGML_TYPE_F32:  get_rows<type, float>(args, dst->data, stream); break;
        case GGML_TYPE_F16:  get_rows<type, half>(args, dst->data, stream); break;
        case GGML_TYPE_BF16: get_rows<type, nv_bfloat16>(args, dst->data, stream); break;
        default: GGML_ABORT("get_rows of %s into %s", ggml_type_name(dst->src[0]->type), ggml_type_name(dst->type));
    }
}

void ggml_cuda_bof4_get_rows(ggml_backend_cuda_context & ctx, ggml_tensor * dst) {
    const ggml_tensor * src0 = dst->src[0];
    const ggml_tensor * src1 = dst->src[1];
    GGML_ASSERT(src1->type == GGML_TYPE_I32 && src1->ne[3] == 1);
    GGML_ASSERT(src0->nb[0] == ggml_type_size(src0->type) && dst->nb[0] == ggml_type_size(dst->type));
    const int64_t id = sizeof(int32_t), out = (int64_t) dst->nb[0];
    const bof4_get_rows_args args = {
        (const uint8_t *) src0->data,
        (const int32_t *) src1->data,
        src0->ne[0] / 8,
        src1->ne[0],
        src1->ne[1],
        src1->ne[2],
        (int64_t) src0->nb[1],
        (int64_t) src0->nb[2],
        (int64_t) src0->nb[3],
        (int64_t) src1->nb[0] / id,
        (int64_t) src1->nb[1] / id,
        (int64_t) src1->nb[2] / id,
        (int64_t) dst->nb[1] / out,
        (int64_t) dst->nb[2] / out,
        (int64_t) dst->nb[3] / out,
        ggml_cuda_bof4_list(dst),
    };
    bof4_dispatch(src0->type, "get_rows", [&](auto type) { get_rows<decltype(type)::value>(args, dst, ctx.stream()); });
}
