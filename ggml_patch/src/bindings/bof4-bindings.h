// The library that Python loads: encoders, decoders and products of the patched ggml, and llama-quantize's rules, as C
// functions. cffi parses this file, so it holds declarations only.
//
// `type` and `source` are ggml_type values; `source` is F32, F16 or BF16. `threads`: 0 means all cores.
// Matrices have rows before columns: weights[nrow][n_per_row].

// Returned by every function here that can fail; the message is then in bof4_last_error().
enum { BOF4_FAILED = -2 };

// The message of the calling thread's last failure, until its next one.
BOF4_API const char * bof4_last_error(void);

// Bytes of a row. BOF4_FAILED: the type is unknown, or n_per_row is not a positive multiple of its block.
BOF4_API int64_t bof4_row_size(int type, int64_t n_per_row);

// Find the outliers of rows: weights beyond `threshold` sample deviations of their block of 64 (paper, eq. 9).
// row_counts[nrow] gets their number in each row; entries, unless NULL, gets them, in order.
// Returns 0. BOF4_FAILED: n_per_row is not a multiple of 64 or above 65536, or another source type.
BOF4_API int bof4_select_outliers(int source, const void * src, int64_t nrow, int64_t n_per_row, double threshold,
    int32_t * row_counts, int32_t * entries, int threads);

enum bof4_encoder {
    BOF4_ENCODER_ABSMAX = 0, // the paper's: a scale is the maximum of its weights
    BOF4_ENCODER_SEARCH = 1  // scales of least squared error, weighted by the importance matrix
};

// Encode rows into dst[nrow][bytes of a row]. encoder: a bof4_encoder; types other than BOF4 have one encoder only and
// ignore it.
// imatrix: importance of each column, n_per_row floats of 0 or more, or NULL.
// row_pointers[nrow + 1], entries: outliers, for which the blocks hold zero; or NULL.
// Returns -1 when all rows are encoded, or the index of the first weight that is NaN, infinite or too large for a scale
// of the type (dst is then incomplete).
// BOF4_FAILED: rows do not divide into blocks, an unknown type or encoder, another source type, no imatrix for a type
// that needs one, or an importance that is NaN, infinite or negative.
BOF4_API int64_t bof4_quantize(int type, int source, const void * src, void * dst, int64_t nrow, int64_t n_per_row,
    int encoder, const float * imatrix, const int32_t * row_pointers, const int32_t * entries, int threads);

// Encode rows with GPTQ (bof4-gptq.h describes it). order[n_per_row]: the column that is processed k-th, blocks kept
// together.
// feedback, hessian: n_per_row x n_per_row, in that order, as panels [n_per_row / 64][n_per_row][64]; curvature:
// n_per_row. hessian may be NULL where sweeps is 0. row_pointers[nrow + 1], entries: outliers, whose values are
// replaced; or NULL. decoded[nrow][n_per_row] gets the weights, outliers included; loss[2]: the weighted squared error
// after the columns and after the sweeps.
// Returns 0. BOF4_FAILED: gptq does not encode the type, rows do not divide into blocks, or the order separates columns
// of a block.
BOF4_API int bof4_gptq(int type, const float * weights, int64_t nrow, int64_t n_per_row, const int32_t * order,
    const float * feedback, const float * curvature, const float * hessian, int sweeps, const int32_t * row_pointers,
    int32_t * entries, void * dst, float * decoded, double * loss, int threads);

// Decode rows to float dst[nrow][n_per_row]. Returns 0. BOF4_FAILED: rows do not divide into blocks, or ggml cannot
// decode the type.
BOF4_API int bof4_dequantize(int type, const void * src, float * dst, int64_t nrow, int64_t n_per_row, int threads);

// Returns 0 where every block of the data is valid (ggml_validate_row_data). BOF4_FAILED: one is not.
BOF4_API int bof4_validate(int type, const void * data, int64_t nbytes);

// dst[1] = product of one encoded row with n floats, through the type's vec_dot.
// Returns 0. BOF4_FAILED: n does not divide into blocks, or the CPU backend has no vec_dot for the type.
BOF4_API int bof4_vec_dot(int type, const void * row, const float * activations, int64_t n, float * dst);

// dst[ncol][nrow] = activations[ncol][n_per_row] times the transposed weights[nrow][n_per_row], computed by
// ggml_mul_mat on the CPU backend. list[n_list]: the weights' outlier list, or NULL.
// Returns 0. BOF4_FAILED: rows do not divide into blocks, the list is not valid, or the CPU backend cannot multiply the
// type.
BOF4_API int bof4_mul_mat(int type, const void * weights, int64_t nrow, int64_t n_per_row, const int32_t * list,
    int64_t n_list, const float * activations, int64_t ncol, float * dst, int threads);

// Would llama-quantize quantize this tensor of this architecture? ne: ggml order, columns first.
// Returns 1 for yes and 0 for no. BOF4_FAILED: the architecture is unknown.
BOF4_API int bof4_allows_quantization(const char * architecture, const char * name, int n_dims, const int64_t * ne);
