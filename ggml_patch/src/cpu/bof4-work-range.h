// Work ranges with work stealing.
#pragma once

#include <atomic>
#include <cstdint>

// The pieces that one thread has yet to compute: numbers [next, end), in a cache line of their own.
class alignas(64) bof4_work_range {
  public:
    bof4_work_range(int64_t next, int64_t end) : range(pack(next, end)) {}

    // The next piece, or -1.
    int64_t take() {
        uint64_t r = range.load();
        do {
            if (next_of(r) >= end_of(r)) {
                return -1;
            }
        } while (!range.compare_exchange_weak(r, pack(next_of(r) + 1, end_of(r))));
        return next_of(r);
    }

    // Steals the second half of another thread's pieces; false where it has none left. Called for an empty range, and
    // only by the thread that it belongs to.
    bool steal_half(bof4_work_range & victim) {
        uint64_t r = victim.range.load();
        int64_t middle;
        do {
            if (next_of(r) >= end_of(r)) {
                return false;
            }
            middle = next_of(r) + (end_of(r) - next_of(r)) / 2;
        } while (!victim.range.compare_exchange_weak(r, pack(next_of(r), middle)));
        range.store(pack(middle, end_of(r)));
        return true;
    }

  private:
    static uint64_t pack(int64_t next, int64_t end) { return (uint64_t) next << 32 | (uint64_t) end; }
    static int64_t next_of(uint64_t r) { return (int64_t) (r >> 32); }
    static int64_t end_of(uint64_t r) { return (int64_t) (uint32_t) r; }

    std::atomic<uint64_t> range;
};
