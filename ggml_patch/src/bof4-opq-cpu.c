#include "bof4-opq-cpu.h"

#include "bof4-opq.h"
#include "ggml-cpu-impl.h"
#include "ggml-impl.h"

// Columns done at once: their partial sums stay in registers.
enum { TILE = 16 };

// The outliers of one row of src[0], whose elements are first .. first + n of the weight: entries [e, end) of
// weight row `row`, whose columns count from `column0` of the operand's row. A reshaped operand's row may span
// several rows of the weight, and a slice's may be a part of one.
struct run {
    int32_t e;
    int32_t end;
    int64_t column0;    // add to an entry's column to get its place in the operand's row
};

// Next run of the operand row that starts at element `first`; `row` walks over the weight's rows.
static bool next_run(const struct bof4_list_view * view, int64_t first, int64_t * row, struct run * run) {
    const int64_t start = *row * view->row_length;
    if (start >= first + view->n) {
        return false;
    }
    run->e       = view->row_pointers[*row];
    run->end     = view->row_pointers[*row + 1];
    run->column0 = start - first;
    ++*row;
    while (run->e < run->end && run->column0 + bof4_entry_column(view->entries[run->e]) < 0) {
        ++run->e;
    }
    while (run->e < run->end && run->column0 + bof4_entry_column(view->entries[run->end - 1]) >= view->n) {
        --run->end;
    }
    return true;
}

// y[c][r] += outliers of row r times x[c], for rows of src[0] that begin at elements first + r * view->stride[0].
static void add_rows(
        const struct bof4_list_view * view, int64_t first, int64_t r0, int64_t r1,
        const float * const * x, float * const * y, int n_columns) {
    for (int64_t r = r0; r < r1; ++r) {
        const int64_t start = first + r * view->stride[0];
        int64_t row = start / view->row_length;
        struct run run;
        float sum[TILE] = {0};
        while (next_run(view, start, &row, &run)) {
            for (int32_t e = run.e; e < run.end; ++e) {
                const float value = bof4_entry_value(view->entries[e]);
                const int64_t column = run.column0 + bof4_entry_column(view->entries[e]);
                for (int c = 0; c < n_columns; ++c) {
                    sum[c] += value * x[c][column];
                }
            }
        }
        for (int c = 0; c < n_columns; ++c) {
            y[c][r] += sum[c];
        }
    }
}

void bof4_add_outliers(
        struct ggml_tensor * dst, int64_t ir0_start, int64_t ir0_end, int64_t ir1_start, int64_t ir1_end) {
    if (ggml_bof4_list_of_op(dst) == NULL) {
        return;
    }
    const struct ggml_tensor * src0 = dst->src[0];
    const struct ggml_tensor * src1 = dst->src[1];
    GGML_ASSERT(src1->type == GGML_TYPE_F32);
    const struct bof4_list_view view = ggml_bof4_view_of_op(dst);

    GGML_TENSOR_BINARY_OP_LOCALS

    for (int64_t ir1 = ir1_start; ir1 < ir1_end;) {
        // a tile stays inside one matrix of src0
        const int64_t i13 = ir1 / (ne12 * ne1);
        const int64_t i12 = (ir1 - i13 * ne12 * ne1) / ne1;
        const int64_t i11 = ir1 % ne1;
        const int n_columns = (int) MIN(MIN((int64_t) TILE, ir1_end - ir1), ne1 - i11);

        const float * x[TILE];
        float * y[TILE];
        for (int c = 0; c < n_columns; ++c) {
            x[c] = (const float *) ((const char *) src1->data + (i11 + c) * nb11 + i12 * nb12 + i13 * nb13);
            y[c] = (float *) ((char *) dst->data + (i11 + c) * nb1 + i12 * nb2 + i13 * nb3);
        }
        const int64_t first = view.first + i12 / (ne12 / ne02) * view.stride[1] + i13 / (ne13 / ne03) * view.stride[2];
        add_rows(&view, first, ir0_start, ir0_end, x, y, n_columns);
        ir1 += n_columns;
    }
}

void bof4_add_outliers_of_expert(
        struct ggml_tensor * dst, int64_t expert, int64_t ir0_start, int64_t ir0_end,
        const int32_t * columns, int64_t n_all) {
    if (ggml_bof4_list_of_op(dst) == NULL) {
        return;
    }
    const struct ggml_tensor * src1 = dst->src[1];
    GGML_ASSERT(src1->type == GGML_TYPE_F32);
    const struct bof4_list_view view = ggml_bof4_view_of_op(dst);

    for (int64_t j = 0; j < n_all; j += TILE) {
        const int n_columns = (int) MIN((int64_t) TILE, n_all - j);
        const float * x[TILE];
        float * y[TILE];
        for (int c = 0; c < n_columns; ++c) {
            const int64_t slot  = columns[2 * (j + c)];
            const int64_t token = columns[2 * (j + c) + 1];
            x[c] = (const float *) ((const char *) src1->data + slot % src1->ne[1] * src1->nb[1] + token * src1->nb[2]);
            y[c] = (float *) ((char *) dst->data + slot * dst->nb[1] + token * dst->nb[2]);
        }
        add_rows(&view, view.first + expert * view.stride[1], ir0_start, ir0_end, x, y, n_columns);
    }
}

void bof4_add_outliers_to_rows(const struct ggml_compute_params * params, struct ggml_tensor * dst) {
    if (ggml_bof4_list_of_op(dst) == NULL) {
        return;
    }
    const struct ggml_tensor * src1 = dst->src[1];
    const struct bof4_list_view view = ggml_bof4_view_of_op(dst);

    GGML_TENSOR_LOCALS(int64_t, ne1, src1, ne)
    GGML_TENSOR_LOCALS(size_t,  nb1, src1, nb)

    const int64_t nr = ggml_nelements(src1);
    const int64_t dr = (nr + params->nth - 1) / params->nth;
    const int64_t last = MIN(dr * (params->ith + 1), nr);
    for (int64_t i = dr * params->ith; i < last; ++i) {
        const int64_t i12 = i / (ne11 * ne10);
        const int64_t i11 = (i - i12 * ne11 * ne10) / ne10;
        const int64_t i10 = i - i12 * ne11 * ne10 - i11 * ne10;
        const int64_t i01 = *(const int32_t *) ((const char *) src1->data + i10 * nb10 + i11 * nb11 + i12 * nb12);

        float * y = (float *) ((char *) dst->data + i10 * dst->nb[1] + i11 * dst->nb[2] + i12 * dst->nb[3]);
        const int64_t start = view.first + i01 * view.stride[0] + i11 * view.stride[1] + i12 * view.stride[2];
        int64_t row = start / view.row_length;
        struct run run;
        while (next_run(&view, start, &row, &run)) {
            for (int32_t e = run.e; e < run.end; ++e) {
                y[run.column0 + bof4_entry_column(view.entries[e])] += bof4_entry_value(view.entries[e]);
            }
        }
    }
}
