# Finds what a CUDA build needs where CMake alone does not: cmake -C cuda-toolchain.cmake -B build-cuda -DGGML_CUDA=ON ...
#
# - nvcc that is not on the PATH: $CUDACXX, $CUDA_PATH, $CUDA_HOME, /usr/local/cuda
# - cuBLAS of the Python package nvidia-cublas (it comes with torch), where the toolkit has no cublas_v2.h
# - the driver's libcuda.so.1, where the toolkit has no libcuda.so to link with; without a driver, ggml's memory pool
#   that needs libcuda is left out
#
# Options in front of -C: -DCMAKE_CUDA_COMPILER=/path/to/nvcc, -DBOF4_PYTHON=/path/to/python3

if(NOT CMAKE_CUDA_COMPILER)
    if(DEFINED ENV{CUDACXX})
        set(nvcc "$ENV{CUDACXX}")
    else()
        find_program(BOF4_NVCC nvcc PATHS "$ENV{CUDA_PATH}/bin" "$ENV{CUDA_HOME}/bin" /usr/local/cuda/bin)
        set(nvcc "${BOF4_NVCC}")
    endif()
    if(NOT nvcc)
        message(FATAL_ERROR "There is no nvcc: install NVIDIA's CUDA toolkit, or name it: CUDACXX=/path/to/bin/nvcc")
    endif()
    set(CMAKE_CUDA_COMPILER "${nvcc}" CACHE FILEPATH "")
endif()

# the toolkit's folder: nvcc may be a script or a link, and prints where it really is
execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" -v __none OUTPUT_VARIABLE shown ERROR_VARIABLE shown)
if(shown MATCHES "#\\$ TOP=([^\r\n]*)")
    get_filename_component(toolkit "${CMAKE_MATCH_1}" REALPATH)
else()
    get_filename_component(toolkit "${CMAKE_CUDA_COMPILER}" REALPATH)
    get_filename_component(toolkit "${toolkit}" DIRECTORY)
    get_filename_component(toolkit "${toolkit}" DIRECTORY)
endif()
if(NOT CUDAToolkit_ROOT)
    set(CUDAToolkit_ROOT "${toolkit}" CACHE PATH "")
endif()
message(STATUS "CUDA toolkit: ${toolkit}")

# cuBLAS
file(GLOB headers "${toolkit}/include/cublas_v2.h" "${toolkit}/targets/*/include/cublas_v2.h"
    "${toolkit}/../../math_libs/include/cublas_v2.h" "/usr/include/cublas_v2.h")
if(NOT headers)
    if(NOT BOF4_PYTHON)
        find_program(BOF4_PYTHON NAMES python3 python)
    endif()
    set(packages "")
    if(BOF4_PYTHON)
        execute_process(COMMAND "${BOF4_PYTHON}" -c "import nvidia; print(';'.join(nvidia.__path__))"
            OUTPUT_VARIABLE packages OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    endif()
    foreach(package IN LISTS packages)
        file(GLOB found "${package}/*/include/cublas_v2.h")
        list(APPEND headers ${found})
    endforeach()
    if(NOT headers)
        message(FATAL_ERROR "The CUDA toolkit in ${toolkit} has no cuBLAS (cublas_v2.h): install it, or the Python "
            "package nvidia-cublas (nvidia-cublas-cu12 for CUDA 12) for python3 or the Python in -DBOF4_PYTHON=")
    endif()
    # the newest of several, as cu13 is behind cublas
    list(SORT headers)
    list(REVERSE headers)
    list(GET headers 0 header)
    get_filename_component(include "${header}" DIRECTORY)
    get_filename_component(package "${include}" DIRECTORY)
    # -isystem: the package's folder may contain a second toolkit, whose headers must not precede nvcc's own
    set(CMAKE_CUDA_FLAGS "$ENV{CUDAFLAGS} -isystem \"${include}\"" CACHE STRING "")
    foreach(name cublas cublasLt)
        file(GLOB libraries "${package}/lib/lib${name}.so.*")
        if(libraries)
            list(GET libraries 0 library)
            set(CUDA_${name}_LIBRARY "${library}" CACHE FILEPATH "")
        endif()
    endforeach()
    message(STATUS "cuBLAS: ${package}")
endif()

# libcuda
file(GLOB stubs "${toolkit}/lib64/stubs/libcuda.so" "${toolkit}/targets/*/lib/stubs/libcuda.so"
    "${toolkit}/lib/x64/cuda.lib" "/usr/lib/*/libcuda.so" "/usr/lib64/libcuda.so" "/usr/lib/libcuda.so")
if(NOT stubs AND NOT CUDA_cuda_driver_LIBRARY)
    execute_process(COMMAND ldconfig -p OUTPUT_VARIABLE known ERROR_QUIET)
    if(known MATCHES "libcuda\\.so\\.1 [^\n]*=> ([^\n]*)")
        set(drivers "${CMAKE_MATCH_1}")
    else()
        file(GLOB drivers /usr/local/nvidia/lib64/libcuda.so.1 /usr/lib/wsl/lib/libcuda.so.1 /usr/lib/*/libcuda.so.1
            /usr/lib64/libcuda.so.1)
    endif()
    if(drivers)
        list(GET drivers 0 driver)
        set(CUDA_cuda_driver_LIBRARY "${driver}" CACHE FILEPATH "")
        message(STATUS "libcuda: ${driver}")
    else()
        set(GGML_CUDA_NO_VMM ON CACHE BOOL "")
        message(STATUS "libcuda: none to link with, GGML_CUDA_NO_VMM=ON")
    endif()
endif()
