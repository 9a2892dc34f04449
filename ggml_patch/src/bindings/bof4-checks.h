// Errors and checked arguments of the functions that Python calls.
#pragma once

#include "bof4-api.h"
#include "bof4-bindings.h"

#include "ggml.h"

#include <exception>
#include <string>

// The message that bof4_last_error() returns.
inline thread_local std::string bof4_error_message;

// Runs `body`; where it throws, the result is BOF4_FAILED and the message is kept.
template <typename Body> auto bof4_guarded(Body body) -> decltype(body()) {
    try {
        return body();
    } catch (const std::exception & e) {
        bof4_error_message = e.what();
        return BOF4_FAILED;
    }
}

// Throws std::runtime_error where no ggml type has this number.
ggml_type bof4_checked_type(int type);

// Bytes of a row. Throws std::runtime_error where it does not divide into blocks of the type.
size_t bof4_checked_row_size(ggml_type type, int64_t n_per_row);
