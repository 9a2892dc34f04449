// The BOF4 types in upstream's mul_mmq.comp: products with q8_1 activations by integer dot products.
#if defined(DATA_A_BOF4)

// Weights 8 * iqs to 8 * iqs + 7 of the 32 with number ib.
void block_a_to_shmem(const uint buf_ib, const uint ib, const uint iqs) {
    const uint block = ib / (QUANT_K / 32);
    const uint e = ib % (QUANT_K / 32) * 32 + 8 * iqs;

    buf_a[buf_ib].qs[2 * iqs] = bof4_levels(BOF4_CODES(block, e));
    buf_a[buf_ib].qs[2 * iqs + 1] = bof4_levels(BOF4_CODES(block, e + 4));
#if defined(DATA_A_BOF4_S)
    if (iqs == 0) {
        buf_a[buf_ib].scale = BOF4_SCALE(block, e);
    }
#else
    if (iqs % 2 == 0) {
        buf_a[buf_ib].scale[iqs / 2] = BOF4_SCALE(block, e);
    }
#endif
}

void block_a_to_registers(const uint reg_ib, const uint buf_ib) {
    cache_a[reg_ib] = buf_a[buf_ib];
}

int32_t bof4_dot16(const uint ib_a, const uint first) {
    int32_t sum = 0;
    [[unroll]] for (uint i = first; i < first + 4; ++i) {
        sum += dotPacked4x8EXT(cache_a[ib_a].qs[i], cache_b.qs[i]);
    }
    return sum;
}

ACC_TYPE mmq_dot_product(const uint ib_a) {
#if defined(DATA_A_BOF4_S)
    const float sum = cache_a[ib_a].scale * float(bof4_dot16(ib_a, 0) + bof4_dot16(ib_a, 4));
#else
    const float sum = dot(cache_a[ib_a].scale, vec2(bof4_dot16(ib_a, 0), bof4_dot16(ib_a, 4)));
#endif
    return ACC_TYPE(float(cache_b.ds.x) * sum);
}

#endif
