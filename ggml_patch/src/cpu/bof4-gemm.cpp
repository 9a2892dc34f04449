// The kernels of the instruction set that this file is compiled for.

#include "bof4-gemm.h"

#ifdef BOF4_GEMM

#include "bof4-gemm-driver.h"
#include BOF4_GEMM
#ifdef BOF4_GEMM_TILES
#include "bof4-gemm-amx.h"
#endif

#include <cstdlib>
#include <cstring>

template <ggml_type type>
static const bof4_gemm_kernels * vector_kernels() {
    using repacked = bof4_repacked<type>;
    using kernel = bof4_kernel<type>;
    static const bof4_gemm_kernels kernels = {
        repacked::group_bytes,
        repacked::repack_group,
        repacked::unpack_group,
        repacked::act_bytes,
        repacked::act_row_at,
        repacked::quantize_act,
        /*copy_act =*/nullptr,
        bof4_use_gemv<kernel>,
        bof4_gemm<kernel>,
        kernel::MAX_COLUMNS,
        /*least_groups =*/1,
        !kernel::ACT_OF_PATH,
    };
    return &kernels;
}

#ifdef BOF4_GEMM_TILES

// BOF4_AMX=0 turns tiles off, for experiments.
static bool use_tiles() {
    static const bool use = [] {
        const char * wanted = std::getenv("BOF4_AMX");
#ifdef BOF4_GEMM_TWIN
        const bool usable = true;
#else
        const bool usable = BOF4_GEMM_TILES::is_usable();
#endif
        return usable && (wanted == nullptr || std::strcmp(wanted, "0") != 0);
    }();
    return use;
}

template <ggml_type type>
static const bof4_gemm_kernels * kernels_of() {
    using kernel = bof4_tile_kernel<type, BOF4_GEMM_TILES>;
    static const bof4_gemm_kernels kernels = [] {
        bof4_gemm_kernels k = *vector_kernels<type>();
        k.act_bytes = kernel::act_bytes;
        k.act_row_at = kernel::act_row_at;
        k.quantize_act = kernel::quantize_act;
        k.copy_act = kernel::copy_act;
        k.use_gemv = kernel::use_gemv;
        k.gemm = kernel::gemm;
        k.max_columns = BOF4_MAX_COLUMNS;
        k.least_groups = 8;
        k.has_choice = false;
        return k;
    }();
    return use_tiles() ? &kernels : vector_kernels<type>();
}

#else

template <ggml_type type>
static const bof4_gemm_kernels * kernels_of() {
    return vector_kernels<type>();
}

#endif

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
