// The kernels of the instruction set that this file is compiled for.

#include "bof4-gemm.h"

#ifdef BOF4_GEMM

#include "bof4-gemm-driver.h"
#include BOF4_GEMM

template <ggml_type type>
static const bof4_gemm_kernels * kernels_of() {
    using repacked = bof4_repacked<type>;
    using kernel = bof4_kernel<type>;
    static const bof4_gemm_kernels kernels = {
        repacked::group_bytes,
        repacked::repack_group,
        repacked::unpack_group,
        repacked::quantize_act,
        bof4_use_gemv<kernel>,
        bof4_gemm<kernel>,
        sizeof(typename kernel::act),
    };
    return &kernels;
}

const bof4_gemm_kernels * bof4_gemm_kernels_of(ggml_type type) {
#define BOF4_KERNELS_CASE(NAME, name) \
    case GGML_TYPE_##NAME: return kernels_of<GGML_TYPE_##NAME>();
    switch (type) {
        BOF4_TYPES_REPACKED(BOF4_KERNELS_CASE)
        BOF4_GEMM_UPSTREAM_TYPES(BOF4_KERNELS_CASE)
        default: return nullptr;
    }
#undef BOF4_KERNELS_CASE
}

#else

const bof4_gemm_kernels * bof4_gemm_kernels_of(ggml_type) {
    return nullptr;
}

#endif
