// From 4-bit codes to int8 levels, for all types. Needs ggml_cuda_dp4a of upstream's common.cuh.
#pragma once

#include "../format/bof4-blocks.h"

#include <cstdint>

// The traits of a type: bof4-type.cuh.
template <ggml_type type> struct bof4_cuda_type;

// Four bytes out of a (0 to 3) and b (4 to 7), selected by the four nibbles of the selector's low half. A nibble of 8
// or more gives the sign bit of byte (nibble - 8), repeated eight times: the PTX instruction defines that, the
// intrinsic __byte_perm does not.
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

// The bits of a where the mask has a one, else those of b: one instruction.
static __device__ __forceinline__ uint32_t bof4_select(uint32_t mask, uint32_t a, uint32_t b) {
    return b ^ ((a ^ b) & mask);
}

// The levels of a type as operands of prmt: levels 0 to 7 and 8 to 15, eight bytes each.
//
// A product needs only the right sum, not the level of each weight in a byte of its own. A code of 8 or more, looked up
// in `low`, gives the sign of level (code - 8): -1, or 0 where that level is not negative. A code below 8, looked up in
// `raised` with its top bit flipped, gives 0, because no level of `raised` is negative; a code of 8 or more gives its
// level, raised by 1 where `low` gave -1. So the two lookups add up to the level. Both are multiplied (dp4a) instead
// of merged, which would take three more instructions in the pipe that bounds the kernel.
template <ggml_type type> struct bof4_level_table {
    static constexpr int level(int code) { return bof4_cuda_type<type>::level(code); }
    static constexpr uint32_t entry(int code, bool raised) {
        return (uint32_t) (level(code) + (raised && level(code - 8) < 0 ? 1 : 0)) & 0xff;
    }
    static constexpr uint32_t word(int code, bool raised) {
        return entry(code, raised) | entry(code + 1, raised) << 8 | entry(code + 2, raised) << 16 |
            entry(code + 3, raised) << 24;
    }
    static constexpr uint32_t low0 = word(0, false), low4 = word(4, false), high0 = word(8, false),
                              high4 = word(12, false);
    static constexpr uint32_t raised0 = word(8, true), raised4 = word(12, true);
    static_assert(((raised0 | raised4) & 0x80808080u) == 0,
        "levels from code 8 on are not negative, and those that are raised by 1 are less than 127");
};

// Levels of the eight codes of a word as int8, in the order of the nibbles: four codes in each word of `levels`.
template <ggml_type type>
static __device__ __forceinline__ void bof4_levels_in_order(uint32_t codes, uint32_t (&levels)[2]) {
    using table = bof4_level_table<type>;
    const uint32_t index = codes & 0x77777777u;
    const uint32_t which = 0x32103210u | (codes & 0x88888888u) >> 1;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint32_t low = bof4_prmt(table::low0, table::low4, index >> 16 * i);
        const uint32_t high = bof4_prmt(table::high0, table::high4, index >> 16 * i);
        levels[i] = bof4_prmt(low, high, which >> 16 * i);
    }
}

// Selectors of prmt for the levels of the low and of the high nibbles out of both words.
static constexpr uint32_t BOF4_OF_LOW = 0x6420, BOF4_OF_HIGH = 0x7531;

// Levels of the eight codes of a word as int8: those of the low nibbles and those of the high nibbles.
template <ggml_type type>
static __device__ __forceinline__ void bof4_levels8(uint32_t codes, uint32_t & of_low, uint32_t & of_high) {
    uint32_t levels[2];
    bof4_levels_in_order<type>(codes, levels);
    of_low = bof4_prmt(levels[0], levels[1], BOF4_OF_LOW);
    of_high = bof4_prmt(levels[0], levels[1], BOF4_OF_HIGH);
}

// Operands of the integer products of one word of eight codes, in the order of the nibbles. One column: two lookups
// that add up to the level (bof4_level_table). From three columns on, the instructions that merge them are fewer than
// the second products.
template <ggml_type type, bool merge> struct bof4_dot8;

template <ggml_type type> struct bof4_dot8<type, false> {
    uint32_t low[2], raised[2];

    __device__ __forceinline__ void look_up(uint32_t codes) {
        using table = bof4_level_table<type>;
        const uint32_t flipped = codes ^ 0x88888888u;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            low[i] = bof4_prmt(table::low0, table::low4, codes >> 16 * i);
            raised[i] = bof4_prmt(table::raised0, table::raised4, flipped >> 16 * i);
        }
    }
    __device__ __forceinline__ int add(int x0, int x1, int sum) const {
        sum = ggml_cuda_dp4a((int) low[0], x0, sum);
        sum = ggml_cuda_dp4a((int) raised[0], x0, sum);
        sum = ggml_cuda_dp4a((int) low[1], x1, sum);
        return ggml_cuda_dp4a((int) raised[1], x1, sum);
    }
};

template <ggml_type type> struct bof4_dot8<type, true> {
    uint32_t levels[2];

    __device__ __forceinline__ void look_up(uint32_t codes) { bof4_levels_in_order<type>(codes, levels); }
    __device__ __forceinline__ int add(int x0, int x1, int sum) const {
        return ggml_cuda_dp4a((int) levels[1], x1, ggml_cuda_dp4a((int) levels[0], x0, sum));
    }
};

// Blocks are aligned to two bytes only.
static __device__ __forceinline__ uint32_t bof4_load_word(const uint8_t * p) {
    const uint16_t * halves = (const uint16_t *) p;
    return halves[0] | (uint32_t) halves[1] << 16;
}

static __device__ __forceinline__ float bof4_load_scale(const uint8_t * p) {
    return __half2float(__ushort_as_half(*(const uint16_t *) p));
}

// A small integer as float without the conversion unit, whose throughput is a quarter of that of additions: the integer
// sum starts at the bit pattern of the float 1.5 * 2^23, whose mantissa counts ones.
static constexpr int BOF4_FLOAT_ZERO = 0x4b400000;
static constexpr float BOF4_FLOAT_ZERO_VALUE = 12582912.0f;

static __device__ __forceinline__ float bof4_small_int(int sum) {
    return __int_as_float(sum) - BOF4_FLOAT_ZERO_VALUE;
}

// n consecutive floats at a multiple of their size, but of at most 16 bytes: as few accesses as possible.
template <int n> struct bof4_floats {
    static constexpr int width = n % 4 == 0 ? 4 : n % 2 == 0 ? 2 : 1;
    struct alignas(width * sizeof(float)) part {
        float values[width];
    };

    static __device__ __forceinline__ void load(float (&to)[n], const float * from) {
#pragma unroll
        for (int i = 0; i < n; i += width) {
            const part p = ((const part *) from)[i / width];
#pragma unroll
            for (int k = 0; k < width; ++k) {
                to[i + k] = p.values[k];
            }
        }
    }
    static __device__ __forceinline__ void store(float * to, const float (&from)[n]) {
#pragma unroll
        for (int i = 0; i < n; i += width) {
            part p;
#pragma unroll
            for (int k = 0; k < width; ++k) {
                p.values[k] = from[i + k];
            }
            ((part *) to)[i / width] = p;
        }
    }
};
