/* simd_tiles.h: products of expanded weights with many rows of floats on AMX tiles, as prefill needs them.
 *
 * Tiles multiply bfloat16, 8 of a float's 24 bits, and sum in float. So w and x are split into high + low, both rounded
 * to nearest, and high * high + high * low + low * high go into the same sums. What is lost of a product is low * low
 * and the rounding of the two lows: 2^-16 of it each at most. x alone rounded to bfloat16 would lose 2^-8.
 *
 * A step is TILE_COLS columns of 32 rows of x or of w: four tiles of 1 KiB, high of rows 0 to 15 and of 16 to 31, then
 * low of both. Tiles of x are [16 rows][32 columns], those of w [16 pairs of columns][16 rows][2]. Packed x is
 * [tokens / 32][steps], a panel of w [steps of PRODUCT_K columns]. All 8 tile registers are in use: 4 of sums (of
 * 32 tokens x 32 rows of w), 2 of x, 2 of w. Columns that are missing are zeros; a row of w or of x that is missing is
 * the one before it again: its sums go nowhere. */
#ifndef RS_MATH_SIMD_TILES_H
#define RS_MATH_SIMD_TILES_H

#include "math/simd_product.h"

#if LANES != 16
#error "tiles are as wide as 16 floats"
#endif

#define TILES __attribute__((target("avx512bf16,amx-tile,amx-bf16")))

enum {
    TILE_FLOATS = TILE_ROWS * LANES,
    STEP_FLOATS = 4 * TILE_FLOATS,
    STEP_LOW = 2 * TILE_FLOATS, /* where the low tiles begin */
    SUM_STRIDE = MATMUL_ROWS,   /* sums are [PACK_TOKENS][MATMUL_ROWS] */
    SUM_FLOATS = PACK_TOKENS * SUM_STRIDE,
    SPLIT_STRIDE = PRODUCT_K / 2, /* floats of a row of w as bfloat16 */
};

/* All tile registers as 16 rows of 64 bytes. */
static const struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config __attribute__((aligned(64))) = {
    .palette = 1,
    .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
    .rows = {16, 16, 16, 16, 16, 16, 16, 16},
};

/* A row's TILE_COLS columns, of which n or more are there, as LANES pairs of bfloat16 twice. */
TILES INLINE void split(const float *src, size_t n, float *high, float *low) {
    float padded[TILE_COLS];
    if (n < TILE_COLS) {
        memset(padded, 0, sizeof padded);
        src = memcpy(padded, src, n * sizeof *src);
    }
    vf a = load(src), b = load(src + LANES);
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
    memcpy(high, &both, sizeof both);
    a -= (vf)((vu)_mm512_cvtepu16_epi32(_mm512_castsi512_si256(both)) << 16);
    b -= (vf)((vu)_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1)) << 16);
    both = (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
    memcpy(low, &both, sizeof both);
}

TILES static void pack_tiles(const float *x, size_t x_stride, size_t tokens, size_t cols, float *packed) {
    for (size_t first = 0; first < tokens; first += PACK_TOKENS, packed += matmul_packed_floats(PACK_TOKENS, cols)) {
        for (size_t i = 0; i < PACK_TOKENS; i++) {
            const float *from = x + (first + i < tokens ? first + i : tokens - 1) * x_stride;
            float *to = packed + i * LANES; /* A row of the first tile; those of the second follow on. */
            for (size_t k = 0; k < cols; k += TILE_COLS, to += STEP_FLOATS) {
                split(from + k, cols - k, to, to + STEP_LOW);
            }
        }
    }
}

/* Rows [row, row + rows) of w, columns [k0, k0 + n), to a panel. line: PRODUCT_K floats, lines: TILE_ROWS times as
 * many. */
TILES static void pack_panel(const matrix *w, size_t row, size_t rows, size_t k0, size_t n, float *panel, float *line,
                             float *lines) {
    float *low = lines + TILE_ROWS * SPLIT_STRIDE;
    for (size_t r = 0; r < MATMUL_ROWS; r += TILE_ROWS, panel += TILE_FLOATS) {
        for (size_t i = 0; i < TILE_ROWS; i++) {
            if (r + i < rows) expand_row(w, row + r + i, k0, line, n);
            for (size_t k = 0; k < n; k += TILE_COLS) {
                size_t at = i * SPLIT_STRIDE + k / 2;
                split(line + k, n - k, lines + at, low + at);
            }
        }
        float *to = panel;
        for (size_t k = 0; k < n; k += TILE_COLS, to += STEP_FLOATS) {
            transpose_block(lines + k / 2, SPLIT_STRIDE, to, LANES);
            transpose_block(low + k / 2, SPLIT_STRIDE, to + STEP_LOW, LANES);
        }
    }
}

/* The sums in tiles 0 to 3 += the rows in tiles 4 and 5 times those in 6 and 7. Four products at a time, so that none
 * waits for the one before it. */
TILES INLINE void dot_tiles(void) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

/* sums += x [PACK_TOKENS, steps] times w [MATMUL_ROWS, steps]. */
TILES static void multiply_tiles(const float *x, const float *w, size_t steps, float *sums) {
    const size_t bytes = LANES * sizeof(float), sum_bytes = SUM_STRIDE * sizeof(float);
    float *more = sums + TILE_ROWS * SUM_STRIDE;
    __asm__ volatile("" ::: "memory"); /* gcc does not know that loading tiles reads memory. */
    _tile_loadd(0, sums, sum_bytes);
    _tile_loadd(1, sums + LANES, sum_bytes);
    _tile_loadd(2, more, sum_bytes);
    _tile_loadd(3, more + LANES, sum_bytes);
    for (; steps > 0; steps--, x += STEP_FLOATS, w += STEP_FLOATS) {
        _tile_loadd(4, x, bytes);
        _tile_loadd(5, x + TILE_FLOATS, bytes);
        _tile_loadd(6, w + STEP_LOW, bytes);
        _tile_loadd(7, w + STEP_LOW + TILE_FLOATS, bytes);
        dot_tiles();
        _tile_loadd(6, w, bytes);
        _tile_loadd(7, w + TILE_FLOATS, bytes);
        dot_tiles();
        _tile_loadd(4, x + STEP_LOW, bytes);
        _tile_loadd(5, x + STEP_LOW + TILE_FLOATS, bytes);
        dot_tiles();
    }
    _tile_stored(0, sums, sum_bytes);
    _tile_stored(1, sums + LANES, sum_bytes);
    _tile_stored(2, more, sum_bytes);
    _tile_stored(3, more + LANES, sum_bytes);
}

/* Up to PACKED_ROWS rows. A run of columns of x and of w stays in the cache while all pairs of them meet. sums:
 * [blocks of tokens][panels], so that what is read and written for all columns lies together. */
TILES static void multiply_rows(const matrix *w, size_t row, size_t rows, const float *packed, size_t tokens, float *y,
                                size_t y_stride, float *scratch) {
    size_t panels = (rows + MATMUL_ROWS - 1) / MATMUL_ROWS, blocks = (tokens + PACK_TOKENS - 1) / PACK_TOKENS;
    float *panel = scratch, *line = panel + PACKED_ROWS * PRODUCT_K, *lines = line + PRODUCT_K;
    float *sums = lines + TILE_ROWS * PRODUCT_K;
    memset(sums, 0, blocks * panels * SUM_FLOATS * sizeof *sums);
    for (size_t k0 = 0; k0 < w->cols; k0 += PRODUCT_K) {
        size_t n = w->cols - k0 < PRODUCT_K ? w->cols - k0 : PRODUCT_K, steps = (n + TILE_COLS - 1) / TILE_COLS;
        for (size_t p = 0; p < panels; p++) {
            size_t first = p * MATMUL_ROWS, some = rows - first < MATMUL_ROWS ? rows - first : MATMUL_ROWS;
            pack_panel(w, row + first, some, k0, n, panel + first * PRODUCT_K, line, lines);
        }
        for (size_t b = 0; b < blocks; b++) {
            const float *x = packed + matmul_packed_floats(b * PACK_TOKENS, w->cols) + k0 / TILE_COLS * STEP_FLOATS;
            for (size_t p = 0; p < panels; p++) {
                float *sum = sums + (b * panels + p) * SUM_FLOATS;
                multiply_tiles(x, panel + p * MATMUL_ROWS * PRODUCT_K, steps, sum);
            }
        }
    }
    for (size_t t = 0; t < tokens; t++) {
        for (size_t first = 0; first < rows; first += MATMUL_ROWS) {
            size_t some = rows - first < MATMUL_ROWS ? rows - first : MATMUL_ROWS;
            const float *sum = sums + (t / PACK_TOKENS * panels + first / MATMUL_ROWS) * SUM_FLOATS;
            memcpy(y + t * y_stride + row + first, sum + t % PACK_TOKENS * SUM_STRIDE, some * sizeof *y);
        }
    }
}

TILES static void matmul_tiles(const matrix *w, size_t row_begin, size_t row_end, const float *packed, size_t tokens,
                               float *y, size_t y_stride, float *scratch) {
    _tile_loadconfig(&tile_config);
    for (size_t row = row_begin; row < row_end; row += PACKED_ROWS) {
        size_t rows = row_end - row < PACKED_ROWS ? row_end - row : PACKED_ROWS;
        multiply_rows(w, row, rows, packed, tokens, y, y_stride, scratch);
    }
    _tile_release();
}

#endif
