/* simd_attend.h: query rows against one page, and the merge of two states. */
#ifndef RS_MATH_SIMD_ATTEND_H
#define RS_MATH_SIMD_ATTEND_H

#include "math/simd_attend_few.h"
#include "math/simd_product.h"

/* Tokens [*begin, *end) of a page that a query row sees; none when *begin >= *end. */
static void page_visible(const attend_head_args *a, const page_ref *page, size_t row, int *begin, int *end) {
    int64_t last = (int64_t)a->position[row] - page->position;
    int64_t first = a->window > 0 ? last - a->window + 1 : 0;
    *begin = (int)(first < 0 ? 0 : first > page->count ? page->count : first);
    *end = (int)(last < 0 ? 0 : last >= page->count ? page->count : last + 1);
}

/* What the rows see of a page. */
typedef struct sight {
    size_t first, last; /* tokens [first, last) are seen by some row; none when first >= last */
    bool whole;         /* every row sees all PAGE_TOKENS */
} sight;

static sight page_sight(const attend_head_args *a, const page_ref *page) {
    int low = PAGE_TOKENS, high = 0, begin_most = 0, end_least = PAGE_TOKENS;
    for (size_t row = 0; row < a->rows; row++) {
        int begin, end;
        page_visible(a, page, row, &begin, &end);
        begin_most = begin > begin_most ? begin : begin_most;
        end_least = end < end_least ? end : end_least;
        if (begin >= end) continue;
        low = begin < low ? begin : low;
        high = end > high ? end : high;
    }
    return (sight){(size_t)low, (size_t)high, begin_most == 0 && end_least == PAGE_TOKENS};
}

INLINE float exp_one(float x) {
    return exp_of(splat(x))[0];
}

/* Scores of tokens that the row does not see become -INFINITY. */
static void mask_row(const attend_head_args *a, const page_ref *page, size_t row, float *scores) {
    int begin, end;
    page_visible(a, page, row, &begin, &end);
    for (int j = 0; j < begin; j++) scores[j] = -INFINITY;
    for (int j = end > begin ? end : begin; j < PAGE_TOKENS; j++) scores[j] = -INFINITY;
}

INLINE float largest_of_row(const float *scores) {
    vf largest = load(scores);
    for (int j = LANES; j < PAGE_TOKENS; j += LANES) largest = max_of(load(scores + j), largest);
    return max_lanes(largest);
}

/* scores [PAGE_TOKENS] become exp(score - largest); returns their sum. */
INLINE float exp_row(float *scores, float largest) {
    vf total = splat(0);
    for (int j = 0; j < PAGE_TOKENS; j += LANES) {
        vf weight = exp_of_negative(load(scores + j) - largest);
        store(scores + j, weight);
        total += weight;
    }
    return sum_lanes(total);
}

/* ---- Few rows ---- */

/* Turns a row's scores into weights relative to the largest of the page and joins them with the row's max and sum. Its
 * out is left to the values: out = out * keep + (what the page gives) * take. */
static void weigh_few(const attend_head_args *a, const few *f, size_t row) {
    float *scores = f->scores + row * PAGE_TOKENS, *max = a->max + row * a->state_stride,
          *sum = a->sum + row * a->state_stride;
    float largest = largest_of_row(scores);
    f->keep[row] = f->take[row] = 1;
    if (largest == -INFINITY) { /* Nothing seen. */
        f->take[row] = 0;
        memset(scores, 0, PAGE_TOKENS * sizeof *scores);
        return;
    }
    float total = exp_row(scores, largest);
    if (*max == -INFINITY) { /* An empty state; its out may hold anything. */
        memset(a->out + row * a->out_stride, 0, a->head_dim * sizeof(float));
        *sum = 0;
    } else if (largest > *max) {
        f->keep[row] = exp_one(*max - largest);
    } else {
        f->take[row] = exp_one(largest - *max);
    }
    *sum = *sum * f->keep[row] + total * f->take[row];
    *max = largest > *max ? largest : *max;
}

/* A loop of its own for each number of rows that is compiled. */
#define ROWS_TO_4(call)                                                                                                \
    case 1:                                                                                                            \
        call(1);                                                                                                       \
        break;                                                                                                         \
    case 2:                                                                                                            \
        call(2);                                                                                                       \
        break;                                                                                                         \
    case 3:                                                                                                            \
        call(3);                                                                                                       \
        break;                                                                                                         \
    case 4:                                                                                                            \
        call(4);                                                                                                       \
        break;
#if LANES == 16
#define EACH_ROWS(rows, call)                                                                                          \
    switch (rows) {                                                                                                    \
        ROWS_TO_4(call)                                                                                                \
    case 5:                                                                                                            \
        call(5);                                                                                                       \
        break;                                                                                                         \
    case 6:                                                                                                            \
        call(6);                                                                                                       \
        break;                                                                                                         \
    case 7:                                                                                                            \
        call(7);                                                                                                       \
        break;                                                                                                         \
    default:                                                                                                           \
        call(8);                                                                                                       \
        break;                                                                                                         \
    }
#else
#define EACH_ROWS(rows, call)                                                                                          \
    switch (rows) { ROWS_TO_4(call) }
#endif

static void score_block(int rows, const attend_head_args *a, const few *f, size_t row, const uint8_t *k,
                        ptrdiff_t ahead) {
#define HALVES(n) score_halves(n, a, f, row, k, ahead)
#define BYTES(n) score_bytes(RS_KV_Q8_0, n, a, f, row, k, ahead)
#define NIBBLES(n) score_bytes(RS_KV_Q4_0, n, a, f, row, k, ahead)
    if (a->k_format == RS_KV_F16) {
        EACH_ROWS(rows, HALVES)
    } else if (a->k_format == RS_KV_Q8_0) {
        EACH_ROWS(rows, BYTES)
    } else {
        EACH_ROWS(rows, NIBBLES)
    }
#undef HALVES
#undef BYTES
#undef NIBBLES
}

static void value_block(int rows, const attend_head_args *a, const few *f, size_t row, const uint8_t *v, size_t tokens,
                        ptrdiff_t ahead) {
#define HALVES(n) value_halves(n, a, f, row, v, tokens, ahead)
#define BYTES(n) value_bytes(RS_KV_Q8_0, n, a, f, row, v, tokens, ahead)
#define NIBBLES(n) value_bytes(RS_KV_Q4_0, n, a, f, row, v, tokens, ahead)
    if (a->v_format == RS_KV_F16) {
        EACH_ROWS(rows, HALVES)
    } else if (a->v_format == RS_KV_Q8_0) {
        EACH_ROWS(rows, BYTES)
    } else {
        EACH_ROWS(rows, NIBBLES)
    }
#undef HALVES
#undef BYTES
#undef NIBBLES
}
#undef EACH_ROWS
#undef ROWS_TO_4

/* ahead: bytes to the page that follows, or 0. The first block of rows fetches it. */
static void attend_few(const attend_head_args *a, const few *f, const page_ref *page, sight seen, ptrdiff_t ahead) {
    const uint8_t *k = page->data + a->k_offset, *v = page->data + a->v_offset;
    for (size_t row = 0; row < a->rows; row += FEW_BLOCK) {
        size_t n = a->rows - row < FEW_BLOCK ? a->rows - row : FEW_BLOCK;
        score_block((int)n, a, f, row, k, row == 0 ? ahead : 0);
    }
    for (size_t row = 0; row < a->rows; row++) {
        if (!seen.whole) mask_row(a, page, row, f->scores + row * PAGE_TOKENS);
        weigh_few(a, f, row);
    }
    for (size_t row = 0; row < a->rows; row += FEW_BLOCK) {
        size_t n = a->rows - row < FEW_BLOCK ? a->rows - row : FEW_BLOCK;
        value_block((int)n, a, f, row, v, seen.last, row == 0 ? ahead : 0);
    }
}

/* ---- Many rows ---- */

/* Turns scores [PAGE_TOKENS] of a row into weights exp(score - max), 0 where the row does not see, and brings the row's
 * state to the new maximum. */
static void weigh_many(const attend_head_args *a, const page_ref *page, size_t row, float *scores) {
    float *max = a->max + row * a->state_stride, *sum = a->sum + row * a->state_stride,
          *out = a->out + row * a->out_stride;
    mask_row(a, page, row, scores);
    float largest = largest_of_row(scores), next = largest > *max ? largest : *max;
    if (next == -INFINITY) { /* Nothing seen, neither now nor before. */
        memset(scores, 0, PAGE_TOKENS * sizeof *scores);
        return;
    }
    float total = exp_row(scores, next);
    if (*max == -INFINITY) { /* An empty state; its out may hold anything. */
        *sum = total;
        memset(out, 0, a->head_dim * sizeof *out);
    } else {
        float keep = next > *max ? exp_one(*max - next) : 1;
        *sum = *sum * keep + total;
        for (size_t i = 0; keep != 1 && i < a->head_dim; i++) out[i] *= keep;
    }
    *max = next;
}

/* K and V are expanded once for all rows, then it is two matrix products. */
static void attend_many(const attend_head_args *a, const page_ref *page, sight seen) {
    float *scores = a->scratch, *k = scores + a->rows * PAGE_TOKENS, *v = k + PAGE_TOKENS * a->head_dim;
    expand_k(a->k_format, page->data + a->k_offset, a->head_dim, k);
    for (size_t row = 0; row < a->rows; row += TILE) {
        size_t rows = a->rows - row < TILE ? a->rows - row : TILE;
        for (size_t t = 0; t < PAGE_TOKENS; t += PANEL) {
            tile_full(rows, k + t, PAGE_TOKENS, a->head_dim, a->q + row * a->q_stride, a->q_stride,
                      scores + row * PAGE_TOKENS + t, PAGE_TOKENS, false);
        }
    }
    for (size_t row = 0; row < a->rows; row++) weigh_many(a, page, row, scores + row * PAGE_TOKENS);
    size_t v_stride = attend_v_stride(a->head_dim);
    expand_v(a->v_format, page->data + a->v_offset, seen.first, seen.last, a->head_dim, v);
    for (size_t row = 0; row < a->rows; row += TILE) {
        size_t rows = a->rows - row < TILE ? a->rows - row : TILE;
        for (size_t i = 0; i < a->head_dim; i += PANEL) {
            size_t width = a->head_dim - i < PANEL ? a->head_dim - i : PANEL;
            tile(rows, width, v + seen.first * v_stride + i, v_stride, seen.last - seen.first,
                 scores + row * PAGE_TOKENS + seen.first, PAGE_TOKENS, a->out + row * a->out_stride + i, a->out_stride,
                 true);
        }
    }
}

static void attend_head(const attend_head_args *a) {
    /* One page is a short text: it is quick either way, and floats are closer. */
    bool is_few = a->rows <= FEW_ROWS_MAX && a->head_dim % PLANE_BLOCK == 0 && a->n_pages > 1;
    few f = few_place(a->scratch, a->rows, a->head_dim);
    if (is_few && a->k_format != RS_KV_F16) round_queries(a, &f);
    for (size_t p = 0; p < a->n_pages; p++) {
        const page_ref *page = &a->pages[p];
        sight seen = page_sight(a, page);
        if (seen.first >= seen.last) continue;
        if (is_few) {
            attend_few(a, &f, page, seen, p + 1 < a->n_pages ? page[1].data - page->data : 0);
        } else {
            attend_many(a, page, seen);
        }
    }
}

static void merge(float *max, float *sum, float *out, float other_max, float other_sum, const float *other_out,
                  size_t head_dim) {
    if (other_max == -INFINITY) return;
    if (*max == -INFINITY) {
        *max = other_max;
        *sum = other_sum;
        memcpy(out, other_out, head_dim * sizeof *out);
        return;
    }
    float largest = *max > other_max ? *max : other_max;
    float keep = exp_one(*max - largest), take = exp_one(other_max - largest);
    for (size_t i = 0; i < head_dim; i++) out[i] = keep * out[i] + take * other_out[i];
    *sum = keep * *sum + take * other_sum;
    *max = largest;
}

#endif
