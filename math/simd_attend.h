/* simd_attend.h: query rows against one page, and the merge of two states. */
#ifndef RS_MATH_SIMD_ATTEND_H
#define RS_MATH_SIMD_ATTEND_H

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

static void attend_page(const attend_page_args *a) {
    int first = PAGE_TOKENS, last = 0; /* Tokens that any row sees: the others are not even expanded. */
    for (size_t row = 0; row < a->rows; row++) {
        int begin, end;
        page_visible(a, row, &begin, &end);
        if (begin >= end) continue;
        first = begin < first ? begin : first;
        last = end > last ? end : last;
    }
    if (first >= last) return;

    size_t v_stride = (a->head_dim + PANEL - 1) / PANEL * PANEL + LANES_MAX; /* Odd in cache lines: no set conflicts. */
    float *scores = a->scratch + matmul_scratch_floats(a->head_dim);         /* [rows, PAGE_TOKENS] */
    float *v = scores + a->rows * PAGE_TOKENS;                               /* [PAGE_TOKENS, v_stride] */
    operand k = {.plane = a->k, .plane_format = a->k_format, .cols = a->head_dim};
    product(&k, (size_t)first, (size_t)last, a->q, a->q_stride, a->rows, scores, PAGE_TOKENS, a->scratch);
    for (size_t row = 0; row < a->rows; row++) weigh_row(a, row, scores + row * PAGE_TOKENS);

    for (size_t j = (size_t)first; j < (size_t)last; j++) {
        expand_plane(a->v_format, a->v, j, a->head_dim, 0, v + j * v_stride, a->head_dim);
        for (size_t i = a->head_dim; i % PANEL != 0; i++) v[j * v_stride + i] = 0;
    }
    for (size_t row = 0; row < a->rows; row += TILE) {
        size_t rows = a->rows - row < TILE ? a->rows - row : TILE;
        for (size_t i = 0; i < a->head_dim; i += PANEL) {
            size_t width = a->head_dim - i < PANEL ? a->head_dim - i : PANEL;
            tile(rows, width, v + (size_t)first * v_stride + i, v_stride, (size_t)(last - first),
                 scores + row * PAGE_TOKENS + first, PAGE_TOKENS, a->out + row * a->out_stride + i, a->out_stride,
                 true);
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
