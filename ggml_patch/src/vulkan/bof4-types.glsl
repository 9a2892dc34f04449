// The BOF4 types in shaders: blocks, their layout and levels. Included by upstream's types.glsl.
// Formats byte by byte: docs/formats.md. Numbers come from bof4-format.h, which is generated.

#if defined(DATA_A_BOF4_S) || defined(DATA_A_BOF4_K)
#include "../include/bof4-format.h" // in a patched tree: below ggml, found by -I ggml/src

#define DATA_A_BOF4

#if defined(DATA_A_BOF4_S)

struct block_bof4_s {
    float16_t d;
    uint8_t qs[QK_BOF4_S / 2];
};

struct block_bof4_s_packed16 {
    float16_t d;
    uint16_t qs[QK_BOF4_S / 4];
};

#define A_TYPE block_bof4_s
#define A_TYPE_PACKED16 block_bof4_s_packed16
#define QUANT_K QK_BOF4_S
#define BOF4_LEVELS BOF4_S_LEVELS
#define BOF4_RUN BOF4_S_CODE_RUN

// Scale of weight e of a block. float(d) may be subnormal in fp16 once it is divided: scales are fp32.
#define BOF4_SCALE(ib, e) (float(data_a_packed16[ib].d) * BOF4_S_UNIT)
// Scales of weights e and e + BOF4_RUN, for e in a run of low nibbles.
#define BOF4_SCALE_PAIR(ib, e) vec2(BOF4_SCALE(ib, e))

#else

struct block_bof4_k {
    float16_t d;
    uint8_t scales[BOF4_K_SUB_SCALE_BYTES];
    uint8_t qs[QK_BOF4_K / 2];
};

struct block_bof4_k_packed16 {
    float16_t d;
    uint16_t scales[BOF4_K_SUB_SCALE_BYTES / 2];
    uint16_t qs[QK_BOF4_K / 4];
};

#define A_TYPE block_bof4_k
#define A_TYPE_PACKED16 block_bof4_k_packed16
#define QUANT_K QK_BOF4_K
#define BOF4_LEVELS BOF4_K_LEVELS
#define BOF4_RUN BOF4_K_CODE_RUN

// Scale of sub-block j from the bytes scales[j % 8] and scales[8 + j % 4].
float bof4_k_scale(uint low, uint high, uint j) {
    const uint s = (low >> (j & 8u) / 2u & 15u) | (high >> (j & 12u) / 2u & 3u) << 4u;
    return float(int(s) - BOF4_K_SUB_SCALE_OFFSET);
}

#define BOF4_SUB_SCALE(ib, j) bof4_k_scale( \
    uint(data_a[ib].scales[(j) & 7u]), uint(data_a[ib].scales[8u + ((j) & 3u)]), j)
#define BOF4_UNIT(ib) (float(data_a_packed16[ib].d) * BOF4_K_UNIT)
#define BOF4_SCALE(ib, e) (BOF4_UNIT(ib) * BOF4_SUB_SCALE(ib, (e) / uint(BOF4_K_SUB_BLOCK)))
#define BOF4_SCALE_PAIR(ib, e) (BOF4_UNIT(ib) * vec2( \
    BOF4_SUB_SCALE(ib, (e) / uint(BOF4_K_SUB_BLOCK)), \
    BOF4_SUB_SCALE(ib, ((e) + uint(BOF4_RUN)) / uint(BOF4_K_SUB_BLOCK))))

#endif

// Where upstream's shaders ask: weights are decoded in their order.
#define QUANT_R 1
#define QUANT_AUXF 1

// Four bytes of codes, beginning with byte 4 * word. Blocks are aligned to 2 bytes.
#define BOF4_WORD(ib, word) \
    (uint(data_a_packed16[ib].qs[2u * (word)]) | uint(data_a_packed16[ib].qs[2u * (word) + 1u]) << 16u)

// The word whose low or high nibbles are the codes of weights e to e + 3 (e is a multiple of 4), and the shift to them.
uint bof4_word(uint e) {
    return (e / uint(2 * BOF4_RUN) * uint(BOF4_RUN) + e % uint(BOF4_RUN)) / 4u;
}

uint bof4_shift(uint e) {
    return e / uint(BOF4_RUN) % 2u * 4u;
}

// The weight whose code is the low nibble of byte 4 * word; that of the high nibble is BOF4_RUN further on.
uint bof4_first_weight(uint word) {
    return 4u * word / uint(BOF4_RUN) * uint(2 * BOF4_RUN) + 4u * word % uint(BOF4_RUN);
}

const int bof4_level[16] = BOF4_LEVELS;
#define BOF4_SPLAT(code) (uint(bof4_level[code] & 0xff) * 0x01010101u)

// Bytes of b where the mask is 255, of a where it is 0.
uint bof4_select(uint mask, uint a, uint b) {
    return a ^ ((a ^ b) & mask);
}

// 255 in each byte whose bit of this number is set.
uint bof4_byte_mask(uint codes, int bit) {
    const uint set = codes >> bit & 0x01010101u;
    return (set << 8u) - set;
}

// Levels (int8) of the codes in the low nibbles of four bytes; high nibbles are ignored. A tree of selections between
// constants serves four codes at once.
int32_t bof4_levels(uint codes) {
    const uint m0 = bof4_byte_mask(codes, 0), m1 = bof4_byte_mask(codes, 1);
    const uint m2 = bof4_byte_mask(codes, 2), m3 = bof4_byte_mask(codes, 3);
    const uint a0 = bof4_select(m0, BOF4_SPLAT(0), BOF4_SPLAT(1)), a1 = bof4_select(m0, BOF4_SPLAT(2), BOF4_SPLAT(3));
    const uint a2 = bof4_select(m0, BOF4_SPLAT(4), BOF4_SPLAT(5)), a3 = bof4_select(m0, BOF4_SPLAT(6), BOF4_SPLAT(7));
    const uint a4 = bof4_select(m0, BOF4_SPLAT(8), BOF4_SPLAT(9)), a5 = bof4_select(m0, BOF4_SPLAT(10), BOF4_SPLAT(11));
    const uint a6 = bof4_select(m0, BOF4_SPLAT(12), BOF4_SPLAT(13));
    const uint a7 = bof4_select(m0, BOF4_SPLAT(14), BOF4_SPLAT(15));
    const uint low = bof4_select(m2, bof4_select(m1, a0, a1), bof4_select(m1, a2, a3));
    const uint high = bof4_select(m2, bof4_select(m1, a4, a5), bof4_select(m1, a6, a7));
    return int32_t(bof4_select(m3, low, high));
}

// The same levels as floats. Products take them from a table in shared memory, as upstream's do: a load for each code is
// less work than the selections and the conversions.
#if defined(BOF4_LEVEL_TABLE)
shared FLOAT_TYPE bof4_table[16];

#define NEEDS_INIT_IQ_SHMEM // upstream's shaders then call this function first
void init_iq_shmem(uvec3 wgsize) {
    for (uint i = gl_LocalInvocationIndex; i < 16; i += wgsize.x) {
        bof4_table[i] = FLOAT_TYPE(bof4_level[i]);
    }
    barrier();
}

vec4 bof4_floats(uint codes) {
    return vec4(bof4_table[codes & 15u], bof4_table[codes >> 8u & 15u], bof4_table[codes >> 16u & 15u],
        bof4_table[codes >> 24u & 15u]);
}
#else
vec4 bof4_floats(uint codes) {
    return vec4(unpack8(bof4_levels(codes)));
}
#endif

// Codes of weights e to e + 3 of a block, in the low nibbles of four bytes.
#define BOF4_CODES(ib, e) (BOF4_WORD(ib, bof4_word(e)) >> bof4_shift(e))

#if defined(BOF4_MMQ)
// Of mul_mmq.comp: what shared memory and registers hold of 32 weights of a row.
#define QUANT_R_MMQ 2
struct block_a_cache {
    int32_t qs[8];
#if defined(DATA_A_BOF4_S)
    float scale;
#else
    vec2 scale;
#endif
};
#endif

#endif
