#include "bof4-float-rows.h"

#include <stdexcept>
#include <string>

void bof4_check_source(ggml_type source) {
    if (source != GGML_TYPE_F32 && source != GGML_TYPE_F16 && source != GGML_TYPE_BF16) {
        throw std::runtime_error(std::string("weights come as F32, F16 or BF16, not as ") + ggml_type_name(source));
    }
}

const float * bof4_float_rows(ggml_type source, const void * src, int64_t first, int64_t count, int64_t n_per_row,
    std::vector<float> & converted) {
    if (source == GGML_TYPE_F32) {
        return (const float *) src + first * n_per_row;
    }
    converted.resize(count * n_per_row);
    const char * rows = (const char *) src + first * ggml_row_size(source, n_per_row);
    if (source == GGML_TYPE_F16) {
        ggml_fp16_to_fp32_row((const ggml_fp16_t *) rows, converted.data(), count * n_per_row);
    } else {
        ggml_bf16_to_fp32_row((const ggml_bf16_t *) rows, converted.data(), count * n_per_row);
    }
    return converted.data();
}
