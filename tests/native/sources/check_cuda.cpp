// Runs the CUDA kernels on a CPU (cuda_on_host.h), by the functions that ggml-cuda's hooks call, with tensors of ggml.
//
//     check_cuda                            random blocks, every kernel and shape
//     check_cuda TYPE N BLOCKS DECODED      rows of N weights of a model: files of blocks and of decoded weights
//                                           (float32)
//
// Prints one line per group; exit code 1 on a failure.

#include "check_cuda.h"

#include "cuda/bof4-cuda.cuh"
#include "cuda/bof4-mmq-pipeline.cuh"

#include <fstream>
#include <functional>
#include <iterator>
#include <string>

namespace {

ggml_backend_cuda_context cuda;
#define TYPE(NAME, name) GGML_TYPE_##NAME,
const ggml_type types[] = { BOF4_TYPES_CUDA(TYPE) };
#undef TYPE
using view_of = std::function<ggml_tensor *(ggml_tensor *)>;

ggml_tensor * whole(ggml_tensor * w) {
    return w;
}

float as_float(float x) {
    return x;
}
float as_float(half x) {
    return ggml_compute_fp16_to_fp32(x.bits);
}
float as_float(nv_bfloat16 x) {
    return ggml_compute_bf16_to_fp32({ x.bits });
}

template <typename T> void check_dequantize(ggml_type type) {
    new_case();
    const weight_of w(type, { 3 * 256, 5, 3, 2 }, 0.0);
    const auto compare_all = [&](const T * y, const ggml_tensor * view) {
        for (int64_t i3 = 0; i3 < view->ne[3]; ++i3)
            for (int64_t i2 = 0; i2 < view->ne[2]; ++i2)
                for (int64_t r = 0; r < view->ne[1]; ++r)
                    for (int64_t j = 0; j < view->ne[0]; ++j, ++y) {
                        const float expected = w.codes[w.element(view, r, i2, i3) + j];
                        compare(as_float(*y), as_float(ggml_cuda_cast<T>(expected)), 1.0);
                    }
        ++cases;
    };
    ggml_cuda_pool_alloc<T> y(cuda.pool(), w.codes.size());
    ggml_cuda_bof4_to<T>(type)(w.tensor->data, y.get(), (int64_t) w.codes.size(), nullptr);
    compare_all(y.get(), w.tensor);

    ggml_tensor * view = ggml_view_4d(context.get(), w.tensor, 256, 3, 2, 2, w.tensor->nb[1], 2 * w.tensor->nb[2],
        w.tensor->nb[3], w.tensor->nb[1] + ggml_row_size(type, 256));
    const int64_t ts = ggml_type_size(type);
    ggml_cuda_pool_alloc<T> z(cuda.pool(), ggml_nelements(view));
    ggml_cuda_bof4_to_nc<T>(type)(view->data, z.get(), view->ne[0], view->ne[1], view->ne[2], view->ne[3],
        view->nb[1] / ts, view->nb[2] / ts, view->nb[3] / ts, nullptr);
    compare_all(z.get(), view);
}

void check_get_rows(ggml_type type, std::vector<int64_t> ne, double density, const view_of & view) {
    new_case();
    const weight_of w(type, ne, density);
    ggml_tensor * a = view(w.tensor);
    ggml_tensor * ids = new_tensor(GGML_TYPE_I32, { 9, a->ne[2], a->ne[3] });
    for (int64_t i = 0; i < ggml_nelements(ids); ++i) {
        ((int32_t *) ids->data)[i] = (int32_t) (rng() % a->ne[1]);
    }
    ggml_tensor * y = with_memory(ggml_get_rows(context.get(), a, ids));
    ggml_cuda_bof4_get_rows(cuda, y);
    const auto * out = (const float *) y->data;
    for (int64_t i = 0; i < ggml_nelements(ids); ++i) {
        const int64_t first = w.element(a, ((const int32_t *) ids->data)[i], i / 9 % a->ne[2], i / 9 / a->ne[2]);
        for (int64_t j = 0; j < a->ne[0]; ++j) {
            compare(out[i * a->ne[0] + j], w.values[first + j], std::fabs(w.values[first + j]) + 1e-6);
        }
    }
    ++cases;
}

// mul_mat of a view. With more than eight columns the codes are multiplied here, and only the outliers are added by a
// kernel.
void check_mul_mat(ggml_type type, std::vector<int64_t> ne, double density, int64_t columns, int64_t repeat,
    const view_of & view = whole) {
    new_case();
    const weight_of w(type, ne, density);
    ggml_tensor * a = view(w.tensor);
    const int64_t n = a->ne[0];
    ggml_tensor * x = exact_activations({ n, columns, a->ne[2] * repeat, a->ne[3] });
    ggml_tensor * y = with_memory(ggml_mul_mat(context.get(), a, x));
    const std::vector<double> codes(w.codes.begin(), w.codes.end());
    const auto each = [&](const std::function<void(float &, int64_t, const float *)> & take) {
        auto * out = (float *) y->data;
        for (int64_t i3 = 0; i3 < x->ne[3]; ++i3)
            for (int64_t i2 = 0; i2 < x->ne[2]; ++i2)
                for (int64_t c = 0; c < columns; ++c)
                    for (int64_t r = 0; r < a->ne[1]; ++r, ++out) {
                        take(*out, w.element(a, r, i2 / repeat, i3),
                            (const float *) ((const char *) x->data + c * x->nb[1] + i2 * x->nb[2] + i3 * x->nb[3]));
                    }
    };
    double magnitude;
    if (columns <= 8) {
        ggml_cuda_bof4_mul_mat_vec_q(cuda, a, x, y->src[2], y, nullptr);
    } else {
        each([&](float & out, int64_t first, const float * xs) {
            out = (float) product(codes, first, xs, n, magnitude);
        });
        ggml_cuda_bof4_add_outliers(cuda, y);
    }
    each([&](float & out, int64_t first, const float * xs) {
        const double expected = product(w.values, first, xs, n, magnitude);
        compare(out, expected, magnitude);
    });
    ++cases;
}

// own: every slot of a token has its own column
void check_mul_mat_id(ggml_type type, int64_t rows, int64_t tokens, bool own, double density) {
    new_case();
    const int64_t n = 512, experts = 5, used = 2;
    const weight_of w(type, { n, rows, experts }, density);
    ggml_tensor * x = exact_activations({ n, own ? used : 1, tokens });
    // a view of a longer table, as top-k returns it
    ggml_tensor * table = new_tensor(GGML_TYPE_I32, { experts, tokens });
    for (int64_t t = 0; t < tokens; ++t) {
        auto * of_token = (int32_t *) table->data + t * experts;
        for (int i = 0; i < experts; ++i) {
            of_token[i] = i;
        }
        std::shuffle(of_token, of_token + experts, rng);
    }
    ggml_tensor * ids = ggml_view_2d(context.get(), table, used, tokens, table->nb[1], 0);
    ggml_tensor * y = with_memory(ggml_mul_mat_id(context.get(), w.tensor, x, ids));
    const std::vector<double> codes(w.codes.begin(), w.codes.end());
    const auto each = [&](const std::function<void(float &, int64_t, const float *)> & take) {
        for (int64_t t = 0; t < tokens; ++t)
            for (int64_t u = 0; u < used; ++u)
                for (int64_t r = 0; r < rows; ++r) {
                    const int64_t expert = ((const int32_t *) table->data)[t * experts + u];
                    take(((float *) y->data)[(t * used + u) * rows + r], (expert * rows + r) * n,
                        (const float *) x->data + (own ? t * used + u : t) * n);
                }
    };
    double magnitude;
    if (tokens <= 8) {
        ggml_cuda_bof4_mul_mat_vec_q(cuda, w.tensor, x, ids, y, nullptr);
    } else {
        each([&](float & out, int64_t first, const float * xs) {
            out = (float) product(codes, first, xs, n, magnitude);
        });
        ggml_cuda_bof4_add_outliers(cuda, y);
    }
    each([&](float & out, int64_t first, const float * xs) {
        const double expected = product(w.values, first, xs, n, magnitude);
        compare(out, expected, magnitude);
    });
    ++cases;
}

// What upstream fuses: a bias, a gated unit, both. experts: as a mul_mat_id of two tokens. of_up, of_gate: density of
// the lists. over_x: the result is in the memory of the activations.
void check_fused(ggml_type type, bool experts, bool bias, int glu, double of_up, double of_gate, bool over_x = false) {
    new_case();
    const int64_t n = 768, rows = 13, n_experts = experts ? 4 : 1, tokens = experts ? 2 : 1, used = experts ? 2 : 1;
    const weight_of up(type, { n, rows, n_experts }, of_up), gate(type, { n, rows, n_experts }, of_gate);
    ggml_tensor * x = experts ? exact_activations({ n, 1, tokens }) : exact_activations({ n, 1 });
    ggml_tensor * ids = experts ? new_tensor(GGML_TYPE_I32, { used, tokens }) : nullptr;
    for (int i = 0; experts && i < used * tokens; ++i) {
        ((int32_t *) ids->data)[i] = (3 * i + 1) % (int) n_experts;
    }
    ggml_tensor * biases[2] = {};
    const auto one = [&](const weight_of & w, int which) {
        ggml_tensor * y = experts ? ggml_mul_mat_id(context.get(), w.tensor, x, ids)
                                  : ggml_mul_mat(context.get(), w.tensor, x);
        if (bias) {
            biases[which] = random_floats({ rows, n_experts }, 1e4f);
            y = experts ? ggml_add_id(context.get(), y, biases[which], ids) : ggml_add(context.get(), y, biases[which]);
        }
        return y;
    };
    ggml_tensor * y = one(up, 0);
    ggml_cuda_mm_fusion_args_host fusion;
    fusion.x_bias = biases[0];
    if (glu >= 0) {
        ggml_tensor * g = one(gate, 1);
        y = ggml_glu_split(context.get(), g, y, (ggml_glu_op) glu);
        fusion.gate = gate.tensor;
        fusion.gate_bias = biases[1];
        fusion.glu_op = (ggml_glu_op) glu;
        fusion.glu_limit = 5.0f;
    }
    const std::vector<float> activations((float *) x->data, (float *) x->data + ggml_nelements(x));
    if (over_x) {
        y->data = x->data;
    } else {
        with_memory(y);
    }
    // upstream passes the third source as ids, whatever it is
    const ggml_tensor * product_node = y->op == GGML_OP_GLU ? y->src[1] : y;
    while (product_node->op != GGML_OP_MUL_MAT && product_node->op != GGML_OP_MUL_MAT_ID) {
        product_node = product_node->src[0];
    }
    ggml_cuda_bof4_mul_mat_vec_q(cuda, up.tensor, x, product_node->src[2], y, &fusion);
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t u = 0; u < used; ++u)
            for (int64_t r = 0; r < rows; ++r) {
                const int64_t expert = experts ? ((const int32_t *) ids->data)[t * used + u] : 0;
                const float * xs = activations.data() + t * n;
                double m_up, m_gate;
                double expected = product(up.values, (expert * rows + r) * n, xs, n, m_up);
                const double g = product(gate.values, (expert * rows + r) * n, xs, n, m_gate) +
                    (glu >= 0 && bias ? ((float *) biases[1]->data)[expert * rows + r] : 0);
                expected += bias ? ((const float *) biases[0]->data)[expert * rows + r] : 0;
                double magnitude = m_up;
                switch (glu) {
                    case GGML_GLU_OP_SWIGLU:
                        expected *= g / (1 + std::exp(-g));
                        magnitude = m_up * m_gate;
                        break;
                    case GGML_GLU_OP_GEGLU:
                        // gelu, by the hyperbolic tangent as ggml has it
                        expected *= 0.5 * g * (1 + std::tanh(std::sqrt(2 / M_PI) * g * (1 + 0.044715 * g * g)));
                        magnitude = m_up * m_gate;
                        break;
                    case GGML_GLU_OP_REGLU:
                        expected *= g;
                        magnitude = m_up * m_gate;
                        break; // not implemented: the plain product
                    default: break;
                }
                compare(((const float *) y->data)[(t * used + u) * rows + r], expected, magnitude);
            }
    ++cases;
}

template <ggml_type type, int rows, bool mma>
void check_tile(const uint8_t * blocks, int64_t n_rows, int64_t n, const std::vector<float> & values) {
    using traits = bof4_cuda_type<type>;
    constexpr int scales = traits::mmq_scales;
    constexpr int stride = mma ? 64 + scales + 4 : 0;
    constexpr double unit = traits::mmq_unit; // of the activations in the product
    using tile = bof4_tile<rows, scales, stride, mma>;
    std::vector<int> memory(mma ? rows * stride : rows * 65 + rows * scales + rows * scales / 32, 0x7f7f7f7f);
    const int last = (int) std::min<int64_t>(rows, n_rows) - 1;
    for (int64_t k = 0; k + 256 <= n; k += 256) {
        on_host::run(dim3(1), dim3(32, 8), [&] {
            bof4_load_tile<type, tile, rows, 256, true>(blocks + k / traits::n * traits::bytes, memory.data(),
                (int) (threadIdx.y * 32 + threadIdx.x), (int) (n / traits::n), last);
        });
        for (int64_t r = 0; r <= last; ++r)
            for (int i = 0; i < 256; ++i) {
                const int level = ((const int8_t *) &memory[tile::word((int) r, i / 4)])[i % 4];
                const float scale = ((const float *) memory.data())[tile::scale((int) r, i / (256 / scales))];
                compare(level * scale * unit, values[r * n + k + i], std::fabs(values[r * n + k + i]) + 1e-9);
            }
        ++cases;
    }
}

void check_tiles(ggml_type type, const uint8_t * blocks, int64_t rows, int64_t n, const std::vector<float> & values) {
    bof4_dispatch(type, "tiles", [&](auto of_type) {
        check_tile<decltype(of_type)::value, 128, true>(blocks, rows, n, values);
        check_tile<decltype(of_type)::value, 64, false>(blocks, rows, n, values);
    });
}

// The tiled product on tensor cores of columns that bof4_quantize_mmq has written, by one block of threads: up to 128
// rows. out[c * rows + r].
template <ggml_type type, int J> void multiply_tile(
    const uint8_t * blocks, int rows, int64_t n, const char * y, int64_t y_columns, int columns, float * out) {
    using traits = bof4_cuda_type<type>;
    constexpr int row_tiles = J >= 48 ? 2 : 1, stride = (64 + traits::mmq_scales) | 4;
    static ggml_cuda_pool_alloc<int> tile_x(cuda.pool(), 128 * stride), tile_y(cuda.pool(), J * BOF4_MMQ_COLUMN),
        second_y(cuda.pool(), J * BOF4_MMQ_COLUMN);
    int * const buffers[2] = { tile_y.get(), second_y.get() };
    on_host::run(dim3(1), dim3(32, 8), [&] {
        float sums[J / 2] = {};
        bof4_mmq_accumulate<type, 128, J, row_tiles, stride, 256, true>(blocks, (int) ggml_row_size(type, n), rows - 1,
            (const int *) y, y_columns * BOF4_MMQ_COLUMN, 0, (int) (n / traits::n), tile_x.get(), buffers, sums);
        const int lane = threadIdx.x, warp = threadIdx.y;
        for (int i = 0; i < J / 2; ++i) {
            const int l = i % 4, tile = i / 4 % row_tiles, j = i / 4 / row_tiles;
            const int r = warp / row_tiles * 16 * row_tiles + 16 * tile + 8 * (l / 2) + lane / 4;
            const int c = 8 * (j * row_tiles + warp % row_tiles) + 2 * (lane % 4) + l % 2;
            if (r < rows && c < columns) {
                out[c * rows + r] = sums[i];
            }
        }
    });
}

using multiply_function = void (*)(const uint8_t *, int, int64_t, const char *, int64_t, int, float *);

// Quantized activations and their tiled product with a matrix.
struct tiled_product {
    int64_t n, y_columns;
    ggml_cuda_pool_alloc<char> y;

    tiled_product(int64_t n, int64_t y_columns, int64_t matrices = 1)
        : n(n),
          y_columns(y_columns),
          y(cuda.pool(), (matrices * y_columns * (padded() / 128) + 128) * BOF4_MMQ_COLUMN * sizeof(int)) {}

    int64_t padded() const { return GGML_PAD(n, 512); }

    std::vector<float> multiply(ggml_type type, int J, const uint8_t * blocks, int rows, int columns, int64_t i2 = 0) {
        std::vector<float> out(rows * columns);
        bof4_dispatch(type, "tiled product", [&](auto of_type) {
            constexpr ggml_type t = decltype(of_type)::value;
            const multiply_function f = J == 8 ? multiply_tile<t, 8>
                : J == 24                      ? multiply_tile<t, 24>
                                               : multiply_tile<t, 64>;
            f(blocks, rows, n, y.get() + i2 * y_columns * (padded() / 128) * BOF4_MMQ_COLUMN * sizeof(int), y_columns,
                columns, out.data());
        });
        return out;
    }
};

// matrices of columns; ids: gathered, as for mul_mat_id; slots: as for mul_mat_id with one column per token
void check_tiled_product(ggml_type type, int rows, int64_t n, int J, int columns, int matrices, bool ids, int slots) {
    new_case();
    const weight_of w(type, { n, rows }, 0.0);
    const std::vector<double> values(w.codes.begin(), w.codes.end());
    ggml_tensor * x = exact_activations({ n, slots ? columns / slots : columns, matrices });
    tiled_product product_of(n, columns, matrices);
    std::vector<int32_t> of_column(columns), table(columns);
    for (int i = 0; i < columns; ++i) {
        of_column[i] = i;
    }
    if (ids || slots) {
        std::shuffle(of_column.begin(), of_column.end(), rng);
    }
    for (int i = 0; i < columns; ++i) {
        table[slots ? of_column[i] : i] = slots ? i : of_column[i];
    }
    ggml_cuda_bof4_quantize_mmq((const float *) x->data, ids || slots ? table.data() : nullptr, product_of.y.get(),
        type, n, x->nb[1] / 4, x->nb[2] / 4, x->nb[3] / 4, product_of.padded(), slots ? columns / slots : columns,
        columns, matrices, 1, slots, nullptr);
    for (int m = 0; m < matrices; ++m) {
        const auto out = product_of.multiply(type, J, (const uint8_t *) w.tensor->data, rows, columns, m);
        for (int c = 0; c < columns; ++c) {
            const int from = slots ? of_column[c] / slots : of_column[c];
            for (int r = 0; r < rows; ++r) {
                double magnitude;
                const double expected = product(
                    values, r * n, (const float *) x->data + (m * x->ne[1] + from) * n, n, magnitude);
                compare(out[c * rows + r], expected, magnitude);
            }
        }
    }
    ++cases;
}

// Of the magnitude of a product's terms. Where a group of activations has one scale of weights, sums are exact until
// they are added as float32. Where it has several, each is added with an excess of at most 1.5 * 2^23 * 8 * 32 times the
// unit of the weights (bof4-mmq-product.cuh), so with an error of at most 128 units: of random errors of eight additions
// some 200, where the terms are 128 * 16 * 50 * 64 units on average.
double tiled_product_error(ggml_type type) {
    double error = 0.0;
    bof4_dispatch(type, "tiled product", [&](auto of_type) {
        using tile = bof4_product_tile<decltype(of_type)::value>;
        error = tile::group == tile::act_group ? 1e-7 : 3e-5;
    });
    return error;
}

ggml_type type_of(const std::string & name) {
#define TYPE(NAME, name_) \
    if (name == #NAME) { \
        return GGML_TYPE_##NAME; \
    }
    BOF4_TYPES_CUDA(TYPE)
#undef TYPE
    GGML_ABORT("no CUDA kernels for the type %s", name.c_str());
}

std::vector<char> file(const char * path) {
    std::ifstream in(path, std::ios::binary);
    return { std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>() };
}

// Rows of a model, compared with the weights that the numpy reference decodes.
bool check_real(const std::string & name, int64_t n, const char * blocks_file, const char * decoded_file) {
    const ggml_type type = type_of(name);
    const std::vector<char> blocks = file(blocks_file), bytes = file(decoded_file);
    const int64_t rows = (int64_t) blocks.size() / ggml_row_size(type, n);
    std::vector<float> values(rows * n);
    GGML_ASSERT(bytes.size() == values.size() * sizeof(float) && rows > 0);
    std::memcpy(values.data(), bytes.data(), bytes.size());

    new_case();
    // ggml's CUDA backend has memory for rows of a multiple of 512 weights: the tiled product reads whole tiles
    ggml_tensor * w = with_memory(
        ggml_new_tensor_2d(context.get(), type, n, rows), n % 512 ? ggml_row_size(type, 512 - n % 512) : 0);
    std::memcpy(w->data, blocks.data(), blocks.size());
    ggml_cuda_pool_alloc<float> y(cuda.pool(), values.size());
    ggml_cuda_bof4_to<float>(type)(w->data, y.get(), (int64_t) values.size(), nullptr);
    for (size_t i = 0; i < values.size(); ++i) {
        compare(y.get()[i], values[i], 1.0);
    }
    ++cases;
    bool ok = report("real rows, dequantized", 0.0);

    check_tiles(type, (const uint8_t *) w->data, rows, n, values);
    ok &= report("real rows, tiles", 2e-7);

    const std::vector<double> exact(values.begin(), values.end());
    for (const int64_t columns : { 1, 4 }) {
        ggml_tensor * x = exact_activations({ n, columns });
        ggml_tensor * products = with_memory(ggml_mul_mat(context.get(), w, x));
        ggml_cuda_bof4_mul_mat_vec_q(cuda, w, x, nullptr, products, nullptr);
        for (int64_t c = 0; c < columns; ++c)
            for (int64_t r = 0; r < rows; ++r) {
                double magnitude;
                const double expected = product(exact, r * n, (const float *) x->data + c * n, n, magnitude);
                compare(((const float *) products->data)[c * rows + r], expected, magnitude);
            }
        ++cases;
    }
    ok &= report("real rows, products", 1e-6);

    // Activations that int8 does not have exactly: the error must not be larger than that of mul_mat_vec, but for 5 %
    // (its rounding is the same, its groups of activations are).
    const int columns = 8;
    ggml_tensor * x = random_floats({ n, columns }, 1.0f);
    ggml_tensor * products = with_memory(ggml_mul_mat(context.get(), w, x));
    ggml_cuda_bof4_mul_mat_vec_q(cuda, w, x, nullptr, products, nullptr);
    tiled_product tiled(n, columns);
    ggml_cuda_bof4_quantize_mmq((const float *) x->data, nullptr, tiled.y.get(), type, n, n, 0, 0, tiled.padded(),
        columns, columns, 1, 1, 0, nullptr);
    const auto out = tiled.multiply(type, 8, (const uint8_t *) w->data, (int) rows, columns);
    double error = 0.0, error_of_vec = 0.0;
    for (int64_t c = 0; c < columns; ++c)
        for (int64_t r = 0; r < rows; ++r) {
            double magnitude;
            const double expected = product(exact, r * n, (const float *) x->data + c * n, n, magnitude);
            error += std::pow(out[c * rows + r] - expected, 2);
            error_of_vec += std::pow(((const float *) products->data)[c * rows + r] - expected, 2);
        }
    compare(std::max(std::sqrt(error / error_of_vec), 1.0), 1.0, 1.0);
    ++cases;
    return ok & report("real rows, tiled product", 0.05);
}

ggml_tensor * every_second_row(ggml_tensor * w) {
    return ggml_view_2d(context.get(), w, w->ne[0], w->ne[1] / 2, 2 * w->nb[1], w->nb[1]);
}

ggml_tensor * middle_columns(ggml_tensor * w) {
    return ggml_view_2d(context.get(), w, 256, w->ne[1], w->nb[1], ggml_row_size(w->type, 256));
}

ggml_tensor * three_rows_in_one(ggml_tensor * w) {
    return ggml_reshape_2d(context.get(), w, 3 * w->ne[0], w->ne[1] / 3);
}

ggml_tensor * a_third_of_each(ggml_tensor * w) {
    return ggml_reshape_2d(context.get(), w, w->ne[0] / 3, 3 * w->ne[1]);
}

ggml_tensor * exchanged(ggml_tensor * w) {
    return ggml_permute(context.get(), w, 0, 2, 1, 3);
}

} // namespace

int main(int argc, char ** argv) {
    if (argc == 5) {
        return check_real(argv[1], std::atoll(argv[2]), argv[3], argv[4]) ? 0 : 1;
    }
    const view_of views[] = { every_second_row, middle_columns, three_rows_in_one, a_third_of_each };
    bool ok = true;
    for (const ggml_type type : types) {
        const std::string name = ggml_type_name(type);
        const auto done = [&](const char * group, double tolerance) {
            ok &= report((name + " " + group).c_str(), tolerance);
        };
        const int64_t blck = ggml_blck_size(type);

        check_dequantize<float>(type);
        check_dequantize<half>(type);
        check_dequantize<nv_bfloat16>(type);
        done("dequantize", 0.0);

        for (const double density : { 0.0, 0.05 }) {
            check_get_rows(type, { 3 * blck, 21 }, density, whole);
            check_get_rows(type, { 768, 4, 3, 2 }, density, whole);
            for (const view_of & view : views) {
                check_get_rows(type, { 768, 12 }, density, view);
            }
        }
        done("get_rows", 2e-7);

        for (const int64_t n : { blck, 3 * blck, (int64_t) 2048, (int64_t) 4096 + 5 * blck }) {
            for (const int64_t columns : { 1, 2, 3, 4, 5, 6, 7, 8 })
                for (const double density : { 0.0, 0.02 }) {
                    if (n <= 2048 || columns % 5 == 1) {
                        check_mul_mat(type, { n, columns == 1 ? 13 : 5 }, density, columns, 1);
                    }
                }
        }
        for (const double density : { 0.0, 0.03 })
            for (const int64_t columns : { 1, 3 }) {
                check_mul_mat(type, { 768, 6, 3, 2 }, density, columns, 2);
                check_mul_mat(type, { 768, 6, 3 }, density, columns, 1, exchanged);
                for (const view_of & view : views) {
                    check_mul_mat(type, { 768, 12 }, density, columns, 1, view);
                }
            }
        check_mul_mat(type, { 512, 600 }, 0.02, 1, 1);
        done("matrix-vector", 1e-6);

        for (const bool experts : { false, true })
            for (const bool bias : { false, true })
                for (const int glu :
                    { -1, (int) GGML_GLU_OP_SWIGLU, (int) GGML_GLU_OP_GEGLU, (int) GGML_GLU_OP_REGLU }) {
                    for (const double of_up : { 0.0, 0.02 })
                        for (const double of_gate : { 0.0, 0.02 }) {
                            check_fused(type, experts, bias, glu, of_up, of_gate);
                        }
                }
        check_fused(type, false, true, -1, 0.02, 0.0, true);
        check_fused(type, false, true, GGML_GLU_OP_REGLU, 0.0, 0.02, true);
        done("bias and gate", 2e-6);

        for (const int64_t tokens : { 1, 2, 8, 9, 40 })
            for (const bool own : { false, true })
                for (const double density : { 0.0, 0.02 }) {
                    check_mul_mat_id(type, tokens == 40 ? 33 : 11, tokens, own, density);
                }
        done("experts", 1e-6);

        for (const int64_t columns : { 9, 33, 70 }) {
            check_mul_mat(type, { 768, 37 }, 0.02, columns, 1);
            check_mul_mat(type, { 768, 6, 3, 2 }, 0.05, columns, 2);
            for (const view_of & view : views) {
                check_mul_mat(type, { 768, 36 }, 0.05, columns, 1, view);
            }
        }
        done("outliers of many columns", 1e-6);

        new_case();
        const weight_of w(type, { 768, 70 }, 0.0);
        check_tiles(type, (const uint8_t *) w.tensor->data, 70, 768, w.codes);
        done("tiles", 2e-7);

        check_tiled_product(type, 128, 768, 8, 8, 1, false, 0);
        check_tiled_product(type, 37, 512, 24, 19, 2, false, 0);
        check_tiled_product(type, 128, 256, 64, 64, 1, true, 0);
        check_tiled_product(type, 70, 512, 64, 50, 1, false, 2);
        done("tiled product", tiled_product_error(type));
    }
    return ok ? 0 : 1;
}
