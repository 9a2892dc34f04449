// A buffer type of the CPU backend for interleaved weights of BOF4 types and of Q6_K, and mul_mat and mul_mat_id on them.
//
// llama.cpp asks every extra buffer type of the CPU whether it can compute what a weight is for, and loads the weight
// through set_tensor of the first that can; set_tensor interleaves. The operation then finds its kernels at tensor->extra.
//
// Both operations are one thing here: matrices of weights (one, or one an expert), each of which meets a set of columns.
// First all threads round the activations to int8 and write down, matrix by matrix, which columns meet it: where each one's
// activations begin and where its results go. After one barrier, threads take pieces (some rows of one matrix, with all its
// columns) until none is left. Each has pieces that follow one another, so that weights are one long stream, and when they are done
// takes over the second half of what another has not got to. The thread that computes a piece takes care of its outliers: of many
// columns, the kernel takes their sums with it; of few, they are added to its results.

#include "bof4-repack.h"

#include "bof4-gemm.h"
#include "../lists/bof4-list-cpu.h"
#include "../lists/bof4-list.h"
#include "ggml-backend-impl.h"
#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "traits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#ifdef BOF4_GEMM

namespace {

// f(i) for every i below n, on all cores; a thread takes `grain` of them at a time.
template <typename F>
void on_all_cores(int64_t n, int64_t grain, const F & f) {
    std::atomic<int64_t> next(0);
    const auto work = [&] {
        for (int64_t i = next.fetch_add(grain); i < n; i = next.fetch_add(grain)) {
            for (int64_t j = i; j < std::min(n, i + grain); ++j) {
                f(j);
            }
        }
    };
    const int64_t most = (n + grain - 1) / grain;
    std::vector<std::thread> threads;
    for (int64_t i = 1; i < std::min<int64_t>(most, std::thread::hardware_concurrency()); ++i) {
        threads.emplace_back(work);
    }
    work();
    for (auto & thread : threads) {
        thread.join();
    }
}

int64_t groups_of(const ggml_tensor * weight) {
    return (weight->ne[1] + BOF4_GROUP - 1) / BOF4_GROUP;
}

// Takes successive parts of the work buffer.
struct cut {
    char * at;

    explicit cut(void * wdata) : at(static_cast<char *>(wdata)) {}

    template <typename T> T * take(size_t n) {
        at = reinterpret_cast<char *>(GGML_PAD(reinterpret_cast<uintptr_t>(at), 64));
        T * p = reinterpret_cast<T *>(at);
        at += n * sizeof(T);
        return p;
    }
};

// Pieces that one thread has before it, in a cache line of their own.
class alignas(64) share {
public:
    share(int64_t next, int64_t end) : range(pack(next, end)) {}

    // The next piece, or -1.
    int64_t take() {
        uint64_t r = range.load();
        do {
            if (next_of(r) >= end_of(r)) {
                return -1;
            }
        } while (!range.compare_exchange_weak(r, pack(next_of(r) + 1, end_of(r))));
        return next_of(r);
    }

    // Takes over the second half of what another has, where that has any. Only the thread whose share this is adds to it.
    bool take_over(share & other) {
        uint64_t r = other.range.load();
        int64_t middle;
        do {
            if (next_of(r) >= end_of(r)) {
                return false;
            }
            middle = next_of(r) + (end_of(r) - next_of(r)) / 2;
        } while (!other.range.compare_exchange_weak(r, pack(next_of(r), middle)));
        range.store(pack(middle, end_of(r)));
        return true;
    }

private:
    static uint64_t pack(int64_t next, int64_t end) { return (uint64_t) next << 32 | (uint64_t) end; }
    static int64_t next_of(uint64_t r) { return (int64_t) (r >> 32); }
    static int64_t end_of(uint64_t r) { return (int64_t) (uint32_t) r; }

    std::atomic<uint64_t> range;
};

// A result column: expert slot (or row of src1) and token, as bof4_add_outliers_of_expert wants them.
struct column_id {
    int32_t slot;
    int32_t token;
};

class traits : public ggml::cpu::tensor_traits {
public:
    explicit traits(const bof4_gemm_kernels & k) : k(k) {}

    const bof4_gemm_kernels & k;

    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override {
        if (op->op != GGML_OP_MUL_MAT && op->op != GGML_OP_MUL_MAT_ID) {
            return false;
        }
        size = plan(k, op, nullptr, n_threads).bytes + 64; // the buffer need not begin a cache line
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        if (op->op != GGML_OP_MUL_MAT && op->op != GGML_OP_MUL_MAT_ID) {
            return false;
        }
        const plan p(k, op, params->wdata, params->nth);
        GGML_ASSERT(p.bytes <= params->wsize);
        GGML_ASSERT(op->src[1]->type == GGML_TYPE_F32 && op->nb[0] == sizeof(float));

        p.foresee_outliers(params);
        p.prepare_activations(params);
        p.prepare_outliers(params);
        if (params->ith == 0) {
            op->op == GGML_OP_MUL_MAT ? p.list_columns() : p.list_columns_of_experts();
            p.share_out(params->nth);
        }
        ggml_barrier(params->threadpool);
        p.multiply(params);
        return true;
    }

private:
    enum {
        PART = 8 * BOF4_GROUP,  // rows whose outliers are summed up at a time
        MOST = 128,             // columns that fit the second cache with their results, where numbers are int16, too
    };

    // An operation and its part of the work buffer.
    struct plan {
        const bof4_gemm_kernels & k;
        ggml_tensor * op;
        const ggml_tensor * weight;
        const ggml_tensor * act;
        int64_t n_columns;      // of the result
        int64_t n_matrices;
        size_t  act_row;
        bool    few;            // columns, even where all of them meet one matrix
        bool    listed;
        bof4_list_view view;    // of the list, where there is one

        uint32_t * pairs;       // activations side by side for outliers, or NULL
        char * acts;
        const void ** x;        // of each column, those of the first matrix first
        float ** y;
        column_id * ids;
        int64_t * first;        // column of each matrix; one more at the end
        share * shares;         // of each thread
        bool    streams_list;   // see below
        int64_t piece;          // groups of it
        int64_t parts;          // pieces of a matrix
        size_t bytes;

        plan(const bof4_gemm_kernels & k, const ggml_tensor * op_, void * wdata, int n_threads)
            : k(k), op(const_cast<ggml_tensor *>(op_)), weight(op->src[0]), act(op->src[1]),
              n_columns(op->ne[1] * op->ne[2] * op->ne[3]), n_matrices(weight->ne[2] * weight->ne[3]),
              act_row(weight->ne[0] / ggml_blck_size(weight->type) * k.act_block_bytes),
              few(k.use_gemv(op->op == GGML_OP_MUL_MAT_ID ? op->ne[2] : n_columns / n_matrices)),
              listed(ggml_bof4_list_of_op(op) != nullptr), view() {
            if (listed) {
                view = ggml_bof4_view_of_op(op);
            }
            // Of a product of one column with whole rows of the list's weight, the list's memory is what takes time: it is a
            // stream that the processor does not see coming. Row pointers are asked for one piece early, entries with the piece.
            streams_list = listed && n_columns == 1 && op->op == GGML_OP_MUL_MAT && bof4_whole_rows(&view);
            // Enough pieces that no thread waits long for another, but no smaller than keeps what comes with each of them cheap: the
            // way of activations into the cache in prompts, lists.
            piece = std::min<int64_t>(32, std::max<int64_t>(1, groups_of(weight) / (4 * n_threads)));
            parts = (groups_of(weight) + piece - 1) / piece;
            const size_t pairs_bytes = listed && op->op == GGML_OP_MUL_MAT ? bof4_pairs_size(op) : 0;
            cut buffer(wdata);
            char * place = buffer.take<char>(pairs_bytes);
            pairs = pairs_bytes > 0 ? reinterpret_cast<uint32_t *>(place) : nullptr;
            acts  = buffer.take<char>(act_row * ggml_nrows(act));
            x     = buffer.take<const void *>(n_columns);
            y     = buffer.take<float *>(n_columns);
            ids   = buffer.take<column_id>(n_columns);
            first = buffer.take<int64_t>(n_matrices + 1);
            shares = buffer.take<share>(n_threads);
            bytes = buffer.at - static_cast<char *>(wdata);
        }

        const float * act_at(int64_t i1, int64_t i2, int64_t i3) const {
            return reinterpret_cast<const float *>(
                static_cast<const char *>(act->data) + i1 * act->nb[1] + i2 * act->nb[2] + i3 * act->nb[3]);
        }

        // Blocks [b0, b1) of a row of activations.
        void quantize_blocks(int64_t row, int64_t b0, int64_t b1) const {
            const int64_t unit = ggml_blck_size(weight->type);
            const float * from = act_at(row % act->ne[1], row / act->ne[1] % act->ne[2], row / act->ne[1] / act->ne[2]);
            k.quantize_act(from + b0 * unit, acts + row * act_row + b0 * k.act_block_bytes, (b1 - b0) * unit, few);
        }

        // The share of a thread in rounding activations to int8, and in putting them side by side for outliers, where that is wanted.
        void prepare_activations(const ggml_compute_params * params) const {
            const int64_t n_rows = ggml_nrows(act);
            const int64_t unit = ggml_blck_size(weight->type);
            const int64_t n_blocks = act->ne[0] / unit;
            if (pairs) {
                // both of a piece that stays in the second cache: whole rows where there are enough, which are streams of memory
                const int64_t n_tiles = (n_rows + BOF4_PAIRED - 1) / BOF4_PAIRED;
                const int64_t enough = std::max((act->ne[0] + 2047) / 2048, (2 * params->nth + n_tiles - 1) / n_tiles);
                const int64_t n_parts = std::min(enough, n_blocks);
                const int64_t n_pieces = n_tiles * n_parts;
                for (int64_t i = n_pieces * params->ith / params->nth; i < n_pieces * (params->ith + 1) / params->nth; ++i) {
                    const int64_t row0 = i / n_parts * BOF4_PAIRED;
                    const int64_t b0 = n_blocks * (i % n_parts) / n_parts;
                    const int64_t b1 = n_blocks * (i % n_parts + 1) / n_parts;
                    for (int64_t row = row0; row < std::min<int64_t>(n_rows, row0 + BOF4_PAIRED); ++row) {
                        quantize_blocks(row, b0, b1);
                    }
                    bof4_pair_part(op, row0, b0 * unit, b1 * unit, pairs);
                }
                return;
            }
            // a row for each thread, or, for a single one, a share of it
            const int64_t parts = n_rows >= params->nth ? 1 : std::min<int64_t>(params->nth, n_blocks);
            for (int64_t i = params->ith; i < n_rows * parts; i += params->nth) {
                quantize_blocks(i / parts, n_blocks * (i % parts) / parts, n_blocks * (i % parts + 1) / parts);
            }
        }

        void list_columns() const {
            int64_t c = 0;
            const int64_t repeat2 = act->ne[2] / weight->ne[2];
            const int64_t repeat3 = act->ne[3] / weight->ne[3];
            for (int64_t m = 0; m < n_matrices; ++m) {
                first[m] = c;
                for (int64_t r3 = 0; r3 < repeat3; ++r3) for (int64_t r2 = 0; r2 < repeat2; ++r2) {
                    const int64_t i2 = m % weight->ne[2] * repeat2 + r2;
                    const int64_t i3 = m / weight->ne[2] * repeat3 + r3;
                    for (int64_t i1 = 0; i1 < act->ne[1]; ++i1, ++c) {
                        x[c] = acts + ((i3 * act->ne[2] + i2) * act->ne[1] + i1) * act_row;
                        y[c] = reinterpret_cast<float *>(
                            static_cast<char *>(op->data) + i1 * op->nb[1] + i2 * op->nb[2] + i3 * op->nb[3]);
                    }
                }
            }
            first[n_matrices] = c;
        }

        void list_columns_of_experts() const {
            const ggml_tensor * chosen = op->src[2];
            const auto expert = [&](int64_t slot, int64_t token) {
                const int32_t e = *reinterpret_cast<const int32_t *>(
                    static_cast<const char *>(chosen->data) + slot * chosen->nb[0] + token * chosen->nb[1]);
                GGML_ASSERT(e >= 0 && e < n_matrices);
                return e;
            };
            // count, then place: first[e] is where the next column of e goes, in the end where those of e + 1 begin
            std::fill(first, first + n_matrices + 1, 0);
            for (int64_t token = 0; token < chosen->ne[1]; ++token) for (int64_t slot = 0; slot < chosen->ne[0]; ++slot) {
                ++first[expert(slot, token) + 1];
            }
            for (int64_t m = 0; m < n_matrices; ++m) {
                first[m + 1] += first[m];
            }
            for (int64_t token = 0; token < chosen->ne[1]; ++token) for (int64_t slot = 0; slot < chosen->ne[0]; ++slot) {
                const int64_t c = first[expert(slot, token)]++;
                x[c] = acts + (slot % act->ne[1] + token * act->ne[1]) * act_row;
                y[c] = reinterpret_cast<float *>(static_cast<char *>(op->data) + slot * op->nb[1] + token * op->nb[2]);
                ids[c] = { (int32_t) slot, (int32_t) token };
            }
            std::copy_backward(first, first + n_matrices, first + n_matrices + 1);
            first[0] = 0;
        }

        // Pieces are numbered over the matrices that meet a column.
        void share_out(int n_threads) const {
            int64_t n_pieces = 0;
            for (int64_t m = 0; m < n_matrices; ++m) {
                n_pieces += first[m] == first[m + 1] ? 0 : parts;
            }
            for (int64_t t = 0; t < n_threads; ++t) {
                new (shares + t) share(n_pieces * t / n_threads, n_pieces * (t + 1) / n_threads);
            }
        }

        // Rows that a thread has first where there is one matrix.
        int64_t first_row(const ggml_compute_params * params) const {
            return parts * params->ith / params->nth * piece * BOF4_GROUP;
        }

        // Before activations are rounded: the row pointers of the piece that this thread has first.
        void foresee_outliers(const ggml_compute_params * params) const {
            if (streams_list) {
                bof4_prefetch_pointers(&view, first_row(params), piece * BOF4_GROUP, weight->ne[1]);
            }
        }

        // Before threads wait for each other.
        void prepare_outliers(const ggml_compute_params * params) const {
            if (streams_list) {
                bof4_prefetch_entries(&view, first_row(params), piece * BOF4_GROUP, weight->ne[1]);
            }
        }

        void multiply(const ggml_compute_params * params) const {
            share & own = shares[params->ith];
            bool more = true;
            while (more) {
                int64_t m = 0;
                int64_t before = 0;     // pieces of the matrices in front of m
                for (int64_t i = own.take(); i >= 0; i = own.take()) {
                    while (first[m] == first[m + 1] || i >= before + parts) {
                        before += first[m] == first[m + 1] ? 0 : parts;
                        ++m;
                    }
                    multiply_piece(m, (i - before) * piece);
                }
                more = false;
                for (int t = 1; t < params->nth && !more; ++t) {
                    more = own.take_over(shares[(params->ith + t) % params->nth]);
                }
            }
        }

        // Some rows of one matrix with all its columns: then weights are read and unpacked once.
        void multiply_piece(int64_t m, int64_t g0) const {
            const int64_t n_rows = weight->ne[1];
            const size_t group_bytes = k.group_bytes(weight->ne[0]);
            const int64_t row0 = g0 * BOF4_GROUP;
            const int64_t row1 = std::min(n_rows, (g0 + piece) * BOF4_GROUP);
            if (streams_list) {
                bof4_prefetch_entries(&view, row0, row1 - row0, n_rows);
                bof4_prefetch_pointers(&view, row1, piece * BOF4_GROUP, n_rows);
            }
            // outliers of fewer rows at a time, that their sums remain in the second cache
            const int64_t rows = pairs || streams_list ? (int64_t) PART : row1 - row0;
            for (int64_t r = row0; r < row1; r += rows) {
                part_of(m, r, std::min(row1, r + rows), first[m], first[m + 1],
                    static_cast<const char *>(weight->data) + (m * groups_of(weight) + r / BOF4_GROUP) * group_bytes);
            }
        }

        void part_of(int64_t m, int64_t row0, int64_t row1, int64_t c0, int64_t c1, const char * groups) const {
            if (listed && !streams_list) {
                bof4_prefetch_list(op, m, row0, row1);
            }
            float * to[MOST];
            alignas(64) float sums[PART * MOST];
            for (int64_t c = c0; c < c1; c += MOST) {
                const int64_t count = std::min<int64_t>(MOST, c1 - c);
                for (int64_t j = 0; j < count; ++j) {
                    to[j] = y[c + j] + row0;
                }
                if (pairs) {
                    bof4_sum_outliers(op, &view, pairs, m, row0, row1, c, c + count, sums);
                }
                k.gemm(groups, row1 - row0, weight->ne[0], x + c, pairs ? sums : nullptr, to, count, few);
            }
            if (!listed || pairs) {
                return;
            }
            if (streams_list) {
                // the weights that come next are on their way when it is done
                const char * ahead = groups + (row1 - row0) / BOF4_GROUP * k.group_bytes(weight->ne[0]);
                bof4_add_outliers_to_column(op, &view, row0, row1, ahead);
            } else if (op->op == GGML_OP_MUL_MAT_ID) {
                bof4_add_outliers_of_expert(op, m, row0, row1, &ids[c0].slot, c1 - c0);
            } else {
                bof4_add_outliers_to(op, &view, nullptr, row0, row1, c0, c1);
            }
        }
    };
};

// One of each type that has kernels.
template <ggml_type type>
traits * traits_of_type() {
    const bof4_gemm_kernels * kernels = bof4_gemm_kernels_of(type);
    if (kernels == nullptr) {
        return nullptr;
    }
    static traits t(*kernels);
    return &t;
}

traits * traits_of(const ggml_tensor * weight) {
#define BOF4_CASE(NAME, name) case GGML_TYPE_##NAME: return traits_of_type<GGML_TYPE_##NAME>();
    switch (weight->type) {
        BOF4_TYPES_REPACKED(BOF4_CASE)
        BOF4_CASE(Q6_K, q6_k)
        default: return nullptr;
    }
}

// Rows too few for a group would be padded to many times their size.
bool fits(const ggml_tensor * weight) {
    return traits_of(weight) != nullptr && weight->ne[1] >= BOF4_GROUP / 2 && weight->view_src == nullptr
        && ggml_is_contiguous(weight);
}

class buffer_type : public ggml::cpu::extra_buffer_type {
public:
    bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) override {
        if (op->op != GGML_OP_MUL_MAT && op->op != GGML_OP_MUL_MAT_ID) {
            return false;
        }
        const ggml_tensor * weight = op->src[0];
        const ggml_tensor * act = op->src[1];
        // the columns of a matrix must be neighbours
        const bool in_order = weight->ne[2] == 1 || weight->ne[3] == act->ne[3];
        return weight->buffer && weight->buffer->buft == ggml_backend_cpu_bof4_buffer_type() && fits(weight) && in_order
            && act->type == GGML_TYPE_F32 && act->nb[0] == sizeof(float)
            && (act->buffer == nullptr || ggml_backend_buft_is_host(act->buffer->buft));
    }

    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        if (op->op != GGML_OP_MUL_MAT && op->op != GGML_OP_MUL_MAT_ID) {
            return nullptr;
        }
        const ggml_tensor * weight = op->src[0];
        if (weight->buffer == nullptr || weight->buffer->buft != ggml_backend_cpu_bof4_buffer_type()) {
            return nullptr;
        }
        return static_cast<ggml::cpu::tensor_traits *>(weight->extra);
    }
};

// Calls f(rows of the plain tensor, number of rows, group) for every group, on all cores.
template <typename F>
void each_group(const ggml_tensor * weight, const F & f) {
    const bof4_gemm_kernels & k = traits_of(weight)->k;
    const int64_t n_groups = groups_of(weight);
    const int64_t all = n_groups * weight->ne[2] * weight->ne[3];
    const size_t group_bytes = k.group_bytes(weight->ne[0]);
    const size_t row_bytes = ggml_row_size(weight->type, weight->ne[0]);
    // starting a thread costs as much as a piece of this size
    const int64_t grain = 1 + (1 << 18) / (int64_t) group_bytes;
    on_all_cores(all, grain, [&](int64_t i) {
        const int64_t row = i % n_groups * BOF4_GROUP;
        f(k, (i / n_groups * weight->ne[1] + row) * row_bytes, std::min<int64_t>(BOF4_GROUP, weight->ne[1] - row),
            static_cast<char *>(weight->data) + i * group_bytes);
    });
}

ggml_status init_tensor(ggml_backend_buffer_t, ggml_tensor * tensor) {
    tensor->extra = fits(tensor) ? traits_of(tensor) : nullptr;
    return GGML_STATUS_SUCCESS;
}

void set_tensor(ggml_backend_buffer_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    GGML_ASSERT(tensor->extra && offset == 0 && size == ggml_nbytes(tensor));
    each_group(tensor, [&](const bof4_gemm_kernels & k, size_t rows, int64_t n_rows, void * group) {
        k.repack_group(static_cast<const char *>(data) + rows, n_rows, tensor->ne[0], group);
    });
}

void get_tensor(ggml_backend_buffer_t, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    GGML_ASSERT(tensor->extra && offset == 0 && size == ggml_nbytes(tensor));
    each_group(tensor, [&](const bof4_gemm_kernels & k, size_t rows, int64_t n_rows, void * group) {
        k.unpack_group(group, n_rows, tensor->ne[0], static_cast<char *>(data) + rows);
    });
}

const char * get_name(ggml_backend_buffer_type_t) {
    return "CPU_BOF4";
}

// Weights in huge pages are read a quarter faster, and first touched four times as fast. But where memory lies in pieces, the
// kernel may move other pages about for seconds to make room: so each thread takes pages as long as they come at some speed, and
// the rest remains ordinary. (ns of a thread; ordinary pages take 1 s for 2 GB.)
void take_huge_pages(void * base, size_t size) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr size_t page = 2 << 20, part = 16 * page;
    constexpr double patience = 1e8, of_byte = 2.5;
    using clock = std::chrono::steady_clock;
    char * first = reinterpret_cast<char *>(GGML_PAD(reinterpret_cast<uintptr_t>(base), page));
    char * end = static_cast<char *>(base) + size;
    if (end - first < (ptrdiff_t) page) {
        return;
    }
    const int64_t n_pages = (end - first) / page;
    const auto start = clock::now();
    std::atomic<int64_t> taken(0);
    const int64_t n_threads = std::max(1u, std::thread::hardware_concurrency());
    on_all_cores((n_pages * page + part - 1) / part, 1, [&](int64_t i) {
        for (int64_t k = i * (part / page); k < std::min<int64_t>(n_pages, (i + 1) * (part / page)); ++k) {
            const double ns = std::chrono::duration<double, std::nano>(clock::now() - start).count();
            if (ns > patience + of_byte * (double) (taken * page) / n_threads
                || madvise(first + k * page, page, MADV_HUGEPAGE) != 0) {
                return;
            }
            first[k * page] = 0;
            ++taken;
        }
    });
#else
    GGML_UNUSED(base);
    GGML_UNUSED(size);
#endif
}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    if (buffer == nullptr) {
        return nullptr;
    }
    take_huge_pages(ggml_backend_buffer_get_base(buffer), size);
    buffer->buft              = buft;
    buffer->iface.init_tensor = init_tensor;
    buffer->iface.set_tensor  = set_tensor;
    buffer->iface.get_tensor  = get_tensor;
    buffer->iface.cpy_tensor  = nullptr;
    return buffer;
}

size_t get_alignment(ggml_backend_buffer_type_t) {
    return 64;
}

size_t get_alloc_size(ggml_backend_buffer_type_t, const ggml_tensor * tensor) {
    if (!fits(tensor)) {
        return ggml_nbytes(tensor);
    }
    return groups_of(tensor) * tensor->ne[2] * tensor->ne[3] * traits_of(tensor)->k.group_bytes(tensor->ne[0]);
}

} // namespace

ggml_backend_buffer_type_t ggml_backend_cpu_bof4_buffer_type(void) {
    static ggml_backend_buffer_type type = {
        /* .iface   = */ { get_name, alloc_buffer, get_alignment, nullptr, get_alloc_size, nullptr },
        /* .device  = */ ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0),
        /* .context = */ new buffer_type(),
    };
    return &type;
}

#else

ggml_backend_buffer_type_t ggml_backend_cpu_bof4_buffer_type(void) {
    return nullptr;
}

#endif
