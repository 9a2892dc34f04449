// Loads damaged models with outlier lists by llama.cpp's loader, under AddressSanitizer.
//
//     fuzz_lists MODEL SCRATCH N SEED
//
// Writes N mutants of MODEL, one after the other, to the file SCRATCH (the one that crashed stays there), opens
// each with the loader, and applies the lists that it accepts to whole weights, slices, experts and rows.
// Prints how many mutants were unreadable, refused for their lists, and accepted.

#include "llama/bof4-llama.h"
#include "lists/bof4-list-cpu.h"
#include "lists/bof4-list.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "ggml-cpu-impl.h"
#include "llama-model-loader.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

// In place of ggml-cpu.c: the type that activations are rounded to.
const ggml_type_traits_cpu * ggml_get_type_traits_cpu(ggml_type type) {
    static const ggml_type_traits_cpu s{ nullptr, nullptr, GGML_TYPE_Q8_0, 1 };
    static const ggml_type_traits_cpu k{ nullptr, nullptr, GGML_TYPE_Q8_K, 1 };
    return type == GGML_TYPE_BOF4_K ? &k : &s;
}

namespace {

std::mt19937 rng;

size_t below(size_t n) {
    return std::uniform_int_distribution<size_t>(0, n - 1)(rng);
}

struct span {
    size_t begin, size;
};

struct layout {
    size_t header;
    std::vector<span> lists;
};

llama_model_loader open(const std::string & path) {
    std::vector<std::string> splits;
    return llama_model_loader(
        nullptr, nullptr, nullptr, path, splits, nullptr, LLAMA_LOAD_MODE_NONE, false, false, false, nullptr, nullptr);
}

bool is_list(const std::string & name) {
    const std::string suffix = BOF4_LIST_SUFFIX;
    return name.size() > suffix.size() && name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0;
}

layout layout_of(const std::string & path) {
    const llama_model_loader ml = open(path);
    layout found{ gguf_get_data_offset(ml.metadata), {} };
    for (const auto & [name, weight] : ml.weights_map) {
        if (is_list(name)) {
            found.lists.push_back({ weight.offs, ggml_nbytes(weight.tensor) });
        }
    }
    return found;
}

void mutate_header(std::vector<char> & file, const layout & at) {
    for (size_t i = 1 + below(3); i > 0; --i) {
        char & byte = file[below(at.header)];
        byte = below(2) ? (char) (byte ^ (1 << below(8))) : (char) below(256);
    }
}

void mutate_list(std::vector<char> & file, const layout & at) {
    const span list = at.lists[below(at.lists.size())];
    for (size_t i = 1 + below(3); i > 0; --i) {
        char * place = file.data() + list.begin + 4 * below(list.size / 4);
        uint32_t number;
        memcpy(&number, place, 4);
        const uint32_t others[] = { 0, UINT32_MAX, INT32_MAX, (uint32_t) INT32_MIN, number + 1, number - 1,
            (uint32_t) rng(), (uint32_t) list.size / 4, number ^ (1u << below(32)) };
        number = others[below(std::size(others))];
        memcpy(place, &number, 4);
    }
}

std::vector<char> mutant(const std::vector<char> & original, const layout & at) {
    std::vector<char> file = original;
    switch (below(5)) {
        case 0: mutate_header(file, at); break;
        case 1:
            mutate_header(file, at);
            mutate_list(file, at);
            break;
        case 2:
            mutate_list(file, at);
            file.resize(below(2) ? file.size() : at.header + below(file.size() - at.header));
            break;
        default: mutate_list(file, at); break;
    }
    return file;
}

// Each tensor in an allocation of its own, so that accesses beyond its end are detected.
struct arena {
    ggml_context_ptr ctx{ ggml_init({ 32 * ggml_tensor_overhead(), nullptr, true }) };
    std::vector<std::vector<char>> memory;

    ggml_tensor * fill(ggml_tensor * t) {
        memory.emplace_back(ggml_nbytes(t));
        t->data = memory.back().data();
        return t;
    }

    ggml_tensor * floats(std::vector<int64_t> ne) {
        return fill(ggml_new_tensor(ctx.get(), GGML_TYPE_F32, (int) ne.size(), ne.data()));
    }

    ggml_tensor * numbers(std::vector<int64_t> ne, int64_t limit) {
        ggml_tensor * t = fill(ggml_new_tensor(ctx.get(), GGML_TYPE_I32, (int) ne.size(), ne.data()));
        for (int64_t i = 0; i < ggml_nelements(t); ++i) {
            ((int32_t *) t->data)[i] = (int32_t) below(limit);
        }
        return t;
    }

    ggml_tensor * read(const llama_model_loader & ml, const llama_model_loader::llama_tensor_weight & weight) {
        ggml_tensor * t = fill(ggml_dup_tensor(ctx.get(), weight.tensor));
        ml.files.at(weight.idx)->seek(weight.offs, SEEK_SET);
        ml.files.at(weight.idx)->read_raw(t->data, ggml_nbytes(t));
        return t;
    }
};

// Activations as the backend encodes them before it multiplies.
std::vector<char> encoded(const ggml_tensor * weight, const ggml_tensor * b) {
    return std::vector<char>(ggml_row_size(ggml_get_type_traits_cpu(weight->type)->vec_dot_type, ggml_nelements(b)));
}

void multiply(arena & a, ggml_tensor * weight, int64_t columns) {
    ggml_tensor * b = a.floats({ weight->ne[0], columns, weight->ne[2], weight->ne[3] });
    ggml_tensor * y = a.fill(ggml_mul_mat(a.ctx.get(), weight, b));
    // exactly what ggml_graph_plan allocates
    std::vector<char> work = encoded(weight, b);
    work.resize(work.size() + ggml_bof4_list_work_size(y));
    ggml_compute_params params = {};
    params.nth = 1;
    params.wdata = work.data();
    ggml_bof4_begin_mul_mat(&params, y);
    ggml_bof4_list_prepare_mul_mat(&params, y);
    ggml_bof4_begin_chunk(y, 0, 0, y->ne[0]);
    ggml_bof4_end_chunk(y, work.data(), 0, y->ne[0], 0, ggml_nrows(y));
    // as products of repacked weights: some columns and rows at a time
    const bof4_list_view view = ggml_bof4_list_view_of_op(y);
    std::vector<uint32_t> transposed(bof4_list_transposed_size(y) / sizeof(uint32_t));
    if (!transposed.empty()) {
        const int threads = 3;
        for (int thread = 0; thread < threads; ++thread) {
            int64_t number, end;
            for (bof4_list_pieces_of_thread(y, thread, threads, &number, &end); number < end; ++number) {
                bof4_list_transpose_piece(y, bof4_list_piece_of(y, threads, number), transposed.data());
            }
        }
        const int64_t row0 = y->ne[0] / 2, c0 = y->ne[1] / 3;
        std::vector<float> sums((y->ne[0] - row0 + 15) / 16 * 16 * (y->ne[1] - c0));
        bof4_list_sum_mul_mat(y, &view, transposed.data(), 0, row0, y->ne[0], c0, y->ne[1], sums.data());
    }
    bof4_list_prefetch(y, &view, 0, y->ne[0] / 2, y->ne[0]);
    bof4_list_add_mul_mat(y, &view, transposed.empty() ? nullptr : transposed.data(), y->ne[0] / 2, y->ne[0],
        ggml_nrows(y) / 3, ggml_nrows(y), nullptr);
}

void apply(const llama_model_loader & ml, const std::string & name) {
    arena a;
    ggml_context * ctx = a.ctx.get();
    ggml_tensor * weight = a.read(ml, ml.weights_map.at(name));
    if (ggml_nelements(weight) == 0) {
        return; // no architecture has such a weight
    }
    ggml_bof4_list_attach(weight, a.read(ml, ml.weights_map.at(name + BOF4_LIST_SUFFIX)));

    const int64_t row = below(weight->ne[1]), column = 64 * below(weight->ne[0] / 64);
    for (const int64_t columns : { 1, 3, 17, 40 }) {
        multiply(a, weight, columns);
        multiply(a,
            ggml_view_2d(ctx, weight, weight->ne[0] - column, weight->ne[1] - row, weight->nb[1],
                row * weight->nb[1] + column / 64 * weight->nb[0]),
            columns);
    }

    if (weight->ne[3] == 1) {
        ggml_tensor * ids = a.numbers({ 1, 2 }, weight->ne[2]);
        ggml_tensor * b = a.floats({ weight->ne[0], 1, 2 });
        ggml_tensor * y = a.fill(ggml_mul_mat_id(ctx, weight, b, ids));
        const int32_t columns[] = { 0, 0, 0, 1 };
        for (const int n_columns : { 1, 2 }) {
            ggml_bof4_end_chunk_of_expert(y, below(weight->ne[2]), 0, y->ne[0], columns, n_columns);
        }
    }
    ggml_tensor * y = a.fill(ggml_get_rows(ctx, weight, a.numbers({ 4, weight->ne[2], weight->ne[3] }, weight->ne[1])));
    ggml_compute_params params = {};
    params.nth = 1;
    ggml_bof4_list_apply_get_rows(&params, y);
}

} // namespace

// the table for processors without fp16 conversion; the activations are zeros
extern "C" float ggml_table_f32_f16[1 << 16];
float ggml_table_f32_f16[1 << 16];

// upstream defines them in files that are not linked here; split models are not opened
int32_t llama_split_path(char *, size_t, const char *, int32_t, int32_t) {
    return 0;
}

int32_t llama_split_prefix(char *, size_t, const char *, int32_t, int32_t) {
    return 0;
}

int main(int argc, char ** argv) {
    if (argc != 5) {
        std::fprintf(stderr, "usage: fuzz_lists MODEL SCRATCH N SEED\n");
        return 2;
    }
    const std::string scratch = argv[2];
    const int n = std::atoi(argv[3]);
    rng.seed(std::atoi(argv[4]));
    const auto silent = [](ggml_log_level, const char *, void *) {};
    ggml_log_set(silent, nullptr);
    llama_log_set(silent, nullptr);

    std::ifstream in(argv[1], std::ios::binary);
    const std::vector<char> original((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    const layout at = layout_of(argv[1]);

    int unreadable = 0, refused = 0, accepted = 0, applied = 0;
    for (int i = 0; i < n; ++i) {
        const std::vector<char> file = mutant(original, at);
        std::remove(scratch.c_str()); // overwriting a file waits for the disk on some file systems
        std::ofstream(scratch, std::ios::binary).write(file.data(), (std::streamsize) file.size());
        try {
            const llama_model_loader ml = open(scratch);
            ++accepted;
            for (const auto & [name, weight] : ml.weights_map) {
                if (bof4_list_meta(ml, weight.tensor)) {
                    apply(ml, name);
                    ++applied;
                }
            }
        } catch (const std::exception & error) {
            ++(std::strstr(error.what(), "outlier list") ? refused : unreadable);
        }
    }
    std::printf("%d mutants: %d unreadable, %d lists refused, %d accepted, %d lists applied\n", n, unreadable, refused,
        accepted, applied);
    return 0;
}
