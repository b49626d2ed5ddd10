/* simd_attend.h: query rows against one page, and the merge of two states. */
#ifndef RS_MATH_SIMD_ATTEND_H
#define RS_MATH_SIMD_ATTEND_H

#include "math/simd_attend_few.h"
#include "math/simd_product.h"

/* Tokens [*begin, *end) of a page that a query row sees; none when *begin >= *end. */
static void page_visible(const attend_page_args *a, size_t row, int *begin, int *end) {
    int64_t last = (int64_t)a->position[row] - a->page_position;
    int64_t first = a->window > 0 ? last - a->window + 1 : 0;
    *begin = (int)(first < 0 ? 0 : first > a->page_count ? a->page_count : first);
    *end = (int)(last < 0 ? 0 : last >= a->page_count ? a->page_count : last + 1);
}

INLINE float exp_one(float x) {
    return exp_of(splat(x))[0];
}

/* Turns scores [PAGE_TOKENS] of a row into weights exp(score - max), 0 where the row does not see, and brings the row's
 * state to the new maximum. */
static void weigh_row(const attend_page_args *a, size_t row, float *scores) {
    float *max = a->max + row * a->state_stride, *sum = a->sum + row * a->state_stride,
          *out = a->out + row * a->out_stride;
    int begin, end;
    page_visible(a, row, &begin, &end);
    for (int j = 0; j < begin; j++) scores[j] = -INFINITY;
    for (int j = end > begin ? end : begin; j < PAGE_TOKENS; j++) scores[j] = -INFINITY;
    vf largest = splat(*max);
    for (int j = 0; j < PAGE_TOKENS; j += LANES) largest = max_of(load(scores + j), largest);
    float next = max_lanes(largest);
    if (next == -INFINITY) { /* Nothing seen, neither now nor before. */
        memset(scores, 0, PAGE_TOKENS * sizeof *scores);
        return;
    }
    vf total = splat(0);
    for (int j = 0; j < PAGE_TOKENS; j += LANES) {
        vf weight = exp_of(load(scores + j) - next);
        store(scores + j, weight);
        total += weight;
    }
    if (*max == -INFINITY) { /* An empty state; its out may hold anything. */
        *sum = sum_lanes(total);
        memset(out, 0, a->head_dim * sizeof *out);
    } else {
        float keep = exp_one(*max - next);
        *sum = *sum * keep + sum_lanes(total);
        for (size_t i = 0; keep != 1 && i < a->head_dim; i++) out[i] *= keep;
    }
    *max = next;
}

/* The tokens [*first, *last) that any row sees. */
static void page_span(const attend_page_args *a, size_t *first, size_t *last) {
    int low = PAGE_TOKENS, high = 0;
    for (size_t row = 0; row < a->rows; row++) {
        int begin, end;
        page_visible(a, row, &begin, &end);
        if (begin >= end) continue;
        low = begin < low ? begin : low;
        high = end > high ? end : high;
    }
    *first = (size_t)low;
    *last = (size_t)high;
}

/* A loop of its own for each format and number of rows. */
#define FEW_ROWS(kv, rows, call)                                                                                       \
    switch (rows) {                                                                                                    \
    case 1:                                                                                                            \
        call(kv, 1, ARGUMENTS);                                                                                        \
        break;                                                                                                         \
    case 2:                                                                                                            \
        call(kv, 2, ARGUMENTS);                                                                                        \
        break;                                                                                                         \
    case 3:                                                                                                            \
        call(kv, 3, ARGUMENTS);                                                                                        \
        break;                                                                                                         \
    case 4:                                                                                                            \
        call(kv, 4, ARGUMENTS);                                                                                        \
        break;                                                                                                         \
    default:                                                                                                           \
        call(kv, FEW_BLOCK, ARGUMENTS);                                                                                \
        break;                                                                                                         \
    }
#define EACH_KV(format, rows, call)                                                                                    \
    if ((format) == RS_KV_F16) {                                                                                       \
        FEW_ROWS(RS_KV_F16, rows, call)                                                                                \
    } else if ((format) == RS_KV_Q8_0) {                                                                               \
        FEW_ROWS(RS_KV_Q8_0, rows, call)                                                                               \
    } else {                                                                                                           \
        FEW_ROWS(RS_KV_Q4_0, rows, call)                                                                               \
    }

static void score_block(int rows, const attend_page_args *a, size_t row, float *scores) {
#define ARGUMENTS a, row, scores
    EACH_KV(a->k_format, rows, score_few)
#undef ARGUMENTS
}

static void value_block(int rows, const attend_page_args *a, size_t row, const float *scores, float *scaled,
                        size_t first, size_t last) {
#define ARGUMENTS a, row, scores, scaled, first, last
    EACH_KV(a->v_format, rows, value_few)
#undef ARGUMENTS
}
#undef EACH_KV
#undef FEW_ROWS

/* How many of `left` rows make the next register block: a size that is compiled. */
static size_t block_of(size_t left) {
    return left >= FEW_BLOCK ? FEW_BLOCK : left >= 4 ? 4 : left;
}

static void attend_few(const attend_page_args *a, float *scores, float *scaled, size_t first, size_t last) {
    for (size_t row = 0, n; row < a->rows; row += n) {
        n = block_of(a->rows - row);
        score_block((int)n, a, row, scores + row * PAGE_TOKENS);
    }
    for (size_t row = 0; row < a->rows; row++) weigh_row(a, row, scores + row * PAGE_TOKENS);
    for (size_t row = 0, n; row < a->rows; row += n) {
        n = block_of(a->rows - row);
        value_block((int)n, a, row, scores + row * PAGE_TOKENS, scaled, first, last);
    }
}

/* K and V are expanded once for all rows, then it is two matrix products. */
static void attend_many(const attend_page_args *a, float *scores, float *k, float *v, size_t first, size_t last) {
    expand_k(a->k_format, a->k, a->head_dim, k);
    for (size_t row = 0; row < a->rows; row += TILE) {
        size_t rows = a->rows - row < TILE ? a->rows - row : TILE;
        for (size_t t = 0; t < PAGE_TOKENS; t += PANEL) {
            tile_full(rows, k + t, PAGE_TOKENS, a->head_dim, a->q + row * a->q_stride, a->q_stride,
                      scores + row * PAGE_TOKENS + t, PAGE_TOKENS, false);
        }
    }
    for (size_t row = 0; row < a->rows; row++) weigh_row(a, row, scores + row * PAGE_TOKENS);
    size_t v_stride = attend_v_stride(a->head_dim);
    expand_v(a->v_format, a->v, first, last, a->head_dim, v);
    for (size_t row = 0; row < a->rows; row += TILE) {
        size_t rows = a->rows - row < TILE ? a->rows - row : TILE;
        for (size_t i = 0; i < a->head_dim; i += PANEL) {
            size_t width = a->head_dim - i < PANEL ? a->head_dim - i : PANEL;
            tile(rows, width, v + first * v_stride + i, v_stride, last - first, scores + row * PAGE_TOKENS + first,
                 PAGE_TOKENS, a->out + row * a->out_stride + i, a->out_stride, true);
        }
    }
}

static void attend_page(const attend_page_args *a) {
    size_t first, last;
    page_span(a, &first, &last);
    if (first >= last) return;
    float *scores = a->scratch, *expanded = scores + a->rows * PAGE_TOKENS;
    if (a->rows <= 2 * FEW_BLOCK && a->head_dim % PLANE_BLOCK == 0) {
        attend_few(a, scores, expanded, first, last);
    } else {
        attend_many(a, scores, expanded, expanded + PAGE_TOKENS * a->head_dim, first, last);
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
