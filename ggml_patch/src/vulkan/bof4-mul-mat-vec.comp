#version 450

// Products of weights with up to eight columns of activations: float ones, or q8_1 ones with integer dot products
// (BOF4_Q8_1). A thread takes 8 bytes of codes at a time: 8 weights in low nibbles, and 8 in high ones. Codes are
// decoded once for all columns, activations are loaded once for all rows.
#extension GL_EXT_shader_explicit_arithmetic_types_int32 : require

#if defined(BOF4_Q8_1)
#extension GL_EXT_integer_dot_product : require
#define MMQ
#define B_TYPE block_q8_1_x4
#endif

#include "ggml-vulkan/vulkan-shaders/mul_mat_vec_base.glsl"

layout(local_size_x_id = 0, local_size_y = 1, local_size_z = 1) in;

#define WEIGHTS 16
#define GROUPS (QUANT_K / WEIGHTS)

uint a_offset, b_offset, d_offset;

// Levels of 16 weights of a row: four low nibbles, the next four, then the high ones of both.
struct decoded {
#if defined(BOF4_Q8_1)
    int32_t levels[4];
#else
    vec4 levels[4];
#endif
    vec2 scales;
};

#if defined(BOF4_Q8_1)
#define BOF4_DECODE bof4_levels
#else
#define BOF4_DECODE bof4_floats
#endif

decoded decode(const uint ib, const uint word, const uint e) {
    const uint first = BOF4_WORD(ib, word), second = BOF4_WORD(ib, word + 1);
    decoded row;
    row.levels[0] = BOF4_DECODE(first);
    row.levels[1] = BOF4_DECODE(second);
    row.levels[2] = BOF4_DECODE(first >> 4);
    row.levels[3] = BOF4_DECODE(second >> 4);
    row.scales = BOF4_SCALE_PAIR(ib, e);
    return row;
}

#if defined(BOF4_Q8_1)

struct activations {
    i32vec4 q;
    vec2 scales;
};

activations load(const uint j, const uint e) {
    const uint low = b_offset + j * p.batch_stride_b + e;
    const uint high = low + BOF4_RUN;
    const uint block = low / 32, other = high / 32, i = low % 32 / 4;
    return activations(
        i32vec4(data_b[block / 4].qs[block % 4 * 8 + i], data_b[block / 4].qs[block % 4 * 8 + i + 1],
            data_b[other / 4].qs[other % 4 * 8 + i], data_b[other / 4].qs[other % 4 * 8 + i + 1]),
        vec2(data_b[block / 4].ds[block % 4].x, data_b[other / 4].ds[other % 4].x));
}

float multiply(const decoded a, const activations b) {
    const int32_t low = dotPacked4x8EXT(a.levels[0], b.q.x) + dotPacked4x8EXT(a.levels[1], b.q.y);
    const int32_t high = dotPacked4x8EXT(a.levels[2], b.q.z) + dotPacked4x8EXT(a.levels[3], b.q.w);
    return dot(a.scales * b.scales, vec2(low, high));
}

#else

struct activations {
    vec4 v[4];
};

activations load(const uint j, const uint e) {
    const uint low = (b_offset + j * p.batch_stride_b + e) / 4;
    const uint high = low + BOF4_RUN / 4;
    return activations(vec4[4](
        vec4(data_b_v4[low]), vec4(data_b_v4[low + 1]), vec4(data_b_v4[high]), vec4(data_b_v4[high + 1])));
}

float multiply(const decoded a, const activations b) {
    const float low = dot(a.levels[0], b.v[0]) + dot(a.levels[1], b.v[1]);
    const float high = dot(a.levels[2], b.v[2]) + dot(a.levels[3], b.v[3]);
    return a.scales.x * low + a.scales.y * high;
}

#endif

void add_products(
    inout FLOAT_TYPE temp[NUM_COLS][NUM_ROWS], const uint first_row, const uint num_rows, const uint group) {
    const uint blocks = p.ncols / QUANT_K;
    const uint word = group % GROUPS * 2;
    const uint e = bof4_first_weight(word);

    decoded rows[NUM_ROWS];
    [[unroll]] for (uint n = 0; n < num_rows; ++n) {
        rows[n] = decode(a_offset + (first_row + n) * blocks + group / GROUPS, word, e);
    }
    [[unroll]] for (uint j = 0; j < NUM_COLS; ++j) {
        const activations column = load(j, group / GROUPS * QUANT_K + e);
        [[unroll]] for (uint n = 0; n < num_rows; ++n) {
            temp[j][n] += FLOAT_TYPE(multiply(rows[n], column));
        }
    }
}

void compute_outputs(const uint first_row, const uint num_rows) {
    const uint tid = gl_LocalInvocationID.x;
    get_offsets(a_offset, b_offset, d_offset);

    FLOAT_TYPE temp[NUM_COLS][NUM_ROWS];
    [[unroll]] for (uint j = 0; j < NUM_COLS; ++j) {
        [[unroll]] for (uint n = 0; n < NUM_ROWS; ++n) {
            temp[j][n] = FLOAT_TYPE(0);
        }
    }

    // one copy of the body: NUM_ROWS rows keep enough loads in flight, and drivers compile it three times as fast as a
    // loop of two groups and a remainder
    for (uint group = tid; group < p.ncols / WEIGHTS; group += BLOCK_SIZE) {
        add_products(temp, first_row, num_rows, group);
    }

    reduce_result(temp, d_offset, first_row, num_rows, tid);
}

void main() {
    const uint first_row = NUM_ROWS * (gl_WorkGroupID.x + gl_NumWorkGroups.x * gl_WorkGroupID.z);
#if defined(NEEDS_INIT_IQ_SHMEM)
    init_iq_shmem(gl_WorkGroupSize);
#endif
    if (first_row + NUM_ROWS <= p.stride_d) {
        compute_outputs(first_row, NUM_ROWS);
    } else if (first_row < p.stride_d) {
        compute_outputs(first_row, p.stride_d - first_row);
    }
}
