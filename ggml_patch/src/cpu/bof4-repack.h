// The extra buffer type of the CPU backend that repacks weights as they are loaded (layout: bof4-repack-layout.h).
#pragma once

#include "ggml-backend.h"

#include <stdint.h>

// NULL where this build has no kernels for repacked weights (bof4-gemm.h).
ggml_backend_buffer_type_t ggml_backend_cpu_bof4_buffer_type(void);

#ifdef __cplusplus
extern "C" {
#endif

// How repacked weights of a type are multiplied with so many columns: 1 by GEMV, 0 by GEMM, -1 while that is being
// chosen (bof4-path.h).
int bof4_repack_path(enum ggml_type type, int64_t n_columns);

#ifdef __cplusplus
}
#endif
