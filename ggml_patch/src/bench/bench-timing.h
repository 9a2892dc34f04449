// Times on the GPU's own clock, and the bandwidth of its memory.
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

// What the device with this number is; makes it the current one. Throws std::runtime_error where it cannot be used.
gpu_facts select_gpu(int device);

struct bandwidth {
    double read; // bytes a second that a kernel reads which does nothing else
    double copy; // bytes a second of a copy, read and written both counted
};

// Medians of several passes over a buffer many times as large as the L2 cache.
bandwidth measure_bandwidth(const gpu_facts & gpu);

// Seconds that `work` takes on the backend's stream, between two CUDA events. `work` puts operations on the stream and does
// not wait. It is done twice and the second time is timed: the GPU is busy with the first while the processor
// prepares the second, so what is timed has no gap at its beginning.
double seconds_on_gpu(ggml_backend_t backend, const std::function<void()> & work);
