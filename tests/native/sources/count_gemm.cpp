// One product of repacked weights, for a counter of instructions: 64 rows of 512 weights.
//
//   count_gemm TYPE COLUMNS    TYPE: BOF4_S, BOF4_K, or IQ4_NL as upstream repacks it; 0 columns: nothing
//
// Weights and activations are zeros: the count does not depend on them. The count less that of 0 columns is the
// product's own.

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"

#include "cpu/bof4-gemm.h"
#include "bof4-format.h"
#include "ggml-cpu.h"
#include "repack.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

enum { ROWS = 64, N = 512, MAX_COLUMNS = 32 };

alignas(64) char weights[ROWS * N];
alignas(BOF4_ACT_ALIGNMENT) char act[2 * MAX_COLUMNS * N];
float result[MAX_COLUMNS][ROWS];

void ours(ggml_type type, int columns) {
    const bof4_gemm_kernels & k = *bof4_gemm_kernels_of(type);
    const bool use_gemv = k.use_gemv(columns);
    if (k.act_bytes(N, columns, use_gemv) > sizeof(act)) {
        std::abort();
    }
    const void * x[MAX_COLUMNS];
    float * y[MAX_COLUMNS];
    for (int c = 0; c < columns; ++c) {
        x[c] = act + k.act_row_at(N, c, use_gemv);
        y[c] = result[c];
    }
    k.gemm(weights, ROWS, N, x, nullptr, y, columns, use_gemv, 0);
}

// Upstream's GEMM needs a multiple of four columns.
void iq4_nl(int columns) {
    (columns < 4 ? ggml_gemv_iq4_nl_4x4_q8_0 : ggml_gemm_iq4_nl_4x4_q8_0)(
        N, result[0], ROWS, weights, act, columns, ROWS);
}

} // namespace

int main(int argc, char ** argv) {
    const int columns = argc == 3 ? std::atoi(argv[2]) : -1;
    if (columns < 0 || columns > MAX_COLUMNS || (columns > 1 && columns % 4 != 0)) {
        std::fprintf(stderr, "usage: count_gemm BOF4_S|BOF4_K|IQ4_NL 0|1|a multiple of 4 to %d\n", MAX_COLUMNS);
        return 2;
    }
    if (columns == 0) {
        return 0;
    }
    if (std::strcmp(argv[1], "BOF4_S") == 0) {
        ours(GGML_TYPE_BOF4_S, columns);
    } else if (std::strcmp(argv[1], "BOF4_K") == 0) {
        ours(GGML_TYPE_BOF4_K, columns);
    } else if (std::strcmp(argv[1], "IQ4_NL") == 0) {
        iq4_nl(columns);
    } else {
        return 2;
    }
    return 0;
}
