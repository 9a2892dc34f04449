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

// A scale as fp16 has it: the nearest number, ties to even. By hand, because drivers round conversions as they like
// (NVIDIA's towards zero); that of the result is exact.
float bof4_stored_scale(const float d) {
    const uint bits = floatBitsToUint(d) & 0x7fffffffu;
    if (bits >= BOF4_NOT_FINITE) {
        return d;
    }
    const float magnitude = min(abs(d), BOF4_FP16_MAX);
    const uint m = floatBitsToUint(magnitude);
    const float normal = uintBitsToFloat((m + 0xfffu + (m >> 13 & 1u)) & ~0x1fffu);
    const float subnormal = roundEven(magnitude * 16777216.0f) / 16777216.0f; // 2^24
    const float rounded = magnitude < 6.103515625e-5f ? subnormal : normal; // 2^-14
    return uintBitsToFloat(floatBitsToUint(rounded) | floatBitsToUint(d) & 0x80000000u);
}

// The upper 12 bits of a significand, so that products of two of them are exact.
float bof4_upper_bits(const float v) {
    precise const float t = 4097.0f * v;
    precise const float upper = t - (t - v);
    return upper;
}

// a / b as the processor computes it: drivers may be 2.5 units in the last place off. What is left of a is exact
// (Dekker's product); fma might be a product and a sum.
float bof4_quotient(const float a, const float b) {
    const float q = a / b;
    const float qu = bof4_upper_bits(q), bu = bof4_upper_bits(b);
    precise const float ql = q - qu, bl = b - bu;
    precise const float p = q * b;
    precise const float error = ((qu * bu - p) + qu * bl + ql * bu) + ql * bl;
    precise const float rest = (a - p) - error;
    precise const float nearest = q + rest / b;
    return isinf(nearest) || isnan(nearest) ? q : nearest;
}

// The value of level 1, and its inverse: once for all weights of a scale.
struct bof4_scale_of_levels {
    float per_level, inverse;
};

bof4_scale_of_levels bof4_of_level(const float per_level) {
    return bof4_scale_of_levels(per_level, bof4_quotient(1.0f, per_level));
}

// Codes of the nearest levels: the number of midpoints below.
uint bof4_nearest_code(const float x, const bof4_scale_of_levels scale) {
    if (!(abs(scale.per_level) > 0)) {
        return BOF4_S_ZERO_CODE; // the same in all types
    }
    const float y = x * scale.inverse;
    uint code = 0;
    [[unroll]] for (int c = 0; c < 15; ++c) {
        code += y > bof4_midpoint[c] ? 1 : 0;
    }
    return code;
}

#if defined(DATA_A_BOF4_S)

void bof4_encode(const uint ib, const uint first) {
    const float d = bof4_stored_scale(bof4_signed_maximum(first, QK_BOF4_S));
    const bof4_scale_of_levels scale = bof4_of_level(bof4_quotient(d, float(BOF4_LEVEL_SCALE)));
    data_q[ib].d = float16_t(d);
    for (uint i = 0; i < QK_BOF4_S / 2; ++i) {
        const uint low = bof4_nearest_code(float(data_s[first + i]), scale);
        const uint high = bof4_nearest_code(float(data_s[first + i + BOF4_RUN]), scale);
        data_q[ib].qs[i] = uint8_t(low | high << 4);
    }
}

#else

int bof4_sub_scale(const uint first, const float unit) {
    if (!(abs(unit) > 0) || (floatBitsToUint(unit) & 0x7fffffffu) >= BOF4_NOT_FINITE) {
        return 0;
    }
    const float largest = bof4_signed_maximum(first, BOF4_K_SUB_BLOCK);
    const float s = roundEven(bof4_quotient(largest, unit * float(BOF4_LEVEL_SCALE)));
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
    const uint of_run = BOF4_RUN / BOF4_K_SUB_BLOCK; // sub-blocks
    for (uint b = 0; b < BOF4_K_SUB_BLOCKS / 2; ++b) {
        const uint j = b / of_run * 2 * of_run + b % of_run, j2 = j + of_run;
        const bof4_scale_of_levels of_low = bof4_of_level(unit * float(scale[j]));
        const bof4_scale_of_levels of_high = bof4_of_level(unit * float(scale[j2]));
        for (uint i = 0; i < BOF4_K_SUB_BLOCK; ++i) {
            const uint low = bof4_nearest_code(float(data_s[first + j * BOF4_K_SUB_BLOCK + i]), of_low);
            const uint high = bof4_nearest_code(float(data_s[first + j2 * BOF4_K_SUB_BLOCK + i]), of_high);
            data_q[ib].qs[b * BOF4_K_SUB_BLOCK + i] = uint8_t(low | high << 4);
        }
    }
}

#endif
