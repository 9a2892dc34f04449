// What the benches measure: how fast this machine reads and multiplies, and how long products of ggml take on it.
// cffi parses this file, so it holds declarations only.

// Nanoseconds that `threads` threads take to read `nbytes` of memory once: the fastest of several loops, each run
// `passes` times.
BOF4_API double bof4_read_ns(const void * data, int64_t nbytes, int threads, int passes);

// The instructions of the CPU backend, or of the variant of it that is loaded: "avx512-vnni", "avx-vnni", "avx2",
// "neon-i8mm", "neon-dotprod" or "portable". NULL: there is no CPU backend; the message is in bof4_last_error().
BOF4_API const char * bof4_instruction_set(void);

// int8 products per nanosecond of those instructions on one thread where all operands are in registers; 0: not known.
// BOF4_FAILED: there is no CPU backend.
BOF4_API double bof4_int8_rate(void);

typedef struct bof4_timed_product bof4_timed_product;

// `copies` equal matrices of nrow rows, each to be multiplied by the same ncol columns on `threads` threads.
// repacked: in the first of the CPU backend's buffer types that has a kernel for them, as llama.cpp loads them; else in
// an ordinary buffer.
// Returns NULL, or a message that is valid until the thread's next call.
BOF4_API const char * bof4_timed_product_new(int type, const void * weights, int64_t nrow, int64_t n_per_row,
    int64_t ncol, int copies, int repacked, int threads, bof4_timed_product ** product);

// The name of the buffer type that the weights are in; "CPU" is an ordinary buffer.
BOF4_API const char * bof4_timed_product_layout(const bof4_timed_product * product);

// Bytes ahead that the CPU backend prefetches these weights for one column, which it chooses while it multiplies.
// BOF4_PREFETCH_CHOOSING: it has not chosen yet. BOF4_PREFETCH_NONE: it does not choose for such weights.
enum { BOF4_PREFETCH_CHOOSING = -1, BOF4_PREFETCH_NONE = -2 };
BOF4_API int64_t bof4_timed_product_prefetch(const bof4_timed_product * product);

// How the CPU backend multiplies these weights with these columns. BOF4_PATH_CHOOSING: it has not chosen yet.
// BOF4_PATH_NONE: they are not in this project's layout.
enum { BOF4_PATH_GEMM = 0, BOF4_PATH_GEMV = 1, BOF4_PATH_CHOOSING = -1, BOF4_PATH_NONE = -2 };
BOF4_API int bof4_timed_product_path(const bof4_timed_product * product);

// Nanoseconds of multiplying all copies once; negative: the product failed.
BOF4_API double bof4_timed_product_ns(bof4_timed_product * product);

BOF4_API void bof4_timed_product_free(bof4_timed_product * product);
