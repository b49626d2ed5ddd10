/* format.h: number formats of weights as GGUF files store them, and matrices of them.
 *
 * A row of `cols` values is a run of blocks; each block holds block_values values in block_bytes bytes. Byte layouts
 * and type numbers follow the GGUF specification (ggml's docs/gguf.md and quantisation formats). */
#ifndef RS_MATH_FORMAT_H
#define RS_MATH_FORMAT_H

#include <stddef.h>
#include <stdint.h>

/* Values are the type numbers in GGUF files. */
typedef enum format {
    FORMAT_F32 = 0,
    FORMAT_F16 = 1,
    FORMAT_Q4_0 = 2,
    FORMAT_Q4_1 = 3,
    FORMAT_Q5_0 = 6,
    FORMAT_Q5_1 = 7,
    FORMAT_Q8_0 = 8,
    FORMAT_Q2_K = 10,
    FORMAT_Q3_K = 11,
    FORMAT_Q4_K = 12,
    FORMAT_Q5_K = 13,
    FORMAT_Q6_K = 14,
    FORMAT_IQ4_NL = 20,
    FORMAT_BF16 = 30,
    FORMAT_MXFP4 = 39,
    FORMAT_LIMIT = 40,
} format;

typedef struct format_info {
    const char *name; /* NULL when the number is no format known here */
    uint16_t block_values, block_bytes;
} format_info;

/* Of any number, also one read from a file. */
format_info format_describe(uint32_t number);

/* Bytes of `values` values (a multiple of block_values). */
size_t format_bytes(format f, size_t values);

/* Expands `values` (a multiple of block_values) from src to float, bit-exact with the PyPI package gguf.
 * src need not be aligned. This is the meaning of each format; the kernels are compared with it. */
void format_expand(format f, const void *src, float *dst, size_t values);

/* A read-only [rows, cols] matrix or a slice of one: rows are row_bytes apart, cols a multiple of block_values. */
typedef struct matrix {
    const uint8_t *data;
    size_t rows, cols, row_bytes;
    format format;
} matrix;

/* Slices share the data. Column bounds must be multiples of block_values (asserted). */
matrix matrix_rows(const matrix *m, size_t begin, size_t end);
matrix matrix_cols(const matrix *m, size_t begin, size_t end);

float half_to_float(uint16_t half);
uint16_t half_from_float(float value); /* round to nearest even */

#endif
