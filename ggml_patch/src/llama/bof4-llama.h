// Outlier lists in llama.cpp's loader and in llama-quantize.
#pragma once

#include "ggml-backend.h"
#include "ggml.h"

struct llama_model_loader;

// Checks all lists of the file; returns their number. Throws std::runtime_error, naming the tensor, where a list is
// malformed or has no weight.
int bof4_list_check_all(const llama_model_loader & ml);

// The metadata of the weight's list in the file, or null where it has none.
const ggml_tensor * bof4_list_meta(const llama_model_loader & ml, const ggml_tensor * weight);

// The buffer type of the list of a weight in `weight_buft`: lists of repacked weights are in ordinary memory. Throws
// std::runtime_error for weights that are split over devices.
ggml_backend_buffer_type_t bof4_list_buft(ggml_backend_buffer_type_t weight_buft);

// Creates the list in `ctx`, from which it is loaded like any other tensor, and attaches it to its weight.
void bof4_list_create(ggml_tensor * weight, const ggml_tensor * meta, ggml_context * ctx);

// For llama-quantize, which would decode the codes alone: throws std::runtime_error where the weight has a list.
void bof4_list_refuse_to_lose(const llama_model_loader & ml, const ggml_tensor * weight);
