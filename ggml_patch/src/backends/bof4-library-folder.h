// The folder of the shared library that a function is in.
#pragma once

#include <filesystem>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>
#else
#include <dlfcn.h>
#endif

// `function`: the address of one in the library. Empty where the system does not tell.
inline std::filesystem::path bof4_library_folder(const void * function) {
#if defined(_WIN32)
    HMODULE module = nullptr;
    wchar_t path[32768];
    const DWORD flags = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    if (!GetModuleHandleExW(flags, (LPCWSTR) function, &module)) {
        return {};
    }
    return std::filesystem::path(path, path + GetModuleFileNameW(module, path, 32768)).parent_path();
#else
    Dl_info info = {};
    if (dladdr(function, &info) == 0 || info.dli_fname == nullptr) {
        return {};
    }
    return std::filesystem::path(info.dli_fname).parent_path();
#endif
}
