// In place of src/cuda/bof4-mma.cuh: tensor core instructions on a CPU.
#pragma once

#include "ggml-cuda/common.cuh"

struct bof4_mma_operands {
    int a0, a1, b;
};

inline void bof4_load_matrices(int (&words)[4], const int * row) {
    GGML_ASSERT((uintptr_t) row % 16 == 0);
    const int lane = on_host::running % on_host::WARP;
    const int * const * rows = on_host::exchange(row);
    for (int i = 0; i < 4; ++i) {
        words[i] = rows[8 * i + lane / 4][lane % 4];
    }
}

inline void bof4_mma_k16(int (&c)[4], int a0, int a1, int b) {
    const int lane = on_host::running % on_host::WARP;
    const bof4_mma_operands * of = on_host::exchange(bof4_mma_operands{ a0, a1, b });
    for (int l = 0; l < 4; ++l)
        for (int word = 0; word < 4; ++word) {
            const bof4_mma_operands & of_row = of[lane / 4 * 4 + word];
            const int of_column = of[(2 * (lane % 4) + l % 2) * 4 + word].b;
            c[l] = ggml_cuda_dp4a(l < 2 ? of_row.a0 : of_row.a1, of_column, c[l]);
        }
}

inline void bof4_mma_k32(int (&c)[4], const int (&a)[4], int b0, int b1) {
    bof4_mma_k16(c, a[0], a[1], b0);
    bof4_mma_k16(c, a[2], a[3], b1);
}
