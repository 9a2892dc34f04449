// Tensor core instructions for int8, as functions of arrays. Fragments are those of PTX: lane l has of a matrix A of 16
// rows the words l % 4 (and 4 + l % 4) of rows l / 4 and l / 4 + 8, of B those words of column l / 4, and of the product
// columns 2 (l % 4) and 2 (l % 4) + 1 of rows l / 4 (elements 0, 1) and l / 4 + 8 (elements 2, 3).
//
// A file of its own, so that tests can compute them on a CPU instead.
#pragma once

#include <cstdint>

// Four matrices of 8 rows of 16 bytes in shared memory. row: lane l's is the address of row l % 8 of matrix l / 8.
// Word l % 4 of row l / 4 of matrix i becomes words[i].
static __device__ __forceinline__ void bof4_load_matrices(int (&words)[4], const int * row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
        : "r"((uint32_t) __cvta_generic_to_shared(row)));
}

// c += A B for 16 rows, 8 columns and 16 products each. a0, a1: A; b: B.
static __device__ __forceinline__ void bof4_mma_k16(int (&c)[4], int a0, int a1, int b) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(b));
#else
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+r"(c[0]), "+r"(c[1])
        : "r"(a0), "r"(b));
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+r"(c[2]), "+r"(c[3])
        : "r"(a1), "r"(b));
#endif
}

// The same for 32 products.
static __device__ __forceinline__ void bof4_mma_k32(int (&c)[4], const int (&a)[4], int b0, int b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    bof4_mma_k16(c, a[0], a[1], b0);
    bof4_mma_k16(c, a[2], a[3], b1);
#endif
}
