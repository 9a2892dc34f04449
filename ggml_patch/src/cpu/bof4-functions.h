// Functions of the CPU backend that the Python bindings call. The backend may be a module, from which nothing can be
// linked, so its registry gives them by name.
#pragma once

// ggml_get_type_traits_cpu or bof4_prefetch_chosen; NULL for another name.
void * bof4_cpu_function(const char * name);
