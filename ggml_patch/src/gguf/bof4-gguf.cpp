#include "bof4-gguf.h"

#include "../format/bof4-blocks.h"
#include "../lists/bof4-list.h"

#include <cstdio>
#include <cstring>

static const char * const VERSION_KEY = "bof4.version";

#define BOF4_LEVELS(NAME, c_name) { GGML_TYPE_##NAME, "bof4.levels." #c_name, NAME##_LEVELS },
static const struct {
    ggml_type type;
    const char * key;
    int8_t levels[16];
} LEVELS[] = { BOF4_TYPES(BOF4_LEVELS) };
#undef BOF4_LEVELS

static thread_local int n_unchecked = 0;

void bof4_gguf_count_unchecked(int change) {
    n_unchecked += change;
}

static thread_local std::string name_of_file = "this GGUF file";

void bof4_gguf_set_name(const char * path) {
    name_of_file = path;
}

static std::string version_error(const gguf_context * file) {
    const int64_t id = gguf_find_key(file, VERSION_KEY);
    if (id < 0) {
        return "";
    }
    if (gguf_get_kv_type(file, id) != GGUF_TYPE_UINT32) {
        return std::string(VERSION_KEY) + " is not a number of type u32: the file is damaged";
    }
    const uint32_t version = gguf_get_val_u32(file, id);
    if (version <= BOF4_FORMAT_VERSION) {
        return "";
    }
    return std::string(VERSION_KEY) + " is " + std::to_string(version) + ", this build reads the BOF4 formats up to " +
        std::to_string(BOF4_FORMAT_VERSION) + ": update gguf-bof4 and build it again";
}

static bool has_levels(const gguf_context * file, int64_t id, const int8_t (&levels)[16]) {
    return gguf_get_kv_type(file, id) == GGUF_TYPE_ARRAY && gguf_get_arr_type(file, id) == GGUF_TYPE_INT8 &&
        gguf_get_arr_n(file, id) == sizeof(levels) && memcmp(gguf_get_arr_data(file, id), levels, sizeof(levels)) == 0;
}

std::string bof4_gguf_metadata_error(const gguf_context * file) {
    const std::string error = version_error(file);
    if (!error.empty()) {
        return error;
    }
    for (const auto & known : LEVELS) {
        const int64_t id = gguf_find_key(file, known.key);
        if (id >= 0 && !has_levels(file, id, known.levels)) {
            return std::string(known.key) +
                " has other levels than this build decodes with: the file is damaged, or was not written by gguf-bof4";
        }
    }
    return "";
}

static bool is_list(const gguf_context * file, int64_t id) {
    const std::string name = gguf_get_tensor_name(file, id);
    const size_t length = strlen(BOF4_LIST_SUFFIX);
    return gguf_get_tensor_type(file, id) == GGML_TYPE_I32 && name.size() > length &&
        name.compare(name.size() - length, length, BOF4_LIST_SUFFIX) == 0;
}

static std::string error_of(const gguf_context * file) {
    for (int64_t id = 0; id < gguf_get_n_tensors(file); ++id) {
        if (is_list(file, id)) {
            return std::string("the outlier list '") + gguf_get_tensor_name(file, id) +
                "' would be ignored: only the model loader applies lists. Apply them with "
                "`bof4 convert FILE OUTPUT --type F16`, or convert the unquantized file again";
        }
    }
    return bof4_gguf_metadata_error(file);
}

bool bof4_gguf_check(const gguf_context * file) {
    const std::string error = n_unchecked > 0 ? "" : error_of(file);
    if (!error.empty()) {
        // not the log, which some programs write in a thread that may end before it has written this
        fprintf(stderr, "%s cannot be read here: %s\n", name_of_file.c_str(), error.c_str());
    }
    return error.empty();
}

void bof4_gguf_describe(gguf_context * file, ggml_type type) {
    for (const auto & known : LEVELS) {
        if (type == known.type) {
            gguf_set_val_u32(file, VERSION_KEY, BOF4_FORMAT_VERSION);
            gguf_set_arr_data(file, known.key, GGUF_TYPE_INT8, known.levels, sizeof(known.levels));
        }
    }
}
