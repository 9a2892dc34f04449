// What programs do with llama.h on a model: use_llama tokens|embeddings|save MODEL [OUTPUT]
#include "llama.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

// Decodes a batch of four tokens, or of four embeddings as an image gives, and prints the sum of the last logits.
static int decode(llama_model * model, bool from_embeddings) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 64;
    params.n_batch = 64;
    params.n_threads = 1;
    params.n_threads_batch = 1;
    llama_context * context = llama_init_from_model(model, params);
    if (context == nullptr) {
        return 1;
    }
    enum { N = 4 };
    const int width = llama_model_n_embd_inp(model);
    llama_batch batch = llama_batch_init(N, from_embeddings ? width : 0, 1);
    batch.n_tokens = N;
    for (int i = 0; i < N; ++i) {
        if (from_embeddings) {
            for (int j = 0; j < width; ++j) {
                batch.embd[i * width + j] = std::sin(0.1f * (float) (i * width + j));
            }
        } else {
            batch.token[i] = i;
        }
        batch.pos[i] = i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = i == N - 1;
    }
    const int status = llama_decode(context, batch);
    double sum = 0;
    if (status == 0) {
        const float * logits = llama_get_logits_ith(context, N - 1);
        for (int i = 0; i < llama_vocab_n_tokens(llama_model_get_vocab(model)); ++i) {
            sum += logits[i];
        }
    }
    printf("%.9g\n", sum);
    llama_batch_free(batch);
    llama_free(context);
    return status != 0;
}

int main(int argc, char ** argv) {
    if (argc < 3) {
        return 2;
    }
    const std::string what = argv[1];
    llama_backend_init();
    llama_model_params params = llama_model_default_params();
    params.use_extra_bufts = what != "save"; // the bytes of repacked weights are not those of the file
    llama_model * model = llama_model_load_from_file(argv[2], params);
    if (model == nullptr) {
        return 1;
    }
    int status = 0;
    if (what == "save") {
        llama_model_save_to_file(model, argv[3]);
    } else {
        status = decode(model, what == "embeddings");
    }
    llama_model_free(model);
    llama_backend_free();
    return status;
}
