#include "bof4-list-cpu.h"
#include "bof4-list.h"
#include "ggml-cpu.h"
#include "ggml-cpu-impl.h"
#include "ggml-impl.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

// Rows and columns of results that are put together before they are added.
enum { TILE = 16 };

enum { PAIRED = BOF4_PAIRED };

// Fewer columns than these meet the outliers one after the other.
enum { SEVERAL = 8 };

// The outliers of one row of src[0], whose elements are first .. first + n of the weight: entries [e, end) of
// weight row `row`, whose columns count from `column0` of the operand's row. A reshaped operand's row may span
// several rows of the weight, and a slice's may be a part of one.
struct run {
    int32_t e;
    int32_t end;
    int64_t column0;    // add to an entry's column to get its place in the operand's row
};

// Next run of the operand row that starts at element `first`; `row` walks over the weight's rows.
static bool next_run(const struct bof4_list_view * view, int64_t first, int64_t * row, struct run * run) {
    const int64_t start = *row * view->row_length;
    if (start >= first + view->n) {
        return false;
    }
    run->e       = view->row_pointers[*row];
    run->end     = view->row_pointers[*row + 1];
    run->column0 = start - first;
    ++*row;
    while (run->e < run->end && run->column0 + bof4_entry_column(view->entries[run->e]) < 0) {
        ++run->e;
    }
    while (run->e < run->end && run->column0 + bof4_entry_column(view->entries[run->end - 1]) >= view->n) {
        --run->end;
    }
    return true;
}

// Operands whose rows are the weight's own rows (no slice, no reshape) need no search for them: row r of the operand
// is row first / row_length + r of the weight.
static bool whole_rows(const struct bof4_list_view * view, int64_t first) {
    return view->n == view->row_length && view->stride[0] == view->row_length && first % view->row_length == 0;
}

// s[i + 1] = s[i] + entry i times its activation, s[0] = 0: then the sum over any run of entries is one difference,
// and rows of few outliers, each of another number, cost no mispredicted branch. In double precision, because the
// difference of two floats would lose the digits of a small row beside a large one.
//
// Meanwhile lines from `ahead` on are asked for, one for eight entries: the sums keep the processor busy, and would leave its memory
// idle. (More lines wait for each other.)
static void running_sums(const int32_t * entries, int n, const float * x, double * s, const char * ahead) {
    int i = 0;
    s[0] = 0.0;
#if defined(__AVX512F__)
    const __m256i column_bits = _mm256_set1_epi32(0xffff);
    const __m512i zero = _mm512_setzero_si512();
    __m512d carry = _mm512_setzero_pd();
    for (; i + 8 <= n; i += 8) {
        const int32_t * e = entries + i;
        __builtin_prefetch(ahead + i * 8);
        const __m256i entry = _mm256_loadu_si256((const __m256i *) e);
        const __m256 value = _mm256_castsi256_ps(_mm256_andnot_si256(column_bits, entry));
        // loads and inserts: a gather instruction takes three times as long on Zen
#define X(k) x[bof4_entry_column(e[k])]
        const __m256 act = _mm256_setr_ps(X(0), X(1), X(2), X(3), X(4), X(5), X(6), X(7));
#undef X
        __m512d sum = _mm512_mul_pd(_mm512_cvtps_pd(value), _mm512_cvtps_pd(act));
#define ADD_SHIFTED(k) \
        sum = _mm512_add_pd(sum, _mm512_castsi512_pd(_mm512_alignr_epi64(_mm512_castpd_si512(sum), zero, 8 - k)))
        ADD_SHIFTED(1);
        ADD_SHIFTED(2);
        ADD_SHIFTED(4);
#undef ADD_SHIFTED
        sum = _mm512_add_pd(sum, carry);
        _mm512_storeu_pd(s + 1 + i, sum);
        carry = _mm512_permutexvar_pd(_mm512_set1_epi64(7), sum);
    }
#else
    GGML_UNUSED(ahead);
#endif
    for (; i < n; ++i) {
        s[i + 1] = s[i] + (double) bof4_entry_value(entries[i]) * (double) x[bof4_entry_column(entries[i])];
    }
}

// One column of activations, whole rows [r0, r1) of the weight into y[0 ..]. What begins at `ahead` is wanted next.
static void add_whole_rows_1(
        const struct bof4_list_view * view, int64_t r0, int64_t r1, const float * x, float * y, const char * ahead) {
    enum { MOST = 1024 };
    double s[MOST + 1];
    const int32_t * p = view->row_pointers;
    while (r0 < r1) {
        int64_t end = r1;
        while (p[end] - p[r0] > MOST && end > r0 + 1) {
            end = r0 + (end - r0) / 2;
        }
        if (p[end] - p[r0] > MOST) {
            // a row crowded with outliers
            double sum = 0.0;
            for (int32_t e = p[r0]; e < p[end]; ++e) {
                sum += (double) bof4_entry_value(view->entries[e]) * (double) x[bof4_entry_column(view->entries[e])];
            }
            y[0] += (float) sum;
        } else if (p[end] > p[r0]) {
            running_sums(view->entries + p[r0], p[end] - p[r0], x, s, ahead);
            for (int64_t r = r0; r < end; ++r) {
                y[r - r0] += (float) (s[p[r + 1] - p[r0]] - s[p[r] - p[r0]]);
            }
        }
        y += end - r0;
        r0 = end;
    }
}

// sums[c] = outliers of one row times column c, for TILE columns.
static inline void row_sums(const int32_t * entries, int32_t n, const float * const * x, float * sums) {
#if defined(__AVX512F__)
    __m512 total = _mm512_setzero_ps();
    for (int32_t e = 0; e < n; ++e) {
        const int32_t j = bof4_entry_column(entries[e]);
        const __m512 act = _mm512_setr_ps(x[0][j], x[1][j], x[2][j], x[3][j], x[4][j], x[5][j], x[6][j], x[7][j],
            x[8][j], x[9][j], x[10][j], x[11][j], x[12][j], x[13][j], x[14][j], x[15][j]);
        total = _mm512_fmadd_ps(_mm512_set1_ps(bof4_entry_value(entries[e])), act, total);
    }
    _mm512_storeu_ps(sums, total);
#else
    float total[TILE] = {0};
    for (int32_t e = 0; e < n; ++e) {
        const float value = bof4_entry_value(entries[e]);
        for (int c = 0; c < TILE; ++c) {
            total[c] += value * x[c][bof4_entry_column(entries[e])];
        }
    }
    memcpy(sums, total, sizeof(total));
#endif
}

// The same for activations side by side, pairs[TILE * j + c] = columns c (low half) and TILE + c (high half) at element j: one
// load an entry. sums0 are of the first TILE columns, sums1 of the others. The row is entries e .. e + n of a list that ends at
// `end`, and is not empty.
static inline void row_sums_of_pairs(
        const int32_t * entries, int32_t e, int32_t n, int32_t end, const uint32_t * pairs, float * sums0, float * sums1) {
#if defined(__AVX512F__)
    const __m512i high = _mm512_set1_epi32((int) 0xffff0000);
    __m512 total0 = _mm512_setzero_ps();
    __m512 total1 = _mm512_setzero_ps();
#define ADD_ENTRY(entry, bits) do { \
        const __m512i act = _mm512_loadu_si512(pairs + (int64_t) bof4_entry_column(entry) * TILE); \
        const __m512 value = _mm512_castsi512_ps(_mm512_set1_epi32((int) ((uint32_t) (entry) & (bits)))); \
        total0 = _mm512_fmadd_ps(value, _mm512_castsi512_ps(_mm512_slli_epi32(act, 16)), total0); \
        total1 = _mm512_fmadd_ps(value, _mm512_castsi512_ps(_mm512_and_si512(high, act)), total1); \
    } while (0)
    // most rows have two outliers or fewer: two in any case, whose value is zero where they belong to the next row, cost less
    // than a branch that cannot be foreseen
    const int32_t entry0 = entries[MIN(e, end - 1)];
    const int32_t entry1 = entries[MIN(e + 1, end - 1)];
    ADD_ENTRY(entry0, n > 0 ? 0xffff0000u : 0u);
    ADD_ENTRY(entry1, n > 1 ? 0xffff0000u : 0u);
    for (int32_t i = 2; i < n; ++i) {
        ADD_ENTRY(entries[e + i], 0xffff0000u);
    }
#undef ADD_ENTRY
    _mm512_storeu_ps(sums0, total0);
    _mm512_storeu_ps(sums1, total1);
#else
    GGML_UNUSED(end);
    entries += e;
    float total0[TILE] = {0};
    float total1[TILE] = {0};
    for (int32_t e = 0; e < n; ++e) {
        const float value = bof4_entry_value(entries[e]);
        const uint32_t * act = pairs + (int64_t) bof4_entry_column(entries[e]) * TILE;
        uint32_t low[TILE], high[TILE];
        float x0[TILE], x1[TILE];
        for (int c = 0; c < TILE; ++c) {
            low[c] = act[c] << 16;
            high[c] = act[c] & 0xffff0000u;
        }
        memcpy(x0, low, sizeof(x0));
        memcpy(x1, high, sizeof(x1));
        for (int c = 0; c < TILE; ++c) {
            total0[c] += value * x0[c];
            total1[c] += value * x1[c];
        }
    }
    memcpy(sums0, total0, sizeof(total0));
    memcpy(sums1, total1, sizeof(total1));
#endif
}

// y[r] += x[r] for TILE rows.
static inline void add_tile_column(float * y, const float * x) {
#if defined(__AVX512F__)
    _mm512_storeu_ps(y, _mm512_add_ps(_mm512_loadu_ps(y), _mm512_loadu_ps(x)));
#else
    for (int r = 0; r < TILE; ++r) {
        y[r] += x[r];
    }
#endif
}

// Columns of activations that meet a row's outliers together, and where their results go.
struct tile {
    int n;                          // columns: at most TILE, or PAIRED where activations are side by side
    const float * x[TILE];          // activations of each; columns beyond n repeat another
    const uint32_t * pairs;         // or activations of PAIRED columns, element by element (and x is of no use), or NULL
    int lane;                       // which of those is the first of the n
    float * y[PAIRED];              // results of each
};

// The 32-bit numbers of sixteen arrays, side by side: out[TILE * j + c] = in[c][j].
#if defined(__AVX512F__)
// Sixteen numbers of each. Four rows are put together by loads, which take no turn of the shuffle unit; then two rounds of
// shuffles within 128 bits remain.
static inline void transpose(const void * const * in, void * out) {
    for (int q = 0; q < 4; ++q) {
        __m512 rows[4];
        for (int r = 0; r < 4; ++r) {
#define PART(i) _mm_loadu_ps((const float *) in[r + 4 * i] + 4 * q)
            __m512 v = _mm512_castps128_ps512(PART(0));
            v = _mm512_insertf32x4(v, PART(1), 1);
            v = _mm512_insertf32x4(v, PART(2), 2);
            rows[r] = _mm512_insertf32x4(v, PART(3), 3);
#undef PART
        }
        const __m512 a = _mm512_unpacklo_ps(rows[0], rows[1]);
        const __m512 b = _mm512_unpackhi_ps(rows[0], rows[1]);
        const __m512 c = _mm512_unpacklo_ps(rows[2], rows[3]);
        const __m512 d = _mm512_unpackhi_ps(rows[2], rows[3]);
        float * to = (float *) out + 4 * q * TILE;
        _mm512_storeu_ps(to,            _mm512_shuffle_ps(a, c, 0x44));
        _mm512_storeu_ps(to + TILE,     _mm512_shuffle_ps(a, c, 0xee));
        _mm512_storeu_ps(to + 2 * TILE, _mm512_shuffle_ps(b, d, 0x44));
        _mm512_storeu_ps(to + 3 * TILE, _mm512_shuffle_ps(b, d, 0xee));
    }
}
#else
static inline void transpose(const void * const * in, void * out) {
    // eight columns at a time: sixteen of them, a power of two apart, would fight for the same cache lines
    for (int half = 0; half < TILE; half += 8) {
        for (int j = 0; j < TILE; ++j) {
            for (int c = half; c < half + 8; ++c) {
                memcpy((char *) out + 4 * (j * TILE + c), (const char *) in[c] + 4 * j, 4);
            }
        }
    }
}
#endif

// Sixteen numbers of two columns as bf16, rounded to the nearest (ties away from zero): the first in the low halves.
static inline void pair_up(const float * first, const float * second, uint32_t * out) {
    const uint32_t half = 0x8000;
#if defined(__AVX512BW__)
    const __m512i low  = _mm512_add_epi32(_mm512_loadu_si512(first), _mm512_set1_epi32((int) half));
    const __m512i high = _mm512_add_epi32(_mm512_loadu_si512(second), _mm512_set1_epi32((int) half));
    _mm512_storeu_si512(out, _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(low, 16), high));
#else
    uint32_t a[TILE];
    uint32_t b[TILE];
    memcpy(a, first, sizeof(a));
    memcpy(b, second, sizeof(b));
    for (int j = 0; j < TILE; ++j) {
        out[j] = ((a[j] + half) >> 16) | ((b[j] + half) & 0xffff0000u);
    }
#endif
}

// Sixteen elements of PAIRED columns side by side.
static inline void pair_columns(const float * const * x, int64_t j, uint32_t * out) {
    uint32_t pairs[TILE][TILE];
    const void * rows[TILE];
    for (int c = 0; c < TILE; ++c) {
        pair_up(x[c] + j, x[TILE + c] + j, pairs[c]);
        rows[c] = pairs[c];
    }
#if defined(__GNUC__)
    // through memory indeed: compilers would take the registers apart instead, with shuffles that the loads of transpose() save
    __asm__ volatile("" : : "r"(pairs) : "memory");
#endif
    transpose(rows, out);
}

// sums[r][c], c counted from column 0 of the tile, into y[c][first_row + r] for the columns from .. from + n.
static inline void add_sums(
        float (*sums)[TILE], int n_rows, int from, int n, float * const * y, int64_t first_row) {
    if (n_rows < TILE) {
        for (int c = 0; c < n; ++c) {
            for (int r = 0; r < n_rows; ++r) {
                y[c][first_row + r] += sums[r][from + c];
            }
        }
        return;
    }
    const void * rows[TILE];
    for (int r = 0; r < TILE; ++r) {
        rows[r] = sums[r];
    }
    float columns[TILE][TILE];
    transpose(rows, columns[0]);
    for (int c = 0; c < n; ++c) {
        add_tile_column(y[c] + first_row, columns[from + c]);
    }
}

// Sums of rows to sums of columns from .. end, each TILE numbers long.
static inline void transpose_lanes(float (*sums)[TILE], int from, int end, float * columns) {
    const void * rows[TILE];
    for (int r = 0; r < TILE; ++r) {
        rows[r] = sums[r];
    }
    if (end - from == TILE) {
        transpose(rows, columns);
        return;
    }
    float all[TILE][TILE];
    transpose(rows, all[0]);
    memcpy(columns, all[from], (end - from) * sizeof(all[0]));
}

// sums[0][r] and sums[1][r] = outliers of row first + r times the columns of the first and second half of the pairs, for the rows
// below r1, TILE at most (zeros for those that do not exist). false: there is none.
static inline bool sums_of_pairs(
        const struct bof4_list_view * view, int64_t first, int64_t r1, const uint32_t * pairs, float (*sums)[TILE][TILE]) {
    const int32_t * p = view->row_pointers;
    const int n_rows = (int) MIN((int64_t) TILE, r1 - first);
    if (p[first] == p[first + n_rows]) {
        return false;
    }
    // activations come from the second cache: those of the rows behind these are asked for while there is something else to do
    const int32_t next_end = p[MIN(first + 2 * TILE, r1)];
    for (int32_t e = p[first + n_rows]; e < next_end; ++e) {
        __builtin_prefetch(pairs + (int64_t) bof4_entry_column(view->entries[e]) * TILE);
    }
    for (int r = 0; r < n_rows; ++r) {
        const int32_t e = p[first + r];
        row_sums_of_pairs(view->entries, e, p[first + r + 1] - e, p[first + n_rows], pairs, sums[0][r], sums[1][r]);
    }
    for (int r = n_rows; r < TILE; ++r) {
        memset(sums[0][r], 0, sizeof(sums[0][r]));
        memset(sums[1][r], 0, sizeof(sums[1][r]));
    }
    return true;
}

// Whole rows [r0, r1) of the weight, several columns, into y[c][first_row ..].
static void add_whole_rows(
        const struct bof4_list_view * view, int64_t r0, int64_t r1, const struct tile * t, int64_t first_row) {
    const int32_t * p = view->row_pointers;
    const int lane = t->pairs ? t->lane : 0;
    const int n_first = MAX(0, MIN(t->n, TILE - lane));     // columns in the first half of the pairs
    const int n_second = t->n - n_first;
    for (int64_t first = r0; first < r1; first += TILE) {
        const int n_rows = (int) MIN((int64_t) TILE, r1 - first);
        const int64_t to = first_row + (first - r0);
        // collected for TILE rows, so that each column of the result is touched once for all of them
        float sums[2][TILE][TILE];
        if (t->pairs) {
            for (int c = 0; c < t->n; ++c) {
                __builtin_prefetch(t->y[c] + to, 1);
            }
            if (!sums_of_pairs(view, first, r1, t->pairs, sums)) {
                continue;
            }
        } else if (p[first] == p[first + n_rows]) {
            continue;
        } else {
            for (int r = 0; r < n_rows; ++r) {
                row_sums(view->entries + p[first + r], p[first + r + 1] - p[first + r], t->x, sums[0][r]);
            }
        }
        if (n_first > 0) {
            add_sums(sums[0], n_rows, lane, n_first, t->y, to);
        }
        if (n_second > 0) {
            add_sums(sums[1], n_rows, MAX(0, lane - TILE), n_second, t->y + n_first, to);
        }
    }
}

// Rows [r0, r1) of src[0], which begin at elements first + r * view->stride[0] of the weight.
static void add_rows(const struct bof4_list_view * view, int64_t first, int64_t r0, int64_t r1, const struct tile * t) {
    if (whole_rows(view, first)) {
        const int64_t base = first / view->row_length;
        if (t->pairs || t->n >= SEVERAL) {
            add_whole_rows(view, base + r0, base + r1, t, r0);
            return;
        }
        for (int c = 0; c < t->n; ++c) {
            add_whole_rows_1(view, base + r0, base + r1, t->x[c], t->y[c] + r0, (const char *) (view->entries + view->row_pointers[base + r1]));
        }
        return;
    }
    for (int64_t r = r0; r < r1; ++r) {
        const int64_t start = first + r * view->stride[0];
        int64_t row = start / view->row_length;
        struct run run;
        float sum[TILE] = {0};
        while (next_run(view, start, &row, &run)) {
            for (int32_t e = run.e; e < run.end; ++e) {
                const float value = bof4_entry_value(view->entries[e]);
                const int64_t column = run.column0 + bof4_entry_column(view->entries[e]);
                for (int c = 0; c < t->n; ++c) {
                    sum[c] += value * t->x[c][column];
                }
            }
        }
        for (int c = 0; c < t->n; ++c) {
            t->y[c][r] += sum[c];
        }
    }
}

// Where the activations side by side of a mul_mat begin in the work buffer: behind the encoded ones.
static size_t pairs_offset(const struct ggml_tensor * dst) {
    const enum ggml_type encoded = ggml_get_type_traits_cpu(dst->src[0]->type)->vec_dot_type;
    return GGML_PAD(ggml_row_size(encoded, ggml_nelements(dst->src[1])), 64);
}

// Are the operand's rows those of the weight, in all of its matrices?
static bool of_whole_rows(const struct ggml_tensor * dst) {
    const struct bof4_list_view view = ggml_bof4_view_of_op(dst);
    return whole_rows(&view, view.first) && view.stride[1] % view.row_length == 0 && view.stride[2] % view.row_length == 0;
}

size_t bof4_pairs_size(const struct ggml_tensor * dst) {
    const struct ggml_tensor * list = ggml_bof4_list_of_op(dst);
    const struct ggml_tensor * src0 = dst->src[0];
    const int64_t n_columns = ggml_nrows(dst->src[1]);
    if (list == NULL || n_columns / (src0->ne[2] * src0->ne[3]) < SEVERAL || !of_whole_rows(dst)) {
        return 0;
    }
    // an entry that meets its activations one by one takes some 20 cycles more for 16 columns than one that finds them side by
    // side, and to put an element of 16 columns side by side takes 2: few outliers are not worth a copy of everything
    const int64_t n_outliers = list->ne[0] - ggml_nrows(src0);
    if (n_outliers < src0->ne[0] / 8) {
        return 0;
    }
    return (size_t) (GGML_PAD(n_columns, PAIRED) / 2 * src0->ne[0]) * sizeof(uint32_t) + 64;
}

// Activations of column ir1, columns counted over dimensions 1 to 3.
static const float * column_of(const struct ggml_tensor * src1, int64_t ir1) {
    const int64_t i3 = ir1 / (src1->ne[2] * src1->ne[1]);
    const int64_t i2 = ir1 / src1->ne[1] % src1->ne[2];
    const int64_t i1 = ir1 % src1->ne[1];
    return (const float *) ((const char *) src1->data + i1 * src1->nb[1] + i2 * src1->nb[2] + i3 * src1->nb[3]);
}

// Elements [j0, j1) of the columns ir1_start .. , at most PAIRED of them. Columns that do not exist repeat the last one: nobody
// looks at their results.
static void pair_tile(
        const struct ggml_tensor * src1, int64_t ir1_start, int64_t ir1_end, int64_t j0, int64_t j1, uint32_t * pairs) {
    const float * x[PAIRED];
    for (int c = 0; c < PAIRED; ++c) {
        x[c] = column_of(src1, MIN(ir1_start + c, ir1_end - 1));
    }
    // rows are a multiple of 64 long
    for (int64_t j = j0; j < j1; j += TILE) {
        pair_columns(x, j, pairs + j * TILE);
    }
}

void bof4_pair_part(
        const struct ggml_tensor * dst, int64_t ir1, int64_t j0, int64_t j1, uint32_t * pairs) {
    const struct ggml_tensor * src1 = dst->src[1];
    pair_tile(src1, ir1, ggml_nrows(src1), j0, j1, pairs + ir1 / 2 * src1->ne[0]);
}

// The share of this thread in putting all activations side by side.
static void pair_activations(const struct ggml_compute_params * params, const struct ggml_tensor * dst, uint32_t * pairs) {
    // columns are cut, too: a short prompt has fewer tiles than there may be threads
    const int64_t n_lines = dst->src[1]->ne[0] / TILE;
    const int64_t n_parts = (n_lines + 31) / 32;
    const int64_t n_pieces = (ggml_nrows(dst->src[1]) + PAIRED - 1) / PAIRED * n_parts;
    for (int64_t i = n_pieces * params->ith / params->nth; i < n_pieces * (params->ith + 1) / params->nth; ++i) {
        const int64_t line0 = n_lines * (i % n_parts) / n_parts;
        const int64_t line1 = n_lines * (i % n_parts + 1) / n_parts;
        bof4_pair_part(dst, i / n_parts * PAIRED, line0 * TILE, line1 * TILE, pairs);
    }
}

int bof4_chunk_rows(const struct ggml_tensor * dst, int usual) {
    return ggml_bof4_is_type(dst->src[0]->type) ? 8 * usual : usual;
}

enum { LINE = 64 / sizeof(int32_t) };

static void prefetch(const int32_t * first, const int32_t * last) {
    for (const int32_t * line = first; line < last; line += LINE) {
        __builtin_prefetch(line);
    }
}

bool bof4_whole_rows(const struct bof4_list_view * view) {
    return whole_rows(view, view->first);
}

// Entries of rows that begin at p, as far as they are worth it.
static void prefetch_entries(const struct bof4_list_view * view, const int32_t * p, int64_t n_rows) {
    enum { MOST = 128 };
    prefetch(view->entries + p[0], view->entries + MIN(p[n_rows], p[0] + MOST * LINE));
}

void bof4_prefetch_pointers(const struct bof4_list_view * view, int64_t r0, int64_t n_rows, int64_t limit) {
    const int32_t * p = view->row_pointers + view->first / view->row_length;
    if (r0 < limit) {
        prefetch(p + r0, p + MIN(r0 + n_rows, limit) + LINE); // the last one included
    }
}

void bof4_prefetch_entries(const struct bof4_list_view * view, int64_t r0, int64_t n_rows, int64_t limit) {
    if (r0 < limit) {
        prefetch_entries(view, view->row_pointers + view->first / view->row_length + r0, MIN(n_rows, limit - r0));
    }
}

void bof4_prefetch_list(const struct ggml_tensor * dst, int64_t matrix, int64_t ir0_start, int64_t ir0_end) {
    if (ggml_bof4_list_of_op(dst) == NULL || ir0_start >= ir0_end) {
        return;
    }
    const struct bof4_list_view view = ggml_bof4_view_of_op(dst);
    const int64_t first = view.first + matrix * view.stride[1];
    if (!whole_rows(&view, first)) {
        return;
    }
    const int32_t * p = view.row_pointers + first / view.row_length;
    prefetch_entries(&view, p + ir0_start, ir0_end - ir0_start);
    // the row pointers of the chunk after this one, the last included: the code above then finds them at hand
    prefetch(p + ir0_end, p + MIN(2 * ir0_end - ir0_start, dst->ne[0]) + LINE);
}

// The rows that this thread will compute first in a product with one column, or 0 where that is not known.
static int64_t first_rows(const struct ggml_compute_params * params, const struct ggml_tensor * dst, int64_t * first) {
    const int64_t per_thread = (dst->ne[0] + params->nth - 1) / params->nth;
    *first = MIN(params->ith * per_thread, dst->ne[0]);
    return ggml_nrows(dst) == 1 ? MIN(MIN(per_thread, (int64_t) bof4_chunk_rows(dst, 64)), dst->ne[0] - *first) : 0;
}

void bof4_foresee_list(const struct ggml_compute_params * params, const struct ggml_tensor * dst) {
    int64_t first;
    const int64_t n_rows = first_rows(params, dst, &first);
    if (ggml_bof4_list_of_op(dst) == NULL || n_rows == 0) {
        return;
    }
    const struct bof4_list_view view = ggml_bof4_view_of_op(dst);
    if (bof4_whole_rows(&view)) {
        bof4_prefetch_pointers(&view, first, n_rows, dst->ne[0]);
    }
}

void bof4_prepare_list(const struct ggml_compute_params * params, struct ggml_tensor * dst) {
    if (ggml_bof4_list_of_op(dst) == NULL) {
        return;
    }
    if (bof4_pairs_size(dst) > 0) {
        pair_activations(params, dst, (uint32_t *) ((char *) params->wdata + pairs_offset(dst)));
        return;
    }
    int64_t first;
    const int64_t n_rows = first_rows(params, dst, &first);
    const struct bof4_list_view view = ggml_bof4_view_of_op(dst);
    if (n_rows > 0 && bof4_whole_rows(&view)) {
        bof4_prefetch_entries(&view, first, n_rows, dst->ne[0]);
    }
}

void bof4_add_outliers(
        struct ggml_tensor * dst, const void * wdata, int64_t ir0_start, int64_t ir0_end, int64_t ir1_start, int64_t ir1_end) {
    if (ggml_bof4_list_of_op(dst) == NULL) {
        return;
    }
    const uint32_t * pairs = bof4_pairs_size(dst) == 0
        ? NULL : (const uint32_t *) ((const char *) wdata + pairs_offset(dst));
    const struct bof4_list_view view = ggml_bof4_view_of_op(dst);
    bof4_add_outliers_to(dst, &view, pairs, ir0_start, ir0_end, ir1_start, ir1_end);
}

void bof4_add_outliers_to(
        struct ggml_tensor * dst, const struct bof4_list_view * view, const uint32_t * pairs,
        int64_t ir0_start, int64_t ir0_end, int64_t ir1_start, int64_t ir1_end) {
    const struct ggml_tensor * src0 = dst->src[0];
    const struct ggml_tensor * src1 = dst->src[1];
    GGML_ASSERT(src1->type == GGML_TYPE_F32);
    if (ggml_nrows(dst) == 1 && bof4_whole_rows(view)) {
        // a token that is generated: no tiles
        const char * weights = (const char *) src0->data + ir0_end * src0->nb[1];
        bof4_add_outliers_to_column(dst, view, ir0_start, ir0_end, weights);
        return;
    }
    const int side_by_side = pairs ? PAIRED : TILE;

    GGML_TENSOR_BINARY_OP_LOCALS

    for (int64_t ir1 = ir1_start; ir1 < ir1_end;) {
        // a tile stays inside one matrix of src0 and inside columns that were put side by side together
        const int64_t i13 = ir1 / (ne12 * ne1);
        const int64_t i12 = (ir1 - i13 * ne12 * ne1) / ne1;
        const int64_t i11 = ir1 % ne1;
        struct tile t;
        t.lane = pairs ? (int) (ir1 % PAIRED) : 0;
        t.n = (int) MIN(MIN((int64_t) side_by_side - t.lane, ir1_end - ir1), ne1 - i11);
        t.pairs = pairs ? pairs + (ir1 - t.lane) / 2 * ne10 : NULL;
        // columns of a tile are neighbours in dimension 1
        const char * x = (const char *) column_of(src1, ir1);
        char * y = (char *) dst->data + i11 * nb1 + i12 * nb2 + i13 * nb3;
        for (int c = 0; c < (pairs || t.n == 1 ? 0 : TILE); ++c) {
            t.x[c] = (const float *) (x + MIN(c, t.n - 1) * nb11);
        }
        t.x[0] = (const float *) x;
        for (int c = 0; c < t.n; ++c) {
            t.y[c] = (float *) (y + c * nb1);
        }
        const int64_t first = view->first + i12 / (ne12 / ne02) * view->stride[1] + i13 / (ne13 / ne03) * view->stride[2];
        add_rows(view, first, ir0_start, ir0_end, &t);
        ir1 += t.n;
    }
}

void bof4_sum_outliers(
        const struct ggml_tensor * dst, const struct bof4_list_view * view, const uint32_t * pairs, int64_t matrix,
        int64_t row0, int64_t row1, int64_t c0, int64_t c1, float * sums) {
    const struct ggml_tensor * src0 = dst->src[0];
    const int64_t n = src0->ne[0];
    const int64_t i02 = matrix % src0->ne[2];
    const int64_t i03 = matrix / src0->ne[2];
    const int64_t base = (view->first + i02 * view->stride[1] + i03 * view->stride[2]) / view->row_length;
    for (int64_t c = c0; c < c1;) {
        // columns that were put side by side together
        const int lane = (int) (c % PAIRED);
        const int count = (int) MIN((int64_t) PAIRED - lane, c1 - c);
        const uint32_t * act = pairs + (c - lane) / 2 * n;
        for (int64_t row = row0; row < row1; row += TILE) {
            float * to = sums + ((row - row0) * (c1 - c0) + (c - c0) * TILE);
            float of_rows[2][TILE][TILE];
            if (!sums_of_pairs(view, base + row, base + row1, act, of_rows)) {
                memset(to, 0, count * TILE * sizeof(float));
                continue;
            }
            for (int half = 0; half < 2; ++half) {
                const int from = MIN(MAX(lane - half * TILE, 0), TILE);             // of the columns of this half
                const int end  = MIN(MAX(lane + count - half * TILE, 0), TILE);
                if (from < end) {
                    transpose_lanes(of_rows[half], from, end, to);
                    to += (end - from) * TILE;
                }
            }
        }
        c += count;
    }
}

void bof4_add_outliers_to_column(
        struct ggml_tensor * dst, const struct bof4_list_view * view, int64_t ir0_start, int64_t ir0_end, const char * ahead) {
    const int64_t base = view->first / view->row_length;
    add_whole_rows_1(view, base + ir0_start, base + ir0_end, (const float *) dst->src[1]->data, (float *) dst->data + ir0_start,
        ahead);
}

void bof4_add_outliers_of_expert(
        struct ggml_tensor * dst, int64_t expert, int64_t ir0_start, int64_t ir0_end,
        const int32_t * columns, int64_t n_all) {
    if (ggml_bof4_list_of_op(dst) == NULL) {
        return;
    }
    const struct ggml_tensor * src1 = dst->src[1];
    GGML_ASSERT(src1->type == GGML_TYPE_F32);
    const struct bof4_list_view view = ggml_bof4_view_of_op(dst);

    for (int64_t j = 0; j < n_all; j += TILE) {
        struct tile t = { .n = (int) MIN((int64_t) TILE, n_all - j) };
        for (int c = 0; c < TILE; ++c) {
            // columns that do not exist read what the last one reads
            const int64_t at    = j + MIN(c, t.n - 1);
            const int64_t slot  = columns[2 * at];
            const int64_t token = columns[2 * at + 1];
            const int64_t row   = slot % src1->ne[1];
            t.x[c] = (const float *) ((const char *) src1->data + row * src1->nb[1] + token * src1->nb[2]);
            t.y[c] = (float *) ((char *) dst->data + slot * dst->nb[1] + token * dst->nb[2]);
        }
        add_rows(&view, view.first + expert * view.stride[1], ir0_start, ir0_end, &t);
    }
}

void bof4_add_outliers_to_rows(const struct ggml_compute_params * params, struct ggml_tensor * dst) {
    if (ggml_bof4_list_of_op(dst) == NULL) {
        return;
    }
    const struct ggml_tensor * src1 = dst->src[1];
    const struct bof4_list_view view = ggml_bof4_view_of_op(dst);

    GGML_TENSOR_LOCALS(int64_t, ne1, src1, ne)
    GGML_TENSOR_LOCALS(size_t,  nb1, src1, nb)

    const int64_t nr = ggml_nelements(src1);
    const int64_t dr = (nr + params->nth - 1) / params->nth;
    const int64_t last = MIN(dr * (params->ith + 1), nr);
    for (int64_t i = dr * params->ith; i < last; ++i) {
        const int64_t i12 = i / (ne11 * ne10);
        const int64_t i11 = (i - i12 * ne11 * ne10) / ne10;
        const int64_t i10 = i - i12 * ne11 * ne10 - i11 * ne10;
        const int64_t i01 = *(const int32_t *) ((const char *) src1->data + i10 * nb10 + i11 * nb11 + i12 * nb12);

        float * y = (float *) ((char *) dst->data + i10 * dst->nb[1] + i11 * dst->nb[2] + i12 * dst->nb[3]);
        const int64_t start = view.first + i01 * view.stride[0] + i11 * view.stride[1] + i12 * view.stride[2];
        int64_t row = start / view.row_length;
        struct run run;
        while (next_run(&view, start, &row, &run)) {
            for (int32_t e = run.e; e < run.end; ++e) {
                y[run.column0 + bof4_entry_column(view.entries[e])] += bof4_entry_value(view.entries[e]);
            }
        }
    }
}
