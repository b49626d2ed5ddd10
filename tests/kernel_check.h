/* kernel_check.h: what the two halves of kernel_check share: buffers, random numbers and weights. */
#ifndef RS_TESTS_KERNEL_CHECK_H
#define RS_TESTS_KERNEL_CHECK_H

#include "base/random.h"
#include "math/kernels.h"

/* A 64-byte aligned buffer between guard bytes (under AddressSanitizer: none, so that it sees every overrun, reads
 * too). */
typedef struct buffer {
    void *memory;
    size_t bytes;
    uint8_t *data;
} buffer;
buffer buffer_new(size_t bytes);
void buffer_free(buffer *b); /* fails the check when a guard byte changed */

typedef enum values_kind {
    VALUES_NORMAL,
    VALUES_ZERO,
    VALUES_LARGE,
    VALUES_DENORMAL,
    VALUES_MIXED,
    VALUES_KINDS
} values_kind;

/* Signed values: bell-shaped around 0; 0; of about 1e15; below 1e-38; magnitudes from 1e-6 to 1e3 and zeros. */
void values_fill(uint64_t *seed, values_kind kind, float *x, size_t n);

/* Random blocks of a weight format whose scales are small normal numbers. */
void weights_fill(uint64_t *seed, format f, uint8_t *dst, size_t values);

/* The formats known, by number; -1 past the end. */
int format_nth(size_t index);

int bench_run(const char *only);

#endif
