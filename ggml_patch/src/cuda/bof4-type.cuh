// The CUDA traits of the types, and dispatch by type.
//
// bof4_cuda_type<type> has no primary definition, so that a type of BOF4_TYPES_CUDA without traits does not compile.
// Traits are defined in a header per type, which is included below. A word is four bytes of codes: eight weights, four
// from first_of_word() on and four `word_distance` later.
//
//     static constexpr int n                 weights of a block
//     static constexpr int bytes             of a block
//     static constexpr int words             of codes in a block
//     static constexpr int codes_at          byte at which the codes begin
//     static constexpr int word_distance     from the weights of a word's low nibbles to those of its high nibbles
//     static constexpr int level(code)       the int8 level
//     int first_of_word(word)                first weight of the low nibbles, in the block
//     void units(block, word, & low, & high) values of level 1 in the low and in the high nibbles of a word
//     float weight(unit, level)              the weight, rounded as dequantize_row_* rounds
//
//     static constexpr ggml_type mmq_like    the upstream type whose tile configuration the tiled product (mmq) uses
//     static constexpr int mmq_scales        scales of 256 weights in a tile: 8 as for upstream's Q8_0, or 16
//     float mmq_scale(block, i)              scale i of those that a block has in a tile, without the unit
//     static constexpr int mmq_group         weights under one scale in the product on tensor cores: 16, 64
//     static constexpr int mmq_act_group     int8 activations under one scale in the tiled product: 64 or 128
//     static constexpr int mmq_two_blocks    columns of a tile up to which two blocks of threads share an SM
//     static constexpr float mmq_unit        by which the scales of those activations are multiplied
//     struct mmq_scales_of_64                raw scales of 64 weights in registers: load(blocks, i) those of weights
//                                            64 i and on of 256, decode(float (&)[64 / mmq_group], i)
//
//     act_layout                             order of the int8 activations of mul_mat_vec (bof4-activations.cuh)
//     step<alignment>                        loads and multiplies in mul_mat_vec (bof4-mmvq.cuh);
//                                            alignment: 16, 4 or 2 bytes, at multiples of which all rows begin
#pragma once

#include "../format/bof4-hooks.h"
#include "bof4-type-k.cuh"
#include "bof4-type-s.cuh"

#include <type_traits>

#define BOF4_ASSERT_CUDA_TYPE(NAME, name) \
    static_assert(bof4_cuda_type<GGML_TYPE_##NAME>::n == QK_##NAME, "traits of " #NAME); \
    static_assert(bof4_cuda_type<GGML_TYPE_##NAME>::bytes == NAME##_BLOCK_BYTES, "traits of " #NAME); \
    static_assert(bof4_cuda_type<GGML_TYPE_##NAME>::codes_at == NAME##_CODES_AT, "traits of " #NAME);
BOF4_TYPES_CUDA(BOF4_ASSERT_CUDA_TYPE)
#undef BOF4_ASSERT_CUDA_TYPE

// Are there CUDA kernels for this type?
static constexpr __host__ __device__ bool ggml_cuda_bof4_has_kernels(ggml_type type) {
    switch (type) {
        BOF4_TYPES_CUDA(BOF4_CASE)
        return true;
        default: return false;
    }
}

// Calls f with the type as a std::integral_constant. Aborts, naming the type, where it has no CUDA kernels.
template <typename function> static void bof4_dispatch(ggml_type type, const char * operation, function f) {
    switch (type) {
#define BOF4_DISPATCH_CASE(NAME, name) \
    case GGML_TYPE_##NAME: f(std::integral_constant<ggml_type, GGML_TYPE_##NAME>()); break;
        BOF4_TYPES_CUDA(BOF4_DISPATCH_CASE)
#undef BOF4_DISPATCH_CASE
        default: GGML_ABORT("there is no CUDA kernel for %s of %s", operation, ggml_type_name(type));
    }
}
