// The level tables that encoders, decoders and kernels use, and the midpoints between neighbouring levels:
// NAME_levels[16] and NAME_midpoints[15] of each type.
#pragma once

#include "bof4-format.h"

#include <stdint.h>

#define BOF4_DEFINE_LEVELS(NAME, name) \
    static const int8_t name##_levels[16] = NAME##_LEVELS; \
    static const float name##_midpoints[15] = NAME##_MIDPOINTS;
BOF4_TYPES(BOF4_DEFINE_LEVELS)
#undef BOF4_DEFINE_LEVELS
