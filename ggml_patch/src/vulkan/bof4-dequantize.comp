#version 450

// Weights to fp16: each thread decodes 16 consecutive ones, a workgroup 4096.
#extension GL_EXT_control_flow_attributes : enable

#include "ggml-vulkan/vulkan-shaders/dequant_head.glsl"

layout(local_size_x = 256, local_size_y = 1, local_size_z = 1) in;

layout (binding = 0) readonly buffer A {A_TYPE data_a[];};
layout (binding = 0) readonly buffer A_PACKED16 {A_TYPE_PACKED16 data_a_packed16[];};
layout (binding = 1) writeonly buffer D {D_TYPE data_b[];};

void main() {
    const uint first = 16 * gl_GlobalInvocationID.x;
    if (first >= p.nel) {
        return;
    }
    const uint ib = first / QUANT_K;
    const uint e = first % QUANT_K;
    const float scale = BOF4_SCALE(ib, e);
    [[unroll]] for (uint i = 0; i < 16; i += 4) {
        const vec4 v = scale * bof4_floats(BOF4_CODES(ib, e + i));
        [[unroll]] for (uint j = 0; j < 4; ++j) {
            data_b[first + i + j] = D_TYPE(v[j]);
        }
    }
}
