// Check one build of the BOF4_S kernels: compiled once per instruction set, run on the processor or under qemu.
//
// Every product is compared with the sum over decoded weights and activations in double precision; rows
// are random, all of one extreme level, and full of zeros. Prints one line and exits with 1 on a failure.

#define GGML_COMMON_DECL_C
#include "ggml-common.h"

#include "bof4.h"
#include "bof4-cpu.h"
#include "ggml-impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// what ggml-cpu.c and ggml.c would provide
float ggml_table_f32_f16[1 << 16];
size_t ggml_row_size(enum ggml_type type, int64_t ne) {
    (void) type;
    return (size_t) (ne / QK_BOF4_S) * sizeof(block_bof4_s);
}

enum { MAX_BLOCKS = 64 };

static double decode_and_multiply(const block_bof4_s * x, const block_q8_0 * y, int nblocks) {
    static float weights[MAX_BLOCKS * QK_BOF4_S];
    dequantize_row_bof4_s(x, weights, (int64_t) nblocks * QK_BOF4_S);
    double sum = 0.0;
    for (int i = 0; i < nblocks * QK_BOF4_S; ++i) {
        sum += (double) weights[i] * (double) GGML_FP16_TO_FP32(y[i / QK8_0].d) * y[i / QK8_0].qs[i % QK8_0];
    }
    return sum;
}

// the sum of magnitudes is what rounding errors scale with
static double magnitude(const block_bof4_s * x, const block_q8_0 * y, int nblocks) {
    static float weights[MAX_BLOCKS * QK_BOF4_S];
    dequantize_row_bof4_s(x, weights, (int64_t) nblocks * QK_BOF4_S);
    double sum = 0.0;
    for (int i = 0; i < nblocks * QK_BOF4_S; ++i) {
        sum += fabs((double) weights[i] * (double) GGML_FP16_TO_FP32(y[i / QK8_0].d) * y[i / QK8_0].qs[i % QK8_0]);
    }
    return sum;
}

static uint32_t state = 12345;
static uint32_t next_random(void) {
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}
static float next_scale(void) {
    return ((float) (next_random() % 2001) - 1000.0f) / 512.0f;
}

static void fill(block_bof4_s * x, block_q8_0 * y, int nblocks, int round) {
    for (int i = 0; i < nblocks; ++i) {
        x[i].d = GGML_FP32_TO_FP16(next_scale());
        for (int j = 0; j < QK_BOF4_S / 2; ++j) {
            // rounds 0 and 1: nothing but the lowest, the highest level; later: anything
            x[i].qs[j] = round == 0 ? 0x00 : round == 1 ? 0xff : (uint8_t) next_random();
        }
        for (int h = 0; h < 2; ++h) {
            y[2 * i + h].d = GGML_FP32_TO_FP16(fabsf(next_scale()));
            for (int j = 0; j < QK8_0; ++j) {
                y[2 * i + h].qs[j] = round < 2 ? (next_random() & 1 ? 127 : -127) : (int8_t) (next_random() % 255 - 127);
            }
        }
    }
}

int main(void) {
    for (uint32_t i = 0; i < 1 << 16; ++i) {
        ggml_table_f32_f16[i] = GGML_FP16_TO_FP32((ggml_fp16_t) i);
    }

    // exactly as large as the row, so that a sanitizer or the end of the heap shows a read beyond it
    double worst = 0.0;
    int cases = 0;
    for (int nblocks = 1; nblocks <= MAX_BLOCKS; ++nblocks) {
        block_bof4_s * x = malloc(sizeof(*x) * nblocks);
        block_q8_0   * y = malloc(sizeof(*y) * nblocks * 2);
        for (int round = 0; round < 20; ++round, ++cases) {
            fill(x, y, nblocks, round);
            float got = NAN;
            ggml_vec_dot_bof4_s_q8_0(nblocks * QK_BOF4_S, &got, 0, x, 0, y, 0, 1);
            const double error = fabs(got - decode_and_multiply(x, y, nblocks)) / magnitude(x, y, nblocks);
            if (!(error <= worst)) {
                worst = error;
            }
        }
        free(x);
        free(y);
    }

    // 24-bit floats, a few dozen additions deep
    const int failed = !(worst < 2e-6);
    printf("%d products, largest error %.2g of the sum of magnitudes: %s\n", cases, worst, failed ? "FAILED" : "ok");
    return failed;
}
