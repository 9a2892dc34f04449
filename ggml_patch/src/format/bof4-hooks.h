// What the patches put into upstream's switches and tables: each use is BOF4_TYPES(MACRO), one line for all types.
#pragma once

#include "bof4-blocks.h"

// case labels of one common case body
#define BOF4_CASE(NAME, name) case GGML_TYPE_##NAME:

// elements of an array of types
#define BOF4_TYPE_ELEMENT(NAME, name) GGML_TYPE_##NAME,

// type_traits of ggml.c
#define BOF4_TYPE_TRAITS(NAME, name) \
    [GGML_TYPE_##NAME] = { \
        .type_name = #name, \
        .blck_size = QK_##NAME, \
        .type_size = NAME##_BLOCK_BYTES, \
        .is_quantized = true, \
        .to_float = dequantize_row_##name, \
        .from_float_ref = quantize_row_##name##_ref, \
    },

// ggml_quantize_chunk
#define BOF4_QUANTIZE_CASE(NAME, name) \
    case GGML_TYPE_##NAME: \
        result = quantize_##name(src + start, (char *) dst + start_row * row_size, nrows, n_per_row, imatrix); \
        break;

// ggml_validate_row_data
#define BOF4_VALIDATE_CASE(NAME, name) \
    case GGML_TYPE_##NAME: return validate_row_##name(data, nb);

// ggml_type_from_name of llama-bench
#define BOF4_RETURN_TYPE_OF_NAME(NAME, name) \
    if (s == #name) { \
        return GGML_TYPE_##NAME; \
    }

// QUANT_OPTIONS of llama-quantize
#define BOF4_QUANT_OPTION(NAME, name) \
    { \
        #NAME, \
        LLAMA_FTYPE_MOSTLY_##NAME, \
        " " NAME##_BPW " bpw " NAME##_DESCRIPTION, \
    },
