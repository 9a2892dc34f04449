// Products of one weight shape on a GPU: rotating copies of the weight, in each type, with outlier lists or without.
#pragma once

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <cstdint>
#include <string>
#include <vector>

struct weight_type {
    std::string name; // as the options and the table have it
    ggml_type type;
    bool peer;        // one of llama.cpp's own
    double outliers;  // share of the weights in a list; 0: no list
};

// All that can be measured.
const std::vector<weight_type> & weight_types();

struct shape {
    std::string model;
    std::string matrices;
    int64_t rows;
    int64_t columns; // length of a row
};

// Weight matrices of llama models, one table for all.
const std::vector<shape> & shapes();

// Encoded rows of Gaussian numbers and their list, on the host.
struct encoded {
    std::vector<uint8_t> weight;
    std::vector<int32_t> list; // empty: none

    // `distinct` rows are encoded and repeated.
    encoded(const weight_type & type, int64_t rows, int64_t columns, int64_t distinct, uint32_t seed);
    size_t bytes() const { return weight.size() + list.size() * sizeof(int32_t); }
};

// Copies of one weight on a backend, so many that a pass over them finds none in the cache.
class rotating_weight {
  public:
    // Throws std::runtime_error where the memory does not suffice.
    rotating_weight(ggml_backend_t backend, const weight_type & type, const shape & shape, const encoded & data, int copies);

    ggml_tensor * copy(size_t i) const { return weights[i % weights.size()]; }
    size_t copies() const { return weights.size(); }

  private:
    ggml_context_ptr context;
    ggml_backend_buffer_ptr buffer;
    std::vector<ggml_tensor *> weights;
};

// A graph of products of a rotating weight with one matrix of activations. They share one result, which a model would
// read at once, from the cache.
class product_graph {
  public:
    product_graph(ggml_backend_t backend, const rotating_weight & weight, int64_t columns, int products);

    // False where the backend cannot compute the product.
    bool supported() const;
    // Puts the products on the backend's stream.
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
    double nmse;    // squared differences over squares; test-backend-ops admits 5e-4
    double largest; // largest difference, in units of the root mean square of the product
};

// The product on `backend` against that on `reference`.
difference compare(ggml_backend_t backend, ggml_backend_t reference, const weight_type & type, const shape & shape, int64_t columns);
