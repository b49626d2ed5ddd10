/* simd_product.h: products of expanded weights with rows of floats.
 *
 * Few tokens: four rows of w are expanded to L1 and every x row is multiplied along the columns. Many tokens: 32 rows
 * are expanded and transposed to panels [k][2 * LANES rows], and a register block of 6 tokens x 2 vectors of rows
 * accumulates over k; x stays row-major, one value broadcast at a time. */
#ifndef RS_MATH_SIMD_PRODUCT_H
#define RS_MATH_SIMD_PRODUCT_H

#include "math/simd_few.h"

enum {
    PANEL = 2 * LANES, /* rows of a panel */
    /* Tokens of a register block: two accumulators each, of 32 or 16 registers; NEON takes one more for its x. */
    TILE = LANES == 16 ? 12 : 6 + 2 * NEON,
};

INLINE void expand_row(const matrix *w, size_t row, size_t k0, float *dst, size_t n) {
    expand(w->format, w->data + row * w->row_bytes + format_bytes(w->format, k0), dst, n);
}

/* y[t][0..PANEL) = (or +=) sum over k of x[t][k] * panel[k][0..PANEL), for a constant number of tokens. */
INLINE void tile_of(int tokens, const float *panel, size_t panel_stride, size_t n, const float *x, size_t x_stride,
                    float *y, size_t y_stride, bool accumulate) {
    vf sum[TILE][2];
    for (int t = 0; t < tokens; t++) {
        for (int j = 0; j < 2; j++) sum[t][j] = accumulate ? load(y + (size_t)t * y_stride + j * LANES) : splat(0);
    }
    for (size_t k = 0; k < n; k++) {
        vf a = load(panel + k * panel_stride), b = load(panel + k * panel_stride + LANES);
        for (int t = 0; t < tokens; t++) {
            vf v = splat(x[(size_t)t * x_stride + k]);
            sum[t][0] += a * v;
            sum[t][1] += b * v;
        }
    }
    for (int t = 0; t < tokens; t++) {
        for (int j = 0; j < 2; j++) store(y + (size_t)t * y_stride + j * LANES, sum[t][j]);
    }
}

/* Up to TILE tokens, in register blocks of the sizes that are compiled. */
static void tile_full(size_t tokens, const float *panel, size_t panel_stride, size_t n, const float *x, size_t x_stride,
                      float *y, size_t y_stride, bool accumulate) {
    for (size_t t = 0; t < tokens;) {
        const float *from = x + t * x_stride;
        float *to = y + t * y_stride;
        if (tokens - t >= TILE) {
            tile_of(TILE, panel, panel_stride, n, from, x_stride, to, y_stride, accumulate);
            t += TILE;
        } else if (tokens - t >= TILE / 2) {
            tile_of(TILE / 2, panel, panel_stride, n, from, x_stride, to, y_stride, accumulate);
            t += TILE / 2;
        } else if (tokens - t >= 2) {
            tile_of(2, panel, panel_stride, n, from, x_stride, to, y_stride, accumulate);
            t += 2;
        } else {
            tile_of(1, panel, panel_stride, n, from, x_stride, to, y_stride, accumulate);
            t += 1;
        }
    }
}

/* The same for the first `width` <= PANEL columns of y: a partial tile goes through a full one on the stack. */
static void tile(size_t tokens, size_t width, const float *panel, size_t panel_stride, size_t n, const float *x,
                 size_t x_stride, float *y, size_t y_stride, bool accumulate) {
    if (width == PANEL) {
        tile_full(tokens, panel, panel_stride, n, x, x_stride, y, y_stride, accumulate);
        return;
    }
    float whole[TILE * PANEL] = {0};
    for (size_t t = 0; accumulate && t < tokens; t++) memcpy(whole + t * PANEL, y + t * y_stride, width * sizeof *y);
    tile_full(tokens, panel, panel_stride, n, x, x_stride, whole, PANEL, accumulate);
    for (size_t t = 0; t < tokens; t++) memcpy(y + t * y_stride, whole + t * PANEL, width * sizeof *y);
}

/* A LANES x LANES block, whose rows become columns. Only moves bits. */
INLINE void transpose_block(const float *src, size_t src_stride, float *dst, size_t dst_stride) {
    vf v[LANES];
    for (size_t i = 0; i < LANES; i++) v[i] = load(src + i * src_stride);
#if LANES == 16
    /* Each stage interleaves rows i and i + 8; after four, the block is transposed. */
    for (int stage = 0; stage < 4; stage++) {
        vf next[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] =
                __builtin_shufflevector(v[i], v[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            next[2 * i + 1] =
                __builtin_shufflevector(v[i], v[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
        memcpy(v, next, sizeof v);
    }
#elif LANES == 8
    /* Each stage interleaves rows i and i + 4; after three, the block is transposed. */
    for (int stage = 0; stage < 3; stage++) {
        vf next[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = __builtin_shufflevector(v[i], v[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
            next[2 * i + 1] = __builtin_shufflevector(v[i], v[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
        }
        memcpy(v, next, sizeof v);
    }
#else
    for (int stage = 0; stage < 2; stage++) {
        vf next[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = __builtin_shufflevector(v[i], v[i + 2], 0, 4, 1, 5);
            next[2 * i + 1] = __builtin_shufflevector(v[i], v[i + 2], 2, 6, 3, 7);
        }
        memcpy(v, next, sizeof v);
    }
#endif
    for (size_t i = 0; i < LANES; i++) store(dst + i * dst_stride, v[i]);
}

/* Expands rows [row, row + rows) of w, columns [k0, k0 + n), to panels [rows / PANEL][PRODUCT_K][PANEL]; rows beyond
 * are zero up to a whole panel. lines: [LANES][PRODUCT_K] floats. */
static void pack_panels(const matrix *w, size_t row, size_t rows, size_t k0, size_t n, float *panels, float *lines) {
    size_t padded = (rows + PANEL - 1) / PANEL * PANEL;
    for (size_t r = 0; r < padded; r += LANES) {
        for (size_t i = 0; i < LANES; i++) {
            if (r + i < rows) {
                expand_row(w, row + r + i, k0, lines + i * PRODUCT_K, n);
            } else {
                memset(lines + i * PRODUCT_K, 0, n * sizeof *lines);
            }
        }
        float *dst = panels + r / PANEL * PANEL * PRODUCT_K + r % PANEL;
        size_t k = 0;
        for (; k + LANES <= n; k += LANES) transpose_block(lines + k, PRODUCT_K, dst + k * PANEL, PANEL);
        for (; k < n; k++) {
            for (size_t i = 0; i < LANES; i++) dst[k * PANEL + i] = lines[i * PRODUCT_K + k];
        }
    }
}

static void product_many(const matrix *w, size_t row_begin, size_t row_end, const float *x, size_t x_stride,
                         size_t tokens, float *y, size_t y_stride, float *scratch) {
    float *panels = scratch, *lines = scratch + MATMUL_ROWS * PRODUCT_K;
    for (size_t row = row_begin; row < row_end; row += MATMUL_ROWS) {
        size_t rows = row_end - row < MATMUL_ROWS ? row_end - row : MATMUL_ROWS;
        for (size_t k0 = 0; k0 < w->cols; k0 += PRODUCT_K) {
            size_t n = w->cols - k0 < PRODUCT_K ? w->cols - k0 : PRODUCT_K;
            pack_panels(w, row, rows, k0, n, panels, lines);
            for (size_t t = 0; t < tokens; t += TILE) {
                size_t some = tokens - t < TILE ? tokens - t : TILE;
                for (size_t r = 0; r < rows; r += PANEL) {
                    size_t width = rows - r < PANEL ? rows - r : PANEL;
                    tile(some, width, panels + r * PRODUCT_K, PANEL, n, x + t * x_stride + k0, x_stride,
                         y + t * y_stride + row + r, y_stride, k0 > 0);
                }
            }
        }
    }
}

static void matmul(const matrix *w, size_t row_begin, size_t row_end, const float *x, size_t x_stride, size_t tokens,
                   float *y, size_t y_stride, float *scratch) {
    if (w->cols == 0) {
        for (size_t t = 0; t < tokens; t++) {
            for (size_t r = row_begin; r < row_end; r++) y[t * y_stride + r] = 0;
        }
    } else if (tokens <= FEW_TOKENS) {
        product_few(w, row_begin, row_end, x, x_stride, tokens, y, y_stride, scratch);
    } else {
        product_many(w, row_begin, row_end, x, x_stride, tokens, y, y_stride, scratch);
    }
}

#endif
