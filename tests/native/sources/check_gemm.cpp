// Checks one build of the kernels for repacked weights: compiled once per instruction set, run on the processor or
// under qemu. Prints one line for each type and exits with 1 on a failure.
//
// With exact activations (integers times a power of two, the largest magnitude in every 32 being 127 of those) only
// sums are rounded, so every product is compared with its sum in double precision, and with that of the row kernel,
// which must have the same bits (Q6_K's is upstream's, and adds in another order). Random activations measure the error
// of their rounding, that of Q8_0 and Q8_K, or of one scale for 64 where the GEMM path of BOF4_S uses tiles.

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"

#include "cpu/bof4-gemm.h"
#include "cpu/bof4-prefetch.h"
#include "cpu/bof4-vec-dot.h"
#include "format/bof4-blocks.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

// Row kernels prefetch, which changes no result.
int64_t bof4_prefetch_rows_distance(ggml_type) {
    return 4096;
}

// what ggml-cpu.c would provide
extern "C" float ggml_table_f32_f16[1 << 16];
float ggml_table_f32_f16[1 << 16];

namespace {

std::mt19937 rng(3);

uint8_t random_codes() {
    return (uint8_t) rng();
}

ggml_fp16_t random_scale() {
    return ggml_compute_fp32_to_fp16(((float) (rng() % 2001) - 1000.0f) / 512.0f);
}

// The largest magnitude of activations is 127 units.
float unit_of(const float * x, int n) {
    float most = 0.0f;
    for (int i = 0; i < n; ++i) {
        most = std::max(most, std::fabs(x[i]));
    }
    return most / 127.0f;
}

// A type: its kernels, random blocks, the value of a weight, and the row kernel with its activations.

struct bof4_s {
    using block = block_bof4_s;
    enum { N = QK_BOF4_S };
    static constexpr const char * name = "BOF4_S";
    static constexpr ggml_type type = GGML_TYPE_BOF4_S;

    // extreme 0 and 1: nothing but the lowest, the highest level
    static block random(int extreme) {
        block b;
        b.d = random_scale();
        for (uint8_t & q : b.qs) {
            q = extreme == 0 ? 0x00 : extreme == 1 ? 0xff : random_codes();
        }
        return b;
    }
    // Activations of the row kernel, from activations that are integers times a power of two.
    static auto row_act(const float * x, int n) {
        std::vector<block_q8_0> act(n / QK8_0);
        float unit = 0.0f;
        for (int i = 0; i < n; ++i) {
            unit = i % QK8_0 ? unit : unit_of(x + i, QK8_0);
            act[i / QK8_0].d = ggml_compute_fp32_to_fp16(unit);
            act[i / QK8_0].qs[i % QK8_0] = (int8_t) (x[i] / unit);
        }
        return act;
    }
    static constexpr bool has_row_kernel = true;
    static constexpr auto row_kernel = ggml_vec_dot_bof4_s;
    static double weight(const block & b, int i) {
        const int8_t levels[16] = BOF4_S_LEVELS;
        return (double) ggml_compute_fp16_to_fp32(b.d) / BOF4_LEVEL_SCALE *
            levels[i < 32 ? b.qs[i] & 15 : b.qs[i - 32] >> 4];
    }
};

struct bof4_k {
    using block = block_bof4_k;
    enum { N = QK_BOF4_K };
    static constexpr const char * name = "BOF4_K";
    static constexpr ggml_type type = GGML_TYPE_BOF4_K;

    static block random(int extreme) {
        block b;
        b.d = random_scale();
        for (uint8_t & s : b.scales) {
            s = extreme < 2 ? 0x00 : random_codes(); // -32 throughout
        }
        for (uint8_t & q : b.qs) {
            q = extreme == 0 ? 0x00 : extreme == 1 ? 0xff : random_codes();
        }
        return b;
    }
    static auto row_act(const float * x, int n) {
        std::vector<block_q8_K> act(n / QK_K);
        float unit = 0.0f;
        for (int i = 0; i < n; ++i) {
            block_q8_K & y = act[i / QK_K];
            unit = i % QK_K ? unit : unit_of(x + i, QK_K);
            y.d = unit;
            y.qs[i % QK_K] = (int8_t) (x[i] / unit);
            y.bsums[i % QK_K / 16] = (int16_t) ((i % 16 ? y.bsums[i % QK_K / 16] : 0) + y.qs[i % QK_K]);
        }
        return act;
    }
    static constexpr bool has_row_kernel = true;
    static constexpr auto row_kernel = ggml_vec_dot_bof4_k;
    static double weight(const block & b, int i) {
        const int8_t levels[16] = BOF4_K_LEVELS;
        const uint8_t q = b.qs[i / 128 * 64 + i % 64];
        return (double) ggml_compute_fp16_to_fp32(b.d) * BOF4_K_UNIT * bof4_k_scale(&b, i / 16) *
            levels[i % 128 < 64 ? q & 15 : q >> 4];
    }
};

struct q6_k {
    using block = block_q6_K;
    enum { N = QK_K };
    static constexpr const char * name = "Q6_K";
    static constexpr ggml_type type = GGML_TYPE_Q6_K;
    static constexpr auto row_act = bof4_k::row_act;
    static constexpr bool has_row_kernel = false;

    static block random(int extreme) {
        block b;
        b.d = random_scale();
        for (int8_t & s : b.scales) {
            s = (int8_t) (extreme < 2 ? -128 : random_codes());
        }
        for (uint8_t & q : b.ql) {
            q = extreme == 0 ? 0x00 : extreme == 1 ? 0xff : random_codes();
        }
        for (uint8_t & q : b.qh) {
            q = extreme == 0 ? 0x00 : extreme == 1 ? 0xff : random_codes();
        }
        return b;
    }
    // Of a half of 128 weights, byte i % 64 has the lower bits of i and i + 64, byte i % 32 the upper ones of four.
    static double weight(const block & b, int i) {
        const int half = i / 128, j = i % 128;
        const int low = b.ql[64 * half + j % 64] >> (j < 64 ? 0 : 4) & 15;
        const int high = b.qh[32 * half + j % 32] >> (2 * (j / 32)) & 3;
        return (double) ggml_compute_fp16_to_fp32(b.d) * b.scales[i / 16] * ((low | high << 4) - 32);
    }
};

// The largest error of any product, relative to what float32 sums may have; relative squared error of all of them.
struct result {
    double largest;
    double squared;
};

template <typename type>
result check(const bof4_gemm_kernels & k, int rows, int n, int columns, int extreme, bool exact) {
    const int n_blocks = n / type::N;
    const int n_groups = (rows + BOF4_GROUP - 1) / BOF4_GROUP;
    std::vector<typename type::block> blocks(rows * n_blocks), back(rows * n_blocks);
    std::generate(blocks.begin(), blocks.end(), [&] { return type::random(extreme); });
    std::vector<double> weights(rows * n);
    for (int i = 0; i < rows * n; ++i) {
        weights[i] = type::weight(blocks[i / type::N], i % type::N);
    }

    const size_t group_bytes = k.group_bytes(n);
    // as large as it must be and not larger, so that a sanitizer reports a read beyond it
    char * groups = static_cast<char *>(std::aligned_alloc(64, (n_groups * group_bytes + 63) / 64 * 64));
    for (int g = 0; g < n_groups; ++g) {
        const int count = std::min<int>(BOF4_GROUP, rows - g * BOF4_GROUP);
        const int at = g * BOF4_GROUP * n_blocks;
        k.repack_group(blocks.data() + at, count, n, groups + g * group_bytes);
        k.unpack_group(groups + g * group_bytes, count, n, back.data() + at);
    }
    if (std::memcmp(blocks.data(), back.data(), blocks.size() * sizeof(blocks[0])) != 0) {
        std::printf("%s: a group does not unpack to its rows: %d x %d\n", type::name, rows, n);
        std::exit(1);
    }

    std::uniform_int_distribution<int> integer(-127, 127);
    std::normal_distribution<float> normal;
    std::vector<float> x(columns * n);
    for (int i = 0; i < columns * n; ++i) {
        const float unit = std::ldexp(1.0f, (i / n + i % n / 256) % 5 - 2);
        x[i] = !exact ? normal(rng)
                      : unit *
                (float) (i % 32 == 5  ? 127
                        : extreme < 2 ? (rng() & 1 ? 127 : -127)
                                      : integer(rng));
    }
    const bool use_gemv = k.use_gemv(columns);
    const size_t act_bytes = k.act_bytes(n, columns, use_gemv), a = BOF4_ACT_ALIGNMENT;
    char * act = static_cast<char *>(std::aligned_alloc(a, (act_bytes + a - 1) / a * a));
    std::vector<float> y(columns * rows + 1, NAN);
    std::vector<const void *> xs(columns);
    std::vector<float *> ys(columns);
    for (int c = 0; c < columns; ++c) {
        char * column = act + k.act_row_at(n, c, use_gemv);
        for (int j = 0; j < n; j += 2 * type::N) {
            k.quantize_act(x.data() + c * n, column, n, j, std::min<int>(j + 2 * type::N, n), use_gemv);
        }
        xs[c] = column;
        ys[c] = y.data() + c * rows;
    }
    k.gemm(groups, rows, n, xs.data(), nullptr, ys.data(), columns, use_gemv, 0);

    // the same with sums of outliers, and with prefetching, which changes nothing
    const size_t n_sums = (size_t) n_groups * columns * BOF4_GROUP;
    float * outlier_sums = static_cast<float *>(std::aligned_alloc(64, n_sums * sizeof(float)));
    std::generate(outlier_sums, outlier_sums + n_sums, [&] { return normal(rng); });
    std::vector<float> added(columns * rows + 1, NAN);
    for (int c = 0; c < columns; ++c) {
        ys[c] = added.data() + c * rows;
    }
    k.gemm(groups, rows, n, xs.data(), outlier_sums, ys.data(), columns, use_gemv, 4096);

    // either path, where the kernels leave it to the caller
    std::vector<float> by_gemv(columns * rows + 1, NAN);
    for (int c = 0; c < columns; ++c) {
        ys[c] = by_gemv.data() + c * rows;
    }
    k.gemm(groups, rows, n, xs.data(), nullptr, ys.data(), columns, k.has_choice || use_gemv, 0);
    const bool paths_differ = std::memcmp(by_gemv.data(), y.data(), columns * rows * sizeof(float)) != 0;
    std::free(groups);
    std::free(act);

    double largest = paths_differ ? INFINITY : 0.0, error2 = 0.0, all2 = 0.0;
    for (int c = 0; c < columns; ++c) {
        const auto row_act = type::row_act(x.data() + c * n, n);
        for (int r = 0; r < rows; ++r) {
            const float got = y[c * rows + r];
            double sum = 0.0, magnitude = 0.0;
            for (int j = 0; j < n; ++j) {
                const double p = weights[r * n + j] * x[c * n + j];
                sum += p;
                magnitude += std::fabs(p);
            }
            const double error = std::fabs(got - sum);
            // float32 rounding of chains of a few dozen additions
            const double allowed = 1e-6 * std::max(magnitude, 1e-30);
            largest = std::max(largest, std::isfinite(error) ? error / allowed : INFINITY);
            // a single addition after the product
            if (added[c * rows + r] !=
                got + outlier_sums[(r / BOF4_GROUP * columns + c) * BOF4_GROUP + r % BOF4_GROUP]) {
                largest = INFINITY;
            }
            error2 += error * error;
            all2 += sum * sum;
            if constexpr (type::has_row_kernel) {
                float of_row;
                type::row_kernel(n, &of_row, 0, blocks.data() + r * n_blocks, 0, row_act.data(), 0, 1);
                if (exact && got != of_row) {
                    largest = INFINITY;
                }
            }
        }
    }
    std::free(outlier_sums);
    if (!std::isnan(y.back()) || !std::isnan(added.back())) {
        largest = INFINITY; // a write beyond the last row of the last column
    }
    return { largest, error2 / all2 };
}

template <typename type>
bool check_all() {
    const bof4_gemm_kernels * kernels = bof4_gemm_kernels_of(type::type);
    if (kernels == nullptr) {
        std::printf("%s: no kernels\n", type::name);
        return true;
    }
    const bof4_gemm_kernels & k = *kernels;
    int cases = 0;
    double largest = 0.0;
    for (const int n : { (int) type::N, 3 * type::N, 1024, 1024 + 5 * type::N }) {
        for (const int rows : { 1, 15, 16, 33, 63 }) {
            for (const int columns : { 1, 2, 3, 4, 5, 6, 7, 11, 16, 18, 19, 33, 64 }) {
                const int extreme = cases++ % 7;
                largest = std::max(largest, check<type>(k, rows, n, columns, extreme, true).largest);
            }
        }
    }
    largest = std::max(largest, check<type>(k, 17, 512, 512, 2, true).largest);
    const double gemv = check<type>(k, 64, 1024, 1, 2, false).squared;
    const double gemm = check<type>(k, 64, 1024, 32, 2, false).squared;
    // rounding activations to int8 costs 3e-5 (Q8_0) to 5e-5 (Q8_K)
    const bool ok = largest < 1.0 && gemv < 1e-4 && gemm < 1e-4;
    std::printf("%s: %d shapes%s, largest error %.2g of the allowed; of rounded activations %.2g, %.2g: %s\n",
        type::name, cases + 1, type::has_row_kernel ? ", equal to the row kernel" : "", largest, gemv, gemm,
        ok ? "ok" : "FAILED");
    return ok;
}

} // namespace

int main() {
    for (uint32_t i = 0; i < 1 << 16; ++i) {
        ggml_table_f32_f16[i] = ggml_compute_fp16_to_fp32((ggml_fp16_t) i);
    }
    bool ok = check_all<bof4_s>();
    ok &= check_all<bof4_k>();
    ok &= check_all<q6_k>();
    return ok ? 0 : 1;
}
