#include "bof4-functions.h"

#include "bof4-prefetch.h"
#include "bof4-repack.h"
#include "ggml-cpu.h"

#include <cstring>

void * bof4_cpu_function(const char * name) {
    if (std::strcmp(name, "ggml_get_type_traits_cpu") == 0) {
        return (void *) ggml_get_type_traits_cpu;
    }
    if (std::strcmp(name, "bof4_prefetch_chosen") == 0) {
        return (void *) bof4_prefetch_chosen;
    }
    if (std::strcmp(name, "bof4_repack_path") == 0) {
        return (void *) bof4_repack_path;
    }
    return nullptr;
}
