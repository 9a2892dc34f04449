// Work on ranges of rows, on several threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

inline int bof4_thread_count(int threads) {
    return threads > 0 ? threads : std::max(1, (int) std::thread::hardware_concurrency());
}

// About 64k weights per range: enough to hide the cost of distributing ranges, and the floats stay in L2.
inline int64_t bof4_rows_per_range(int64_t n_per_row) {
    return std::max<int64_t>(1, 65536 / n_per_row);
}

// Distributes [0, nrow) in ascending ranges of `rows` rows to threads, until `work(first, count)` returns false. Every
// range that a thread has begun is finished.
template <typename Work> void bof4_for_row_ranges(int64_t nrow, int64_t rows, int threads, const Work & work) {
    std::atomic<int64_t> next{ 0 };
    std::atomic<bool> stop{ false };
    auto worker = [&] {
        while (!stop) {
            const int64_t first = next.fetch_add(rows);
            if (first >= nrow) {
                return;
            }
            if (!work(first, std::min(rows, nrow - first))) {
                stop = true;
            }
        }
    };
    std::vector<std::thread> pool;
    for (int i = 1; i < std::min<int64_t>(bof4_thread_count(threads), (nrow + rows - 1) / rows); ++i) {
        pool.emplace_back(worker);
    }
    worker();
    for (auto & t : pool) {
        t.join();
    }
}
