// The tile operations of bof4-tiles-amx.h in portable C++, for tests on processors without AMX.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

class bof4_tiles_portable {
    union tile {
        int32_t sums[16][16];
        int8_t bytes[16][64];
        uint8_t unsigned_bytes[16][64];
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
};

} // namespace
