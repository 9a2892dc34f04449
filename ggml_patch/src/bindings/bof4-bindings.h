// The library that Python loads: encoders, decoders and products of the patched ggml, and llama-quantize's
// rules, behind plain C. cffi parses this file, so it holds declarations only.
//
// `type` and `source` are ggml_type values. `source` is F32, F16 or BF16. Threads: 0 means all cores.
// Functions that can fail return a negative number (or NULL) and leave a message in bof4_last_error().

BOF4_API const char * bof4_last_error(void);

// Bytes of a row, or -1 where the type is unknown or n_per_row is not a multiple of its block.
BOF4_API int64_t bof4_row_size(int type, int64_t n_per_row);

// Find the outliers of rows: weights beyond `threshold` sample deviations of their block of 64 (paper, eq. 9).
// row_counts[nrow] gets their number in each row; entries, unless NULL, gets them, in order. Returns 0 or -2.
BOF4_API int bof4_select_outliers(
    int source, const void * src, int64_t nrow, int64_t n_per_row, double threshold,
    int32_t * row_counts, int32_t * entries, int threads);

// Encode rows with an encoder, "absmax" or "search", which types other than ours ignore. Returns -1 when all is done, -2 on an error, or the index of the first weight
// that is NaN or infinite (dst is then incomplete).
// imatrix: importance of each column, n_per_row floats, or NULL.
// row_pointers[nrow + 1], entries: outliers, which are zero to the encoder; or NULL.
BOF4_API int64_t bof4_quantize(
    int type, int source, const void * src, void * dst, int64_t nrow, int64_t n_per_row,
    const char * encoder, const float * imatrix, const int32_t * row_pointers, const int32_t * entries, int threads);

// Encode rows with GPTQ (bof4-gptq.h says how). order[n_per_row]: the column that is processed k-th, blocks kept together.
// feedback, moments: n_per_row x n_per_row, in that order, as panels [n_per_row / 64][n_per_row][64]; curvature: n_per_row.
// moments may be NULL where sweeps is 0. row_pointers[nrow + 1], entries: outliers, whose values are replaced; or NULL.
// decoded[nrow][n_per_row] gets the weights, outliers included; loss[2]: the weighted squared error after the columns and
// after the sweeps. Returns 0 or -2.
BOF4_API int bof4_gptq(
    int type, const float * weights, int64_t nrow, int64_t n_per_row, const int32_t * order, const float * feedback,
    const float * curvature, const float * moments, int sweeps, const int32_t * row_pointers, int32_t * entries,
    void * dst, float * decoded, double * loss, int threads);

// Decode rows to float. Returns 0, or -2 on an error.
BOF4_API int bof4_dequantize(
    int type, const void * src, float * dst, int64_t nrow, int64_t n_per_row, int threads);

// 0 where every block of the data is valid (ggml_validate_row_data), -2 where not.
BOF4_API int bof4_validate(int type, const void * data, int64_t nbytes);

// dst = product of one encoded row with n floats, through the type's vec_dot. Returns 0 or -2.
BOF4_API int bof4_vec_dot(int type, const void * row, const float * activations, int64_t n, float * dst);

// dst[ncol][nrow] = activations[ncol][n_per_row] times the transposed weights[nrow][n_per_row], computed by
// ggml_mul_mat on the CPU backend. list[n_list]: the weights' outlier list, or NULL. Returns 0 or -2.
BOF4_API int bof4_mul_mat(
    int type, const void * weights, int64_t nrow, int64_t n_per_row, const int32_t * list, int64_t n_list,
    const float * activations, int64_t ncol, float * dst, int threads);

// Would llama-quantize quantize this tensor of this architecture? ne: ggml order, columns first.
// 1 yes, 0 no, -2 where the architecture is unknown.
BOF4_API int bof4_allows_quantization(const char * architecture, const char * name, int n_dims, const int64_t * ne);
