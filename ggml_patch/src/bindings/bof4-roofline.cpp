// The roofline of a product: how fast this machine reads weights, and how fast it multiplies them.
#include "bof4-api.h"
#include "bof4-checks.h"
#include "bof4-cpu-backend.h"
#include "bof4-timing.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__GNUC__)
#include <arm_neon.h>
#endif

namespace {

double now_ns() {
    return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The data read must be used, or the compiler removes the loads.
volatile uint64_t sink;

#if defined(__GNUC__)
#define ALWAYS_INLINE inline __attribute__((always_inline))
typedef uint64_t lanes __attribute__((vector_size(64), aligned(1), may_alias));
#else
#define ALWAYS_INLINE inline
struct lanes {
    uint64_t v[8];
    lanes & operator|=(const lanes & o) {
        for (int i = 0; i < 8; ++i) {
            v[i] |= o.v[i];
        }
        return *this;
    }
};
#endif

// `streams` equal parts, read alternately: processors differ in the number of streams that they read fastest.
template <int streams> ALWAYS_INLINE void read_streams(const char * data, int64_t nbytes) {
    constexpr int unroll = 4;
    const int64_t part = nbytes / streams / (unroll * 64) * (unroll * 64);
    lanes sums[unroll] = {};
    for (int64_t at = 0; at < part; at += unroll * 64) {
        for (int s = 0; s < streams; ++s) {
            for (int i = 0; i < unroll; ++i) {
                sums[i] |= *(const lanes *) (data + s * part + at + i * 64);
            }
        }
    }
    uint64_t words[unroll * 8], all = 0;
    std::memcpy(words, sums, sizeof(words));
    for (const uint64_t word : words) {
        all |= word;
    }
    sink = all;
}

using reader = void (*)(const char *, int64_t);

template <int streams> void read_generic(const char * data, int64_t nbytes) {
    read_streams<streams>(data, nbytes);
}

#if defined(__x86_64__) && defined(__GNUC__)
template <int streams> __attribute__((target("avx2"))) void read_avx2(const char * data, int64_t nbytes) {
    read_streams<streams>(data, nbytes);
}
template <int streams> __attribute__((target("avx512f"))) void read_avx512(const char * data, int64_t nbytes) {
    read_streams<streams>(data, nbytes);
}
#endif

std::vector<reader> readers() {
#if defined(__x86_64__) && defined(__GNUC__)
    // by the processor, not by the backend's build: the bandwidth of the memory does not depend on the build
    if (__builtin_cpu_supports("avx512f")) {
        return { read_avx512<1>, read_avx512<2>, read_avx512<4> };
    }
    if (__builtin_cpu_supports("avx2")) {
        return { read_avx2<1>, read_avx2<2>, read_avx2<4> };
    }
#endif
    return { read_generic<1>, read_generic<2>, read_generic<4> };
}

double read_once(reader read, const char * data, int64_t nbytes, int threads) {
    const int64_t part = nbytes / threads;
    std::vector<std::thread> pool;
    const double start = now_ns();
    for (int i = 1; i < threads; ++i) {
        pool.emplace_back(read, data + i * part, part);
    }
    read(data, part);
    for (auto & t : pool) {
        t.join();
    }
    return now_ns() - start;
}

struct instructions {
    const char * name;
    int64_t products; // of one call of `multiply`
    void (*multiply)();
};

constexpr int iterations = 20000;
// independent sums: enough to hide the latency of every processor, and not too many to stay in registers
constexpr int chains = 12;

#if defined(__x86_64__) && defined(__GNUC__)

// the empty asm keeps a sum in its register, so that the compiler neither removes nor combines products
__attribute__((target("avx512f,avx512vnni"))) void multiply_avx512_vnni() {
    __m512i sums[chains] = {};
    __m512i a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(2);
    for (int t = 0; t < iterations; ++t) {
        for (auto & s : sums) {
            s = _mm512_dpbusd_epi32(s, a, b);
            asm volatile("" : "+v"(s));
        }
    }
}

#if __GNUC__ >= 11 || defined(__clang__)
#define HAS_AVX_VNNI
__attribute__((target("avx2,avxvnni"))) void multiply_avx_vnni() {
    __m256i sums[chains] = {};
    __m256i a = _mm256_set1_epi8(1), b = _mm256_set1_epi8(2);
    for (int t = 0; t < iterations; ++t) {
        for (auto & s : sums) {
            s = _mm256_dpbusd_avx_epi32(s, a, b);
            asm volatile("" : "+x"(s));
        }
    }
}
#endif

// without a dot product instruction: sums of two, of four, and an addition
__attribute__((target("avx2"))) void multiply_avx2() {
    __m256i sums[chains] = {};
    __m256i a = _mm256_set1_epi8(1), b = _mm256_set1_epi8(2), ones = _mm256_set1_epi16(1);
    for (int t = 0; t < iterations; ++t) {
        for (auto & s : sums) {
            asm volatile("" : "+x"(a));
            s = _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
            asm volatile("" : "+x"(s));
        }
    }
}

#elif defined(__aarch64__) && defined(__GNUC__)

__attribute__((target("arch=armv8.2-a+dotprod"))) void multiply_dotprod() {
    int32x4_t sums[chains] = {};
    int8x16_t a = vdupq_n_s8(1);
    for (int t = 0; t < iterations; ++t) {
        for (auto & s : sums) {
            s = vdotq_s32(s, a, a);
            asm volatile("" : "+w"(s));
        }
    }
}

__attribute__((target("arch=armv8.2-a+i8mm"))) void multiply_i8mm() {
    int32x4_t sums[chains] = {};
    int8x16_t a = vdupq_n_s8(1);
    for (int t = 0; t < iterations; ++t) {
        for (auto & s : sums) {
            s = vmmlaq_s32(s, a, a);
            asm volatile("" : "+w"(s));
        }
    }
}

#endif

instructions instructions_of_backend() {
    constexpr int64_t calls = (int64_t) iterations * chains;
#if defined(__x86_64__) && defined(__GNUC__)
    if (bof4_cpu_has("AVX512_VNNI")) {
        return { "avx512-vnni", 64 * calls, multiply_avx512_vnni };
    }
#if defined(HAS_AVX_VNNI)
    if (bof4_cpu_has("AVX_VNNI")) {
        return { "avx-vnni", 32 * calls, multiply_avx_vnni };
    }
#endif
    if (bof4_cpu_has("AVX2")) {
        return { "avx2", 32 * calls, multiply_avx2 };
    }
#elif defined(__aarch64__) && defined(__GNUC__)
    if (bof4_cpu_has("MATMUL_INT8")) {
        return { "neon-i8mm", 32 * calls, multiply_i8mm };
    }
    if (bof4_cpu_has("DOTPROD")) {
        return { "neon-dotprod", 16 * calls, multiply_dotprod };
    }
#endif
    return { "portable", calls, nullptr };
}

} // namespace

double bof4_read_ns(const void * data, int64_t nbytes, int threads, int passes) {
    double best = std::numeric_limits<double>::infinity();
    // alternately, so that a disturbance does not affect one loop only
    for (int pass = 0; pass < passes; ++pass) {
        for (const reader read : readers()) {
            best = std::min(best, read_once(read, (const char *) data, nbytes, std::max(1, threads)));
        }
    }
    return best;
}

const char * bof4_instruction_set(void) {
    const char * name = nullptr;
    bof4_guarded([&]() -> int {
        name = instructions_of_backend().name;
        return 0;
    });
    return name;
}

double bof4_int8_rate(void) {
    if (bof4_instruction_set() == nullptr) {
        return BOF4_FAILED;
    }
    const instructions found = instructions_of_backend();
    if (found.multiply == nullptr) {
        return 0.0;
    }
    double best = std::numeric_limits<double>::infinity();
    for (int pass = 0; pass < 50; ++pass) {
        const double start = now_ns();
        found.multiply();
        best = std::min(best, now_ns() - start);
    }
    return (double) found.products / best;
}
