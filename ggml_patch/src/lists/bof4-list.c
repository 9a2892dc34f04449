#include "bof4-list.h"
#include "ggml-impl.h"

#include <math.h>
#include <string.h>

// A weight is a leaf without sources of its own: its first source holds the list.
enum { LIST_OF_WEIGHT = 0 };

// Where the operand lies in its weight, in the last bytes of op_params (mul_mat uses the first eight).
struct place {
    int64_t first;
    int64_t stride[3];
    int32_t row_length;
    int32_t nrows;
};
enum { PLACE_BYTE = GGML_MAX_OP_PARAMS - sizeof(struct place) };

// Backends that apply lists, by the names of their registries. ROCm and MUSA are the CUDA backend, compiled for GPUs of
// AMD and Moore Threads. RPC sends the operation to another machine, whose patched backend computes it.
static const char * const BACKENDS_WITH_LISTS[] = { "CPU", "CUDA", "ROCm", "MUSA", "RPC", "Vulkan" };

// Index of the list among the sources of an operation that applies lists, else -1.
static int list_source(const struct ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_MUL_MAT:
        case GGML_OP_GET_ROWS:   return 2;
        case GGML_OP_MUL_MAT_ID: return 3;
        default:                 return -1;
    }
}

// Elements in this many bytes of whole blocks.
static int64_t elements(enum ggml_type type, size_t nbytes) {
    return (int64_t) (nbytes / ggml_type_size(type)) * ggml_blck_size(type);
}

struct ggml_tensor * ggml_bof4_list_of_weight(const struct ggml_tensor * weight) {
    const struct ggml_tensor * base = weight->view_src ? weight->view_src : weight;
    return ggml_is_bof4(base->type) && base->op == GGML_OP_NONE ? base->src[LIST_OF_WEIGHT] : NULL;
}

void ggml_bof4_list_attach(struct ggml_tensor * weight, struct ggml_tensor * list) {
    GGML_ASSERT(ggml_is_bof4(weight->type) && weight->op == GGML_OP_NONE && weight->view_src == NULL);
    GGML_ASSERT(ggml_is_contiguous(weight));
    GGML_ASSERT(list->type == GGML_TYPE_I32 && list->ne[0] > ggml_nrows(weight));
    weight->src[LIST_OF_WEIGHT] = list;
}

void ggml_bof4_list_link(struct ggml_tensor * op) {
    const struct ggml_tensor * operand = op->src[0];
    struct ggml_tensor * list = ggml_bof4_list_of_weight(operand);
    if (list == NULL) {
        return;
    }
    const struct ggml_tensor * base = operand->view_src ? operand->view_src : operand;
    const struct place place = {
        .first = operand->view_src ? elements(base->type, operand->view_offs) : 0,
        .stride = {
            elements(operand->type, operand->nb[1]), elements(operand->type, operand->nb[2]),
            elements(operand->type, operand->nb[3]),
        },
        .row_length = (int32_t) base->ne[0],
        .nrows = (int32_t) ggml_nrows(base),
    };
    op->src[list_source(op)] = list;
    memcpy((char *) op->op_params + PLACE_BYTE, &place, sizeof(place));
}

const struct ggml_tensor * ggml_bof4_list_of_op(const struct ggml_tensor * op) {
    const int source = list_source(op);
    return source >= 0 && ggml_is_bof4(op->src[0]->type) ? op->src[source] : NULL;
}

struct bof4_list_view ggml_bof4_list_view_of_op(const struct ggml_tensor * op) {
    const struct ggml_tensor * list = ggml_bof4_list_of_op(op);
    const struct ggml_tensor * operand = op->src[0];
    struct place place;
    memcpy(&place, (const char *) op->op_params + PLACE_BYTE, sizeof(place));

    struct bof4_list_view view;
    view.row_pointers = (const int32_t *) list->data;
    view.entries = view.row_pointers ? view.row_pointers + place.nrows + 1 : NULL;
    view.row_length = place.row_length;
    view.first = place.first;
    view.n = operand->ne[0];
    memcpy(view.stride, place.stride, sizeof(view.stride));

    view.is_whole_rows = view.n == view.row_length && view.stride[0] == view.row_length &&
        view.first % view.row_length == 0 && (operand->ne[2] == 1 || view.stride[1] % view.row_length == 0) &&
        (operand->ne[3] == 1 || view.stride[2] % view.row_length == 0);
    view.first_row = view.first / view.row_length;
    view.row_stride[0] = view.stride[1] / view.row_length;
    view.row_stride[1] = view.stride[2] / view.row_length;
    view.ne2 = operand->ne[2];
    return view;
}

void ggml_bof4_list_check_use(const struct ggml_tensor * node) {
    switch (node->op) {
        case GGML_OP_NONE:
        case GGML_OP_VIEW:
        case GGML_OP_RESHAPE:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE: return;
        default:                break;
    }
    const int source = list_source(node);
    for (int i = 0; i < GGML_MAX_SRC; ++i) {
        const struct ggml_tensor * src = node->src[i];
        struct ggml_tensor * list = src ? ggml_bof4_list_of_weight(src) : NULL;
        if (list != NULL && !(i == 0 && source >= 0 && node->src[source] == list)) {
            GGML_ABORT("%s of %s would lose the outlier list of that tensor: only mul_mat, mul_mat_id and get_rows "
                       "apply lists. Convert the model without lists (--opq off) for this use.",
                ggml_op_name(node->op), src->name);
        }
    }
}

bool ggml_bof4_list_is_supported(const char * backend, const struct ggml_tensor * op) {
    if (ggml_bof4_list_of_op(op) == NULL) {
        return true;
    }
    bool applies_lists = false;
    for (size_t i = 0; i < sizeof(BACKENDS_WITH_LISTS) / sizeof(BACKENDS_WITH_LISTS[0]); ++i) {
        applies_lists = applies_lists || strcmp(backend, BACKENDS_WITH_LISTS[i]) == 0;
    }
    return applies_lists && (op->op == GGML_OP_GET_ROWS || op->src[1]->type == GGML_TYPE_F32);
}

const char * ggml_bof4_list_error(const int32_t * list, int64_t n, int64_t nrows, int64_t ncols) {
    if (ncols > 65536) {
        return "rows of its weight are longer than 65536";
    }
    if (n < nrows + 1) {
        return "it is shorter than its row pointers";
    }
    if (list[0] != 0) {
        return "its first row pointer is not 0";
    }
    const int64_t n_entries = n - nrows - 1;
    for (int64_t r = 0; r < nrows; ++r) {
        if (list[r + 1] < list[r]) {
            return "its row pointers descend";
        }
        if (list[r + 1] > n_entries) {
            return "its row pointers run beyond its end";
        }
    }
    if (list[nrows] != n_entries) {
        return "its length is not what its row pointers say";
    }
    const int32_t * entries = list + nrows + 1;
    for (int64_t r = 0; r < nrows; ++r) {
        int32_t last = -1;
        for (int32_t e = list[r]; e < list[r + 1]; ++e) {
            const int32_t column = bof4_entry_column(entries[e]);
            if (column >= ncols) {
                return "a column is beyond the row";
            }
            if (column <= last) {
                return "columns of a row are not in ascending order";
            }
            if (!isfinite(bof4_entry_value(entries[e]))) {
                return "a value is NaN or infinite";
            }
            last = column;
        }
    }
    return NULL;
}
