#include "bof4-prefetch.h"

#include "bof4-choice.h"
#include "ggml-impl.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <map>
#include <mutex>
#include <tuple>

namespace {

constexpr std::array<int64_t, 5> DISTANCES = { 0, 1024, 2048, 4096, 8192 };

enum { SAMPLES = 24 };
using choice = bof4_choice<DISTANCES.size(), SAMPLES>;

// The number of bytes that BOF4_PREFETCH gives, or -1.
int64_t from_environment() {
    static const int64_t bytes = [] {
        const char * text = std::getenv("BOF4_PREFETCH");
        char * end = nullptr;
        const long long number = text ? std::strtoll(text, &end, 10) : -1;
        if (text && (!*text || *end || number < 0)) {
            GGML_LOG_WARN("BOF4_PREFETCH=%s is not a number of bytes, and is ignored\n", text);
            return (int64_t) -1;
        }
        return (int64_t) number;
    }();
    return bytes;
}

std::mutex mutex;

// Called with the mutex locked.
choice & choice_of(ggml_type type, bof4_prefetch_reader reader, int n_threads) {
    static std::map<std::tuple<ggml_type, bof4_prefetch_reader, int>, choice> all;
    return all[{ type, reader, n_threads }];
}

// The operation on row kernels that is being computed, for each type.
struct rows_operation {
    std::atomic<int64_t> distance;
    std::atomic<int> number; // as in a trial
    std::atomic<int> n_threads;
};
std::array<rows_operation, GGML_TYPE_COUNT> rows_operations;

thread_local double chunk_start;

} // namespace

bof4_prefetch_trial bof4_prefetch_next(ggml_type type, bof4_prefetch_reader reader, int n_threads) {
    if (from_environment() >= 0) {
        return { from_environment(), -1 };
    }
    const std::lock_guard<std::mutex> lock(mutex);
    choice & of_type = choice_of(type, reader, n_threads);
    const int number = of_type.next();
    return { DISTANCES[number < 0 ? of_type.chosen() : number], number };
}

void bof4_prefetch_add(
    ggml_type type, bof4_prefetch_reader reader, int n_threads, bof4_prefetch_trial trial, double ns_per_byte) {
    const std::lock_guard<std::mutex> lock(mutex);
    choice & of_type = choice_of(type, reader, n_threads);
    if (of_type.add(trial.number, ns_per_byte)) {
        GGML_LOG_DEBUG("%s: %s weights are prefetched %d bytes ahead (%s, %d threads)\n", __func__,
            ggml_type_name(type), (int) DISTANCES[of_type.chosen()], reader == BOF4_PREFETCH_GEMV ? "repacked" : "rows",
            n_threads);
    }
}

int64_t bof4_prefetch_chosen(ggml_type type, bof4_prefetch_reader reader, int n_threads) {
    if (from_environment() >= 0) {
        return from_environment();
    }
    const std::lock_guard<std::mutex> lock(mutex);
    const int chosen = choice_of(type, reader, n_threads).chosen();
    return chosen < 0 ? -1 : DISTANCES[chosen];
}

double bof4_prefetch_clock(void) {
    return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void bof4_prefetch_begin_rows(ggml_type type, bool is_one_column, int n_threads) {
    bof4_prefetch_trial trial = { 0, -1 };
    if (is_one_column) {
        trial = bof4_prefetch_next(type, BOF4_PREFETCH_ROWS, n_threads);
    } else {
        trial.distance = std::max<int64_t>(0, bof4_prefetch_chosen(type, BOF4_PREFETCH_ROWS, n_threads));
    }
    rows_operation & operation = rows_operations[type];
    operation.distance.store(trial.distance, std::memory_order_relaxed);
    operation.number.store(trial.number, std::memory_order_relaxed);
    operation.n_threads.store(n_threads, std::memory_order_relaxed);
}

void bof4_prefetch_begin_chunk(ggml_type type) {
    if (rows_operations[type].number.load(std::memory_order_relaxed) >= 0) {
        chunk_start = bof4_prefetch_clock();
    }
}

void bof4_prefetch_end_chunk(ggml_type type, int64_t n_bytes) {
    const rows_operation & operation = rows_operations[type];
    const int number = operation.number.load(std::memory_order_relaxed);
    if (number < 0 || chunk_start == 0.0) {
        return;
    }
    const double ns = bof4_prefetch_clock() - chunk_start;
    chunk_start = 0.0;
    if (n_bytes >= BOF4_PREFETCH_LEAST_BYTES) {
        const bof4_prefetch_trial trial = { operation.distance.load(std::memory_order_relaxed), number };
        bof4_prefetch_add(type, BOF4_PREFETCH_ROWS, operation.n_threads.load(std::memory_order_relaxed), trial,
            ns / (double) n_bytes);
    }
}

int64_t bof4_prefetch_rows_distance(ggml_type type) {
    return rows_operations[type].distance.load(std::memory_order_relaxed);
}
