#pragma once

#include <cmath>

inline float ggml_cuda_op_silu_single(float x) {
    return x / (1.0f + std::exp(-x));
}

inline float ggml_cuda_op_gelu_single(float x) {
    return 0.5f * x * (1.0f + std::tanh(0.79788456080286535587989211986876f * x * (1.0f + 0.044715f * x * x)));
}

inline float ggml_cuda_op_swiglu_oai_single(float x, float g) {
    x = std::fmin(x, 7.0f);
    g = std::fmax(std::fmin(g, 7.0f), -7.0f);
    return x / (1.0f + std::exp(-x * 1.702f)) * (1.0f + g);
}

inline float ggml_cuda_op_swiglu_clamp_single(float gate, float up, float limit) {
    return ggml_cuda_op_silu_single(std::fmin(gate, limit)) * std::fmax(std::fmin(up, limit), -limit);
}
