#version 450

// Adds the products of outliers to a result of mul_mat or mul_mat_id, or outliers to rows of get_rows: dst += list.
// A thread computes one number of the result, or one row of get_rows. Lists: docs/formats.md, bof4-list.h.

#define MUL_MAT 0
#define MUL_MAT_ID 1
#define GET_ROWS 2

layout (constant_id = 0) const uint OPERATION = MUL_MAT;

layout(local_size_x = 64, local_size_y = 1, local_size_z = 1) in;

layout (binding = 0) readonly buffer L {int list[];};
layout (binding = 1) readonly buffer B {float data_b[];};
layout (binding = 2) readonly buffer I {int data_ids[];};
layout (binding = 3) buffer D {float data_d[];};

// Sizes and strides are elements; offset_*: elements before a tensor in its buffer.
layout (push_constant) uniform parameter {
    uint offset_list, offset_b, offset_ids, offset_d;
    uint entries;                              // of the list: where entries begin
    uint row_length;                           // of the weight
    uint first, n;                             // element of the weight at which src[0] begins; length of its rows
    uint stride_a1, stride_a2, stride_a3;      // elements of the weight between neighbours in src[0]
    uint ne0, ne1, ne2, ne3;                   // of the result
    uint stride_d1, stride_d2, stride_d3;
    uint stride_b1, stride_b2, stride_b3;      // of the activations
    uint ne_b1;
    uint repeat2, repeat3;                     // how many matrices of activations share one of weights
    uint stride_ids0, stride_ids1, stride_ids2;
} p;

// The list's entries of the operand's row that begins at this element of the weight. Such a row may span several of the
// weight, or be a part of one. b: index of activation 0, for products. d: index of the row, for get_rows.
void apply(const uint element, const uint b, const uint d) {
    const uint end = element + p.n;
    float sum = 0;
    bool has_outliers = false;
    for (uint row = element / p.row_length; row * p.row_length < end; ++row) {
        const uint last = uint(list[p.offset_list + row + 1]);
        for (uint i = uint(list[p.offset_list + row]); i < last; ++i) {
            const int entry = list[p.offset_list + p.entries + i];
            const uint at = row * p.row_length + uint(entry & 0xffff);
            if (at < element || at >= end) {
                continue;
            }
            const float value = intBitsToFloat(entry & ~0xffff);
            if (OPERATION == GET_ROWS) {
                data_d[d + at - element] += value;
            } else {
                sum += value * data_b[b + at - element];
                has_outliers = true;
            }
        }
    }
    if (has_outliers) {
        data_d[d] += sum;
    }
}

void main() {
    const uint i0 = gl_GlobalInvocationID.x;
    // the grid may be smaller than the result
    for (uint z = gl_WorkGroupID.z; z < p.ne2 * p.ne3; z += gl_NumWorkGroups.z) {
        const uint i2 = z % p.ne2, i3 = z / p.ne2;
        if (OPERATION == GET_ROWS) {
            if (i0 < p.ne1) {
                const uint at = i0 * p.stride_ids0 + i2 * p.stride_ids1 + i3 * p.stride_ids2;
                const uint id = uint(data_ids[p.offset_ids + at]);
                const uint element = p.first + id * p.stride_a1 + i2 * p.stride_a2 + i3 * p.stride_a3;
                apply(element, 0, p.offset_d + i0 * p.stride_d1 + i2 * p.stride_d2 + i3 * p.stride_d3);
            }
            continue;
        }
        for (uint i1 = gl_WorkGroupID.y; i1 < p.ne1 && i0 < p.ne0; i1 += gl_NumWorkGroups.y) {
            uint element = p.first + i0 * p.stride_a1;
            uint b = p.offset_b + i2 * p.stride_b2;
            if (OPERATION == MUL_MAT) {
                element += i2 / p.repeat2 * p.stride_a2 + i3 / p.repeat3 * p.stride_a3;
                b += i1 * p.stride_b1 + i3 * p.stride_b3;
            } else {
                element += uint(data_ids[p.offset_ids + i1 * p.stride_ids0 + i2 * p.stride_ids1]) * p.stride_a2;
                b += i1 % p.ne_b1 * p.stride_b1;
            }
            apply(element, b, p.offset_d + i0 + i1 * p.stride_d1 + i2 * p.stride_d2 + i3 * p.stride_d3);
        }
    }
}
