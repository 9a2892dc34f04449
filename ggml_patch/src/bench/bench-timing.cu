#include "bench-timing.h"

#include "ggml-backend-impl.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

static void check(cudaError_t error) {
    if (error != cudaSuccess) {
        throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
    }
}

gpu_facts select_gpu(int device) {
    check(cudaSetDevice(device));
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, device));
    gpu_facts facts;
    facts.name = properties.name;
    facts.capability = std::to_string(properties.major) + "." + std::to_string(properties.minor);
    facts.l2_bytes = (size_t) properties.l2CacheSize;
    size_t total = 0;
    check(cudaMemGetInfo(&facts.free_bytes, &total));
    return facts;
}

// Four loads in flight per thread. The sum is used, otherwise the compiler would remove the loads.
static __global__ void read_all(const uint4 * __restrict__ x, size_t n, uint32_t * sink) {
    const size_t stride = (size_t) gridDim.x * blockDim.x;
    size_t i = (size_t) blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t sum = 0;
    for (; i + 3 * stride < n; i += 4 * stride) {
        const uint4 a = x[i], b = x[i + stride], c = x[i + 2 * stride], d = x[i + 3 * stride];
        sum ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
    }
    for (; i < n; i += stride) {
        sum ^= x[i].x ^ x[i].y ^ x[i].z ^ x[i].w;
    }
    if (sum == 0x600df00d) {
        *sink = sum;
    }
}

// Median seconds of one pass. Passes are enqueued without waiting for the one before.
template <typename Pass> static double median_seconds(Pass pass) {
    enum { PASSES = 21 };
    std::vector<cudaEvent_t> events(PASSES + 1);
    for (cudaEvent_t & event : events) {
        check(cudaEventCreate(&event));
    }
    pass();
    check(cudaEventRecord(events[0]));
    for (int i = 1; i <= PASSES; ++i) {
        pass();
        check(cudaEventRecord(events[i]));
    }
    check(cudaGetLastError());
    check(cudaDeviceSynchronize());
    std::vector<double> seconds;
    for (int i = 1; i <= PASSES; ++i) {
        float ms = 0;
        check(cudaEventElapsedTime(&ms, events[i - 1], events[i]));
        seconds.push_back(ms * 1e-3);
    }
    for (cudaEvent_t event : events) {
        check(cudaEventDestroy(event));
    }
    std::nth_element(seconds.begin(), seconds.begin() + PASSES / 2, seconds.end());
    return seconds[PASSES / 2];
}

bandwidth measure_bandwidth(const gpu_facts & gpu) {
    const size_t wanted = std::max(16 * gpu.l2_bytes, (size_t) 1 << 30);
    const size_t bytes = std::min(wanted, gpu.free_bytes / 4) / 4096 * 4096;
    char * from = nullptr;
    char * to = nullptr;
    check(cudaMalloc(&from, bytes));
    check(cudaMalloc(&to, bytes));
    check(cudaMemset(from, 0, bytes));
    int device = 0, multiprocessors = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));

    bandwidth result;
    result.read = bytes / median_seconds([&] {
        read_all<<<multiprocessors * 8, 256>>>((const uint4 *) from, bytes / sizeof(uint4), (uint32_t *) to);
    });
    result.copy = 2.0 * bytes /
        median_seconds([&] { check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice)); });
    check(cudaFree(from));
    check(cudaFree(to));
    return result;
}

// An event that records time, which ggml's own events do not. The CUDA backend records any event on the stream that it
// uses.
struct timed_event {
    cudaEvent_t event = nullptr;
    ggml_backend_event wrapped;

    explicit timed_event(ggml_backend_t backend) {
        check(cudaEventCreate(&event));
        wrapped.device = ggml_backend_get_device(backend);
        wrapped.context = event;
    }
    timed_event(const timed_event &) = delete;
    ~timed_event() { cudaEventDestroy(event); }
};

double seconds_on_gpu(ggml_backend_t backend, const std::function<void()> & work) {
    timed_event begin(backend), end(backend);
    work();
    ggml_backend_event_record(&begin.wrapped, backend);
    work();
    ggml_backend_event_record(&end.wrapped, backend);
    ggml_backend_synchronize(backend);
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin.event, end.event));
    return ms * 1e-3;
}
