// Transposed bf16 activations: 32 columns of a mul_mat, element by element (layout: bof4-list-cpu.h).

#include "bof4-list-tile.h"
#include "ggml-impl.h"

enum { LANES = BOF4_LIST_LANES };

size_t bof4_list_transposed_size(const struct ggml_tensor * dst) {
    const struct ggml_tensor * list = ggml_bof4_list_of_op(dst);
    const struct ggml_tensor * src0 = dst->src[0];
    const int64_t n_columns = ggml_nrows(dst->src[1]);
    if (list == NULL || n_columns / (src0->ne[2] * src0->ne[3]) < BOF4_LIST_MIN_TILE_COLUMNS ||
        !ggml_bof4_list_view_of_op(dst).is_whole_rows) {
        return 0;
    }
    // An entry whose activations are gathered takes about 20 cycles more for 16 columns than one whose activations are
    // transposed, and transposing an element of 16 columns takes 2. So transposing is slower with fewer outliers than
    // about an eighth of the row length.
    const int64_t n_outliers = list->ne[0] - ggml_nrows(src0);
    if (n_outliers < src0->ne[0] / 8) {
        return 0;
    }
    return (size_t) (GGML_PAD(n_columns, BOF4_LIST_COLUMNS) / 2 * src0->ne[0]) * sizeof(uint32_t) + 64;
}

static int64_t tiles_of(const struct ggml_tensor * dst) {
    return (ggml_nrows(dst->src[1]) + BOF4_LIST_COLUMNS - 1) / BOF4_LIST_COLUMNS;
}

static int64_t blocks_of(const struct ggml_tensor * dst) {
    return dst->src[0]->ne[0] / ggml_blck_size(dst->src[0]->type);
}

// Pieces that 32 columns are cut into: at most 2048 elements, which stay in L2, and two pieces per thread. No more than
// that, because whole rows are the longest streams of memory.
static int64_t parts_of(const struct ggml_tensor * dst, int nth) {
    const int64_t n_tiles = tiles_of(dst);
    const int64_t parts = MAX((dst->src[0]->ne[0] + 2047) / 2048, (2 * nth + n_tiles - 1) / n_tiles);
    return MIN(parts, blocks_of(dst));
}

void bof4_list_pieces_of_thread(const struct ggml_tensor * dst, int ith, int nth, int64_t * first, int64_t * end) {
    const int64_t n_pieces = tiles_of(dst) * parts_of(dst, nth);
    *first = n_pieces * ith / nth;
    *end = n_pieces * (ith + 1) / nth;
}

struct bof4_list_piece bof4_list_piece_of(const struct ggml_tensor * dst, int nth, int64_t number) {
    const int64_t n_parts = parts_of(dst, nth);
    const int64_t n_blocks = blocks_of(dst);
    const int64_t block = ggml_blck_size(dst->src[0]->type);
    const int64_t part = number % n_parts;
    struct bof4_list_piece piece;
    piece.c0 = number / n_parts * BOF4_LIST_COLUMNS;
    piece.c1 = MIN(piece.c0 + BOF4_LIST_COLUMNS, ggml_nrows(dst->src[1]));
    piece.j0 = n_blocks * part / n_parts * block;
    piece.j1 = n_blocks * (part + 1) / n_parts * block;
    return piece;
}

// Sixteen elements of 32 columns, from element j on.
static inline void transpose_16(const float * const * x, int64_t j, uint32_t * out) {
    uint32_t packed[LANES][LANES];
    const void * rows[LANES];
    for (int c = 0; c < LANES; ++c) {
        bof4_list_pack_bf16(x[c] + j, x[LANES + c] + j, packed[c]);
        rows[c] = packed[c];
    }
#if defined(__GNUC__)
    // keeps `packed` in memory: compilers would otherwise keep it in registers, and shuffle where the transposition
    // loads
    __asm__ volatile("" : : "r"(packed) : "memory");
#endif
    bof4_list_transpose_16x16(rows, out);
}

void bof4_list_transpose_piece(const struct ggml_tensor * dst, struct bof4_list_piece piece, uint32_t * transposed) {
    const struct ggml_tensor * src1 = dst->src[1];
    const float * x[BOF4_LIST_COLUMNS];
    for (int c = 0; c < BOF4_LIST_COLUMNS; ++c) {
        // columns that do not exist repeat the last one: their results are not read
        x[c] = bof4_list_column(src1, MIN(piece.c0 + c, piece.c1 - 1));
    }
    uint32_t * out = transposed + piece.c0 / 2 * src1->ne[0];
    for (int64_t j = piece.j0; j < piece.j1; j += LANES) {
        transpose_16(x, j, out + j * LANES);
    }
}
