// From 4-bit codes to int8 levels on a GPU, for both types. Needs ggml_cuda_dp4a, of upstream's common.cuh.
#pragma once

#include "../format/bof4-blocks.h"

#include <cstdint>

// Bytes of a (0 to 3) and b (4 to 7), chosen by the four nibbles of the selector's low half. A nibble of 8 or more gives eight
// copies of the sign of byte (nibble - 8): the instruction does, the intrinsic __byte_perm promises nothing.
static __device__ __forceinline__ uint32_t bof4_prmt(uint32_t a, uint32_t b, uint32_t selector) {
#if defined(__CUDA_ARCH__) && !defined(GGML_USE_HIP) && !defined(GGML_USE_MUSA)
    uint32_t result;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(selector));
    return result;
#else
    const uint64_t bytes = a | (uint64_t) b << 32;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
        const uint32_t nibble = selector >> 4 * i & 0xf;
        const uint32_t byte = (uint32_t) (bytes >> 8 * (nibble & 7)) & 0xff;
        result |= (nibble < 8 ? byte : byte & 0x80 ? 0xff : 0) << 8 * i;
    }
    return result;
#endif
}

struct bof4_s_levels_of {
    static constexpr int level(int code) {
        constexpr int8_t levels[16] = BOF4_S_LEVELS;
        return levels[code];
    }
};

struct bof4_k_levels_of {
    static constexpr int level(int code) {
        constexpr int8_t levels[16] = BOF4_K_LEVELS;
        return levels[code];
    }
};

// The table in registers: levels 0 to 7 and 8 to 15, eight bytes each.
//
// A product needs no single byte for each weight, only the right sum. Looked up in `low`, a code of 8 or more gives the sign of
// entry (code - 8): -1, or 0 where that entry is the zero level. Looked up with its top bit flipped in `high`, whose entries
// are one larger where the other table gives -1, a code below 8 gives 0, because no entry is negative. So the two lookups add up
// to the level, and instead of merging them (three more instructions in a pipe that is full) both are multiplied.
template <typename levels_of> struct bof4_table {
    static constexpr uint32_t entry(int code, bool raised) {
        const int level = levels_of::level(code);
        return (uint32_t) (level + (raised && levels_of::level(code - 8) < 0 ? 1 : 0)) & 0xff;
    }
    static constexpr uint32_t word(int code, bool raised) {
        return entry(code, raised) | entry(code + 1, raised) << 8 | entry(code + 2, raised) << 16 | entry(code + 3, raised) << 24;
    }
    static constexpr uint32_t low0 = word(0, false), low4 = word(4, false), high0 = word(8, false), high4 = word(12, false);
    static constexpr uint32_t raised0 = word(8, true), raised4 = word(12, true);
    static_assert(((raised0 | raised4) & 0x80808080u) == 0, "levels from 8 on are positive, and smaller than 127 but for the last");
};

// The four codes in the low half of `codes`, times four int8. A code's top bit flipped: `flipped`.
template <typename levels_of>
static __device__ __forceinline__ int bof4_dot4(uint32_t codes, uint32_t flipped, int x, int sum) {
    using table = bof4_table<levels_of>;
    sum = ggml_cuda_dp4a((int) bof4_prmt(table::low0, table::low4, codes), x, sum);
    return ggml_cuda_dp4a((int) bof4_prmt(table::raised0, table::raised4, flipped), x, sum);
}

// Levels of the eight codes of a word, as int8: of the low nibbles, of the high ones.
template <typename levels_of>
static __device__ __forceinline__ void bof4_levels8(uint32_t codes, uint32_t & of_low, uint32_t & of_high) {
    using table = bof4_table<levels_of>;
    const uint32_t index = codes & 0x77777777u;
    const uint32_t which = 0x32103210u | (codes & 0x88888888u) >> 1;
    uint32_t half[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint32_t low  = bof4_prmt(table::low0,  table::low4,  index >> 16 * i);
        const uint32_t high = bof4_prmt(table::high0, table::high4, index >> 16 * i);
        half[i] = bof4_prmt(low, high, which >> 16 * i);
    }
    of_low  = bof4_prmt(half[0], half[1], 0x6420);
    of_high = bof4_prmt(half[0], half[1], 0x7531);
}

// Blocks are no multiple of four bytes long.
static __device__ __forceinline__ uint32_t bof4_load_word(const uint8_t * p) {
    const uint16_t * halves = (const uint16_t *) p;
    return halves[0] | (uint32_t) halves[1] << 16;
}

static __device__ __forceinline__ float bof4_load_scale(const uint8_t * p) {
    return __half2float(__ushort_as_half(*(const uint16_t *) p));
}

// Scale j of a superblock of BOF4_K, -32 to 31; scales: its 12 bytes.
static __device__ __forceinline__ int bof4_unpack_scale(const uint8_t * scales, int j) {
    return ((scales[j % 8] >> 4 * (j / 8) & 0xf) | (scales[8 + j % 4] >> 2 * (j / 4) & 0x3) << 4) - 32;
}

// What kernels ask of a type. A word is four bytes of codes: eight weights, four from `first()` on and four `apart` later.
struct bof4_s_type {
    using levels_of = bof4_s_levels_of;
    static constexpr int n = QK_BOF4_S, bytes = BOF4_S_BLOCK_BYTES, words = n / 8, codes_at = 2, apart = 32;

    static __device__ __forceinline__ int first(int word) {
        return 4 * word;
    }
    // what a level of 1 is worth, among the first four weights and among the others
    static __device__ __forceinline__ void units(const uint8_t * block, int, float & low, float & high) {
        low = high = bof4_load_scale(block);
    }
    // the level times that: rounded as dequantize_row_bof4_s rounds
    static __device__ __forceinline__ float weight(float unit, int level) {
        return unit * (float) level * (1.0f / BOF4_LEVEL_SCALE);
    }
};

struct bof4_k_type {
    using levels_of = bof4_k_levels_of;
    static constexpr int n = QK_BOF4_K, bytes = BOF4_K_BLOCK_BYTES, words = n / 8, codes_at = 14, apart = 64;

    static __device__ __forceinline__ int first(int word) {
        return 128 * (word / 16) + 4 * (word % 16);
    }
    static __device__ __forceinline__ void units(const uint8_t * block, int word, float & low, float & high) {
        const float d = bof4_load_scale(block) * BOF4_K_UNIT;
        const int j = first(word) / BOF4_K_SUB_BLOCK;
        low  = d * (float) bof4_unpack_scale(block + 2, j);
        high = d * (float) bof4_unpack_scale(block + 2, j + 4);
    }
    static __device__ __forceinline__ float weight(float unit, int level) {
        return unit * (float) level;
    }
};
