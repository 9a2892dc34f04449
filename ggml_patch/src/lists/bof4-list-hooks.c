// What ggml's own mul_mat, mul_mat_id and get_rows call.

#include "bof4-list-tile.h"
#include "../cpu/bof4-prefetch.h"
#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"

// Where the transposed activations of a mul_mat begin in the work buffer: behind the encoded ones.
static size_t transposed_offset(const struct ggml_tensor * dst) {
    const enum ggml_type encoded = ggml_get_type_traits_cpu(dst->src[0]->type)->vec_dot_type;
    return GGML_PAD(ggml_row_size(encoded, ggml_nelements(dst->src[1])), 64);
}

size_t ggml_bof4_list_work_size(const struct ggml_tensor * dst) {
    return bof4_list_transposed_size(dst);
}

int ggml_bof4_list_chunk_rows(const struct ggml_tensor * dst, int usual) {
    return ggml_is_bof4(dst->src[0]->type) ? 8 * usual : usual;
}

// The rows that the thread computes first, where the result is one column; else none.
static struct bof4_list_rows first_rows(
    const struct ggml_compute_params * params, const struct ggml_tensor * dst, const struct bof4_list_view * view) {
    if (!bof4_list_is_one_column(dst, view)) {
        const struct bof4_list_rows none = { NULL, NULL, 0 };
        return none;
    }
    const int64_t per_thread = (dst->ne[0] + params->nth - 1) / params->nth;
    const int64_t chunk = MIN(per_thread, (int64_t) ggml_bof4_list_chunk_rows(dst, 64));
    const int64_t row0 = MIN(params->ith * per_thread, dst->ne[0]);
    return bof4_list_rows_of(view, 0, row0, MIN(row0 + chunk, dst->ne[0]));
}

void ggml_bof4_begin_mul_mat(const struct ggml_compute_params * params, const struct ggml_tensor * dst) {
    const struct ggml_tensor * weight = dst->src[0];
    if (params->ith == 0 && ggml_is_bof4(weight->type)) {
        const bool is_one_column = ggml_nrows(dst->src[1]) == weight->ne[2] * weight->ne[3];
        bof4_prefetch_begin_rows(weight->type, is_one_column, params->nth);
    }
    if (ggml_bof4_list_of_op(dst) != NULL) {
        const struct bof4_list_view view = ggml_bof4_list_view_of_op(dst);
        bof4_list_prefetch_row_pointers(first_rows(params, dst, &view));
    }
}

void ggml_bof4_list_prepare_mul_mat(const struct ggml_compute_params * params, const struct ggml_tensor * dst) {
    if (ggml_bof4_list_of_op(dst) == NULL) {
        return;
    }
    if (bof4_list_transposed_size(dst) == 0) {
        const struct bof4_list_view view = ggml_bof4_list_view_of_op(dst);
        bof4_list_prefetch_entries(first_rows(params, dst, &view));
        return;
    }
    uint32_t * transposed = (uint32_t *) ((char *) params->wdata + transposed_offset(dst));
    int64_t number, end;
    for (bof4_list_pieces_of_thread(dst, params->ith, params->nth, &number, &end); number < end; ++number) {
        bof4_list_transpose_piece(dst, bof4_list_piece_of(dst, params->nth, number), transposed);
    }
}

void ggml_bof4_begin_chunk(const struct ggml_tensor * dst, int64_t matrix, int64_t row0, int64_t row1) {
    if (ggml_is_bof4(dst->src[0]->type)) {
        bof4_prefetch_begin_chunk(dst->src[0]->type);
    }
    if (ggml_bof4_list_of_op(dst) != NULL) {
        const struct bof4_list_view view = ggml_bof4_list_view_of_op(dst);
        bof4_list_prefetch(dst, &view, matrix, row0, row1);
    }
}

void ggml_bof4_end_chunk(
    struct ggml_tensor * dst, const void * wdata, int64_t row0, int64_t row1, int64_t c0, int64_t c1) {
    if (ggml_is_bof4(dst->src[0]->type)) {
        bof4_prefetch_end_chunk(dst->src[0]->type, (row1 - row0) * (int64_t) dst->src[0]->nb[1]);
    }
    if (ggml_bof4_list_of_op(dst) == NULL) {
        return;
    }
    const struct bof4_list_view view = ggml_bof4_list_view_of_op(dst);
    const uint32_t * transposed = bof4_list_transposed_size(dst) == 0
        ? NULL
        : (const uint32_t *) ((const char *) wdata + transposed_offset(dst));
    const char * next_weights = (const char *) dst->src[0]->data + row1 * dst->src[0]->nb[1];
    bof4_list_add_mul_mat(dst, &view, transposed, row0, row1, c0, c1, next_weights);
}

void ggml_bof4_end_chunk_of_expert(
    struct ggml_tensor * dst, int64_t expert, int64_t row0, int64_t row1, const int32_t * columns, int64_t n_columns) {
    if (ggml_bof4_list_of_op(dst) != NULL) {
        const struct bof4_list_view view = ggml_bof4_list_view_of_op(dst);
        bof4_list_add_mul_mat_id(dst, &view, expert, row0, row1, columns, n_columns);
    }
}

// Adds the outliers of the operand's row that begins at element `first` of the weight to the decoded row.
static void add_values(const struct bof4_list_view * view, int64_t first, float * y) {
    int64_t row = first / view->row_length;
    struct bof4_list_run run;
    while (bof4_list_next_run(view, first, &row, &run)) {
        for (int32_t e = run.begin; e < run.end; ++e) {
            y[run.offset + bof4_entry_column(view->entries[e])] += bof4_entry_value(view->entries[e]);
        }
    }
}

void ggml_bof4_list_apply_get_rows(const struct ggml_compute_params * params, struct ggml_tensor * dst) {
    if (ggml_bof4_list_of_op(dst) == NULL) {
        return;
    }
    const struct ggml_tensor * src1 = dst->src[1];
    const struct bof4_list_view view = ggml_bof4_list_view_of_op(dst);

    GGML_TENSOR_LOCALS(int64_t, ne1, src1, ne)
    GGML_TENSOR_LOCALS(size_t, nb1, src1, nb)

    const int64_t nr = ggml_nelements(src1);
    const int64_t dr = (nr + params->nth - 1) / params->nth;
    const int64_t last = MIN(dr * (params->ith + 1), nr);
    for (int64_t i = dr * params->ith; i < last; ++i) {
        const int64_t i12 = i / (ne11 * ne10);
        const int64_t i11 = (i - i12 * ne11 * ne10) / ne10;
        const int64_t i10 = i - i12 * ne11 * ne10 - i11 * ne10;
        const int64_t i01 = *(const int32_t *) ((const char *) src1->data + i10 * nb10 + i11 * nb11 + i12 * nb12);
        const int64_t first = view.first + i01 * view.stride[0] + i11 * view.stride[1] + i12 * view.stride[2];
        float * y = (float *) ((char *) dst->data + i10 * dst->nb[1] + i11 * dst->nb[2] + i12 * dst->nb[3]);
        add_values(&view, first, y);
    }
}
