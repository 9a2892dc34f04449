// Text that a model writes: samples of its own distribution, many sequences at once, on the CPU.
// cffi parses this file, so it holds declarations only.

typedef struct bof4_writer bof4_writer;

// Load a model. sequences: written at once, each of at most `length` tokens with the start token in front.
// Returns NULL: llama.cpp cannot load the model, it has no start token, or it cannot write text; the message is in
// bof4_last_error().
BOF4_API bof4_writer * bof4_writer_new(const char * path, int sequences, int length, uint32_t seed, int threads);

// The start token; -1 where the tokenizer puts it in front of every text anyway.
BOF4_API int bof4_writer_visible_start(const bof4_writer * writer);

// The next token of every sequence: tokens[sequences]. ended[sequences]: 1 where the text ends with it, because the
// model ends it or because it is as long as it may be; the next token begins another text.
// The result depends on the seed, and not on the number of threads. Returns 0. BOF4_FAILED: the model gives no numbers.
BOF4_API int bof4_writer_next(bof4_writer * writer, int32_t * tokens, int32_t * ended);

// Tokens as bytes of text, special tokens by their names, into text[size]. Returns the number of bytes; negative: that
// many are needed.
BOF4_API int bof4_writer_text(const bof4_writer * writer, const int32_t * tokens, int n, char * text, int size);

BOF4_API void bof4_writer_free(bof4_writer * writer);
