#include "bof4-checks.h"
#include "bof4-cpu-backend.h"
#include "bof4-row-ranges.h"

#include "bof4-writer.h"
#include "llama-cpp.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// Collects llama.cpp's error messages during its lifetime instead of printing its log.
class captured_errors {
  public:
    captured_errors() {
        llama_log_get(&callback, &data);
        llama_log_set(
            [](ggml_log_level level, const char * text, void * self) {
                if (level == GGML_LOG_LEVEL_ERROR) {
                    ((captured_errors *) self)->text += text;
                }
            },
            this);
    }
    ~captured_errors() { llama_log_set(callback, data); }
    // The first line.
    std::string first() const { return text.substr(0, text.find('\n')); }

  private:
    ggml_log_callback callback;
    void * data;
    std::string text;
};

struct sequence {
    std::mt19937 random;
    llama_pos position;
    llama_token token; // the last one, which the model has not read yet
};

// A token with the probability that the logits give it. Negative: a logit is NaN, or all are infinite.
llama_token sample(const float * logits, int n, std::mt19937 & random) {
    const float largest = *std::max_element(logits, logits + n);
    std::vector<double> sums(n);
    double sum = 0.0;
    for (int i = 0; i < n; ++i) {
        sum += std::exp((double) (logits[i] - largest));
        sums[i] = sum;
    }
    if (!std::isfinite(sum)) {
        return -1;
    }
    const double place = random() / 4294967296.0 * sum; // a fraction from 0 to below 1
    return (llama_token) std::min<int64_t>(std::upper_bound(sums.begin(), sums.end(), place) - sums.begin(), n - 1);
}

bool has_metadata(const llama_model * model, const char * key) {
    return llama_model_meta_val_str(model, key, nullptr, 0) >= 0;
}

// The token that texts begin with, or behind which they begin. Where the file names none, llama.cpp has a constant, which
// is right for the vocabularies of SentencePiece only. Negative: there is none.
llama_token start_token(const llama_model * model) {
    const llama_vocab * vocab = llama_model_get_vocab(model);
    if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_SPM || has_metadata(model, "tokenizer.ggml.bos_token_id")) {
        return llama_vocab_bos(vocab);
    }
    return has_metadata(model, "tokenizer.ggml.eos_token_id") ? llama_vocab_eos(vocab) : LLAMA_TOKEN_NULL;
}

} // namespace

struct bof4_writer {
    llama_model_ptr model;
    llama_context_ptr context;
    const llama_vocab * vocab = nullptr;
    llama_token start = LLAMA_TOKEN_NULL;
    llama_batch batch = {};
    std::vector<sequence> sequences;
    int length = 0;
    int threads = 0;

    ~bof4_writer() {
        const captured_errors errors; // a context logs its memory when it is freed
        context.reset();
        llama_batch_free(batch);
    }

    // Does a text end with this token? The end of a turn of a chat does not end the chat.
    bool ends(llama_token token) const {
        return llama_vocab_is_eog(vocab, token) ? token != llama_vocab_eot(vocab) : token == start;
    }

    void next(int32_t * tokens, int32_t * ended);
};

void bof4_writer::next(int32_t * tokens, int32_t * ended) {
    const captured_errors errors;
    const int count = (int) sequences.size();
    for (int i = 0; i < count; ++i) {
        batch.token[i] = sequences[i].token;
        batch.pos[i] = sequences[i].position++;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = i;
        batch.logits[i] = true;
    }
    batch.n_tokens = count;
    if (llama_decode(context.get(), batch) != 0) {
        throw std::runtime_error("llama.cpp cannot run the model: " + errors.first());
    }
    std::vector<const float *> logits(count);
    for (int i = 0; i < count; ++i) {
        logits[i] = llama_get_logits_ith(context.get(), i);
        if (logits[i] == nullptr) {
            throw std::runtime_error("the model predicts no tokens, so it cannot write text");
        }
    }
    const int n = llama_vocab_n_tokens(vocab);
    std::atomic<bool> failed{ false };
    bof4_for_row_ranges(count, 1, threads, [&](int64_t i, int64_t) {
        tokens[i] = sample(logits[i], n, sequences[i].random);
        failed = failed || tokens[i] < 0;
        return true;
    });
    if (failed) {
        throw std::runtime_error("the model gives NaN or infinite logits, so it cannot write text");
    }
    for (int i = 0; i < count; ++i) {
        sequence & s = sequences[i];
        ended[i] = ends(tokens[i]) || s.position + 1 >= length;
        s.token = tokens[i];
        if (ended[i]) {
            llama_memory_seq_rm(llama_get_memory(context.get()), i, -1, -1);
            s.token = start;
            s.position = 0;
        }
    }
}

static bof4_writer * make_writer(const char * path, int sequences, int length, uint32_t seed, int threads) {
    if (sequences < 1 || length < 2) {
        throw std::runtime_error("a writer needs one sequence or more, of two tokens or more");
    }
    bof4_cpu_device(); // loads backends that are modules
    const captured_errors errors;
    auto writer = std::make_unique<bof4_writer>();
    llama_model_params model_params = llama_model_default_params();
    ggml_backend_dev_t no_gpu = nullptr;
    model_params.devices = &no_gpu;
    model_params.n_gpu_layers = 0;
    writer->model.reset(llama_model_load_from_file(path, model_params));
    if (!writer->model) {
        throw std::runtime_error("llama.cpp cannot load the model: " + errors.first());
    }
    if (llama_model_has_encoder(writer->model.get()) || llama_model_is_diffusion(writer->model.get())) {
        throw std::runtime_error("the model does not write text from left to right");
    }
    if (const int longest = llama_model_n_ctx_train(writer->model.get()); longest > 0 && length > longest) {
        throw std::runtime_error("it reads at most " + std::to_string(longest) + " tokens, and samples have " +
            std::to_string(length) + " (--calibration-length)");
    }
    writer->vocab = llama_model_get_vocab(writer->model.get());
    writer->start = start_token(writer->model.get());
    if (writer->start < 0 || writer->start >= llama_vocab_n_tokens(writer->vocab)) {
        throw std::runtime_error("the model has no start token (tokenizer.ggml.bos_token_id)");
    }
    llama_context_params params = llama_context_default_params();
    params.n_seq_max = sequences;
    params.n_ctx = sequences * GGML_PAD(length, 256);
    params.n_batch = params.n_ubatch = sequences;
    params.n_threads = params.n_threads_batch = bof4_thread_count(threads);
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED; // which divides sums among the threads
    params.no_perf = true;
    params.op_offload = false;
    params.kv_unified = false; // attention over the own sequence only
    writer->context.reset(llama_init_from_model(writer->model.get(), params));
    if (!writer->context) {
        throw std::runtime_error("llama.cpp cannot run the model: " + errors.first());
    }
    writer->batch = llama_batch_init(sequences, 0, 1);
    writer->length = length;
    writer->threads = threads;
    for (uint32_t i = 0; i < (uint32_t) sequences; ++i) {
        std::seed_seq seeds{ seed, i };
        writer->sequences.push_back({ std::mt19937(seeds), 0, writer->start });
    }
    return writer.release();
}

bof4_writer * bof4_writer_new(const char * path, int sequences, int length, uint32_t seed, int threads) {
    try {
        return make_writer(path, sequences, length, seed, threads);
    } catch (const std::exception & e) {
        bof4_error_message = e.what();
        return nullptr;
    }
}

int bof4_writer_visible_start(const bof4_writer * writer) {
    return llama_vocab_get_add_bos(writer->vocab) ? -1 : writer->start;
}

int bof4_writer_next(bof4_writer * writer, int32_t * tokens, int32_t * ended) {
    return bof4_guarded([&]() -> int {
        writer->next(tokens, ended);
        return 0;
    });
}

int bof4_writer_text(const bof4_writer * writer, const int32_t * tokens, int n, char * text, int size) {
    return llama_detokenize(writer->vocab, tokens, n, text, size, /*remove_special*/ false, /*unparse_special*/ true);
}

void bof4_writer_free(bof4_writer * writer) {
    delete writer;
}
