// The tile operations of bof4-tiles-amx.h in portable C++, for tests on processors without AMX.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

class bof4_tiles_portable {
    union tile {
        int32_t sums[16][16];
        int8_t bytes[16][64];
        uint8_t unsigned_bytes[16][64];
        float floats[16][16];
        uint16_t bf16[16][32];
    };
    tile tiles[8];

    template <typename B>
    static void add_products(int32_t (&c)[16][16], const int8_t (&a)[16][64], const B (&b)[16][64]) {
        for (int m = 0; m < 16; ++m) {
            for (int k = 0; k < 16; ++k) {
                const int32_t a0 = a[m][4 * k], a1 = a[m][4 * k + 1], a2 = a[m][4 * k + 2], a3 = a[m][4 * k + 3];
                for (int n = 0; n < 16; ++n) {
                    c[m][n] += a0 * b[k][4 * n] + a1 * b[k][4 * n + 1] + a2 * b[k][4 * n + 2] + a3 * b[k][4 * n + 3];
                }
            }
        }
    }

    // Denormals are zeros.
    static float flushed(float v) {
        return std::fabs(v) < std::numeric_limits<float>::min() ? std::copysign(0.0f, v) : v;
    }

    static float from_bf16(uint16_t bits) {
        const uint32_t wide = (uint32_t) bits << 16;
        float v;
        memcpy(&v, &wide, sizeof(v));
        return flushed(v);
    }

    static void add_products(float (&c)[16][16], const uint16_t (&a)[16][32], const uint16_t (&b)[16][32]) {
        float of_b[16][32];
        for (int k = 0; k < 16; ++k) {
            for (int i = 0; i < 32; ++i) {
                of_b[k][i] = from_bf16(b[k][i]);
            }
        }
        for (int m = 0; m < 16; ++m) {
            float sums[32] = {}; // of even products, of odd ones, in turns
            for (int k = 0; k < 16; ++k) {
                const float of_a[2] = { from_bf16(a[m][2 * k]), from_bf16(a[m][2 * k + 1]) };
                for (int i = 0; i < 32; ++i) {
                    sums[i] = flushed(std::fma(of_a[i % 2], of_b[k][i], sums[i]));
                }
            }
            for (int n = 0; n < 16; ++n) {
                c[m][n] = flushed(flushed(c[m][n]) + flushed(sums[2 * n] + sums[2 * n + 1]));
            }
        }
    }

  public:
    template <int T> void zero() { memset(&tiles[T], 0, sizeof(tile)); }

    template <int T> void load(const void * p, int64_t stride) {
        for (int r = 0; r < 16; ++r) {
            memcpy(tiles[T].bytes[r], static_cast<const char *>(p) + r * stride, 64);
        }
    }
    template <int T> void store(void * p, int64_t stride) {
        for (int r = 0; r < 16; ++r) {
            memcpy(static_cast<char *>(p) + r * stride, tiles[T].bytes[r], 64);
        }
    }

    template <int C, int A, int B> void add_products_signed() {
        add_products(tiles[C].sums, tiles[A].bytes, tiles[B].bytes);
    }
    template <int C, int A, int B> void add_products_unsigned() {
        add_products(tiles[C].sums, tiles[A].bytes, tiles[B].unsigned_bytes);
    }
    template <int C, int A, int B> void add_products_bf16() {
        add_products(tiles[C].floats, tiles[A].bf16, tiles[B].bf16);
    }
};

} // namespace
