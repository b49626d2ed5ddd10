/* simd_attend_few.h: the query rows of one token (or of a few) against one page, which streams through registers.
 *
 * Decode reads the KV cache once and computes little with each byte, so nothing is expanded to memory: a vector of K or
 * V is converted in a register, meets a register block of up to FEW_BLOCK rows, and is gone. Scales are applied once to
 * the sum of a block of dimensions (K) and to the weights (V). */
#ifndef RS_MATH_SIMD_ATTEND_FEW_H
#define RS_MATH_SIMD_ATTEND_FEW_H

#include "math/simd_plane.h"

enum {
    FEW_BLOCK = LANES == 16 ? 8 : 4, /* rows of a register block; AVX-512 has 32 registers, the others use 16 */
    /* Vectors of a page that meet the rows at once: enough independent sums to hide a multiply-add's latency. */
    BLOCK_VECTORS = PLANE_BLOCK / LANES,
};

INLINE int few_vectors(const int rows) {
    if (LANES == 16) return rows <= 5 ? 4 : 2;
    return rows == 1 ? 8 : rows <= 3 ? 4 : 2;
}

/* acc[r][j] += q[r] * lines of K, for `vectors` vectors of tokens. A line is one dimension, or two of q4_0: 16 apart.
 * next: the same place of the page that follows, or NULL. */
INLINE void score_lines(const rs_kv_format kv, const int rows, const int vectors, const uint8_t *values, size_t lines,
                        const float *q, size_t q_stride, const uint8_t *next, vf acc[FEW_BLOCK][8]) {
    const int value_bytes = kv == RS_KV_F16 ? 2 : 1, line_bytes = PAGE_TOKENS * value_bytes;
    for (size_t i = 0; i < lines; i++, values += line_bytes, q++) {
        if (next != NULL) {
            for (int at = 0; at < line_bytes; at += 64) __builtin_prefetch(next + i * (size_t)line_bytes + at, 0, 2);
        }
        for (int j = 0; j < vectors; j++) {
            vf low = plane_vector(kv, values + j * LANES * value_bytes, false);
            for (int r = 0; r < rows; r++) acc[r][j] += low * q[(size_t)r * q_stride];
            if (kv != RS_KV_Q4_0) continue;
            vf high = plane_vector(kv, values + j * LANES * value_bytes, true);
            for (int r = 0; r < rows; r++) acc[r][j] += high * q[(size_t)r * q_stride + 16];
        }
    }
}

/* scores [rows, PAGE_TOKENS] of all tokens of the page, those that nobody sees included. */
INLINE void score_few(const rs_kv_format kv, const int rows, const attend_page_args *a, size_t row, float *scores) {
    const int vectors = few_vectors(rows) * LANES > PAGE_TOKENS ? PAGE_TOKENS / LANES : few_vectors(rows);
    const size_t at = plane_values_at(kv, a->head_dim);
    const size_t dims = kv == RS_KV_F16 ? a->head_dim : PLANE_BLOCK, lines = kv == RS_KV_Q4_0 ? dims / 2 : dims;
    for (size_t t = 0; t < PAGE_TOKENS; t += (size_t)vectors * LANES) {
        for (size_t d = 0; d < a->head_dim; d += dims) {
            size_t offset = at + plane_value_at(kv, KV_K, t, d, a->head_dim);
            const uint8_t *next = t == 0 && row == 0 && a->k_next != NULL ? a->k_next + offset : NULL;
            vf acc[FEW_BLOCK][8] = {0};
            score_lines(kv, rows, vectors, a->k + offset, lines, a->q + row * a->q_stride + d, a->q_stride, next, acc);
            for (int j = 0; j < vectors; j++) {
                vf scale = kv == RS_KV_F16 ? splat(1) : load_half(a->k + plane_scale_at(d / dims, t + j * LANES));
                for (int r = 0; r < rows; r++) {
                    float *to = scores + r * PAGE_TOKENS + t + j * LANES;
                    store(to, kv == RS_KV_F16 ? acc[r][j] : d == 0 ? acc[r][j] * scale : load(to) + acc[r][j] * scale);
                }
            }
        }
    }
}

/* out[r][0..vectors * LANES) += weights[r][t] * V[t], tokens [first, last). values: V of token 0 at the first
 * dimension, whose place in its block is `within`. A vector j of block j / BLOCK_VECTORS takes that block's weights. */
INLINE void value_lines(const rs_kv_format kv, const int rows, const int vectors, const int within,
                        const attend_page_args *a, const uint8_t *values, size_t first, size_t last,
                        const float *weights, size_t weights_of_block, float *out, const uint8_t *next) {
    const size_t row_bytes = plane_value_at(kv, KV_V, 1, 0, a->head_dim);
    vf acc[FEW_BLOCK][8];
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < vectors; j++) acc[r][j] = load(out + (size_t)r * a->out_stride + j * LANES);
    }
    for (size_t t = first; t < last; t++) {
        const uint8_t *row = values + t * row_bytes;
        for (size_t at = 0; next != NULL && at < row_bytes; at += 64)
            __builtin_prefetch(next + t * row_bytes + at, 0, 2);
        for (int j = 0; j < vectors; j++) {
            const int dim = within + j * LANES, block = dim / PLANE_BLOCK, in_block = dim % PLANE_BLOCK;
            const uint8_t *at = kv == RS_KV_F16    ? row + 2 * j * LANES
                                : kv == RS_KV_Q8_0 ? row + j * LANES
                                                   : row + 16 * block + in_block % 16;
            vf v = plane_vector(kv, at, in_block >= 16);
            const float *w = weights + (kv == RS_KV_F16 ? 0 : (size_t)block * weights_of_block);
            for (int r = 0; r < rows; r++) acc[r][j] += v * w[r * PAGE_TOKENS + t];
        }
    }
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < vectors; j++) store(out + (size_t)r * a->out_stride + j * LANES, acc[r][j]);
    }
}

/* out += scores . V over the tokens [first, last). scaled: [blocks, rows, PAGE_TOKENS] for the weights of each block.
 */
INLINE void value_few(const rs_kv_format kv, const int rows, const attend_page_args *a, size_t row, const float *scores,
                      float *scaled, size_t first, size_t last) {
    const int vectors = few_vectors(rows);
    const size_t blocks = a->head_dim / PLANE_BLOCK, of_block = (size_t)rows * PAGE_TOKENS;
    const uint8_t *values = a->v + plane_values_at(kv, a->head_dim);
    const uint8_t *next = row == 0 && a->v_next != NULL ? a->v_next + plane_values_at(kv, a->head_dim) : NULL;
    for (size_t b = 0; kv != RS_KV_F16 && b < blocks; b++) {
        for (size_t t = 0; t < PAGE_TOKENS; t += LANES) {
            vf scale = load_half(a->v + plane_scale_at(b, t));
            for (int r = 0; r < rows; r++) {
                size_t at = (size_t)r * PAGE_TOKENS + t;
                store(scaled + b * of_block + at, load(scores + at) * scale);
            }
        }
    }
    const float *weights = kv == RS_KV_F16 ? scores : scaled;
    float *out = a->out + row * a->out_stride;
    for (size_t d = 0; d < a->head_dim;) {
        const uint8_t *from = values + plane_value_at(kv, KV_V, 0, d, a->head_dim);
        const float *w = weights + (kv == RS_KV_F16 ? 0 : d / PLANE_BLOCK * of_block);
        const uint8_t *ahead = d == 0 ? next : NULL;
        if (vectors >= BLOCK_VECTORS && d + (size_t)vectors * LANES <= a->head_dim) {
            value_lines(kv, rows, vectors, 0, a, from, first, last, w, of_block, out + d, ahead);
            d += (size_t)vectors * LANES;
        } else if (vectors >= BLOCK_VECTORS) {
            value_lines(kv, rows, BLOCK_VECTORS, 0, a, from, first, last, w, of_block, out + d, ahead);
            d += PLANE_BLOCK;
        } else { /* Parts of a block, in order, so that what nibble a dimension has is known here. */
            for (int part = 0; part < BLOCK_VECTORS / vectors; part++) {
                const int within = part * vectors * LANES;
                const size_t step = kv == RS_KV_F16 ? 2 * within : kv == RS_KV_Q8_0 ? within : 0;
                value_lines(kv, rows, vectors, within, a, from + step, first, last, w, of_block, out + d + within,
                            part == 0 ? ahead : NULL);
            }
            d += PLANE_BLOCK;
        }
    }
}

#endif
