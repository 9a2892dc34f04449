// Loops over all cores, outside of ggml's thread pool: loading weights.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

// f(i) for every i below n; a thread takes `chunk` of them at a time.
template <typename F>
void bof4_parallel_for(int64_t n, int64_t chunk, const F & f) {
    std::atomic<int64_t> next(0);
    const auto work = [&] {
        for (int64_t i = next.fetch_add(chunk); i < n; i = next.fetch_add(chunk)) {
            for (int64_t j = i; j < std::min(n, i + chunk); ++j) {
                f(j);
            }
        }
    };
    const int64_t n_chunks = (n + chunk - 1) / chunk;
    std::vector<std::thread> threads;
    for (int64_t i = 1; i < std::min<int64_t>(n_chunks, std::thread::hardware_concurrency()); ++i) {
        threads.emplace_back(work);
    }
    work();
    for (auto & thread : threads) {
        thread.join();
    }
}
