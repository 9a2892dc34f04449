// The BOF4 types in upstream's mul_mm_cm2.comp: a weight, and four consecutive ones, of a block that the tensor load
// of VK_NV_cooperative_matrix2 asks for.
#if defined(DATA_A_BOF4)

layout(buffer_reference, std430, buffer_reference_align = 2) buffer decodeBufBOF4 {
    A_TYPE block;
};

layout(buffer_reference, std430, buffer_reference_align = 2) buffer decodeBufBOF4_packed16 {
    A_TYPE_PACKED16 block;
};

float bof4_scale(const in decodeBufBOF4 bl, const uint e) {
#if defined(DATA_A_BOF4_S)
    return float(bl.block.d) * BOF4_S_UNIT;
#else
    const uint j = e / BOF4_K_SUB_BLOCK;
    return float(bl.block.d) * BOF4_K_UNIT *
        bof4_k_scale(uint(bl.block.scales[j & 7]), uint(bl.block.scales[8 + (j & 3)]), j);
#endif
}

float16_t bof4_decode_one(const in decodeBufBOF4 bl, const in uint blockCoords[2], const in uint coordInBlock[2]) {
    const uint e = coordInBlock[1];
    const uint codes = uint(bl.block.qs[4 * bof4_word(e) + e % 4]);
    return float16_t(bof4_scale(bl, e) * float(bof4_table[codes >> bof4_shift(e) & 15]));
}

f16vec4 bof4_decode_four(const in decodeBufBOF4 bl, const in uint blockCoords[2], const in uint coordInBlock[2]) {
    decodeBufBOF4_packed16 packed = decodeBufBOF4_packed16(bl);
    const uint e = coordInBlock[1], word = bof4_word(e);
    const uint codes = uint(packed.block.qs[2 * word]) | uint(packed.block.qs[2 * word + 1]) << 16;
    return f16vec4(bof4_scale(bl, e) * bof4_floats(codes >> bof4_shift(e)));
}

#define dequantFuncA bof4_decode_one
#define dequantFuncA_v bof4_decode_four

#endif
