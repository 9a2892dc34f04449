#include "bof4-api.h"
#include "bof4-bindings.h"

#include "bof4-gptq.h"

#include "../lists/bof4-list.h"
#include "../format/bof4-blocks.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "llama-cpp.h"
#include "llama-ext.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

thread_local std::string last_error;

// Run `body`; a C++ exception becomes -2 and a message.
template <typename Body> auto guarded(Body body) -> decltype(body()) {
    try {
        return body();
    } catch (const std::exception & e) {
        last_error = e.what();
        return -2;
    }
}

ggml_type checked_type(int type) {
    if (type < 0 || type >= GGML_TYPE_COUNT || ggml_blck_size((ggml_type) type) == 0) {
        throw std::runtime_error("no ggml type has the number " + std::to_string(type));
    }
    return (ggml_type) type;
}

size_t checked_row_size(ggml_type type, int64_t n_per_row) {
    if (n_per_row <= 0 || n_per_row % ggml_blck_size(type) != 0) {
        throw std::runtime_error("rows of " + std::to_string(n_per_row) + " do not divide into blocks of "
            + std::to_string(ggml_blck_size(type)) + ", which the type " + ggml_type_name(type) + " needs");
    }
    return ggml_row_size(type, n_per_row);
}

int thread_count(int threads) {
    return threads > 0 ? threads : std::max(1, (int) std::thread::hardware_concurrency());
}

// Hand out [0, nrow) in ascending runs of `run` rows to threads, until `work` returns false.
void for_row_runs(int64_t nrow, int64_t run, int threads, const std::function<bool(int64_t, int64_t)> & work) {
    std::atomic<int64_t> next{0};
    std::atomic<bool> stop{false};
    auto worker = [&] {
        while (!stop) {
            const int64_t first = next.fetch_add(run);
            if (first >= nrow) {
                return;
            }
            if (!work(first, std::min(run, nrow - first))) {
                stop = true;
            }
        }
    };
    std::vector<std::thread> pool;
    for (int i = 1; i < std::min<int64_t>(thread_count(threads), (nrow + run - 1) / run); ++i) {
        pool.emplace_back(worker);
    }
    worker();
    for (auto & t : pool) {
        t.join();
    }
}

// About 64k weights a run: large enough to hide the hand-out, small enough that the floats stay in L2.
int64_t rows_per_run(int64_t n_per_row) {
    return std::max<int64_t>(1, 65536 / n_per_row);
}

void to_float(ggml_type source, const void * src, float * dst, int64_t n) {
    switch (source) {
        case GGML_TYPE_F32:  std::copy_n((const float *) src, n, dst); break;
        case GGML_TYPE_F16:  ggml_fp16_to_fp32_row((const ggml_fp16_t *) src, dst, n); break;
        case GGML_TYPE_BF16: ggml_bf16_to_fp32_row((const ggml_bf16_t *) src, dst, n); break;
        default: throw std::runtime_error(std::string("weights come as F32, F16 or BF16, not as ") + ggml_type_name(source));
    }
}

int64_t first_nonfinite(const float * x, int64_t n) {
    // an integer "or" vectorizes; the position is looked for only where there is one
    uint32_t any = 0;
    for (int64_t i = 0; i < n; ++i) {
        uint32_t bits;
        std::memcpy(&bits, x + i, sizeof(bits));
        any |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    return any ? std::find_if(x, x + n, [](float v) { return !std::isfinite(v); }) - x : -1;
}

// The float rows of a run; `converted` holds them where the source is not F32 already.
const float * float_rows(
        ggml_type source, const void * src, int64_t first, int64_t count, int64_t n_per_row, std::vector<float> & converted) {
    if (source == GGML_TYPE_F32) {
        return (const float *) src + first * n_per_row;
    }
    converted.resize(count * n_per_row);
    const char * rows = (const char *) src + first * ggml_row_size(source, n_per_row);
    to_float(source, rows, converted.data(), count * n_per_row);
    return converted.data();
}

constexpr int64_t opq_block = 64;

// Sample deviation (divisor 63) of 64 weights.
double sample_deviation(const float * x) {
    double sum = 0.0;
    for (int j = 0; j < opq_block; ++j) {
        sum += x[j];
    }
    const double mean = sum / opq_block;
    double squares = 0.0;
    for (int j = 0; j < opq_block; ++j) {
        squares += (x[j] - mean) * (x[j] - mean);
    }
    return std::sqrt(squares / (opq_block - 1));
}

// Calls found(column) for each outlier of a row.
template <typename Found> void for_outliers(const float * row, int64_t n, double threshold, Found found) {
    for (int64_t b = 0; b < n; b += opq_block) {
        const double limit = sample_deviation(row + b) * threshold;
        for (int64_t j = b; j < b + opq_block; ++j) {
            if (std::fabs((double) row[j]) > limit) {
                found(j);
            }
        }
    }
}

int32_t list_entry(int64_t column, float value) {
    const ggml_bf16_t bits = ggml_fp32_to_bf16(value);
    return (int32_t) ((uint32_t) column | (uint32_t) bits.bits << 16);
}

using model_ptr = std::unique_ptr<llama_model, decltype(&llama_model_free)>;

// llama-quantize's rules ask the model for its architecture only.
const llama_model * model_of(const std::string & architecture) {
    static std::mutex mutex;
    static std::map<std::string, model_ptr> models;
    const std::lock_guard<std::mutex> lock(mutex);
    auto it = models.find(architecture);
    if (it == models.end()) {
        llama_quant_model_desc desc = {};
        desc.architecture = architecture.c_str();
        desc.n_layer      = 1;
        try {
            it = models.emplace(architecture, model_ptr(llama_quant_model_from_metadata(&desc), llama_model_free)).first;
        } catch (const std::exception &) {
            throw std::runtime_error("this llama.cpp does not know the architecture '" + architecture + "'");
        }
    }
    return it->second.get();
}

} // namespace

const char * bof4_last_error(void) {
    return last_error.c_str();
}

int64_t bof4_row_size(int type, int64_t n_per_row) {
    return guarded([&]() -> int64_t { return (int64_t) checked_row_size(checked_type(type), n_per_row); });
}

int bof4_select_outliers(
        int source_, const void * src, int64_t nrow, int64_t n_per_row, double threshold,
        int32_t * row_counts, int32_t * entries, int threads) {
    return guarded([&]() -> int {
        const ggml_type source = checked_type(source_);
        checked_row_size(source, n_per_row);
        to_float(source, src, nullptr, 0);
        if (n_per_row % opq_block != 0 || n_per_row > 65536) {
            throw std::runtime_error("outlier lists need rows that are a multiple of 64 and at most 65536 long, not of "
                + std::to_string(n_per_row));
        }
        // counting first tells every row where its entries go, so rows can be done in any order
        for_row_runs(nrow, rows_per_run(n_per_row), threads, [&](int64_t first, int64_t count) {
            thread_local std::vector<float> converted;
            const float * x = float_rows(source, src, first, count, n_per_row, converted);
            for (int64_t r = 0; r < count; ++r) {
                int32_t n = 0;
                for_outliers(x + r * n_per_row, n_per_row, threshold, [&](int64_t) { ++n; });
                row_counts[first + r] = n;
            }
            return true;
        });
        if (entries == nullptr) {
            return 0;
        }
        std::vector<int64_t> start(nrow + 1, 0);
        for (int64_t r = 0; r < nrow; ++r) {
            start[r + 1] = start[r] + row_counts[r];
        }
        for_row_runs(nrow, rows_per_run(n_per_row), threads, [&](int64_t first, int64_t count) {
            thread_local std::vector<float> converted;
            const float * x = float_rows(source, src, first, count, n_per_row, converted);
            for (int64_t r = 0; r < count; ++r) {
                int32_t * out = entries + start[first + r];
                const float * row = x + r * n_per_row;
                if (row_counts[first + r] > 0) {
                    for_outliers(row, n_per_row, threshold, [&](int64_t j) { *out++ = list_entry(j, row[j]); });
                }
            }
            return true;
        });
        return 0;
    });
}

int64_t bof4_quantize(
        int type_, int source_, const void * src, void * dst, int64_t nrow, int64_t n_per_row,
        const char * encoder, const float * imatrix, const int32_t * row_pointers, const int32_t * entries, int threads) {
    return guarded([&]() -> int64_t {
        const ggml_type type   = checked_type(type_);
        const ggml_type source = checked_type(source_);
        const size_t row_bytes = checked_row_size(type, n_per_row);
        checked_row_size(source, n_per_row);
        to_float(source, src, nullptr, 0); // refuses a source type before any thread starts
        if (ggml_quantize_requires_imatrix(type) && imatrix == nullptr) {
            throw std::runtime_error(std::string(ggml_type_name(type)) + " cannot be made without an importance matrix");
        }
        const bool search = std::string("search") == encoder;
        if (!search && std::string("absmax") != encoder) {
            throw std::runtime_error(std::string("there is no encoder '") + encoder + "'");
        }
        ggml_quantize_init(type);

        std::atomic<int64_t> bad{INT64_MAX};
        for_row_runs(nrow, rows_per_run(n_per_row), threads, [&](int64_t first, int64_t count) {
            thread_local std::vector<float> converted;
            const float * x = float_rows(source, src, first, count, n_per_row, converted);
            const int64_t at = first_nonfinite(x, count * n_per_row);
            if (at >= 0) {
                int64_t known = bad;
                const int64_t found = first * n_per_row + at;
                while (found < known && !bad.compare_exchange_weak(known, found)) {}
                return false;
            }
            if (row_pointers != nullptr && row_pointers[first] != row_pointers[first + count]) {
                if (x != converted.data()) {
                    converted.assign(x, x + count * n_per_row);
                    x = converted.data();
                }
                for (int64_t r = 0; r < count; ++r) {
                    for (int32_t e = row_pointers[first + r]; e < row_pointers[first + r + 1]; ++e) {
                        converted[r * n_per_row + bof4_entry_column(entries[e])] = 0.0f;
                    }
                }
            }
            char * rows = (char *) dst + first * row_bytes;
            if (ggml_bof4_is_type(type) && !search) {
                ggml_get_type_traits(type)->from_float_ref(x, rows, count * n_per_row);
            } else {
                ggml_quantize_chunk(type, x, rows, 0, count, n_per_row, imatrix);
            }
            return true;
        });
        // runs are handed out in ascending order and every run taken is finished, so this is the first
        return bad == INT64_MAX ? -1 : bad.load();
    });
}

int bof4_gptq(
        int type_, const float * weights, int64_t nrow, int64_t n_per_row, const int32_t * order, const float * feedback,
        const float * curvature, const float * moments, int sweeps, const int32_t * row_pointers, int32_t * entries,
        void * dst, float * decoded, double * loss, int threads) {
    return guarded([&]() -> int {
        const ggml_type type   = checked_type(type_);
        const size_t row_bytes = checked_row_size(type, n_per_row);
        if (!bof4_gptq_takes(type)) {
            throw std::runtime_error(std::string("gptq does not encode the type ") + ggml_type_name(type));
        }
        if (!bof4_gptq_keeps_blocks(type, order, n_per_row)) {
            throw std::runtime_error(std::string("the order of columns tears blocks of ") + ggml_type_name(type) + " apart");
        }
        const bof4_gptq_job job = { type, n_per_row, order, feedback, curvature, moments, sweeps };
        // a sum over tiles in order, whichever thread did them
        const int64_t tile = bof4_gptq_tile_rows;
        std::vector<double> losses((nrow + tile - 1) / tile * 2);
        for_row_runs(nrow, tile, threads, [&](int64_t first, int64_t count) {
            bof4_gptq_rows rows = {
                weights + first * n_per_row, count, row_pointers == nullptr ? nullptr : row_pointers + first, entries,
                (char *) dst + first * row_bytes, decoded + first * n_per_row, { 0.0, 0.0 } };
            bof4_gptq_encode(job, rows);
            losses[first / tile * 2]     = rows.loss[0];
            losses[first / tile * 2 + 1] = rows.loss[1];
            return true;
        });
        loss[0] = loss[1] = 0.0;
        for (size_t i = 0; i < losses.size(); ++i) {
            loss[i % 2] += losses[i];
        }
        return 0;
    });
}

int bof4_dequantize(int type_, const void * src, float * dst, int64_t nrow, int64_t n_per_row, int threads) {
    return guarded([&]() -> int {
        const ggml_type type = checked_type(type_);
        const size_t row_bytes = checked_row_size(type, n_per_row);
        const auto decode = ggml_get_type_traits(type)->to_float;
        if (decode == nullptr && type != GGML_TYPE_F32) {
            throw std::runtime_error(std::string("ggml cannot decode the type ") + ggml_type_name(type));
        }
        for_row_runs(nrow, rows_per_run(n_per_row), threads, [&](int64_t first, int64_t count) {
            const char * rows = (const char *) src + first * row_bytes;
            if (decode == nullptr) {
                std::copy_n((const float *) rows, count * n_per_row, dst + first * n_per_row);
            } else {
                decode(rows, dst + first * n_per_row, count * n_per_row);
            }
            return true;
        });
        return 0;
    });
}

int bof4_validate(int type, const void * data, int64_t nbytes) {
    return guarded([&]() -> int {
        if (!ggml_validate_row_data(checked_type(type), data, nbytes)) {
            throw std::runtime_error("ggml finds a block that is not valid");
        }
        return 0;
    });
}

int bof4_vec_dot(int type_, const void * row, const float * activations, int64_t n, float * dst) {
    return guarded([&]() -> int {
        const ggml_type type = checked_type(type_);
        checked_row_size(type, n);
        ggml_cpu_init();
        const auto * traits = ggml_get_type_traits_cpu(type);
        if (traits->vec_dot == nullptr) {
            throw std::runtime_error(std::string("the CPU backend has no vec_dot for ") + ggml_type_name(type));
        }
        std::vector<uint8_t> encoded(checked_row_size(traits->vec_dot_type, n));
        ggml_get_type_traits_cpu(traits->vec_dot_type)->from_float(activations, encoded.data(), n);
        traits->vec_dot((int) n, dst, 0, row, 0, encoded.data(), 0, 1);
        return 0;
    });
}

int bof4_mul_mat(
        int type_, const void * weights, int64_t nrow, int64_t n_per_row, const int32_t * list, int64_t n_list,
        const float * activations, int64_t ncol, float * dst, int threads) {
    return guarded([&]() -> int {
        const ggml_type type = checked_type(type_);
        checked_row_size(type, n_per_row);

        if (list != nullptr) {
            if (const char * why = ggml_bof4_list_error(list, n_list, nrow, n_per_row)) {
                throw std::runtime_error(std::string("the outlier list is not valid: ") + why);
            }
        }
        ggml_init_params params = { ggml_tensor_overhead() * 4 + ggml_graph_overhead(), nullptr, /*no_alloc*/ true };
        ggml_context_ptr ctx(ggml_init(params));
        ggml_tensor * w = ggml_new_tensor_2d(ctx.get(), type, n_per_row, nrow);
        ggml_tensor * x = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_per_row, ncol);
        ggml_tensor * l = nullptr;
        if (list != nullptr) {
            l = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, n_list);
            ggml_bof4_list_attach(w, l);
        }
        ggml_tensor * y = ggml_mul_mat(ctx.get(), w, x);
        ggml_cgraph * graph = ggml_new_graph(ctx.get());
        ggml_build_forward_expand(graph, y);

        ggml_backend_ptr backend(ggml_backend_cpu_init());
        ggml_backend_cpu_set_n_threads(backend.get(), thread_count(threads));
        if (!ggml_backend_supports_op(backend.get(), y)) {
            throw std::runtime_error(std::string("the CPU backend cannot multiply ") + ggml_type_name(type));
        }
        ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(ctx.get(), backend.get()));
        ggml_backend_tensor_set(w, weights, 0, ggml_nbytes(w));
        ggml_backend_tensor_set(x, activations, 0, ggml_nbytes(x));
        if (l != nullptr) {
            ggml_backend_tensor_set(l, list, 0, ggml_nbytes(l));
        }
        if (ggml_backend_graph_compute(backend.get(), graph) != GGML_STATUS_SUCCESS) {
            throw std::runtime_error("the CPU backend failed to compute the product");
        }
        ggml_backend_tensor_get(y, dst, 0, ggml_nbytes(y));
        return 0;
    });
}

int bof4_allows_quantization(const char * architecture, const char * name, int n_dims, const int64_t * ne) {
    return guarded([&]() -> int {
        const llama_model * model = model_of(architecture);
        const llama_model_quantize_params params = llama_model_quantize_default_params();
        ggml_init_params ctx_params = { ggml_tensor_overhead(), nullptr, /*no_alloc*/ true };
        ggml_context_ptr ctx(ggml_init(ctx_params));
        ggml_tensor * tensor = ggml_new_tensor(ctx.get(), GGML_TYPE_F32, n_dims, ne);
        ggml_set_name(tensor, name);
        const std::unique_ptr<quantize_state_impl, decltype(&llama_quant_free)> rules(
            llama_quant_init(model, &params), llama_quant_free);
        return llama_quant_tensor_allows_quantization(rules.get(), tensor) ? 1 : 0;
    });
}
