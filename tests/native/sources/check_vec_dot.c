// Check one build of the kernels of both types: compiled once per instruction set, run on the processor or under qemu.
//
// Every product is compared with the sum over decoded weights and activations in double precision; rows
// are random, all of one extreme level, and full of zeros. Prints one line a type and exits with 1 on a failure.

#define GGML_COMMON_DECL_C
#include "ggml-common.h"

#include "format/bof4-blocks.h"
#include "cpu/bof4-vec-dot.h"
#include "ggml-impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// what ggml-cpu.c and ggml.c would provide
float ggml_table_f32_f16[1 << 16];
size_t ggml_row_size(enum ggml_type type, int64_t ne) {
    return type == GGML_TYPE_BOF4_K ? (size_t) (ne / QK_BOF4_K) * sizeof(block_bof4_k)
                                    : (size_t) (ne / QK_BOF4_S) * sizeof(block_bof4_s);
}

enum { MAX_BLOCKS = 64, ROUNDS = 20 };

static uint32_t state = 12345;
static uint32_t next_random(void) {
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}
static float next_scale(void) {
    return ((float) (next_random() % 2001) - 1000.0f) / 512.0f;
}
// rounds 0 and 1: nothing but the lowest, the highest level (and block scale); later: anything
static uint8_t next_codes(int round) {
    return round == 0 ? 0x00 : round == 1 ? 0xff : (uint8_t) next_random();
}
static int8_t next_activation(int round) {
    return (int8_t) (round < 2 ? (next_random() & 1 ? 127 : -127) : (int) (next_random() % 255) - 127);
}

// The product of decoded weights and activations, and the sum of magnitudes, which rounding errors scale with.
static void multiply(const float * w, const float * a, int n, double * product, double * magnitude) {
    *product = *magnitude = 0.0;
    for (int i = 0; i < n; ++i) {
        *product   += (double) w[i] * a[i];
        *magnitude += fabs((double) w[i] * a[i]);
    }
}

static float weights[MAX_BLOCKS * QK_BOF4_K];
static float activations[MAX_BLOCKS * QK_BOF4_K];

// One product of each type: its error as a share of the sum of magnitudes. Rows are exactly as large as they must be, so
// that a sanitizer or the end of the heap shows a read beyond them.
static double error_of_s(int nblocks, int round) {
    block_bof4_s * x = calloc(nblocks, sizeof(*x));
    block_q8_0   * y = calloc(2 * nblocks, sizeof(*y));
    const int n = nblocks * QK_BOF4_S;
    for (int i = 0; i < nblocks; ++i) {
        x[i].d = GGML_FP32_TO_FP16(next_scale());
        for (int j = 0; j < QK_BOF4_S / 2; ++j) {
            x[i].qs[j] = next_codes(round);
        }
    }
    for (int i = 0; i < n; ++i) {
        if (i % QK8_0 == 0) {
            y[i / QK8_0].d = GGML_FP32_TO_FP16(fabsf(next_scale()));
        }
        y[i / QK8_0].qs[i % QK8_0] = next_activation(round);
        activations[i] = GGML_FP16_TO_FP32(y[i / QK8_0].d) * y[i / QK8_0].qs[i % QK8_0];
    }
    float got = NAN;
    ggml_vec_dot_bof4_s_q8_0(n, &got, 0, x, 0, y, 0, 1);
    double product, magnitude;
    dequantize_row_bof4_s(x, weights, n);
    multiply(weights, activations, n, &product, &magnitude);
    free(x);
    free(y);
    return fabs(got - product) / magnitude;
}

static double error_of_k(int nblocks, int round) {
    block_bof4_k * x = calloc(nblocks, sizeof(*x));
    block_q8_K   * y = calloc(nblocks, sizeof(*y));
    const int n = nblocks * QK_BOF4_K;
    for (int i = 0; i < nblocks; ++i) {
        x[i].d = GGML_FP32_TO_FP16(next_scale());
        for (size_t j = 0; j < sizeof(x[i].scales); ++j) {
            x[i].scales[j] = next_codes(round);
        }
        for (int j = 0; j < QK_BOF4_K / 2; ++j) {
            x[i].qs[j] = next_codes(round);
        }
        y[i].d = next_scale();
        for (int j = 0; j < QK_K; ++j) {
            y[i].qs[j] = next_activation(round);
            y[i].bsums[j / 16] = (int16_t) (y[i].bsums[j / 16] + y[i].qs[j]);
            activations[i * QK_K + j] = y[i].d * y[i].qs[j];
        }
    }
    float got = NAN;
    ggml_vec_dot_bof4_k_q8_K(n, &got, 0, x, 0, y, 0, 1);
    double product, magnitude;
    dequantize_row_bof4_k(x, weights, n);
    multiply(weights, activations, n, &product, &magnitude);
    free(x);
    free(y);
    return fabs(got - product) / magnitude;
}

static int check(const char * type, double (*error_of)(int nblocks, int round)) {
    double worst = 0.0;
    int cases = 0;
    for (int nblocks = 1; nblocks <= MAX_BLOCKS; ++nblocks) {
        for (int round = 0; round < ROUNDS; ++round, ++cases) {
            const double error = error_of(nblocks, round);
            if (!(error <= worst)) {
                worst = error;
            }
        }
    }
    // 24-bit floats, a few dozen additions deep
    const int failed = !(worst < 2e-6);
    printf("%s: %d products, largest error %.2g of the sum of magnitudes: %s\n", type, cases, worst, failed ? "FAILED" : "ok");
    return failed;
}

int main(void) {
    for (uint32_t i = 0; i < 1 << 16; ++i) {
        ggml_table_f32_f16[i] = GGML_FP16_TO_FP32((ggml_fp16_t) i);
    }
    const int failed = check("BOF4_S", error_of_s);
    return check("BOF4_K", error_of_k) | failed;
}
