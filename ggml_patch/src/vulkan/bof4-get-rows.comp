#version 450

// Rows by number: each thread decodes 4 consecutive weights.
#extension GL_EXT_control_flow_attributes : enable

#include "ggml-vulkan/vulkan-shaders/types.glsl"
#include "ggml-vulkan/vulkan-shaders/generic_binary_head.glsl"

layout(local_size_x = 256, local_size_y = 1, local_size_z = 1) in;

void main() {
    const uint i00 = 4 * gl_GlobalInvocationID.x;
    if (i00 >= p.ne00) {
        return;
    }
    // the grid may be smaller than the rows are many
    for (uint z = gl_GlobalInvocationID.z; z < p.ne11 * p.ne12; z += gl_NumWorkGroups.z) {
        const uint i11 = z / p.ne12;
        const uint i12 = z % p.ne12;
        for (uint i10 = gl_GlobalInvocationID.y; i10 < p.ne10; i10 += gl_NumWorkGroups.y) {
            const uint i01 = data_b[get_boffset() + i10 * p.nb10 + i11 * p.nb11 + i12 * p.nb12];
            const uint ib = get_aoffset() + i01 * p.nb01 + i11 * p.nb02 + i12 * p.nb03 + i00 / QUANT_K;
            const uint e = i00 % QUANT_K;
            const vec4 v = BOF4_SCALE(ib, e) * bof4_floats(BOF4_CODES(ib, e));
            const uint d = get_doffset() + i10 * p.nb21 + i11 * p.nb22 + i12 * p.nb23 + i00;
            [[unroll]] for (uint j = 0; j < 4; ++j) {
                data_d[d + j] = D_TYPE(v[j]);
            }
        }
    }
}
