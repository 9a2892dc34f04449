// Upstream's tiles for these types: what mmq.cuh must know before its configurations.
#pragma once

#include "../format/bof4-blocks.h"
#include "../lists/bof4-list.h"

// Tile sizes and numbers of warps are tuned by type and chip. They are those of a type whose tiles look the same: int8 with one
// scale for 32 of them, or for 16.
static constexpr __host__ __device__ ggml_type bof4_mmq_like(ggml_type type) {
    return type == GGML_TYPE_BOF4_S ? GGML_TYPE_IQ4_NL : type == GGML_TYPE_BOF4_K ? GGML_TYPE_IQ2_S : type;
}

template <> struct ggml_cuda_type_traits<GGML_TYPE_BOF4_S> {
    static constexpr int qk = QK_BOF4_S;
};

template <> struct ggml_cuda_type_traits<GGML_TYPE_BOF4_K> {
    static constexpr int qk = QK_BOF4_K;
};
