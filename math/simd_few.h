/* simd_few.h: products of packed weights with one to eight rows of floats, as decode needs them: at memory speed.
 *
 * Of the formats that matter, groups of 32 weights are unpacked and scaled in registers and meet every row of x there:
 * nothing but the packed bytes is read and nothing is written. value = q * d + m with q unsigned (signed in Q8_0): the
 * offsets of the formats are part of m, and since d * q fits a float, these are the bits that expand gives (but for
 * the sign of zeros). */
#ifndef RS_MATH_SIMD_FEW_H
#define RS_MATH_SIMD_FEW_H

#include "math/simd_expand.h"

enum {
    FEW_SUMS = 8,        /* accumulators: at most so many tokens x rows */
    FEW_X_FLOATS = 4096, /* of x that stay in L1 */
};

typedef uint8_t vq __attribute__((vector_size(GROUP)));
typedef uint16_t vq_pairs __attribute__((vector_size(GROUP)));

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

/* Bytes of the least run of whole groups and blocks. */
INLINE size_t few_block_bytes(format f) {
    size_t values = has_superblocks(f) ? 256 : GROUP;
    return format_bytes(f, values);
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
        for (int j = 0; j < 16; j++) s->m[j] = -32 * s->d[j];
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

INLINE vq load_group(const uint8_t *src) {
    vq v;
    memcpy(&v, src, sizeof v);
    return v;
}

/* Bytes [i * LANES, (i + 1) * LANES) of a group as integers. */
INLINE vi widen(vq v, int i) {
#if defined(__AVX2__) && LANES == 8
    __m128i half = i < 2 ? _mm256_castsi256_si128((__m256i)v) : _mm256_extracti128_si256((__m256i)v, 1);
    return (vi)_mm256_cvtepu8_epi32(i % 2 == 0 ? half : _mm_srli_si128(half, 8));
#elif defined(__AVX512F__) && LANES == 16
    return (vi)_mm512_cvtepu8_epi32(i == 0 ? _mm256_castsi256_si128((__m256i)v)
                                           : _mm256_extracti128_si256((__m256i)v, 1));
#else
    uint8_t bytes[GROUP];
    memcpy(bytes, &v, sizeof bytes);
    return load_u8(bytes + i * LANES);
#endif
}

/* Bytes shifted right; what comes in from the neighbour must be masked off. */
INLINE vq shift_right(vq v, int bits) {
    return (vq)((vq_pairs)v >> bits);
}

INLINE vq join(vb low, vb high) {
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,
                                   21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31);
}

/* 16 bytes' low nibbles, then their high nibbles. */
INLINE vq nibbles(const uint8_t *src) {
    vb v = load_bytes(src);
    return join(v & 15, v >> 4);
}

/* 16 where bit i % 8 of byte i / 8 is set, else 0. */
INLINE vq fifth_bits(const uint8_t *src) {
    const vq each_bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128,
                         1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    typedef uint64_t quarters __attribute__((vector_size(GROUP)));
    const uint64_t ones = 0x0101010101010101; /* Multiplying repeats a byte eight times. */
    vq bytes = (vq)(quarters){src[0] * ones, src[1] * ones, src[2] * ones, src[3] * ones};
    return (vq)((bytes & each_bit) != 0) & 16;
}

/* Group g of the part'th groups_together(f) of a block. */
INLINE vq unpack_group(format f, const uint8_t *block, int part, int g) {
    switch (f) {
    case FORMAT_Q4_0:
        return nibbles(block + 2);
    case FORMAT_Q4_1:
        return nibbles(block + 4);
    case FORMAT_Q5_0:
        return nibbles(block + 6) | fifth_bits(block + 2);
    case FORMAT_Q4_K:
        return shift_right(load_group(block + 16 + 32 * part), 4 * g) & 15;
    case FORMAT_Q5_K: {
        vq bit = (vq){0} + (uint8_t)(1 << (2 * part + g));
        vq fifth = (vq)((load_group(block + 16) & bit) != 0) & 16;
        return (shift_right(load_group(block + 48 + 32 * part), 4 * g) & 15) | fifth;
    }
    default: { /* FORMAT_Q6_K */
        vq low = shift_right(load_group(block + 64 * part + g % 2 * 32), g / 2 * 4) & 15;
        vq_pairs high = (vq_pairs)load_group(block + 128 + 32 * part);
        return low | ((vq)(g < 2 ? high << (4 - 2 * g) : high >> (2 * g - 4)) & 48);
    }
    }
}

/* A row's group in floats. */
INLINE void weights_of(format f, const uint8_t *block, int part, int g, const scales *s, vf w[GROUP / LANES]) {
    int first = (part * groups_together(f) + g) * (GROUP / values_per_scale(f));
    vq q = {0};
    if (is_scaled(f) && f != FORMAT_Q8_0) q = unpack_group(f, block, part, g);
#pragma GCC unroll 8
    for (int i = 0; i < GROUP / LANES; i++) {
        int at = first + i * LANES / values_per_scale(f);
        switch (f) {
        case FORMAT_F32:
            memcpy(&w[i], block + 4 * i * LANES, sizeof w[i]);
            break;
        case FORMAT_F16:
            w[i] = load_half(block + 2 * i * LANES);
            break;
        case FORMAT_BF16:
            w[i] = (vf)(load_u16(block + 2 * i * LANES) << 16);
            break;
        case FORMAT_Q8_0:
            w[i] = to_float(load_i8(block + 2 + i * LANES)) * s->d[0];
            break;
        default:
            w[i] = to_float(widen(q, i)) * s->d[at] + s->m[at];
            break;
        }
    }
}

/* sum[t * rows + r] += one block of each row times the same columns of x [groups][tokens][GROUP]. */
INLINE void few_block(format f, int tokens, int rows, const uint8_t *const *block, const float *x, vf *sum) {
    scales s[FEW_SUMS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        if (is_scaled(f)) scales_of(f, block[r], &s[r]);
    }
    int parts = has_superblocks(f) ? 8 / groups_together(f) : 1;
    for (int part = 0; part < parts; part++) {
#pragma GCC unroll 4
        for (int g = 0; g < groups_together(f); g++, x += tokens * GROUP) {
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                vf w[GROUP / LANES];
                weights_of(f, block[r], part, g, &s[r], w);
#pragma GCC unroll 8
                for (int i = 0; i < GROUP / LANES; i++) {
#pragma GCC unroll 8
                    for (int t = 0; t < tokens; t++) sum[t * rows + r] += w[i] * load(x + t * GROUP + i * LANES);
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
    size_t ahead = (size_t)rows * row_bytes;
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
        for (size_t b = 0; b < blocks; b++, from += values * (size_t)tokens) {
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

/* A run of columns of x stays in L1 while all rows of w pass. */
INLINE void few_tile(format f, bool direct, int tokens, int rows, const matrix *w, size_t row_begin, size_t row_end,
                     size_t n_x, float *y, size_t y_stride, float *scratch) {
    size_t run = direct ? FEW_X_FLOATS / (size_t)tokens : PRODUCT_K;
    float *lines = scratch, *x = scratch + FEW_ROWS * PRODUCT_K;
    for (size_t first = row_begin; first < row_end; first += MATMUL_ROWS) {
        size_t n_rows = row_end - first < MATMUL_ROWS ? row_end - first : MATMUL_ROWS;
        vf sums[MATMUL_ROWS * FEW_TOKENS];
        for (size_t k = 0; k < w->cols; k += run) {
            size_t n = w->cols - k < run ? w->cols - k : run;
            const uint8_t *data = w->data + first * w->row_bytes + format_bytes(f, k);
            const float *from = x + k * (size_t)tokens;
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

/* Copies n_x rows to [groups][tokens][GROUP], zeros where there are none: rows a power of two apart would fall into
 * the same cache sets. */
static void pack_x(const float *x, size_t x_stride, size_t n_x, size_t cols, size_t tokens, float *packed) {
    for (size_t k = 0; k < cols; k += GROUP) {
        size_t n = cols - k < GROUP ? cols - k : GROUP;
        for (size_t t = 0; t < tokens; t++, packed += GROUP) {
            if (t >= n_x || n < GROUP) memset(packed, 0, GROUP * sizeof *packed);
            if (t < n_x) memcpy(packed, x + t * x_stride + k, n * sizeof *packed);
        }
    }
}

/* Where a size of its own would gain little, tokens are filled up with zeros. */
INLINE size_t few_padded(size_t tokens) {
    return tokens <= 2 ? tokens : tokens <= 4 ? 4 : FEW_TOKENS;
}

INLINE void few_as(format f, bool direct, const matrix *w, size_t row_begin, size_t row_end, size_t tokens, float *y,
                   size_t y_stride, float *scratch) {
    switch (few_padded(tokens)) {
    case 1:
        few_tile(f, direct, 1, FEW_ROWS, w, row_begin, row_end, tokens, y, y_stride, scratch);
        break;
    case 2:
        few_tile(f, direct, 2, FEW_ROWS, w, row_begin, row_end, tokens, y, y_stride, scratch);
        break;
    case 4:
        few_tile(f, direct, 4, FEW_ROWS / 2, w, row_begin, row_end, tokens, y, y_stride, scratch);
        break;
    default:
        few_tile(f, direct, FEW_TOKENS, 1, w, row_begin, row_end, tokens, y, y_stride, scratch);
        break;
    }
}

/* y[t * y_stride + r] = row r of w times row t, for r in [row_begin, row_end) and up to FEW_TOKENS tokens. The switch
 * gives the formats that are unpacked in registers code of their own; rows of the others are expanded to L1. */
static void product_few(const matrix *w, size_t row_begin, size_t row_end, const float *x, size_t x_stride,
                        size_t tokens, float *y, size_t y_stride, float *scratch) {
    pack_x(x, x_stride, tokens, w->cols, few_padded(tokens), scratch + FEW_ROWS * PRODUCT_K);
#define DIRECT(f)                                                                                                      \
    case f:                                                                                                            \
        few_as(f, true, w, row_begin, row_end, tokens, y, y_stride, scratch);                                          \
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
        few_as(w->format, false, w, row_begin, row_end, tokens, y, y_stride, scratch);
        break;
    }
#undef DIRECT
}

#endif
