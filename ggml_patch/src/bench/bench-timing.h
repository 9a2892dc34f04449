// Times by CUDA events, and the bandwidth of the GPU's memory.
#pragma once

#include "ggml-backend.h"

#include <cstddef>
#include <functional>
#include <string>

struct gpu_facts {
    std::string name;
    std::string capability; // "9.0"
    size_t l2_bytes;
    size_t free_bytes;
};

// Properties of the device with this number, which becomes the current one. Throws std::runtime_error where it cannot
// be used.
gpu_facts select_gpu(int device);

struct bandwidth {
    double read; // bytes per second of a kernel that only reads
    double copy; // bytes per second of a copy, reads plus writes
};

// Medians of several passes over a buffer many times as large as the L2 cache.
bandwidth measure_bandwidth(const gpu_facts & gpu);

// Seconds that `work` takes on the backend's stream, between two CUDA events. `work` enqueues operations and does not
// wait for them. It is called twice, and the second call is timed: the GPU computes the first while the CPU prepares
// the second, so that the timed interval does not begin with an idle GPU.
double seconds_on_gpu(ggml_backend_t backend, const std::function<void()> & work);
