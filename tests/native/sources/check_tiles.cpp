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
    if (std::is_same<BOF4_GEMM_TWIN, bof4_tiles_amx>::value) {
        check_configuration();
    }
    std::printf("ok\n");
    return 0;
}
