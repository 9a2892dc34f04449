// The level tables that encoders, decoders and kernels share, and the boundaries between neighbouring levels.
#pragma once

#include "bof4-format.h"

#include <stdint.h>

static const int8_t bof4_s_levels[16] = BOF4_S_LEVELS;
static const int8_t bof4_k_levels[16] = BOF4_K_LEVELS;

static const float bof4_s_midpoints[15] = BOF4_S_MIDPOINTS;
static const float bof4_k_midpoints[15] = BOF4_K_MIDPOINTS;
