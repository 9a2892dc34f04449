// The kernels of the instruction set that this file is compiled for.

#include "bof4-gemm.h"

#if defined(BOF4_GEMM_AVX512) || defined(BOF4_GEMM_AVX_VNNI)
#define BOF4_GEMM_HEADER "bof4-gemm-vnni.h"
#define BOF4_GEMM_UPSTREAM(X) X(Q6_K, q6_k)
#elif defined(BOF4_GEMM_AVX2)
#define BOF4_GEMM_HEADER "bof4-gemm-avx2.h"
#define BOF4_GEMM_UPSTREAM(X)
#elif defined(BOF4_GEMM_NEON)
#define BOF4_GEMM_HEADER "bof4-gemm-neon.h"
#define BOF4_GEMM_UPSTREAM(X)
#endif

#ifdef BOF4_GEMM_HEADER

#include "bof4-gemm-driver.h"
#include BOF4_GEMM_HEADER

template <ggml_type type>
static const bof4_gemm_kernels * kernels_of() {
    using repacked = bof4_repacked<type>;
    using kernel = bof4_kernel<type>;
    static const bof4_gemm_kernels kernels = {
        repacked::group_bytes, repacked::repack_group, repacked::unpack_group, repacked::quantize_act,
        bof4_use_gemv<kernel>, bof4_gemm<kernel>, sizeof(typename kernel::act),
    };
    return &kernels;
}

const bof4_gemm_kernels * bof4_gemm_kernels_of(ggml_type type) {
#define BOF4_CASE(NAME, name) case GGML_TYPE_##NAME: return kernels_of<GGML_TYPE_##NAME>();
    switch (type) {
        BOF4_TYPES_REPACKED(BOF4_CASE)
        BOF4_GEMM_UPSTREAM(BOF4_CASE)
        default: return nullptr;
    }
}

#else

const bof4_gemm_kernels * bof4_gemm_kernels_of(ggml_type) {
    return nullptr;
}

#endif
