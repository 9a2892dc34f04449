#include "bof4-cpu-backend.h"

#include "../backends/bof4-library-folder.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace {

#if defined(GGML_BACKEND_DL)

// Only from the folder of this library: without one, ggml takes modules in the current folder, too.
void load_modules() {
    const auto folder = bof4_library_folder((const void *) &bof4_cpu_device);
    ggml_backend_load_all_from_path(folder.u8string().c_str());
}

#else

void load_modules() {}

#endif

template <typename Function> Function function_of_backend(const char * name) {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(bof4_cpu_device());
    const auto found = (Function) ggml_backend_reg_get_proc_address(reg, name);
    if (found == nullptr) {
        throw std::runtime_error(std::string("the CPU backend has no function ") + name);
    }
    return found;
}

} // namespace

ggml_backend_dev_t bof4_cpu_device() {
    static const ggml_backend_dev_t device = [] {
        const bof4_silence quiet; // of a line for each module, and of other backends' lines about their devices
        // another user of ggml in this process may have loaded it
        if (ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) == nullptr) {
            load_modules();
        }
        return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    }();
    if (device == nullptr) {
        throw std::runtime_error("no CPU backend of ggml was found beside this library that this processor can run");
    }
    return device;
}

ggml_backend_ptr bof4_cpu_backend(int threads) {
    ggml_backend_ptr backend(ggml_backend_dev_init(bof4_cpu_device(), nullptr));
    function_of_backend<ggml_backend_set_n_threads_t>("ggml_backend_set_n_threads")(backend.get(), threads);
    return backend;
}

bool bof4_cpu_has(const char * name) {
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(bof4_cpu_device());
    const auto * feature = function_of_backend<ggml_backend_get_features_t>("ggml_backend_get_features")(reg);
    for (; feature->name != nullptr; ++feature) {
        if (std::strcmp(feature->name, name) == 0) {
            return true;
        }
    }
    return false;
}

ggml_backend_buffer_type_t * bof4_cpu_extra_buffer_types() {
    return function_of_backend<ggml_backend_dev_get_extra_bufts_t>("ggml_backend_dev_get_extra_bufts")(
        bof4_cpu_device());
}

const ggml_type_traits_cpu * bof4_cpu_type_traits(ggml_type type) {
    return function_of_backend<decltype(&ggml_get_type_traits_cpu)>("ggml_get_type_traits_cpu")(type);
}

int64_t bof4_cpu_prefetch(ggml_type type, bof4_prefetch_reader reader, int n_threads) {
    return function_of_backend<decltype(&bof4_prefetch_chosen)>("bof4_prefetch_chosen")(type, reader, n_threads);
}

int bof4_cpu_path(ggml_type type, int64_t n_columns) {
    return function_of_backend<decltype(&bof4_repack_path)>("bof4_repack_path")(type, n_columns);
}
