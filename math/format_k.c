/* format_k.c: expansion of the K-quant formats: 256 values in sub-blocks whose scales are quantised themselves.
 *
 * Bit-exact with gguf's numpy code; compiled with -ffp-contract=off as format.c. */
#include "math/format.h"
#include "math/format_blocks.h"

/* scales[16]: scale in the low, minimum in the high 4 bits; q[64] of 2 bits; half d, dmin */
void format_expand_q2_k(const uint8_t *src, float *dst) {
    float d = format_half_at(src + 80), dmin = format_half_at(src + 82);
    for (int i = 0; i < 256; i++) {
        int scale = src[i / 16], q = src[16 + i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
        float product = d * (float)(scale & 15) * (float)q;
        dst[i] = product - dmin * (float)(scale >> 4);
    }
}

/* third bits[32]; q[64] of 2 bits; 16 6-bit scales in 12 bytes, offset 32; half d */
void format_expand_q3_k(const uint8_t *src, float *dst) {
    const uint8_t *third = src, *low = src + 32;
    float d = format_half_at(src + 108);
    for (int i = 0; i < 256; i++) {
        int q = low[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
        int offset = third[i % 32] >> i / 32 & 1 ? 0 : 4;
        dst[i] = d * (float)format_scale_q3_k(src + 96, i / 16) * (float)(q - offset);
    }
}

/* half d, dmin; scales and minima[12]; q[128] of 4 bits: 32 bytes hold 32 values low, then 32 high */
void format_expand_q4_k(const uint8_t *src, float *dst) {
    float d = format_half_at(src), dmin = format_half_at(src + 2);
    for (int i = 0; i < 256; i++) {
        int j = i / 32, q = src[16 + i / 64 * 32 + i % 32] >> j % 2 * 4 & 15;
        float product = d * (float)format_scale_k(src + 4, j) * (float)q;
        dst[i] = product - dmin * (float)format_minimum_k(src + 4, j);
    }
}

/* half d, dmin; scales and minima[12]; fifth bits[32]; q[128] as Q4_K */
void format_expand_q5_k(const uint8_t *src, float *dst) {
    float d = format_half_at(src), dmin = format_half_at(src + 2);
    for (int i = 0; i < 256; i++) {
        int j = i / 32, q = (src[48 + i / 64 * 32 + i % 32] >> j % 2 * 4 & 15) | (src[16 + i % 32] >> j & 1) << 4;
        float product = d * (float)format_scale_k(src + 4, j) * (float)q;
        dst[i] = product - dmin * (float)format_minimum_k(src + 4, j);
    }
}

/* low 4 bits[128], high 2 bits[64], int8 scales[16], half d; offset 32 */
void format_expand_q6_k(const uint8_t *src, float *dst) {
    const uint8_t *low = src, *high = src + 128;
    float d = format_half_at(src + 208);
    for (int i = 0; i < 256; i++) {
        int in_half = i % 128;
        int q = (low[i / 128 * 64 + in_half % 64] >> in_half / 64 * 4 & 15) |
                (high[i / 128 * 32 + in_half % 32] >> in_half / 32 * 2 & 3) << 4;
        dst[i] = d * (float)(int8_t)src[192 + i / 16] * (float)(q - 32);
    }
}
