/* simd_few.h: products of packed weights with one to eight rows of floats, as decode needs them: at memory speed.
 *
 * Of the formats that matter, groups of 32 weights are unpacked in registers and meet every row of x there: nothing but
 * the packed bytes is read and nothing is written. A weight is q * d + m, with q whole. With one or two rows of x, d
 * and m meet the sums of a group, sum(q x) and sum(x), so that a weight costs its conversion and a multiply-add for
 * each row; with more rows the weights are scaled first. */
#ifndef RS_MATH_SIMD_FEW_H
#define RS_MATH_SIMD_FEW_H

#include "math/simd_expand.h"

enum {
    FEW_SUMS = 8,            /* accumulators: at most so many tokens x rows */
    FEW_X_FLOATS = 4096,     /* of x that stay in L1 */
    X_GROUP = GROUP + LANES, /* floats of a packed group of x */
};

/* d and m of a block's runs of values_per_scale. */
typedef struct scales {
    float d[16], m[16];
} scales;

INLINE bool has_superblocks(format f) {
    return f == FORMAT_Q4_K || f == FORMAT_Q5_K || f == FORMAT_Q6_K;
}

INLINE bool is_scaled(format f) {
    return f != FORMAT_F32 && f != FORMAT_F16 && f != FORMAT_BF16;
}

INLINE int values_per_scale(format f) {
    return f == FORMAT_Q6_K ? 16 : GROUP;
}

/* Bytes of the least run of whole groups and blocks: constants, which format_bytes is not here. */
INLINE size_t few_block_bytes(format f) {
    switch (f) {
    case FORMAT_Q4_0:
        return 18;
    case FORMAT_Q4_1:
        return 20;
    case FORMAT_Q5_0:
        return 22;
    case FORMAT_Q8_0:
        return 34;
    case FORMAT_Q4_K:
        return 144;
    case FORMAT_Q5_K:
        return 176;
    case FORMAT_Q6_K:
        return 210;
    case FORMAT_F32:
        return GROUP * 4;
    default: /* FORMAT_F16, FORMAT_BF16 */
        return GROUP * 2;
    }
}

/* Groups that share bytes, so that their places in these are constants of the unrolled loop. */
INLINE int groups_together(format f) {
    return f == FORMAT_Q4_K || f == FORMAT_Q5_K ? 2 : has_superblocks(f) ? 4 : 1;
}

/* The eight scales and minimums of Q4_K and Q5_K (format_scale_k), four bytes at a time. */
INLINE void scales_q45_k(const uint8_t *block, scales *s) {
    uint32_t packed[3];
    memcpy(packed, block + 4, sizeof packed);
    uint64_t high_scales = (packed[2] & 0x0F0F0F0F) | (packed[0] >> 2 & 0x30303030);
    uint64_t high_minimums = (packed[2] >> 4 & 0x0F0F0F0F) | (packed[1] >> 2 & 0x30303030);
    uint64_t whole[2] = {(packed[0] & 0x3F3F3F3F) | high_scales << 32, (packed[1] & 0x3F3F3F3F) | high_minimums << 32};
    const uint8_t *each = (const uint8_t *)whole;
    float d = half_at(block), dmin = -half_at(block + 2);
    for (int j = 0; j < 8; j++) s->d[j] = d * (float)each[j];
    for (int j = 0; j < 8; j++) s->m[j] = dmin * (float)each[8 + j];
}

INLINE void scales_of(format f, const uint8_t *block, scales *s) {
    switch (f) {
    case FORMAT_Q4_K:
    case FORMAT_Q5_K:
        scales_q45_k(block, s);
        break;
    case FORMAT_Q6_K:
        s->d[0] = half_at(block + 208);
        for (int j = 15; j >= 0; j--) s->d[j] = s->d[0] * (float)(int8_t)block[192 + j];
        break;
    case FORMAT_Q4_1:
        s->d[0] = half_at(block);
        s->m[0] = half_at(block + 2);
        break;
    default:
        s->d[0] = half_at(block);
        s->m[0] = (f == FORMAT_Q4_0 ? -8 : -16) * s->d[0];
        break;
    }
}

#if LANES == 16
static const vu lane_numbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif LANES == 8
static const vu lane_numbers = {0, 1, 2, 3, 4, 5, 6, 7};
#else
static const vu lane_numbers = {0, 1, 2, 3};
#endif

/* Does the format have an m, an offset included? */
INLINE bool has_minimum(format f) {
    return is_scaled(f) && f != FORMAT_Q8_0 && f != FORMAT_Q6_K;
}

/* One row of a format that needs no sums of x, and has whole groups of columns, meets x as it is; else x is packed. */
INLINE bool takes_x_as_it_is(format f, int tokens) {
    return tokens == 1 && is_scaled(f) && !has_minimum(f);
}

/* Floats from one group of x to the next. */
INLINE int x_group(format f, int tokens) {
    return takes_x_as_it_is(f, tokens) ? GROUP : X_GROUP;
}

/* Vector i of group g of the part'th groups_together(f) of a block, as floats: q of the scaled formats. */
INLINE vf quants_of(format f, const uint8_t *block, int part, int g, int i) {
    const int at = i * LANES;
    vi low, high;
    uint32_t bits;
    switch (f) {
    case FORMAT_F32:
        return load((const float *)(const void *)block + at);
    case FORMAT_F16:
        return load_half(block + 2 * at);
    case FORMAT_BF16:
        return (vf)(load_u16(block + 2 * at) << 16);
    case FORMAT_Q8_0:
        return to_float(load_i8(block + 2 + at));
    case FORMAT_Q4_0:
    case FORMAT_Q4_1:
        low = load_u8(block + (f == FORMAT_Q4_0 ? 2 : 4) + at % 16);
        return to_float(at < 16 ? low & 15 : low >> 4);
    case FORMAT_Q5_0:
        memcpy(&bits, block + 2, sizeof bits);
        high = (vi)((bits - (vu){0}) >> (lane_numbers + (uint32_t)at) << 4 & 16);
        low = load_u8(block + 6 + at % 16);
        return to_float((at < 16 ? low & 15 : low >> 4) | high);
    case FORMAT_Q4_K:
        low = load_u8(block + 16 + 32 * part + at);
        return to_float(g == 0 ? low & 15 : low >> 4);
    case FORMAT_Q5_K:
        low = load_u8(block + 48 + 32 * part + at);
        high = load_u8(block + 16 + at) >> (2 * part + g) << 4 & 16;
        return to_float((g == 0 ? low & 15 : low >> 4) | high);
    default: /* FORMAT_Q6_K */
        low = load_u8(block + 64 * part + g % 2 * 32 + at);
        high = load_u8(block + 128 + 32 * part + at);
        high = (g < 2 ? high << (4 - 2 * g) : high >> (2 * g - 4)) & 48;
        return to_float(((g < 2 ? low & 15 : low >> 4) | high) - 32);
    }
}

/* sum[t * rows] += one group of a row times the same columns of x: first sums of q x, then the scales. */
INLINE void few_group_sums(format f, int tokens, int rows, const uint8_t *block, int part, int g, const scales *s,
                           const float *x, vf *sum) {
    const int runs = GROUP / values_per_scale(f), vectors = GROUP / LANES / runs;
    const int first = (part * groups_together(f) + g) * runs;
#pragma GCC unroll 2
    for (int j = 0; j < runs; j++) {
        vf inner[2];
#pragma GCC unroll 8
        for (int i = 0; i < vectors; i++) {
            vf q = quants_of(f, block, part, g, j * vectors + i);
#pragma GCC unroll 2
            for (int t = 0; t < tokens; t++) {
                vf product = q * load(x + t * x_group(f, tokens) + (j * vectors + i) * LANES);
                inner[t] = i == 0 ? product : inner[t] + product;
            }
        }
#pragma GCC unroll 2
        for (int t = 0; t < tokens; t++) {
            sum[t * rows] += is_scaled(f) ? inner[t] * s->d[first + j] : inner[t];
            if (has_minimum(f)) sum[t * rows] += load(x + t * X_GROUP + GROUP) * s->m[first + j];
        }
    }
}

/* The same with the weights scaled first. */
INLINE void few_group_scaled(format f, int tokens, int rows, const uint8_t *block, int part, int g, const scales *s,
                             const float *x, vf *sum) {
    const int first = (part * groups_together(f) + g) * (GROUP / values_per_scale(f));
#pragma GCC unroll 8
    for (int i = 0; i < GROUP / LANES; i++) {
        vf w = quants_of(f, block, part, g, i);
        if (is_scaled(f)) w *= s->d[first + i * LANES / values_per_scale(f)];
        if (has_minimum(f)) w += s->m[first];
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++) sum[t * rows] += w * load(x + t * X_GROUP + i * LANES);
    }
}

/* sum[t * rows + r] += one block of each row times the same columns of x [groups][tokens][x_group]. */
INLINE void few_block(format f, int tokens, int rows, const uint8_t *const *block, const float *x, vf *sum) {
    scales s[FEW_SUMS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        if (is_scaled(f)) scales_of(f, block[r], &s[r]);
    }
    int parts = has_superblocks(f) ? 8 / groups_together(f) : 1;
    for (int part = 0; part < parts; part++) {
#pragma GCC unroll 4
        for (int g = 0; g < groups_together(f); g++, x += tokens * x_group(f, tokens)) {
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                if (tokens <= 2) {
                    few_group_sums(f, tokens, rows, block[r], part, g, &s[r], x, sum + r);
                } else {
                    few_group_scaled(f, tokens, rows, block[r], part, g, &s[r], x, sum + r);
                }
            }
        }
    }
}

/* The columns after the last whole group of an unpacked format, filled up with zeros. */
INLINE void few_tail(format f, int tokens, int rows, const uint8_t *const *block, size_t left, const float *x,
                     vf *sum) {
    uint8_t lines[FEW_SUMS][GROUP * sizeof(float)] = {{0}};
    const uint8_t *at[FEW_SUMS];
    for (int r = 0; r < rows; r++) at[r] = memcpy(lines[r], block[r], format_bytes(f, left));
    few_block(f, tokens, rows, at, x, sum);
}

/* n_rows rows of n columns, row_bytes apart, `rows` at a time, by packed x of `tokens` rows; sums
 * [n_rows / rows][tokens][rows] go on from what they are, or start. Where fewer rows are left, the last stands for the
 * missing ones: the code, and so the bits, are the same for every row. */
INLINE void few_columns(format f, int tokens, int rows, const uint8_t *data, size_t row_bytes, size_t n_rows, size_t n,
                        bool start, const float *x, vf *sums) {
    size_t values = has_superblocks(f) ? 256 : GROUP, bytes = few_block_bytes(f), blocks = n / values;
    size_t ahead = (size_t)rows * row_bytes, x_of_group = (size_t)(x_group(f, tokens) * tokens);
    for (size_t at = 0; at < n_rows; at += (size_t)rows, sums += tokens * rows) {
        const uint8_t *block[FEW_SUMS];
        const float *from = x;
        vf sum[FEW_SUMS];
#pragma GCC unroll 8
        for (int i = 0; i < tokens * rows; i++) sum[i] = start ? splat(0) : sums[i];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            block[r] = data + (at + (size_t)r < n_rows ? at + (size_t)r : n_rows - 1) * row_bytes;
        }
        for (size_t b = 0; b < blocks; b++, from += values / GROUP * x_of_group) {
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(block[r] + ahead + line);
            }
            few_block(f, tokens, rows, block, from, sum);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) block[r] += bytes;
        }
        if (!is_scaled(f) && n % values > 0) few_tail(f, tokens, rows, block, n % values, from, sum);
#pragma GCC unroll 8
        for (int i = 0; i < tokens * rows; i++) sums[i] = sum[i];
    }
}

/* The same through floats in lines [FEW_ROWS][n]. */
INLINE void few_expanded(format f, int tokens, int rows, const uint8_t *data, size_t row_bytes, size_t n_rows, size_t n,
                         bool start, const float *x, vf *sums, float *lines) {
    for (size_t r = 0; r < n_rows; r += FEW_ROWS) {
        size_t some = n_rows - r < FEW_ROWS ? n_rows - r : FEW_ROWS;
        for (size_t i = 0; i < some; i++) expand(f, data + (r + i) * row_bytes, lines + i * n, n);
        few_columns(FORMAT_F32, tokens, rows, (const uint8_t *)lines, n * sizeof *lines, some, n, start, x,
                    sums + r * (size_t)tokens);
    }
}

/* Copies n_x rows to [groups][tokens][X_GROUP], each group with the sums of its vectors behind it; zeros where there
 * are no rows. (Rows a power of two apart would fall into the same cache sets.) */
static void pack_x(const float *x, size_t x_stride, size_t n_x, size_t cols, size_t tokens, float *packed) {
    for (size_t k = 0; k < cols; k += GROUP) {
        size_t n = cols - k < GROUP ? cols - k : GROUP;
        for (size_t t = 0; t < tokens; t++, packed += X_GROUP) {
            const float *from = x + t * x_stride + k;
            float some[GROUP] = {0};
            if (t >= n_x) from = some;
            if (t < n_x && n < GROUP) from = memcpy(some, from, n * sizeof *some);
            vf sum = splat(0);
            for (size_t i = 0; i < GROUP; i += LANES) {
                vf v = load(from + i);
                store(packed + i, v);
                sum += v;
            }
            store(packed + GROUP, sum);
        }
    }
}

/* A run of columns of x stays in L1 while all rows of w pass. */
INLINE void few_tile(format f, bool direct, int tokens, int rows, const matrix *w, size_t row_begin, size_t row_end,
                     const float *x, size_t x_stride, size_t n_x, float *y, size_t y_stride, float *scratch) {
    size_t run = direct ? FEW_X_FLOATS / (size_t)tokens : PRODUCT_K; /* of columns, whole groups */
    const bool as_it_is = direct && takes_x_as_it_is(f, tokens);
    float *lines = scratch, *packed = scratch + FEW_ROWS * PRODUCT_K;
    if (!as_it_is) pack_x(x, x_stride, n_x, w->cols, (size_t)tokens, packed);
    for (size_t first = row_begin; first < row_end; first += MATMUL_ROWS) {
        size_t n_rows = row_end - first < MATMUL_ROWS ? row_end - first : MATMUL_ROWS;
        vf sums[MATMUL_ROWS * FEW_TOKENS];
        for (size_t k = 0; k < w->cols; k += run) {
            size_t n = w->cols - k < run ? w->cols - k : run;
            const uint8_t *data = w->data + first * w->row_bytes + format_bytes(f, k);
            const float *from = as_it_is ? x + k : packed + k / GROUP * X_GROUP * (size_t)tokens;
            if (direct) {
                few_columns(f, tokens, rows, data, w->row_bytes, n_rows, n, k == 0, from, sums);
            } else {
                few_expanded(f, tokens, rows, data, w->row_bytes, n_rows, n, k == 0, from, sums, lines);
            }
        }
        for (size_t r = 0; r < n_rows; r++) {
            const vf *sum = sums + r / (size_t)rows * (size_t)(rows * tokens) + r % (size_t)rows;
            for (size_t t = 0; t < n_x; t++) y[t * y_stride + first + r] = sum_lanes(sum[t * (size_t)rows]);
        }
    }
}

/* Where a size of its own would gain little, tokens are filled up with zeros. */
INLINE size_t few_padded(size_t tokens) {
    return tokens <= 2 ? tokens : tokens <= 4 ? 4 : FEW_TOKENS;
}

INLINE void few_as(format f, bool direct, const matrix *w, size_t row_begin, size_t row_end, const float *x,
                   size_t x_stride, size_t n_x, float *y, size_t y_stride, float *scratch) {
    switch (few_padded(n_x)) {
    case 1:
        few_tile(f, direct, 1, FEW_ROWS, w, row_begin, row_end, x, x_stride, n_x, y, y_stride, scratch);
        break;
    case 2:
        few_tile(f, direct, 2, FEW_ROWS, w, row_begin, row_end, x, x_stride, n_x, y, y_stride, scratch);
        break;
    case 4:
        few_tile(f, direct, 4, FEW_ROWS / 2, w, row_begin, row_end, x, x_stride, n_x, y, y_stride, scratch);
        break;
    default:
        few_tile(f, direct, FEW_TOKENS, 1, w, row_begin, row_end, x, x_stride, n_x, y, y_stride, scratch);
        break;
    }
}

/* y[t * y_stride + r] = row r of w times row t, for r in [row_begin, row_end) and up to FEW_TOKENS tokens. The switch
 * gives the formats that are unpacked in registers code of their own; rows of the others are expanded to L1. */
static void product_few(const matrix *w, size_t row_begin, size_t row_end, const float *x, size_t x_stride,
                        size_t tokens, float *y, size_t y_stride, float *scratch) {
#define DIRECT(f)                                                                                                      \
    case f:                                                                                                            \
        few_as(f, true, w, row_begin, row_end, x, x_stride, tokens, y, y_stride, scratch);                             \
        break
    switch (w->format) {
        DIRECT(FORMAT_F32);
#if LANES > 4 /* Without instructions that widen bytes to floats nothing would be gained. */
        DIRECT(FORMAT_F16);
        DIRECT(FORMAT_BF16);
        DIRECT(FORMAT_Q8_0);
        DIRECT(FORMAT_Q4_0);
        DIRECT(FORMAT_Q4_1);
        DIRECT(FORMAT_Q5_0);
        DIRECT(FORMAT_Q4_K);
        DIRECT(FORMAT_Q5_K);
        DIRECT(FORMAT_Q6_K);
#endif
    default:
        few_as(w->format, false, w, row_begin, row_end, x, x_stride, tokens, y, y_stride, scratch);
        break;
    }
#undef DIRECT
}

#endif
