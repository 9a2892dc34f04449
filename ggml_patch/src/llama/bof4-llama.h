// Outlier lists and the formats' metadata in llama.cpp's loader, in llama-quantize and where models are saved.
#pragma once

#include "../gguf/bof4-gguf.h"
#include "ggml-backend.h"
#include "ggml.h"

struct llama_model_loader;

// Checks bof4.version, bof4.levels.* and all lists of the model; returns the number of lists. Throws std::runtime_error,
// naming the key or the tensor, where this build would decode other weights, or a list is malformed or has no weight.
int bof4_check_model(const llama_model_loader & ml);

// The metadata of the weight's list in the file, or null where it has none.
const ggml_tensor * bof4_list_meta(const llama_model_loader & ml, const ggml_tensor * weight);

// Throws std::runtime_error where the weight has a list that the model's graph would not apply. `op` is how the graph
// uses the weight, according to llama.cpp's table of tensors.
void bof4_list_check_op(const llama_model_loader & ml, const ggml_tensor * weight, ggml_op op);

// The buffer type of the list of a weight in `weight_buft`: lists of repacked weights are in ordinary memory. Throws
// std::runtime_error for weights that are split over devices.
ggml_backend_buffer_type_t bof4_list_buft(ggml_backend_buffer_type_t weight_buft);

// Creates the list in `ctx`, from which it is loaded like any other tensor, and attaches it to its weight.
void bof4_list_create(ggml_tensor * weight, const ggml_tensor * meta, ggml_context * ctx);

// For llama-quantize, which would decode the codes alone: throws std::runtime_error where the weight has a list and is
// to get another type. Adds the metadata of the type to the output.
void bof4_quantize_plan(
    const llama_model_loader & ml, const ggml_tensor * weight, ggml_type target_type, gguf_context * output);

// For llama_model_save_to_file: adds the list of the weight, where it has one, and the metadata of its type.
void bof4_list_save(const ggml_tensor * weight, gguf_context * output);
