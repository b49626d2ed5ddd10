/* format_blocks.h: what the code that expands blocks shares: the 256-value blocks of the K-quants, and their scales. */
#ifndef RS_MATH_FORMAT_BLOCKS_H
#define RS_MATH_FORMAT_BLOCKS_H

#include <string.h>

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

/* Scale j (0 to 15) of Q3_K's 12 bytes of 6-bit numbers, offset 32. */
static inline int format_scale_q3_k(const uint8_t *packed, int j) {
    return ((packed[j % 8] >> j / 8 * 4 & 15) | (packed[8 + j % 4] >> j / 4 * 2 & 3) << 4) - 32;
}

/* What the nibbles of IQ4_NL and MXFP4 stand for; MXFP4's (E2M1) are doubled. */
static const int8_t format_levels_iq4_nl[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                1,    13,   25,  38,  53,  69,  89,  113};
static const int8_t format_levels_mxfp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* Half of the power of two that MXFP4's exponent byte stands for (OCP Microscaling, E8M0). */
static inline float format_scale_mxfp4(uint8_t exponent) {
    uint32_t bits = exponent < 2 ? 0x200000u << exponent : (uint32_t)(exponent - 1) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return scale;
}

#endif
