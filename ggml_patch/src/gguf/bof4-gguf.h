// GGUF files that a program would read wrongly: with formats that this build does not know, or with outlier lists that
// the program does not apply. gguf.cpp calls this for every reader, so one that nobody thought of refuses, too.
#pragma once

#include "ggml.h"
#include "gguf.h"

#include <string>

// Why the BOF4 tensors of a file would decode to other weights than its writer meant: bof4.version is above that of this
// build, or bof4.levels.* are others. Empty where neither is so; files without the keys are accepted.
GGML_API std::string bof4_gguf_metadata_error(const gguf_context * file);

// false, with the reason on stderr, where the file has such metadata or an outlier list, unless the thread has a
// bof4_gguf_unchecked.
GGML_API bool bof4_gguf_check(const gguf_context * file);

GGML_API void bof4_gguf_count_unchecked(int change);

// While one lives, its thread reads files without that check: the model loader applies lists and checks the metadata
// itself, and some programs only copy the bytes of tensors.
struct bof4_gguf_unchecked {
    bof4_gguf_unchecked() { bof4_gguf_count_unchecked(1); }
    ~bof4_gguf_unchecked() { bof4_gguf_count_unchecked(-1); }
    bof4_gguf_unchecked(const bof4_gguf_unchecked &) = delete;
    bof4_gguf_unchecked & operator=(const bof4_gguf_unchecked &) = delete;
};

GGML_API void bof4_gguf_set_name(const char * path);

// While one lives, the message of bof4_gguf_check names this file: the log, where callers name it, may be lost.
struct bof4_gguf_named {
    explicit bof4_gguf_named(const char * path) { bof4_gguf_set_name(path); }
    ~bof4_gguf_named() { bof4_gguf_set_name("this GGUF file"); }
    bof4_gguf_named(const bof4_gguf_named &) = delete;
    bof4_gguf_named & operator=(const bof4_gguf_named &) = delete;
};

// Adds the metadata that a file with a tensor of this type needs; nothing where it is another than the BOF4 types.
GGML_API void bof4_gguf_describe(gguf_context * file, ggml_type type);
