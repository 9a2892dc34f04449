// In place of src/cuda/bof4-async-copy.cuh: copies on a CPU, done as late as they may be: when the thread waits.
#pragma once

#include "ggml-cuda/common.cuh"

#include <utility>

using bof4_copy_group = std::vector<std::pair<void *, const void *>>;

// Of each thread; the last group has not ended yet.
inline std::vector<bof4_copy_group> bof4_copies[1024];

inline std::vector<bof4_copy_group> & bof4_my_copies() {
    std::vector<bof4_copy_group> & groups = bof4_copies[on_host::running];
    groups.resize(std::max<size_t>(groups.size(), 1));
    return groups;
}

// Does the copies of all groups but the last `kept`.
inline void bof4_do_copies(size_t kept) {
    std::vector<bof4_copy_group> & groups = bof4_my_copies();
    for (; groups.size() > kept; groups.erase(groups.begin())) {
        for (const auto & [to, from] : groups.front()) {
            std::memcpy(to, from, 16);
        }
    }
}

template <int l2_bytes> void bof4_copy_16(void * to, const void * from) {
    GGML_ASSERT((uintptr_t) to % 16 == 0 && (uintptr_t) from % 16 == 0);
    bof4_my_copies().back().emplace_back(to, from);
}

inline void bof4_copy_commit() {
    bof4_my_copies().emplace_back();
}

inline void bof4_copy_wait_for_all_but_one() {
    bof4_do_copies(2); // the newest group that has ended, and the open one
}

inline void bof4_copy_wait_for_all() {
    bof4_do_copies(0);
}
