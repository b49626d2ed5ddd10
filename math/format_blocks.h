/* format_blocks.h: what the code that expands blocks shares: the 256-value blocks of the K-quants, and their scales. */
#ifndef RS_MATH_FORMAT_BLOCKS_H
#define RS_MATH_FORMAT_BLOCKS_H

#include "math/format.h"

/* The little-endian half at an address of any alignment. */
static inline float format_half_at(const uint8_t *src) {
    return half_to_float((uint16_t)(src[0] | src[1] << 8));
}

/* One block of 256 values; format.c calls these. */
void format_expand_q2_k(const uint8_t *src, float *dst);
void format_expand_q3_k(const uint8_t *src, float *dst);
void format_expand_q4_k(const uint8_t *src, float *dst);
void format_expand_q5_k(const uint8_t *src, float *dst);
void format_expand_q6_k(const uint8_t *src, float *dst);

/* Scale j (0 to 7) and minimum j of the 12 bytes of 6-bit numbers that Q4_K and Q5_K share. */
static inline int format_scale_k(const uint8_t *packed, int j) {
    return j < 4 ? packed[j] & 63 : (packed[j + 4] & 15) | (packed[j - 4] >> 2 & 48);
}
static inline int format_minimum_k(const uint8_t *packed, int j) {
    return j < 4 ? packed[j + 4] & 63 : packed[j + 4] >> 4 | (packed[j] >> 2 & 48);
}

#endif
