// One product of interleaved weights, for a counter of instructions: 64 rows of 512 weights.
//
//   count_gemm TYPE COLUMNS    TYPE: BOF4_S, BOF4_K, or IQ4_NL as upstream interleaves it; 0 columns: nothing
//
// Activations are rounded before: zeros are as good as anything, as no kernel looks at what it multiplies. A count less that
// of 0 columns is the product's own.

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"

#include "cpu/bof4-repack-layout.h"
#include "ggml-cpu.h"
#include "repack.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

enum { ROWS = 64, N = 512, MAX_COLUMNS = 32 };

alignas(64) char weights[ROWS * N];
alignas(64) char act[2 * MAX_COLUMNS * N];
float result[MAX_COLUMNS][ROWS];

template <typename T, typename F>
void ours(F gemm, int64_t n_act, int columns, bool few) {
    const T * x[MAX_COLUMNS];
    float * y[MAX_COLUMNS];
    for (int c = 0; c < columns; ++c) {
        x[c] = reinterpret_cast<const T *>(act) + c * n_act;
        y[c] = result[c];
    }
    gemm(weights, ROWS, N, x, nullptr, y, columns, few);
}

// Upstream's product for many columns wants a multiple of four.
void iq4_nl(int columns) {
    (columns < 4 ? ggml_gemv_iq4_nl_4x4_q8_0 : ggml_gemm_iq4_nl_4x4_q8_0)(N, result[0], ROWS, weights, act, columns, ROWS);
}

} // namespace

int main(int argc, char ** argv) {
    const int columns = argc == 3 ? std::atoi(argv[2]) : -1;
    static_assert(sizeof(bof4_s_act) * (N / QK_BOF4_S) * MAX_COLUMNS <= sizeof(act), "room for activations");
    static_assert(sizeof(bof4_k_act) * (N / QK_BOF4_K) * MAX_COLUMNS <= sizeof(act), "room for activations");
    if (columns < 0 || columns > MAX_COLUMNS || (columns > 1 && columns % 4 != 0)) {
        std::fprintf(stderr, "usage: count_gemm BOF4_S|BOF4_K|IQ4_NL 0|1|a multiple of 4 to %d\n", MAX_COLUMNS);
        return 2;
    }
    if (columns == 0) {
        return 0;
    }
    if (std::strcmp(argv[1], "BOF4_S") == 0) {
        ours<bof4_s_act>(bof4_s_gemm, N / QK_BOF4_S, columns, bof4_s_few(columns));
    } else if (std::strcmp(argv[1], "BOF4_K") == 0) {
        ours<bof4_k_act>(bof4_k_gemm, N / QK_BOF4_K, columns, bof4_k_few(columns));
    } else if (std::strcmp(argv[1], "IQ4_NL") == 0) {
        iq4_nl(columns);
    } else {
        return 2;
    }
    return 0;
}
