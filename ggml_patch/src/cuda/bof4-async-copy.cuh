// Asynchronous copies from global to shared memory: by cp.async from Ampere on, else through registers.
//
// A file of its own, so that tests can copy on a CPU instead.
#pragma once

#include <cstdint>

// Starts to copy 16 bytes; both addresses are multiples of 16. l2_bytes: that L2 fetches at once, 0 (what is copied) or
// 128.
template <int l2_bytes> static __device__ __forceinline__ void bof4_copy_16(void * shared, const void * global) {
    static_assert(l2_bytes == 0 || l2_bytes == 128, "sizes that are used");
#if defined(CP_ASYNC_AVAILABLE)
    const uint32_t to = (uint32_t) __cvta_generic_to_shared(shared);
    if constexpr (l2_bytes == 128) {
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" : : "r"(to), "l"(global) : "memory");
    } else {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(to), "l"(global) : "memory");
    }
#else
    *(int4 *) shared = *(const int4 *) global;
#endif // defined(CP_ASYNC_AVAILABLE)
}

// Ends a group of copies of this thread. It may be empty.
static __device__ __forceinline__ void bof4_copy_commit() {
#if defined(CP_ASYNC_AVAILABLE)
    asm volatile("cp.async.commit_group;" : : : "memory");
#endif // defined(CP_ASYNC_AVAILABLE)
}

// Waits for all groups of this thread but the newest one. Copies of other threads need a barrier besides.
static __device__ __forceinline__ void bof4_copy_wait_for_all_but_one() {
#if defined(CP_ASYNC_AVAILABLE)
    asm volatile("cp.async.wait_group 1;" : : : "memory");
#endif // defined(CP_ASYNC_AVAILABLE)
}

// Waits for all copies of this thread, whether in a group or not.
static __device__ __forceinline__ void bof4_copy_wait_for_all() {
#if defined(CP_ASYNC_AVAILABLE)
    asm volatile("cp.async.wait_all;" : : : "memory");
#endif // defined(CP_ASYNC_AVAILABLE)
}
