#version 450

// Copies of a tensor to floats: one workgroup decodes a block. Indices are those of upstream's copies.
#extension GL_EXT_control_flow_attributes : enable

#include "ggml-vulkan/vulkan-shaders/types.glsl"
#include "ggml-vulkan/vulkan-shaders/generic_unary_head.glsl"

layout(local_size_x = 16, local_size_y = 1, local_size_z = 1) in;

void main() {
    const uint idx = gl_WorkGroupID.z * 262144 + gl_WorkGroupID.y * 512 + gl_WorkGroupID.x * QUANT_K;
    if (idx >= p.ne) {
        return;
    }
    const uint d = get_doffset() + dst_idx(idx);
    const uint ib = src0_idx_quant(idx, QUANT_K);
    for (uint e = 4 * gl_LocalInvocationID.x; e < QUANT_K; e += 4 * gl_WorkGroupSize.x) {
        const vec4 v = BOF4_SCALE(ib, e) * bof4_floats(BOF4_CODES(ib, e));
        [[unroll]] for (uint j = 0; j < 4; ++j) {
            data_d[d + e + j] = D_TYPE(v[j]);
        }
    }
}
