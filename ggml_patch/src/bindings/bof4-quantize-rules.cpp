// llama-quantize's rules: which tensors it quantizes.
#include "bof4-checks.h"

#include "ggml-cpp.h"
#include "ggml.h"
#include "llama-cpp.h"
#include "llama-ext.h"

#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

namespace {

using model_ptr = std::unique_ptr<llama_model, decltype(&llama_model_free)>;

// A model without weights: llama-quantize's rules read nothing but its architecture.
const llama_model * model_of(const std::string & architecture) {
    static std::mutex mutex;
    static std::map<std::string, model_ptr> models;
    const std::lock_guard<std::mutex> lock(mutex);
    auto it = models.find(architecture);
    if (it == models.end()) {
        llama_quant_model_desc desc = {};
        desc.architecture = architecture.c_str();
        desc.n_layer = 1;
        try {
            it =
                models.emplace(architecture, model_ptr(llama_quant_model_from_metadata(&desc), llama_model_free)).first;
        } catch (const std::exception &) {
            throw std::runtime_error("this llama.cpp does not know the architecture '" + architecture + "'");
        }
    }
    return it->second.get();
}

} // namespace

int bof4_allows_quantization(const char * architecture, const char * name, int n_dims, const int64_t * ne) {
    return bof4_guarded([&]() -> int {
        const llama_model * model = model_of(architecture);
        const llama_model_quantize_params params = llama_model_quantize_default_params();
        ggml_init_params ctx_params = { ggml_tensor_overhead(), nullptr, /*no_alloc*/ true };
        ggml_context_ptr ctx(ggml_init(ctx_params));
        ggml_tensor * tensor = ggml_new_tensor(ctx.get(), GGML_TYPE_F32, n_dims, ne);
        ggml_set_name(tensor, name);
        const std::unique_ptr<quantize_state_impl, decltype(&llama_quant_free)> rules(
            llama_quant_init(model, &params), llama_quant_free);
        return llama_quant_tensor_allows_quantization(rules.get(), tensor) ? 1 : 0;
    });
}
