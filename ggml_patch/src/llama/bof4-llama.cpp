#include "bof4-llama.h"

#include "../lists/bof4-list.h"
#include "llama-impl.h"
#include "llama-model-loader.h"

#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

static const std::string suffix = BOF4_LIST_SUFFIX;

static bool is_list_name(const std::string & name) {
    return name.size() > suffix.size() && name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0;
}

// llama.cpp's log is written by a thread that may end before it has written this.
[[noreturn]] static void refuse(const std::string & message) {
    fprintf(stderr, "%s\n", message.c_str());
    throw std::runtime_error(message);
}

static void check_list(
    const llama_model_loader & ml, const std::string & name, const llama_model_loader::llama_tensor_weight & list) {
    auto refuse_list = [&](const std::string & why) {
        refuse(format("outlier list '%s' is not valid: %s", name.c_str(), why.c_str()));
    };
    const std::string weight_name = name.substr(0, name.size() - suffix.size());
    const ggml_tensor * weight = ml.get_tensor_meta(weight_name.c_str());
    if (weight == nullptr) {
        refuse_list("the file has no tensor '" + weight_name + "'");
    }
    if (!ggml_is_bof4(weight->type)) {
        refuse_list(std::string("its weight is of type ") + ggml_type_name(weight->type) + ", which has no lists");
    }
    const ggml_tensor * t = list.tensor;
    if (t->type != GGML_TYPE_I32 || ggml_n_dims(t) != 1) {
        refuse_list("it is not a one-dimensional tensor of type i32");
    }
    std::vector<int32_t> numbers(ggml_nelements(t));
    const auto & file = ml.files.at(list.idx);
    file->seek(list.offs, SEEK_SET);
    file->read_raw(numbers.data(), ggml_nbytes(t));
    if (const char * why = ggml_bof4_list_error(numbers.data(), numbers.size(), ggml_nrows(weight), weight->ne[0])) {
        refuse_list(why);
    }
}

int bof4_check_model(const llama_model_loader & ml) {
    const std::string error = bof4_gguf_metadata_error(ml.metadata);
    if (!error.empty()) {
        refuse("this model cannot be loaded: " + error);
    }
    int n_lists = 0;
    for (const auto & [name, weight] : ml.weights_map) {
        if (is_list_name(name)) {
            check_list(ml, name, weight);
            ++n_lists;
        }
    }
    return n_lists;
}

const ggml_tensor * bof4_list_meta(const llama_model_loader & ml, const ggml_tensor * weight) {
    return ml.get_tensor_meta((ggml_get_name(weight) + suffix).c_str());
}

// The graphs of Gemma 3n and Gemma 4 copy the first row of this one where a batch holds embeddings (images, audio).
static const char * const COPIED_WEIGHT = "per_layer_token_embd.weight";

void bof4_list_check_op(const llama_model_loader & ml, const ggml_tensor * weight, ggml_op op) {
    const bool is_applied = op == GGML_OP_MUL_MAT || op == GGML_OP_MUL_MAT_ID || op == GGML_OP_GET_ROWS;
    if ((!is_applied || strcmp(ggml_get_name(weight), COPIED_WEIGHT) == 0) && bof4_list_meta(ml, weight) != nullptr) {
        refuse(format("tensor '%s' has an outlier list, which the model's graph would not apply everywhere: convert "
                      "the unquantized model again (`bof4 convert` writes no list for it any more), or this file with "
                      "--tensor-type %s=q8_0",
            ggml_get_name(weight), ggml_get_name(weight)));
    }
}

ggml_backend_buffer_type_t bof4_list_buft(ggml_backend_buffer_type_t weight_buft) {
    ggml_backend_dev_t dev = ggml_backend_buft_get_device(weight_buft);
    if (dev && ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_META) {
        throw std::runtime_error("outlier lists cannot be split over devices row by row: use --split-mode layer, "
                                 "or convert the model without lists (--opq off)");
    }
    const bool on_cpu = dev && ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU;
    return on_cpu ? ggml_backend_dev_buffer_type(dev) : weight_buft;
}

void bof4_list_create(ggml_tensor * weight, const ggml_tensor * meta, ggml_context * ctx) {
    ggml_tensor * list = ggml_get_tensor(ctx, ggml_get_name(meta));
    if (list == nullptr) {
        list = ggml_dup_tensor(ctx, meta);
        ggml_set_name(list, ggml_get_name(meta));
    }
    ggml_bof4_list_attach(weight, list);
}

void bof4_quantize_plan(
    const llama_model_loader & ml, const ggml_tensor * weight, ggml_type target_type, gguf_context * output) {
    if (target_type != weight->type && bof4_list_meta(ml, weight) != nullptr) {
        throw std::runtime_error(
            format("tensor '%s' has an outlier list, which this program would lose: quantize the original model, "
                   "or use `bof4 convert`, which applies lists",
                ggml_get_name(weight)));
    }
    bof4_gguf_describe(output, target_type);
}

void bof4_list_save(const ggml_tensor * weight, gguf_context * output) {
    bof4_gguf_describe(output, weight->type);
    if (const ggml_tensor * list = ggml_bof4_list_of_weight(weight)) {
        gguf_add_tensor(output, list);
    }
}
