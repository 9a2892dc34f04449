// The BOF4 types in upstream's mul_mm_cm2.comp: a weight, and four consecutive ones, of a block that the tensor load
// of VK_NV_cooperative_matrix2 asks for.
#if defined(DATA_A_BOF4)

layout(buffer_reference, std430, buffer_reference_align = 2) buffer decodeBufBOF4 {
    A_TYPE block;
};

layout(buffer_reference, std430, buffer_reference_align = 2) buffer decodeBufBOF4_packed16 {
    A_TYPE_PACKED16 block;
};

f16vec4 bof4_decode(const in decodeBufBOF4 bl, const uint e) {
    decodeBufBOF4_packed16 packed = decodeBufBOF4_packed16(bl);
    const uint word = bof4_word(e);
    const uint codes = uint(packed.block.qs[2 * word]) | uint(packed.block.qs[2 * word + 1]) << 16;
#if defined(DATA_A_BOF4_S)
    const float scale = float(packed.block.d) * BOF4_S_UNIT;
#else
    const uint j = e / BOF4_K_SUB_BLOCK;
    const float scale = float(packed.block.d) * BOF4_K_UNIT *
        bof4_k_scale(uint(bl.block.scales[j & 7]), uint(bl.block.scales[8 + (j & 3)]), j);
#endif
    return f16vec4(scale * bof4_floats(bof4_levels(codes >> bof4_shift(e))));
}

float16_t bof4_decode_one(const in decodeBufBOF4 bl, const in uint blockCoords[2], const in uint coordInBlock[2]) {
    return bof4_decode(bl, coordInBlock[1] & ~3u)[coordInBlock[1] & 3u];
}

f16vec4 bof4_decode_four(const in decodeBufBOF4 bl, const in uint blockCoords[2], const in uint coordInBlock[2]) {
    return bof4_decode(bl, coordInBlock[1]);
}

#define dequantFuncA bof4_decode_one
#define dequantFuncA_v bof4_decode_four

#endif
