#include "bof4-gemm.h"

#ifdef BOF4_GEMM

#define BOF4_KERNELS(type) { \
    type##_group_bytes, \
    [](const void * rows, int64_t n_rows, int64_t n, void * group) { \
        type##_interleave(static_cast<const block_##type *>(rows), n_rows, n, group); \
    }, \
    [](const void * group, int64_t n_rows, int64_t n, void * rows) { \
        type##_deinterleave(group, n_rows, n, static_cast<block_##type *>(rows)); \
    }, \
    [](const float * x, void * y, int64_t n, bool few) { type##_quantize_act(x, static_cast<type##_act *>(y), n, few); }, \
    type##_few, \
    [](const void * groups, int64_t n_rows, int64_t n, const void * const * x, const float * plus, float * const * y, \
       int64_t n_columns, bool few) { \
        type##_gemm(groups, n_rows, n, reinterpret_cast<const type##_act * const *>(x), plus, y, n_columns, few); \
    }, \
    sizeof(type##_act), \
}

const bof4_gemm_kernels * bof4_gemm_kernels_of(ggml_type type) {
    static const bof4_gemm_kernels bof4_s = BOF4_KERNELS(bof4_s);
    static const bof4_gemm_kernels bof4_k = BOF4_KERNELS(bof4_k);
#ifdef BOF4_GEMM_Q6
    static const bof4_gemm_kernels bof4_q6 = BOF4_KERNELS(bof4_q6);
#endif
    switch (type) {
        case GGML_TYPE_BOF4_S: return &bof4_s;
        case GGML_TYPE_BOF4_K: return &bof4_k;
#ifdef BOF4_GEMM_Q6
        case GGML_TYPE_Q6_K:   return &bof4_q6;
#endif
        default:               return nullptr;
    }
}

#else

const bof4_gemm_kernels * bof4_gemm_kernels_of(ggml_type) {
    return nullptr;
}

#endif
