// Outlier lists in llama.cpp's loader and in llama-quantize.
#pragma once

#include "ggml-backend.h"
#include "ggml.h"

struct llama_model_loader;

// Refuse (std::runtime_error, naming the tensor) lists that are malformed or have no weight; returns their number.
int bof4_list_check_all(const llama_model_loader & ml);

// What the file says of the list of this weight, or null.
const ggml_tensor * bof4_list_meta(const llama_model_loader & ml, const ggml_tensor * weight);

// Where a list goes whose weight goes to `weight_buft`: repacked weights still have ordinary lists.
ggml_backend_buffer_type_t bof4_list_buft(ggml_backend_buffer_type_t weight_buft);

// Create the list in `ctx`, which is loaded like any other, and attach it to its weight.
void bof4_list_create(ggml_tensor * weight, const ggml_tensor * meta, ggml_context * ctx);

// llama-quantize would decode the codes alone: refuse instead (std::runtime_error).
void bof4_list_refuse_to_lose(const llama_model_loader & ml, const ggml_tensor * weight);
