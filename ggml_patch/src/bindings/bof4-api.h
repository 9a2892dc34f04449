// What makes a function visible to Python.
#pragma once

#include <cstdint>

#if defined(_WIN32)
#define BOF4_API extern "C" __declspec(dllexport)
#else
#define BOF4_API extern "C" __attribute__((visibility("default")))
#endif
