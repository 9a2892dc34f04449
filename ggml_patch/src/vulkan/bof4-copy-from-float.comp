#version 450

// Copies of floats to a tensor, or to rows of it by number (SET_ROWS). Indices are those of upstream's copies.
#extension GL_EXT_control_flow_attributes : enable

#include "ggml-vulkan/vulkan-shaders/types.glsl"

layout(local_size_x = 32, local_size_y = 1, local_size_z = 1) in;

layout (binding = 0) readonly buffer S {S_TYPE data_s[];};
#if defined(SET_ROWS)
#include "ggml-vulkan/vulkan-shaders/generic_binary_head.glsl"
layout (binding = 1) readonly buffer N {B_TYPE data_row[];};
layout (binding = 2) writeonly buffer Q {A_TYPE data_q[];};
#else
#include "ggml-vulkan/vulkan-shaders/generic_unary_head.glsl"
layout (binding = 1) writeonly buffer Q {A_TYPE data_q[];};
#endif

#include "bof4-encode.glsl"

#if defined(SET_ROWS)

void main() {
    const uint group = gl_WorkGroupID.z * 262144 + gl_WorkGroupID.y * 512 + gl_WorkGroupID.x;
    const uint idx = (group * gl_WorkGroupSize.x + gl_LocalInvocationID.x) * QUANT_K;
    if (idx >= p.ne) {
        return;
    }
    uint i0, i1, i2, i3;
    get_indices(idx, i0, i1, i2, i3);
    // the first 32 bits of a row number
    const uint row = data_row[get_boffset() + src1_idx(i1, i2 % p.ne11, i3 % p.ne12, 0)] B_LOW;
    bof4_encode(get_doffset() + dst_idx(i0 / QUANT_K, row, i2, i3), get_aoffset() + src0_idx(i0, i1, i2, i3));
}

#else

void main() {
    const uint block = gl_WorkGroupID.z * 262144 + gl_WorkGroupID.y * 512 + gl_WorkGroupID.x * 32;
    const uint idx = (block + gl_LocalInvocationID.x) * QUANT_K;
    if (idx >= p.ne) {
        return;
    }
    bof4_encode(dst_idx_quant(idx, QUANT_K), get_aoffset() + src0_idx(idx));
}

#endif
