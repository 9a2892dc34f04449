// The tile registers of AMX: eight matrices of 16 rows of 64 bytes.
//
// Instructions are written as asm statements. GCC's intrinsics take only literal tile numbers, and up to GCC 12 at
// least they do not tell the compiler which memory an instruction reads or writes, so that it moves or drops stores. As
// asm they are compiled without -mamx-tile, too: every build for AVX-512 VNNI has them.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__clang__)
#define BOF4_TILE_CODE __attribute__((target("amx-tile,amx-int8")))
#else
#define BOF4_TILE_CODE
#endif

namespace {

// The operand of ldtilecfg.
struct bof4_tile_configuration {
    uint8_t palette;
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
static_assert(sizeof(bof4_tile_configuration) == 64, "as the processor reads it");

// While it exists, all tiles have 16 rows of 64 bytes. Then the thread has the configuration again that it had before:
// upstream's kernels configure each thread once and rely on it.
class bof4_tiles_amx {
    alignas(64) bof4_tile_configuration before;

    BOF4_TILE_CODE static void configure(const bof4_tile_configuration & c) {
        __asm__ volatile("ldtilecfg %0" : : "m"(c) : "memory");
    }

  public:
    BOF4_TILE_CODE bof4_tiles_amx() {
        __asm__ volatile("sttilecfg %0" : "=m"(before) : : "memory");
        alignas(64) bof4_tile_configuration all = {};
        all.palette = 1;
        for (int t = 0; t < 8; ++t) {
            all.rows[t] = 16;
            all.row_bytes[t] = 64;
        }
        configure(all);
    }
    BOF4_TILE_CODE ~bof4_tiles_amx() { configure(before); } // palette 0, where there was none, releases the tiles
    bof4_tiles_amx(const bof4_tiles_amx &) = delete;
    bof4_tiles_amx & operator=(const bof4_tiles_amx &) = delete;

    template <int T> BOF4_TILE_CODE void zero() { __asm__ volatile("tilezero %%tmm%c0" : : "i"(T)); }

    // stride: bytes from row to row.
    template <int T> BOF4_TILE_CODE void load(const void * p, int64_t stride) {
        __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(T) : "memory");
    }
    template <int T> BOF4_TILE_CODE void store(void * p, int64_t stride) {
        __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(T) : "memory");
    }

    // C[m][n] += sum over k < 16, i < 4 of A[m][4 k + i] * B[k][4 n + i]; C is int32, A int8, B int8 or uint8.
    template <int C, int A, int B> BOF4_TILE_CODE void add_products_signed() {
        __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
    }
    template <int C, int A, int B> BOF4_TILE_CODE void add_products_unsigned() {
        __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
    }

    // Has the processor AMX with int8, does the operating system save the tiles, and does it let this process
    // use them? (Linux has to be asked, once for all threads.)
    static bool is_usable() {
#if defined(__linux__)
        enum { OSXSAVE = 1 << 27, TILE = 1 << 24, INT8 = 1 << 25, STATE = 3 << 17 };
        enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
        unsigned a, b, c, d;
        if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE)) {
            return false;
        }
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (TILE | INT8)) != (TILE | INT8)) {
            return false;
        }
        unsigned state, unused;
        __asm__("xgetbv" : "=a"(state), "=d"(unused) : "c"(0));
        return (state & STATE) == STATE && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
        return false;
#endif
    }
};

} // namespace
