// The encoder absmax (bof4-quants.c) for copies of floats to BOF4 tensors: one thread encodes a block. Needs data_s,
// the source, and data_q, the destination.

#define BOF4_NOT_FINITE 0x7f800000u

#if defined(DATA_A_BOF4_S)
const float bof4_midpoint[15] = BOF4_S_MIDPOINTS;
#else
const float bof4_midpoint[15] = BOF4_K_MIDPOINTS;
#endif

// The element of largest magnitude, with its sign; infinity where it is too large for the types, NaN where an element
// is not finite: such blocks are invalid, and stay visible.
float bof4_signed_maximum(const uint first, const uint n) {
    uint largest = 0;
    float at = 0;
    for (uint i = 0; i < n; ++i) {
        const float x = float(data_s[first + i]);
        const uint bits = floatBitsToUint(x) & 0x7fffffffu;
        if (bits > largest) {
            largest = bits;
            at = x;
        }
    }
    return largest >= BOF4_NOT_FINITE ? uintBitsToFloat(0x7fc00000u)
        : abs(at) >= BOF4_FP16_OVERFLOW ? uintBitsToFloat(BOF4_NOT_FINITE)
                                        : at;
}

// A scale as fp16 has it.
float bof4_stored_scale(const float d) {
    const uint bits = floatBitsToUint(d) & 0x7fffffffu;
    return bits >= BOF4_NOT_FINITE ? d : unpackHalf2x16(packHalf2x16(vec2(clamp(d, -BOF4_FP16_MAX, BOF4_FP16_MAX)))).x;
}

// Codes of the nearest levels: the number of midpoints below.
uint bof4_nearest_code(const float x, const float per_level) {
    if (!(abs(per_level) > 0)) {
        return BOF4_S_ZERO_CODE; // the same in all types
    }
    const float y = x * (1.0f / per_level);
    uint code = 0;
    [[unroll]] for (int c = 0; c < 15; ++c) {
        code += y > bof4_midpoint[c] ? 1 : 0;
    }
    return code;
}

#if defined(DATA_A_BOF4_S)

void bof4_encode(const uint ib, const uint first) {
    const float d = bof4_stored_scale(bof4_signed_maximum(first, QK_BOF4_S));
    const float per_level = d / float(BOF4_LEVEL_SCALE);
    data_q[ib].d = float16_t(d);
    for (uint i = 0; i < QK_BOF4_S / 2; ++i) {
        const uint low = bof4_nearest_code(float(data_s[first + i]), per_level);
        const uint high = bof4_nearest_code(float(data_s[first + i + BOF4_RUN]), per_level);
        data_q[ib].qs[i] = uint8_t(low | high << 4);
    }
}

#else

int bof4_sub_scale(const uint first, const float unit) {
    if (!(abs(unit) > 0) || (floatBitsToUint(unit) & 0x7fffffffu) >= BOF4_NOT_FINITE) {
        return 0;
    }
    const float s = roundEven(bof4_signed_maximum(first, BOF4_K_SUB_BLOCK) / (unit * float(BOF4_LEVEL_SCALE)));
    return int(clamp(s, -float(BOF4_K_SUB_SCALE_OFFSET), float(BOF4_K_SUB_SCALE_OFFSET - 1)));
}

void bof4_encode(const uint ib, const uint first) {
    const float largest = bof4_signed_maximum(first, QK_BOF4_K);
    const float d =
        bof4_stored_scale(largest * (-1.0f / BOF4_K_UNIT / float(BOF4_K_SUB_SCALE_OFFSET * BOF4_LEVEL_SCALE)));
    const float unit = d * BOF4_K_UNIT;
    int scale[BOF4_K_SUB_BLOCKS];
    for (uint j = 0; j < BOF4_K_SUB_BLOCKS; ++j) {
        scale[j] = bof4_sub_scale(first + j * BOF4_K_SUB_BLOCK, unit);
    }
    data_q[ib].d = float16_t(d);
    for (uint j = 0; j < 8; ++j) {
        const uint low = uint(scale[j] + BOF4_K_SUB_SCALE_OFFSET) & 15u;
        const uint high = uint(scale[j + 8] + BOF4_K_SUB_SCALE_OFFSET) & 15u;
        data_q[ib].scales[j] = uint8_t(low | high << 4);
    }
    for (uint j = 0; j < 4; ++j) {
        uint bits = 0;
        for (uint i = 0; i < 4; ++i) {
            bits |= uint(scale[j + 4 * i] + BOF4_K_SUB_SCALE_OFFSET) >> 4 << 2 * i;
        }
        data_q[ib].scales[8 + j] = uint8_t(bits);
    }
    for (uint i = 0; i < QK_BOF4_K / 2; ++i) {
        const uint e = i / BOF4_RUN * 2 * BOF4_RUN + i % BOF4_RUN, other = e + BOF4_RUN;
        const uint low = bof4_nearest_code(float(data_s[first + e]), unit * float(scale[e / BOF4_K_SUB_BLOCK]));
        const uint high =
            bof4_nearest_code(float(data_s[first + other]), unit * float(scale[other / BOF4_K_SUB_BLOCK]));
        data_q[ib].qs[i] = uint8_t(low | high << 4);
    }
}

#endif
