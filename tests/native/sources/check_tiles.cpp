// Checks one implementation of the tile operations (BOF4_GEMM_TWIN: bof4_tiles_portable or bof4_tiles_amx) against their
// definition, and that the tile configuration of the thread is what it was before. Prints "ok" or what is wrong.

#include "cpu/bof4-tiles-amx.h"
#include "cpu/bof4-tiles-portable.h"

#include <cstdio>
#include <cstdlib>
#include <random>
#include <type_traits>

namespace {

std::mt19937 rng(7);

struct matrix {
    int8_t bytes[16][80]; // rows of 64, 80 bytes apart
};

matrix random_matrix(bool extreme) {
    matrix m;
    for (auto & row : m.bytes) {
        for (int8_t & b : row) {
            b = extreme ? (rng() & 1 ? -128 : 127) : (int8_t) rng();
        }
    }
    return m;
}

// Of a value of B as uint8 or int8, in 64 bits.
void add_products(int64_t (&c)[16][16], const matrix & a, const matrix & b, bool is_unsigned) {
    for (int m = 0; m < 16; ++m) {
        for (int n = 0; n < 16; ++n) {
            for (int k = 0; k < 64; ++k) {
                const int8_t of_b = b.bytes[k / 4][4 * n + k % 4];
                c[m][n] += (int64_t) a.bytes[m][k] * (is_unsigned ? (int) (uint8_t) of_b : of_b);
            }
        }
    }
}

void require(bool condition, const char * what) {
    if (!condition) {
        std::printf("%s\n", what);
        std::exit(1);
    }
}

template <int T, typename tiles>
void check_sums(tiles & tile, const int64_t (&expected)[16][16]) {
    struct {
        int32_t sums[16][24], behind;
    } to = {};
    tile.template store<T>(to.sums, sizeof(to.sums[0]));
    for (int m = 0; m < 16; ++m) {
        for (int n = 0; n < 24; ++n) {
            require(to.sums[m][n] == (n < 16 ? expected[m][n] : 0), "a sum is wrong");
        }
    }
    require(to.behind == 0, "a store goes beyond the tile");
}

template <typename tiles>
void check_products() {
    tiles tile;
    for (int i = 0; i < 50; ++i) {
        const matrix a = random_matrix(i % 5 == 0), b = random_matrix(i % 7 == 0), b2 = random_matrix(false);
        int64_t is_signed[16][16] = {}, is_unsigned[16][16] = {};
        tile.template zero<0>();
        tile.template zero<7>();
        tile.template load<3>(a.bytes, sizeof(a.bytes[0]));
        tile.template load<4>(b.bytes, sizeof(b.bytes[0]));
        tile.template load<5>(b2.bytes, sizeof(b2.bytes[0]));
        tile.template add_products_signed<0, 3, 4>();
        tile.template add_products_unsigned<7, 3, 4>();
        tile.template add_products_signed<0, 3, 5>();
        tile.template add_products_unsigned<7, 3, 5>();
        add_products(is_signed, a, b, false);
        add_products(is_signed, a, b2, false);
        add_products(is_unsigned, a, b, true);
        add_products(is_unsigned, a, b2, true);
        check_sums<0>(tile, is_signed);
        check_sums<7>(tile, is_unsigned);
    }
}

// bf16 of small integers, whose sums are exact, and of denormals, which count as zeros.
template <typename tiles>
void check_bf16() {
    tiles tile;
    const uint16_t denormal = 0x0040, large = 0x7f00; // 2^-127 and 2^127
    for (int i = 0; i < 20; ++i) {
        uint16_t a[16][40], b[16][40];
        float values[2][16][32], sums[16][16], got[16][16];
        for (int r = 0; r < 16; ++r) {
            for (int k = 0; k < 32; ++k) {
                for (int m = 0; m < 2; ++m) {
                    float & v = values[m][r][k];
                    v = (float) ((int) (rng() % 255) - 127) / 16;
                    uint32_t bits;
                    memcpy(&bits, &v, sizeof(bits));
                    require((bits & 0xffff) == 0, "a number is not one of bf16");
                    (m ? b : a)[r][k] = (uint16_t) (bits >> 16);
                }
            }
            for (int n = 0; n < 16; ++n) {
                sums[r][n] = (float) ((int) (rng() % 2001) - 1000) / 256;
            }
        }
        values[0][3][5] = 0.0f;
        a[3][5] = denormal;
        for (int n = 0; n < 16; ++n) {
            values[1][2][2 * n + 1] = 0.0f; // what the denormal is multiplied with: its product would be 1
            b[2][2 * n + 1] = i % 2 ? large : 0;
            values[0][n][5] = 0.0f;
            a[n][5] = n == 3 ? denormal : 0;
        }
        tile.template load<0>(sums, sizeof(sums[0]));
        tile.template load<2>(a, sizeof(a[0]));
        tile.template load<6>(b, sizeof(b[0]));
        tile.template add_products_bf16<0, 2, 6>();
        tile.template store<0>(got, sizeof(got[0]));
        for (int m = 0; m < 16; ++m) {
            for (int n = 0; n < 16; ++n) {
                float expected = sums[m][n];
                for (int k = 0; k < 32; ++k) {
                    expected += values[0][m][k] * values[1][k / 2][2 * n + k % 2];
                }
                require(got[m][n] == expected, "a sum of bf16 products is wrong");
            }
        }
    }
    // even and odd products are added apart: 2^24 + 1 - 2^24 is 1 where 1 is odd, 0 where all are even
    for (const int place : { 2, 1 }) {
        float sums[16][16] = {};
        uint16_t a[16][32] = {}, b[16][32] = {};
        const uint16_t one = 0x3f80, big = 0x4b80, minus_big = 0xcb80;
        a[0][0] = big;
        a[0][place] = one;
        a[0][4] = minus_big;
        for (int k = 0; k < 16; ++k) {
            b[k][0] = b[k][1] = one;
        }
        tile.template load<0>(sums, sizeof(sums[0]));
        tile.template load<2>(a, sizeof(a[0]));
        tile.template load<6>(b, sizeof(b[0]));
        tile.template add_products_bf16<0, 2, 6>();
        tile.template store<0>(sums, sizeof(sums[0]));
        require(sums[0][0] == (place == 1 ? 1.0f : 0.0f), "products are added in another order");
    }
}

bof4_tile_configuration current() {
    alignas(64) bof4_tile_configuration c;
    __asm__ volatile("sttilecfg %0" : "=m"(c) : : "memory");
    return c;
}

// What upstream's kernels have configured must be there after ours.
void check_configuration() {
    const bof4_tile_configuration none = {};
    {
        bof4_tiles_amx tile;
        require(current().rows[7] == 16 && current().row_bytes[0] == 64, "tiles are not configured");
    }
    const bof4_tile_configuration released = current();
    require(memcmp(&released, &none, sizeof(none)) == 0, "tiles are not released");
    alignas(64) bof4_tile_configuration theirs = {};
    theirs.palette = 1;
    theirs.rows[0] = 8;
    theirs.row_bytes[0] = 64;
    theirs.rows[2] = 16;
    theirs.row_bytes[2] = 32;
    __asm__ volatile("ldtilecfg %0" : : "m"(theirs) : "memory");
    { bof4_tiles_amx tile; }
    const bof4_tile_configuration after = current();
    require(memcmp(&after, &theirs, sizeof(after)) == 0, "the configuration is not restored");
}

} // namespace

int main() {
    check_products<BOF4_GEMM_TWIN>();
    check_bf16<BOF4_GEMM_TWIN>();
    if (std::is_same<BOF4_GEMM_TWIN, bof4_tiles_amx>::value) {
        check_configuration();
    }
    std::printf("ok\n");
    return 0;
}
