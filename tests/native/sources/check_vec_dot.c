// Checks one build of the vec_dot of all types: compiled once per instruction set, run on the processor or under qemu.
//
// Every product is compared with the sum over decoded weights and activations in double precision; rows
// are random, or all of one extreme level. Prints one line per type and exits with 1 on a failure.

#define GGML_COMMON_DECL_C
#include "ggml-common.h"

#include "format/bof4-blocks.h"
#include "cpu/bof4-vec-dot.h"
#include "cpu/bof4-prefetch.h"
#include "ggml-impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Row kernels prefetch, which changes no result.
int64_t bof4_prefetch_rows_distance(enum ggml_type type) {
    (void) type;
    return 4096;
}

// what ggml-cpu.c and ggml.c would provide
float ggml_table_f32_f16[1 << 16];
size_t ggml_row_size(enum ggml_type type, int64_t ne) {
    switch (type) {
#define ROW_SIZE(NAME, name) \
    case GGML_TYPE_##NAME: return (size_t) (ne / QK_##NAME) * NAME##_BLOCK_BYTES;
        BOF4_TYPES(ROW_SIZE)
        default: abort();
    }
}

struct checked_type {
    const char * name;
    int block;
    int block_bytes;
    enum ggml_type activation;
    void (*dequantize)(const void * x, float * y, int64_t k);
    void (*vec_dot)(int n, float * s, size_t bs, const void * x, size_t bx, const void * y, size_t by, int nrc);
};

static const struct checked_type types[] = {
#define CHECKED_TYPE(NAME, name) \
    { #NAME, QK_##NAME, NAME##_BLOCK_BYTES, NAME##_ACTIVATION, dequantize_row_##name, ggml_vec_dot_##name },
    BOF4_TYPES(CHECKED_TYPE)
};

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
        *product += (double) w[i] * a[i];
        *magnitude += fabs((double) w[i] * a[i]);
    }
}

static float weights[MAX_BLOCKS * BOF4_MAX_BLOCK];
static float activations[MAX_BLOCKS * BOF4_MAX_BLOCK];

// n random activations of a type, exactly as large as they must be, and their values.
static void * random_activations(enum ggml_type type, int n, int round) {
    if (type == GGML_TYPE_Q8_0) {
        block_q8_0 * y = calloc(n / QK8_0, sizeof(*y));
        for (int i = 0; i < n; ++i) {
            block_q8_0 * block = y + i / QK8_0;
            if (i % QK8_0 == 0) {
                block->d = GGML_FP32_TO_FP16(fabsf(next_scale()));
            }
            block->qs[i % QK8_0] = next_activation(round);
            activations[i] = GGML_FP16_TO_FP32(block->d) * block->qs[i % QK8_0];
        }
        return y;
    }
    if (type == GGML_TYPE_Q8_K) {
        block_q8_K * y = calloc(n / QK_K, sizeof(*y));
        for (int i = 0; i < n; ++i) {
            block_q8_K * block = y + i / QK_K;
            const int j = i % QK_K;
            if (j == 0) {
                block->d = next_scale();
            }
            block->qs[j] = next_activation(round);
            block->bsums[j / 16] = (int16_t) (block->bsums[j / 16] + block->qs[j]);
            activations[i] = block->d * block->qs[j];
        }
        return y;
    }
    fprintf(stderr, "no random activations of type %d\n", (int) type);
    exit(2);
}

// The error of one product relative to the sum of magnitudes. Rows are exactly as large as they must be, so that a
// sanitizer or the end of the heap shows a read beyond them.
static double error_of(const struct checked_type * type, int nblocks, int round) {
    const int n = nblocks * type->block;
    uint8_t * x = malloc((size_t) nblocks * type->block_bytes);
    for (int i = 0; i < nblocks; ++i) {
        uint8_t * block = x + (size_t) i * type->block_bytes;
        const ggml_fp16_t d = GGML_FP32_TO_FP16(next_scale());
        memcpy(block, &d, sizeof(d));
        // scales of sub-blocks, where there are some, and codes
        for (int j = sizeof(d); j < type->block_bytes; ++j) {
            block[j] = next_codes(round);
        }
    }
    void * y = random_activations(type->activation, n, round);
    float got = NAN;
    type->vec_dot(n, &got, 0, x, 0, y, 0, 1);
    double product, magnitude;
    type->dequantize(x, weights, n);
    multiply(weights, activations, n, &product, &magnitude);
    free(x);
    free(y);
    return fabs(got - product) / magnitude;
}

static int check(const struct checked_type * type) {
    double worst = 0.0;
    int cases = 0;
    for (int nblocks = 1; nblocks <= MAX_BLOCKS; ++nblocks) {
        for (int round = 0; round < ROUNDS; ++round, ++cases) {
            const double error = error_of(type, nblocks, round);
            if (!(error <= worst)) {
                worst = error;
            }
        }
    }
    // float32 rounding of chains of a few dozen additions
    const int failed = !(worst < 2e-6);
    printf("%s: %d products, largest error %.2g of the sum of magnitudes: %s\n", type->name, cases, worst,
        failed ? "FAILED" : "ok");
    return failed;
}

int main(void) {
    for (uint32_t i = 0; i < 1 << 16; ++i) {
        ggml_table_f32_f16[i] = GGML_FP16_TO_FP32((ggml_fp16_t) i);
    }
    int failed = 0;
    for (size_t i = 0; i < sizeof(types) / sizeof(*types); ++i) {
        failed |= check(types + i);
    }
    return failed;
}
