#include "bof4-checks.h"

#include <stdexcept>

ggml_type bof4_checked_type(int type) {
    if (type < 0 || type >= GGML_TYPE_COUNT || ggml_blck_size((ggml_type) type) == 0) {
        throw std::runtime_error("no ggml type has the number " + std::to_string(type));
    }
    return (ggml_type) type;
}

size_t bof4_checked_row_size(ggml_type type, int64_t n_per_row) {
    if (n_per_row <= 0 || n_per_row % ggml_blck_size(type) != 0) {
        throw std::runtime_error("rows of " + std::to_string(n_per_row) + " do not divide into blocks of " +
            std::to_string(ggml_blck_size(type)) + ", which the type " + ggml_type_name(type) + " needs");
    }
    return ggml_row_size(type, n_per_row);
}

const char * bof4_last_error(void) {
    return bof4_error_message.c_str();
}

int64_t bof4_row_size(int type, int64_t n_per_row) {
    return bof4_guarded(
        [&]() -> int64_t { return (int64_t) bof4_checked_row_size(bof4_checked_type(type), n_per_row); });
}
