// Which weights become outliers (paper, eq. 9).
#include "bof4-checks.h"
#include "bof4-float-rows.h"
#include "bof4-row-ranges.h"

#include "../lists/bof4-list.h"
#include "bof4-format.h"

#include <cmath>
#include <stdexcept>
#include <vector>

namespace {

// Sample deviation (divisor BOF4_OPQ_BLOCK - 1) of BOF4_OPQ_BLOCK weights.
double sample_deviation(const float * x) {
    double sum = 0.0;
    for (int j = 0; j < BOF4_OPQ_BLOCK; ++j) {
        sum += x[j];
    }
    const double mean = sum / BOF4_OPQ_BLOCK;
    double squares = 0.0;
    for (int j = 0; j < BOF4_OPQ_BLOCK; ++j) {
        squares += (x[j] - mean) * (x[j] - mean);
    }
    return std::sqrt(squares / (BOF4_OPQ_BLOCK - 1));
}

// Calls found(column) for each outlier of a row.
template <typename Found> void for_outliers(const float * row, int64_t n, double threshold, Found found) {
    for (int64_t b = 0; b < n; b += BOF4_OPQ_BLOCK) {
        const double limit = sample_deviation(row + b) * threshold;
        for (int64_t j = b; j < b + BOF4_OPQ_BLOCK; ++j) {
            if (std::fabs((double) row[j]) > limit) {
                found(j);
            }
        }
    }
}

} // namespace

int bof4_select_outliers(int source_, const void * src, int64_t nrow, int64_t n_per_row, double threshold,
    int32_t * row_counts, int32_t * entries, int threads) {
    return bof4_guarded([&]() -> int {
        const ggml_type source = bof4_checked_type(source_);
        bof4_checked_row_size(source, n_per_row);
        bof4_check_source(source);
        if (n_per_row % BOF4_OPQ_BLOCK != 0 || n_per_row > 65536) {
            throw std::runtime_error("outlier lists need rows that are a multiple of " +
                std::to_string(BOF4_OPQ_BLOCK) + " and at most 65536 long, not of " + std::to_string(n_per_row));
        }
        const auto for_rows = [&](auto work) {
            bof4_for_row_ranges(nrow, bof4_rows_per_range(n_per_row), threads, [&](int64_t first, int64_t count) {
                thread_local std::vector<float> converted;
                const float * x = bof4_float_rows(source, src, first, count, n_per_row, converted);
                for (int64_t r = 0; r < count; ++r) {
                    work(first + r, x + r * n_per_row);
                }
                return true;
            });
        };
        // counting first gives every row the place of its entries, so rows can be done in any order
        for_rows([&](int64_t r, const float * row) {
            int32_t n = 0;
            for_outliers(row, n_per_row, threshold, [&](int64_t) { ++n; });
            row_counts[r] = n;
        });
        if (entries == nullptr) {
            return 0;
        }
        std::vector<int64_t> start(nrow + 1, 0);
        for (int64_t r = 0; r < nrow; ++r) {
            start[r + 1] = start[r] + row_counts[r];
        }
        for_rows([&](int64_t r, const float * row) {
            int32_t * out = entries + start[r];
            if (row_counts[r] > 0) {
                for_outliers(row, n_per_row, threshold, [&](int64_t j) { *out++ = bof4_entry(j, row[j]); });
            }
        });
        return 0;
    });
}
