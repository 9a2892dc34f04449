// The extra buffer type of the CPU backend that repacks weights as they are loaded (layout: bof4-repack-layout.h).
#pragma once

#include "ggml-backend.h"

// NULL where this build has no kernels for repacked weights (bof4-gemm.h).
ggml_backend_buffer_type_t ggml_backend_cpu_bof4_buffer_type(void);
