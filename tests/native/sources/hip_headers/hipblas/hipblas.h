// What ggml's CUDA sources name of hipBLAS, which Debian 12 does not have: for compiling only.
#pragma once

#include <hip/hip_runtime_api.h>

typedef void * hipblasHandle_t;
typedef enum {
    HIPBLAS_STATUS_SUCCESS,
    HIPBLAS_STATUS_NOT_INITIALIZED,
    HIPBLAS_STATUS_ALLOC_FAILED,
    HIPBLAS_STATUS_INVALID_VALUE,
    HIPBLAS_STATUS_ARCH_MISMATCH,
    HIPBLAS_STATUS_MAPPING_ERROR,
    HIPBLAS_STATUS_EXECUTION_FAILED,
    HIPBLAS_STATUS_INTERNAL_ERROR,
    HIPBLAS_STATUS_NOT_SUPPORTED,
} hipblasStatus_t;

extern "C" {
hipblasStatus_t hipblasCreate(hipblasHandle_t *);
hipblasStatus_t hipblasDestroy(hipblasHandle_t);
hipblasStatus_t hipblasSetMathMode(hipblasHandle_t, int);
hipblasStatus_t hipblasSetStream(hipblasHandle_t, hipStream_t);
}
