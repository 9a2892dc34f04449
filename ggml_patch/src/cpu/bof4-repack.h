// The extra buffer type of the CPU backend that interleaves BOF4 weights as they are loaded (bof4-gemm.h).
#pragma once

#include "ggml-backend.h"

// NULL where this processor has no kernels for interleaved weights.
ggml_backend_buffer_type_t ggml_backend_cpu_bof4_buffer_type(void);
