#include "bof4-path.h"

#include "bof4-choice.h"
#include "ggml-impl.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>

namespace {

enum { GEMM, GEMV, PATHS };

// The paths differ by some percent, and the times of one by more: with 24 samples one of three runs chose the slower one
// on Zen 4. A prompt of 256 tokens has thousands.
enum { SAMPLES = 160 };

// The path that BOF4_PATH gives, or -1.
int from_environment() {
    static const int path = [] {
        const char * text = std::getenv("BOF4_PATH");
        if (text == nullptr) {
            return -1;
        }
        if (std::strcmp(text, "gemm") != 0 && std::strcmp(text, "gemv") != 0) {
            GGML_LOG_WARN("BOF4_PATH=%s is neither gemm nor gemv, and is ignored\n", text);
            return -1;
        }
        return std::strcmp(text, "gemv") == 0 ? (int) GEMV : (int) GEMM;
    }();
    return path;
}

struct choice_of_type {
    std::mutex mutex;
    bof4_choice<PATHS, SAMPLES> choice;
    std::atomic<int> chosen{ -1 };
};
std::array<choice_of_type, GGML_TYPE_COUNT> choices;

} // namespace

int bof4_path_chosen(ggml_type type) {
    const int given = from_environment();
    return given >= 0 ? given : choices[type].chosen.load(std::memory_order_relaxed);
}

bof4_path_trial bof4_path_next(ggml_type type, int64_t n_columns) {
    const int chosen = bof4_path_chosen(type);
    if (chosen >= 0 || n_columns < BOF4_PATH_LEAST_COLUMNS) {
        return { chosen == GEMV, false };
    }
    choice_of_type & of_type = choices[type];
    const std::lock_guard<std::mutex> lock(of_type.mutex);
    const int path = of_type.choice.next();
    return path < 0 ? bof4_path_trial{ of_type.choice.chosen() == GEMV, false } : bof4_path_trial{ path == GEMV, true };
}

void bof4_path_add(ggml_type type, bof4_path_trial trial, double ns_per_product) {
    choice_of_type & of_type = choices[type];
    const std::lock_guard<std::mutex> lock(of_type.mutex);
    if (of_type.choice.add(trial.use_gemv ? GEMV : GEMM, ns_per_product)) {
        of_type.chosen.store(of_type.choice.chosen(), std::memory_order_relaxed);
        GGML_LOG_DEBUG("%s: %s weights are multiplied with many columns by %s\n", __func__, ggml_type_name(type),
            of_type.choice.chosen() == GEMV ? "GEMV" : "GEMM");
    }
}
