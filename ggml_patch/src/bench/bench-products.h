// Products of one weight shape on a GPU: rotating copies of the weight, in each type, with outlier lists or without.
#pragma once

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <cstdint>
#include <string>
#include <vector>

struct weight_type {
    std::string name; // in options and tables
    ggml_type type;
    bool peer;       // a type of llama.cpp, to compare with
    double outliers; // fraction of the weights in a list; 0: no list
};

// All types that can be measured.
const std::vector<weight_type> & weight_types();

struct shape {
    std::string model;
    std::string matrices;
    int64_t rows;
    int64_t columns; // weights of a row
    // of a mixture: matrices in the tensor, of which each token uses some (ggml_mul_mat_id)
    int64_t experts = 1;
    int64_t used = 1;
    bool input_per_expert = false; // false: all experts of a token have the same input

    bool is_mixture() const { return experts > 1; }
    // Matrices that a product of this many tokens reads (ids_of_product).
    int64_t matrices_read(int64_t tokens) const { return tokens * used < experts ? tokens * used : experts; }
};

// Weight matrices of Llama models, and of a mixture.
const std::vector<shape> & shapes();

// Quantized rows of Gaussian numbers and their list, in host memory.
struct encoded {
    std::vector<uint8_t> weight;
    std::vector<int32_t> list; // empty: none

    // `distinct` rows are quantized, and repeated.
    encoded(const weight_type & type, const shape & shape, int64_t distinct, uint32_t seed);
    size_t bytes() const { return weight.size() + list.size() * sizeof(int32_t); }
};

// Copies of one weight on a backend: enough of them that a pass over all reads each from memory, not from the L2 cache.
class rotating_weight {
  public:
    // Throws std::runtime_error where there is not enough memory.
    rotating_weight(
        ggml_backend_t backend, const weight_type & type, const shape & shape, const encoded & data, int copies);

    ggml_tensor * copy(size_t i) const { return weights[i % weights.size()]; }
    size_t copies() const { return weights.size(); }

  private:
    ggml_context_ptr context;
    ggml_backend_buffer_ptr buffer;
    std::vector<ggml_tensor *> weights;
};

// The experts that each token uses: int32 [tokens][used], in turns, so that each expert is used equally often, and the
// next product begins with others.
std::vector<int32_t> ids_of_product(const shape & shape, int64_t tokens, int64_t product);

// A graph of products of a rotating weight with one matrix of activations. All products have the same memory for their
// result, so that it stays in the L2 cache, from which a model would read it.
class product_graph {
  public:
    // columns: of the activations; of a mixture the tokens
    product_graph(
        ggml_backend_t backend, const rotating_weight & weight, const shape & shape, int64_t columns, int products);

    // Can the backend compute the product?
    bool supported() const;
    // Enqueues the products on the backend's stream.
    void enqueue();

    const int products;

  private:
    ggml_backend_t backend;
    ggml_context_ptr context;
    ggml_backend_buffer_ptr inputs;
    ggml_backend_buffer_ptr result;
    ggml_cgraph * graph;
};

struct difference {
    double nmse;    // sum of squared differences over sum of squares; test-backend-ops accepts 5e-4
    double largest; // largest difference, in units of the root mean square of the product
};

// Compares the product of all rows of `data` on `backend` with that on `reference`.
difference compare(ggml_backend_t backend, ggml_backend_t reference, const weight_type & type, const shape & shape,
    const encoded & data, int64_t columns);
