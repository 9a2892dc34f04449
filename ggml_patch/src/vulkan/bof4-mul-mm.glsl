    // The body of load_a_to_shmem in upstream's mul_mm_funcs.glsl for the BOF4 types: LOAD_VEC_A consecutive weights.
    const uint idx = pos_a + col * p.stride_a / LOAD_VEC_A + row;
    const uint k_pair = row * LOAD_VEC_A / 2;

    const uint ib = idx / (QUANT_K / LOAD_VEC_A);
    const uint e = idx % (QUANT_K / LOAD_VEC_A) * LOAD_VEC_A;

    const float scale = BOF4_SCALE(ib, e);
    [[unroll]] for (uint i = 0; i < LOAD_VEC_A; i += 4) {
        const vec4 v = scale * bof4_floats(BOF4_CODES(ib, e + i));
        store_a(col, k_pair + i / 2, FLOAT_TYPEV2(v.xy));
        store_a(col, k_pair + i / 2 + 1, FLOAT_TYPEV2(v.zw));
    }
