// Enough of CUDA for g++ to compile this project's .cu files, and for a CPU to run their kernels: blocks one after the
// other, the threads of a block as coroutines that switch at barriers. The parts of upstream's headers that those files
// use are defined in cuda_on_host/, under the names that they include.
#pragma once

#include "ggml-impl.h"
#include "ggml.h"

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace on_host {

enum { WARP = 32, STACK = 1 << 18 };

struct thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    dim3 index;
    bool done = false;
    int waits[2] = {}; // barriers that it has reached: of its warp, of its block
    void * fake_stack = nullptr;
};

inline std::vector<thread> threads;
inline ucontext_t scheduler;
inline size_t running;
inline const std::function<void()> * body;
inline void * scheduler_fake_stack;
inline const void * scheduler_stack;
inline size_t scheduler_stack_size;

inline void start_switch(
    [[maybe_unused]] void ** save, [[maybe_unused]] const void * stack, [[maybe_unused]] size_t size) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(save, stack, size);
#endif
}

inline void finish_switch(
    [[maybe_unused]] void * saved, [[maybe_unused]] const void ** stack, [[maybe_unused]] size_t * size) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(saved, stack, size);
#endif
}

inline void yield() {
    thread & self = threads[running];
    start_switch(&self.fake_stack, scheduler_stack, scheduler_stack_size);
    swapcontext(&self.context, &scheduler);
    finish_switch(self.fake_stack, &scheduler_stack, &scheduler_stack_size);
}

// Wait for the other threads from first to end, except for those that are done.
inline void barrier(int scope, size_t first, size_t end) {
    const int mine = ++threads[running].waits[scope];
    const auto behind = [&](const thread & t) { return !t.done && t.waits[scope] < mine; };
    while (std::any_of(threads.begin() + first, threads.begin() + std::min(end, threads.size()), behind)) {
        yield();
    }
}

inline void entry() {
    finish_switch(nullptr, &scheduler_stack, &scheduler_stack_size);
    (*body)();
    threads[running].done = true;
    start_switch(nullptr, scheduler_stack, scheduler_stack_size);
    swapcontext(&threads[running].context, &scheduler);
}

inline void run_block(const std::function<void()> & function) {
    body = &function;
    const size_t n = (size_t) blockDim.x * blockDim.y * blockDim.z;
    threads.resize(n);
    for (size_t i = 0; i < n; ++i) {
        thread & t = threads[i];
        if (!t.stack) {
            t.stack.reset(new char[STACK]);
        }
        t.index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y);
        t.done = false;
        t.waits[0] = t.waits[1] = 0;
        t.fake_stack = nullptr;
        getcontext(&t.context);
        t.context.uc_stack.ss_sp = t.stack.get();
        t.context.uc_stack.ss_size = STACK;
        t.context.uc_link = nullptr;
        makecontext(&t.context, entry, 0);
    }
    // forwards in one block, backwards in the next: a kernel that relies on an order without a barrier fails in one of
    // them
    static bool backwards = false;
    backwards = !backwards;
    for (size_t left = n; left > 0;) {
        for (size_t i = 0; i < n; ++i) {
            running = backwards ? n - 1 - i : i;
            if (!threads[running].done) {
                threadIdx = threads[running].index;
                start_switch(&scheduler_fake_stack, threads[running].stack.get(), STACK);
                swapcontext(&scheduler, &threads[running].context);
                finish_switch(scheduler_fake_stack, nullptr, nullptr);
                left -= threads[running].done;
            }
        }
    }
}

inline void run(dim3 blocks, dim3 block_threads, const std::function<void()> & function) {
    gridDim = blocks;
    blockDim = block_threads;
    for (unsigned z = 0; z < blocks.z; ++z)
        for (unsigned y = 0; y < blocks.y; ++y)
            for (unsigned x = 0; x < blocks.x; ++x) {
                blockIdx = dim3(x, y, z);
                run_block(function);
            }
}

} // namespace on_host

inline void __syncthreads() {
    on_host::barrier(1, 0, on_host::threads.size());
}

inline void ggml_cuda_syncwarp() {
    const size_t first = on_host::running / on_host::WARP * on_host::WARP;
    on_host::barrier(0, first, first + on_host::WARP);
}

// kernels run one after the other
inline void ggml_cuda_pdl_sync() {}
inline void ggml_cuda_pdl_lc() {}

namespace on_host {

// The values of all threads of a warp, until the thread's next barrier. Written before a barrier and read after it, in
// two places alternately: a thread writes to the same place again only after another barrier, when all have read it.
template <typename T> const T * exchange(const T & value) {
    static T values[2][1024];
    const int place = threads[running].waits[0] % 2;
    values[place][running] = value;
    ggml_cuda_syncwarp();
    return values[place] + running / WARP * WARP;
}

} // namespace on_host

template <typename T> T __shfl_xor_sync(unsigned, T value, int mask, int) {
    return on_host::exchange(value)[(on_host::running % on_host::WARP) ^ mask];
}

template <typename T> T __shfl_sync(unsigned, T value, int lane, int width) {
    const int self = (int) (on_host::running % on_host::WARP);
    return on_host::exchange(value)[self / width * width + lane % width];
}

inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
    return (uint32_t) (((uint64_t) high << 32 | low) >> (shift & 31));
}

inline float __int_as_float(int bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

inline int __float_as_int(float value) {
    int bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}

struct half {
    uint16_t bits;
};
struct nv_bfloat16 {
    uint16_t bits;
};

inline half __ushort_as_half(uint16_t bits) {
    return { bits };
}

inline float __half2float(half x) {
    return ggml_compute_fp16_to_fp32(x.bits);
}

using std::min;
using std::max;

inline int ggml_cuda_dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; ++i) {
        c += (int8_t) (a >> 8 * i) * (int8_t) (b >> 8 * i);
    }
    return c;
}
