#include "bof4-repack-plan.h"

#include "../lists/bof4-list-cpu.h"
#include "bof4-path.h"
#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"

#include <algorithm>
#include <new>

namespace {

// Rows whose outliers are summed at a time: their sums stay in L2.
enum { MAX_ROWS = 8 * BOF4_GROUP };

// Takes successive parts of the work buffer, each from a cache line on, or another multiple of bytes.
struct work_buffer {
    char * at;

    explicit work_buffer(void * wdata) : at(static_cast<char *>(wdata)) {}

    template <typename T> T * take(size_t n, size_t alignment = 64) {
        at = reinterpret_cast<char *>(GGML_PAD(reinterpret_cast<uintptr_t>(at), alignment));
        T * p = reinterpret_cast<T *>(at);
        at += n * sizeof(T);
        return p;
    }

    template <typename T> T * take_if(bool is_wanted, size_t n, size_t alignment = 64) {
        return is_wanted ? take<T>(n, alignment) : nullptr;
    }
};

} // namespace

bof4_repack_plan::bof4_repack_plan(const bof4_gemm_kernels & kernels, ggml_tensor * op, void * wdata, int n_threads)
    : kernels(kernels),
      op(op),
      weight(op->src[0]),
      act(op->src[1]),
      n_columns(op->ne[1] * op->ne[2] * op->ne[3]),
      n_matrices(weight->ne[2] * weight->ne[3]),
      use_gemv(kernels.use_gemv((n_columns + n_matrices - 1) / n_matrices)),
      has_list(ggml_bof4_list_of_op(op) != nullptr),
      view(has_list ? ggml_bof4_list_view_of_op(op) : bof4_list_view()),
      is_one_column(has_list && bof4_list_is_one_column(op, &view)),
      n_groups((weight->ne[1] + BOF4_GROUP - 1) / BOF4_GROUP),
      group_bytes(kernels.group_bytes(weight->ne[0])) {
    piece = groups_of_piece(n_threads);
    n_pieces = (n_groups + piece - 1) / piece;

    work_buffer buffer(wdata);
    acts = buffer.take<char>(kernels.act_bytes(weight->ne[0], ggml_nrows(act), use_gemv), BOF4_ACT_ALIGNMENT);
    const size_t transposed_bytes = op->op == GGML_OP_MUL_MAT ? bof4_list_transposed_size(op) : 0;
    transposed = buffer.take_if<uint32_t>(transposed_bytes > 0, transposed_bytes / sizeof(uint32_t));
    const bool has_order = op->op == GGML_OP_MUL_MAT_ID && !use_gemv && kernels.copy_act != nullptr;
    const int64_t n_ordered = n_columns + (BOF4_GROUP - 1) * std::min(n_columns, n_matrices);
    ordered = buffer.take_if<char>(
        has_order, kernels.act_bytes(weight->ne[0], n_ordered, use_gemv), BOF4_ACT_ALIGNMENT);
    ordered_row = buffer.take_if<int32_t>(has_order, n_columns);
    x = buffer.take<const void *>(n_columns);
    y = buffer.take<float *>(n_columns);
    ids = buffer.take<column_id>(n_columns);
    first_column = buffer.take<int64_t>(n_matrices + 1);
    ranges = buffer.take<bof4_work_range>(n_threads);
    prefetch = buffer.take<bof4_prefetch_trial>(1);
    work_bytes = buffer.at - static_cast<char *>(wdata);
}

size_t bof4_repack_plan::work_size() const {
    return work_bytes + BOF4_ACT_ALIGNMENT; // wherever the buffer begins
}

void bof4_repack_plan::compute(const ggml_compute_params * params) const {
    const int ith = params->ith, nth = params->nth;
    GGML_ASSERT(work_bytes <= params->wsize);
    GGML_ASSERT(act->type == GGML_TYPE_F32 && op->nb[0] == sizeof(float));
    if (is_one_column) {
        bof4_list_prefetch_row_pointers(first_rows(ith, nth));
    }
    prepare_activations(ith, nth);
    if (is_one_column) {
        bof4_list_prefetch_entries(first_rows(ith, nth));
    }
    if (ith == 0) {
        op->op == GGML_OP_MUL_MAT ? list_columns() : list_columns_of_experts();
        divide_pieces(nth);
        choose_prefetch(nth);
    }
    ggml_barrier(params->threadpool);
    if (ordered) {
        copy_to_order(ith, nth);
        ggml_barrier(params->threadpool);
    }
    if (ith != 0 || prefetch->number < 0) {
        multiply(ith, nth);
        return;
    }
    const double start = bof4_prefetch_clock();
    const int64_t n_multiplied = multiply(ith, nth);
    add_prefetch_trial(bof4_prefetch_clock() - start, n_multiplied, nth);
}

const float * bof4_repack_plan::act_at(int64_t i1, int64_t i2, int64_t i3) const {
    return reinterpret_cast<const float *>(
        static_cast<const char *>(act->data) + i1 * act->nb[1] + i2 * act->nb[2] + i3 * act->nb[3]);
}

// Small pieces, so that no thread waits long for another, but not too small: each piece has fixed costs (for a prompt:
// loading the activations into the caches, and applying the list).
// One column: 8 groups, as waiting for the last piece of another thread cost 4 % with 32, and 4 are slower again.
int64_t bof4_repack_plan::groups_of_piece(int64_t n_threads) const {
    const int64_t of_thread = (n_groups + n_threads - 1) / n_threads;
    const int64_t least = use_gemv ? 1 : std::min(kernels.least_groups, of_thread);
    const int64_t most = use_gemv ? 8 : 32;
    return std::min(most, std::max(least, n_groups / (4 * n_threads)));
}

char * bof4_repack_plan::act_row(int64_t row) const {
    return acts + kernels.act_row_at(weight->ne[0], row, use_gemv);
}

// Elements [j0, j1) of a row of activations.
void bof4_repack_plan::quantize_act(int64_t row, int64_t j0, int64_t j1) const {
    const float * from = act_at(row % act->ne[1], row / act->ne[1] % act->ne[2], row / act->ne[1] / act->ne[2]);
    kernels.quantize_act(from, act_row(row), weight->ne[0], j0, j1, use_gemv);
}

// The thread's part of quantizing the activations, and of transposing them for outliers.
void bof4_repack_plan::prepare_activations(int ith, int nth) const {
    if (transposed) {
        // both for one piece, which stays in L2
        int64_t number, end;
        for (bof4_list_pieces_of_thread(op, ith, nth, &number, &end); number < end; ++number) {
            const bof4_list_piece p = bof4_list_piece_of(op, nth, number);
            for (int64_t row = p.c0; row < p.c1; ++row) {
                quantize_act(row, p.j0, p.j1);
            }
            bof4_list_transpose_piece(op, p, transposed);
        }
        return;
    }
    // a row per thread, or parts of rows where there are fewer rows than threads
    const int64_t n_rows = ggml_nrows(act);
    const int64_t block = ggml_blck_size(weight->type);
    const int64_t n_blocks = act->ne[0] / block;
    const int64_t n_parts = n_rows >= nth ? 1 : std::min<int64_t>(nth, n_blocks);
    for (int64_t i = ith; i < n_rows * n_parts; i += nth) {
        const int64_t part = i % n_parts;
        quantize_act(i / n_parts, n_blocks * part / n_parts * block, n_blocks * (part + 1) / n_parts * block);
    }
}

void bof4_repack_plan::list_columns() const {
    int64_t c = 0;
    const int64_t repeat2 = act->ne[2] / weight->ne[2];
    const int64_t repeat3 = act->ne[3] / weight->ne[3];
    for (int64_t m = 0; m < n_matrices; ++m) {
        first_column[m] = c;
        for (int64_t r3 = 0; r3 < repeat3; ++r3)
            for (int64_t r2 = 0; r2 < repeat2; ++r2) {
                const int64_t i2 = m % weight->ne[2] * repeat2 + r2;
                const int64_t i3 = m / weight->ne[2] * repeat3 + r3;
                for (int64_t i1 = 0; i1 < act->ne[1]; ++i1, ++c) {
                    x[c] = act_row((i3 * act->ne[2] + i2) * act->ne[1] + i1);
                    y[c] = reinterpret_cast<float *>(
                        static_cast<char *>(op->data) + i1 * op->nb[1] + i2 * op->nb[2] + i3 * op->nb[3]);
                }
            }
    }
    first_column[n_matrices] = c;
}

int32_t bof4_repack_plan::expert_of(int64_t slot, int64_t token) const {
    const ggml_tensor * experts = op->src[2];
    const int32_t e = *reinterpret_cast<const int32_t *>(
        static_cast<const char *>(experts->data) + slot * experts->nb[0] + token * experts->nb[1]);
    GGML_ASSERT(e >= 0 && e < n_matrices);
    return e;
}

void bof4_repack_plan::list_columns_of_experts() const {
    const int64_t n_slots = op->src[2]->ne[0], n_tokens = op->src[2]->ne[1];
    // Counts, then their sums: first_column[e] is where the next column of e goes, in the end where those of e + 1
    // begin.
    std::fill(first_column, first_column + n_matrices + 1, 0);
    for (int64_t token = 0; token < n_tokens; ++token)
        for (int64_t slot = 0; slot < n_slots; ++slot) {
            ++first_column[expert_of(slot, token) + 1];
        }
    for (int64_t m = 0; m < n_matrices; ++m) {
        first_column[m + 1] += first_column[m];
    }
    for (int64_t token = 0; token < n_tokens; ++token)
        for (int64_t slot = 0; slot < n_slots; ++slot) {
            const int64_t c = first_column[expert_of(slot, token)]++;
            x[c] = act_row(slot % act->ne[1] + token * act->ne[1]);
            y[c] = reinterpret_cast<float *>(static_cast<char *>(op->data) + slot * op->nb[1] + token * op->nb[2]);
            ids[c] = { (int32_t) slot, (int32_t) token };
        }
    std::copy_backward(first_column, first_column + n_matrices, first_column + n_matrices + 1);
    first_column[0] = 0;
    if (ordered) {
        order_columns();
    }
}

// Columns of an expert become rows that follow one another, from a multiple of BOF4_GROUP on.
void bof4_repack_plan::order_columns() const {
    int64_t row = 0;
    for (int64_t m = 0; m < n_matrices; ++m) {
        for (int64_t c = first_column[m]; c < first_column[m + 1]; ++c) {
            ordered_row[c] = (int32_t) row++;
        }
        row = GGML_PAD(row, BOF4_GROUP);
    }
}

void bof4_repack_plan::copy_to_order(int ith, int nth) const {
    for (int64_t c = ith; c < n_columns; c += nth) {
        char * to = ordered + kernels.act_row_at(weight->ne[0], ordered_row[c], use_gemv);
        kernels.copy_act(x[c], to, weight->ne[0]);
        x[c] = to;
    }
}

// Pieces are numbered over the matrices that have columns.
void bof4_repack_plan::divide_pieces(int n_threads) const {
    int64_t n = 0;
    for (int64_t m = 0; m < n_matrices; ++m) {
        n += has_columns(m) ? n_pieces : 0;
    }
    for (int64_t t = 0; t < n_threads; ++t) {
        new (ranges + t) bof4_work_range(n * t / n_threads, n * (t + 1) / n_threads);
    }
}

// Where a matrix has one column, weights are read from memory once: this is what distances are tried with.
void bof4_repack_plan::choose_prefetch(int n_threads) const {
    *prefetch = { 0, -1 };
    if (use_gemv) {
        const bool is_one = (op->op == GGML_OP_MUL_MAT_ID ? op->ne[2] : n_columns / n_matrices) == 1;
        const int64_t chosen = is_one ? -1 : bof4_prefetch_chosen(weight->type, BOF4_PREFETCH_GEMV, n_threads);
        *prefetch = is_one ? bof4_prefetch_next(weight->type, BOF4_PREFETCH_GEMV, n_threads)
                           : bof4_prefetch_trial{ std::max<int64_t>(0, chosen), -1 };
    }
}

// Of the first thread: threads take pieces until none is left, so each one's time per byte is that of all.
void bof4_repack_plan::add_prefetch_trial(double ns, int64_t n_multiplied, int n_threads) const {
    const int64_t n_bytes = n_multiplied * piece * (int64_t) group_bytes;
    if (n_bytes >= BOF4_PREFETCH_LEAST_BYTES) {
        bof4_prefetch_add(weight->type, BOF4_PREFETCH_GEMV, n_threads, *prefetch, ns / (double) n_bytes);
    }
}

// The rows of the list for the first piece of the thread, where there is one matrix.
bof4_list_rows bof4_repack_plan::first_rows(int ith, int nth) const {
    const int64_t row0 = n_pieces * ith / nth * piece * BOF4_GROUP;
    return bof4_list_rows_of(&view, 0, row0, std::min(row0 + piece * BOF4_GROUP, weight->ne[1]));
}

// Returns the number of pieces that the thread has multiplied.
int64_t bof4_repack_plan::multiply(int ith, int nth) const {
    bof4_work_range & own = ranges[ith];
    int64_t n_multiplied = 0;
    bool more = true;
    while (more) {
        int64_t m = 0;
        int64_t before = 0; // pieces of the matrices before m
        for (int64_t i = own.take(); i >= 0; i = own.take()) {
            while (!has_columns(m) || i >= before + n_pieces) {
                before += has_columns(m) ? n_pieces : 0;
                ++m;
            }
            multiply_piece(m, (i - before) * piece);
            ++n_multiplied;
        }
        more = false;
        for (int t = 1; t < nth && !more; ++t) {
            more = own.steal_half(ranges[(ith + t) % nth]);
        }
    }
    return n_multiplied;
}

// Some rows of one matrix with all its columns, so that weights are read and unpacked once.
void bof4_repack_plan::multiply_piece(int64_t matrix, int64_t group) const {
    const int64_t row0 = group * BOF4_GROUP;
    const int64_t row1 = std::min(weight->ne[1], (group + piece) * BOF4_GROUP);
    if (has_list && !transposed) {
        bof4_list_prefetch(op, &view, matrix, row0, row1);
    }
    // at most MAX_ROWS rows at a time: outlier sums stay in L2, and for one column lists are read between weights
    const int64_t step = transposed || is_one_column ? (int64_t) MAX_ROWS : row1 - row0;
    for (int64_t r = row0; r < row1; r += step) {
        multiply_rows(matrix, r, std::min(row1, r + step));
    }
}

void bof4_repack_plan::multiply_rows(int64_t matrix, int64_t row0, int64_t row1) const {
    if (transposed) {
        bof4_list_prefetch(op, &view, matrix, row0, row1);
    }
    const int64_t group = matrix * n_groups + row0 / BOF4_GROUP;
    const char * groups = static_cast<const char *>(weight->data) + group * group_bytes;
    float * to[BOF4_MAX_COLUMNS];
    alignas(64) float sums[MAX_ROWS * BOF4_MAX_COLUMNS];
    const int64_t c1 = first_column[matrix + 1];
    for (int64_t c = first_column[matrix]; c < c1; c += kernels.max_columns) {
        const int64_t count = std::min(kernels.max_columns, c1 - c);
        for (int64_t j = 0; j < count; ++j) {
            to[j] = y[c + j] + row0;
        }
        if (transposed) {
            bof4_list_sum_mul_mat(op, &view, transposed, matrix, row0, row1, c, c + count, sums);
        }
        const bool has_choice = kernels.has_choice && !use_gemv;
        const bof4_path_trial path = has_choice ? bof4_path_next(weight->type, count)
                                                : bof4_path_trial{ use_gemv, false };
        const double start = path.is_sample ? bof4_prefetch_clock() : 0.0;
        kernels.gemm(groups, row1 - row0, weight->ne[0], x + c, transposed ? sums : nullptr, to, count, path.use_gemv,
            prefetch->distance);
        if (path.is_sample) {
            const double products = (double) (row1 - row0) * weight->ne[0] * count;
            bof4_path_add(weight->type, path, (bof4_prefetch_clock() - start) / products);
        }
    }
    if (has_list && !transposed) {
        apply_list(matrix, row0, row1, groups + (row1 - row0) / BOF4_GROUP * group_bytes);
    }
}

// Adds the outliers to results that have been computed. For one column, it also prefetches the next weights.
void bof4_repack_plan::apply_list(int64_t matrix, int64_t row0, int64_t row1, const char * next_weights) const {
    const int64_t c0 = first_column[matrix], c1 = first_column[matrix + 1];
    if (op->op == GGML_OP_MUL_MAT_ID) {
        bof4_list_add_mul_mat_id(op, &view, matrix, row0, row1, &ids[c0].slot, c1 - c0);
    } else {
        bof4_list_add_mul_mat(op, &view, nullptr, row0, row1, c0, c1, next_weights);
    }
}
