// The types in llama.cpp's loader and in the rules of llama-quantize.
#pragma once

#include "../format/bof4-hooks.h"

#include "llama.h"

// BOF4_TYPES(...) in llama_ftype_name
#define BOF4_FILE_TYPE_NAME_CASE(NAME, c_name) \
    case LLAMA_FTYPE_MOSTLY_##NAME: name = LLAMA_FTYPE_PREFIX #NAME " - " NAME##_BPW " bpw"; break;

// BOF4_TYPES(...) where the loader guesses the file type from the type of most tensors
#define BOF4_GUESSED_FILE_TYPE_CASE(NAME, c_name) \
    case GGML_TYPE_##NAME: ftype = LLAMA_FTYPE_MOSTLY_##NAME; break;

// BOF4_TYPES(...) in llama_ftype_get_default_type
#define BOF4_DEFAULT_TYPE_CASE(NAME, c_name) \
    case LLAMA_FTYPE_MOSTLY_##NAME: return GGML_TYPE_##NAME;

// Is this the file type of one of the BOF4 types?
static inline bool bof4_is_file_type(llama_ftype ftype) {
#define BOF4_OR_IS(NAME, c_name) || ftype == LLAMA_FTYPE_MOSTLY_##NAME
    return false BOF4_TYPES(BOF4_OR_IS);
#undef BOF4_OR_IS
}

// The type of a tensor whose rows of `ncols` weights do not divide into blocks of the BOF4 type `type`: the first along
// the chain of NAME_FALLBACK whose blocks do, or the type that ends the chain.
static inline ggml_type bof4_fallback_type(ggml_type type, int64_t ncols) {
    while (ggml_is_bof4(type) && ncols % ggml_blck_size(type) != 0) {
        switch (type) {
#define BOF4_FALLBACK_CASE(NAME, c_name) \
    case GGML_TYPE_##NAME: type = NAME##_FALLBACK; break;
            BOF4_TYPES(BOF4_FALLBACK_CASE)
#undef BOF4_FALLBACK_CASE
            default: return type;
        }
    }
    return type;
}
