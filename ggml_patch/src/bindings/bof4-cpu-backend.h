// The CPU backend, linked or loaded at run time: everything here goes through ggml's registry of backends.
#pragma once

#include "../cpu/bof4-prefetch.h"
#include "../cpu/bof4-repack.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"

// Disables ggml's log during its lifetime.
class bof4_silence {
  public:
    bof4_silence() {
        ggml_log_get(&callback, &data);
        ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    }
    ~bof4_silence() { ggml_log_set(callback, data); }

  private:
    ggml_log_callback callback;
    void * data;
};

// The CPU backend's device. Where backends are modules (GGML_BACKEND_DL), the first call loads them from the folder of
// this library; of the CPU backend the variant with the most instructions of those that this processor can run.
// Throws std::runtime_error where there is none.
ggml_backend_dev_t bof4_cpu_device();

// A backend on that device that computes on `threads` threads.
ggml_backend_ptr bof4_cpu_backend(int threads);

// Is the backend built for these instructions? `name`: of ggml_backend_get_features, e.g. "AVX512_VNNI".
bool bof4_cpu_has(const char * name);

// The backend's buffer types beside its ordinary one, terminated by nullptr; nullptr: none.
ggml_backend_buffer_type_t * bof4_cpu_extra_buffer_types();

// As bof4_prefetch_chosen of the backend (cpu/bof4-prefetch.h).
int64_t bof4_cpu_prefetch(ggml_type type, bof4_prefetch_reader reader, int n_threads);

// As bof4_repack_path of the backend (cpu/bof4-repack.h).
int bof4_cpu_path(ggml_type type, int64_t n_columns);

// vec_dot of a type and what belongs to it.
const ggml_type_traits_cpu * bof4_cpu_type_traits(ggml_type type);
