// Rows of F32, F16 or BF16 weights as floats.
#pragma once

#include "ggml.h"

#include <cstdint>
#include <vector>

// Throws std::runtime_error for any other type.
void bof4_check_source(ggml_type source);

// The rows [first, first + count) of a source that bof4_check_source accepts; `converted` holds them where it is not
// F32.
const float * bof4_float_rows(ggml_type source, const void * src, int64_t first, int64_t count, int64_t n_per_row,
    std::vector<float> & converted);
