// Encoding, decoding and validation of rows.
#include "bof4-checks.h"
#include "bof4-float-rows.h"
#include "bof4-gptq.h"
#include "bof4-row-ranges.h"

#include "../format/bof4-hooks.h"
#include "../format/bof4-search.h"
#include "../lists/bof4-list.h"

#include "ggml.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// Rows of a type by one of its encoders.
using encode_rows = void (*)(
    ggml_type type, const float * x, void * rows, int64_t count, int64_t n_per_row, const float * imatrix);

void encode_absmax(ggml_type type, const float * x, void * rows, int64_t count, int64_t n_per_row, const float *) {
    ggml_get_type_traits(type)->from_float_ref(x, rows, count * n_per_row);
}

// What llama-quantize calls: the scale search of BOF4 types, and the only encoder of other types.
void encode_like_llama_quantize(
    ggml_type type, const float * x, void * rows, int64_t count, int64_t n_per_row, const float * imatrix) {
    ggml_quantize_chunk(type, x, rows, 0, count, n_per_row, imatrix);
}

encode_rows encoder_of(ggml_type type, int encoder) {
    switch (encoder) {
        case BOF4_ENCODER_ABSMAX: return ggml_is_bof4(type) ? encode_absmax : encode_like_llama_quantize;
        case BOF4_ENCODER_SEARCH: return encode_like_llama_quantize;
        default:                  throw std::runtime_error("there is no encoder " + std::to_string(encoder));
    }
}

// Index of the first weight that is NaN or of this magnitude or more; -1 without one.
int64_t first_from(float magnitude, const float * x, int64_t n) {
    // an integer "or" vectorizes, and magnitudes order like their bits, NaN above infinity; the position is looked for
    // only where there is one
    uint32_t limit;
    std::memcpy(&limit, &magnitude, sizeof(limit));
    uint32_t any = 0;
    for (int64_t i = 0; i < n; ++i) {
        uint32_t bits;
        std::memcpy(&bits, x + i, sizeof(bits));
        any |= (bits & 0x7fffffffu) >= limit;
    }
    return any ? std::find_if(x, x + n, [&](float v) { return !(std::fabs(v) < magnitude); }) - x : -1;
}

// The smallest magnitude that is too large for a type. Of ggml's types with fp16 scales it is a bound, beyond which
// their encoders overflow or abort; what is below it and too large shows in the encoded blocks.
float overflow_of(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:
        case GGML_TYPE_MXFP4: return INFINITY;
        case GGML_TYPE_BF16:  return 0x1.ffp127f;   // rounds to infinity
        case GGML_TYPE_NVFP4: return 448.0f * 7.0f; // the largest scale; the next level after 6 would be 8
        case GGML_TYPE_F16:   BOF4_TYPES(BOF4_CASE) return BOF4_FP16_OVERFLOW;
        default:              return 1e12f;
    }
}

// Index of the largest weight of the first row whose encoded blocks are not valid, as it was too large; -1 without one.
int64_t largest_of_invalid_row(ggml_type type, const char * rows, const float * x, int64_t count, int64_t n_per_row) {
    const size_t row_bytes = ggml_row_size(type, n_per_row);
    if (ggml_validate_row_data(type, rows, count * row_bytes)) {
        return -1;
    }
    int64_t r = 0;
    while (r + 1 < count && ggml_validate_row_data(type, rows + r * row_bytes, row_bytes)) {
        ++r;
    }
    const float * row = x + r * n_per_row;
    const auto is_smaller = [](float a, float b) { return std::fabs(a) < std::fabs(b); };
    return std::max_element(row, row + n_per_row, is_smaller) - x;
}

void check_importance(const float * imatrix, int64_t n) {
    for (int64_t j = 0; j < n; ++j) {
        if (!bof4_is_importance(imatrix[j])) {
            throw std::runtime_error("the importance of column " + std::to_string(j) + " is " +
                std::to_string(imatrix[j]) + ", but must be finite and 0 or more");
        }
    }
}

} // namespace

int64_t bof4_quantize(int type_, int source_, const void * src, void * dst, int64_t nrow, int64_t n_per_row,
    int encoder, const float * imatrix, const int32_t * row_pointers, const int32_t * entries, int threads) {
    return bof4_guarded([&]() -> int64_t {
        const ggml_type type = bof4_checked_type(type_);
        const ggml_type source = bof4_checked_type(source_);
        const size_t row_bytes = bof4_checked_row_size(type, n_per_row);
        bof4_checked_row_size(source, n_per_row);
        bof4_check_source(source);
        if (ggml_quantize_requires_imatrix(type) && imatrix == nullptr) {
            throw std::runtime_error(
                std::string(ggml_type_name(type)) + " cannot be made without an importance matrix");
        }
        if (imatrix != nullptr) {
            check_importance(imatrix, n_per_row);
        }
        const auto encode = encoder_of(type, encoder);
        ggml_quantize_init(type);

        std::atomic<int64_t> bad{ INT64_MAX };
        bof4_for_row_ranges(nrow, bof4_rows_per_range(n_per_row), threads, [&](int64_t first, int64_t count) {
            thread_local std::vector<float> converted;
            const float * x = bof4_float_rows(source, src, first, count, n_per_row, converted);
            const auto is_good = [&](int64_t at) {
                if (at < 0) {
                    return true;
                }
                int64_t known = bad;
                const int64_t found = first * n_per_row + at;
                while (found < known && !bad.compare_exchange_weak(known, found)) {}
                return false;
            };
            if (!is_good(first_from(INFINITY, x, count * n_per_row))) {
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
            if (!is_good(first_from(overflow_of(type), x, count * n_per_row))) {
                return false;
            }
            char * rows = (char *) dst + first * row_bytes;
            encode(type, x, rows, count, n_per_row, imatrix);
            return is_good(largest_of_invalid_row(type, rows, x, count, n_per_row));
        });
        // ranges are distributed in ascending order and every range that was begun is finished, so this is the first
        return bad == INT64_MAX ? -1 : bad.load();
    });
}

int bof4_gptq(int type_, const float * weights, int64_t nrow, int64_t n_per_row, const int32_t * order,
    const float * feedback, const float * curvature, const float * hessian, int sweeps, const int32_t * row_pointers,
    int32_t * entries, void * dst, float * decoded, double * loss, int threads) {
    return bof4_guarded([&]() -> int {
        const ggml_type type = bof4_checked_type(type_);
        const size_t row_bytes = bof4_checked_row_size(type, n_per_row);
        if (!bof4_gptq_can_encode(type)) {
            throw std::runtime_error(std::string("gptq does not encode the type ") + ggml_type_name(type));
        }
        if (n_per_row % bof4_gptq_panel != 0) {
            throw std::runtime_error(
                "rows of " + std::to_string(n_per_row) + " are no multiple of " + std::to_string(bof4_gptq_panel));
        }
        if (row_pointers != nullptr && !ggml_is_bof4(type)) {
            throw std::runtime_error(std::string("tensors of ") + ggml_type_name(type) + " have no outlier lists");
        }
        if (!bof4_gptq_is_block_order(type, order, n_per_row)) {
            throw std::runtime_error(
                std::string("the order of columns tears blocks of ") + ggml_type_name(type) + " apart");
        }
        const bof4_gptq_job job = { type, n_per_row, order, feedback, curvature, hessian, sweeps };
        // losses are summed over tiles in order, whichever threads encoded them
        const int64_t tile = bof4_gptq_tile_rows;
        std::vector<double> losses((nrow + tile - 1) / tile * 2);
        bof4_for_row_ranges(nrow, tile, threads, [&](int64_t first, int64_t count) {
            bof4_gptq_rows rows = { weights + first * n_per_row, count,
                row_pointers == nullptr ? nullptr : row_pointers + first, entries, (char *) dst + first * row_bytes,
                decoded + first * n_per_row, { 0.0, 0.0 } };
            bof4_gptq_encode(job, rows);
            losses[first / tile * 2] = rows.loss[0];
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
    return bof4_guarded([&]() -> int {
        const ggml_type type = bof4_checked_type(type_);
        const size_t row_bytes = bof4_checked_row_size(type, n_per_row);
        const auto decode = ggml_get_type_traits(type)->to_float;
        if (decode == nullptr && type != GGML_TYPE_F32) {
            throw std::runtime_error(std::string("ggml cannot decode the type ") + ggml_type_name(type));
        }
        bof4_for_row_ranges(nrow, bof4_rows_per_range(n_per_row), threads, [&](int64_t first, int64_t count) {
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
    return bof4_guarded([&]() -> int {
        if (!ggml_validate_row_data(bof4_checked_type(type), data, nbytes)) {
            throw std::runtime_error("ggml finds a block that is not valid");
        }
        return 0;
    });
}
