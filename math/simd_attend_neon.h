/* simd_attend_neon.h: products of bytes and nibbles with rounded weights for NEON, by what the CPU has of products.
 *
 * Where it multiplies bytes, four (dot products) or eight (i8mm) are summed at once. Those are signed, so a weight is
 * two of them: w = 256 * high + low, and there are two sums. */
#ifndef RS_MATH_SIMD_ATTEND_NEON_H
#define RS_MATH_SIMD_ATTEND_NEON_H

#include "math/simd.h"

/* WEIGHT_MAX; value_offset, what a stored value is too large by for stream_bytes; eight weights to their form and back;
 * and adding the products of eight values (x[0], then x[1]) of each of 4 lanes with them to two sums. */
#ifdef __ARM_FEATURE_DOTPROD
enum { WEIGHT_MAX = 127 * 256 + 127 };

INLINE int16x8_t weights_form(int16x8_t w) {
    return (int16x8_t)vcombine_s8(vmovn_s16(w), vrshrn_n_s16(w, 8)); /* The low bytes, then the high ones. */
}

INLINE int16x8_t weights_plain(int16x8_t w) {
    int8x16_t bytes = (int8x16_t)w;
    return vaddw_s8(vshll_n_s8(vget_high_s8(bytes), 8), vget_low_s8(bytes));
}
#else
enum { WEIGHT_MAX = 32767 };

INLINE int16x8_t weights_form(int16x8_t w) {
    return w;
}

INLINE int16x8_t weights_plain(int16x8_t w) {
    return w;
}
#endif

#if defined(__ARM_FEATURE_MATMUL_INT8)
INLINE int value_offset(const rs_kv_format kv) {
    return kv == RS_KV_Q8_0 ? 128 : 8;
}

INLINE void dot_eight(const rs_kv_format kv, int32x4_t sums[2], const uint8x16_t x[2], int16x8_t w) {
    (void)kv;
    uint32x4_t a = (uint32x4_t)x[0], b = (uint32x4_t)x[1];
    sums[0] = vusmmlaq_s32(sums[0], (uint8x16_t)vzip1q_u32(a, b), (int8x16_t)w);
    sums[1] = vusmmlaq_s32(sums[1], (uint8x16_t)vzip2q_u32(a, b), (int8x16_t)w);
}

INLINE vi whole_sums(const int32x4_t sums[2]) { /* Low and high stand side by side. */
    return (vi)vuzp1q_s32(sums[0], sums[1]) + ((vi)vuzp2q_s32(sums[0], sums[1]) << 8);
}
#elif defined(__ARM_FEATURE_DOTPROD)
INLINE int value_offset(const rs_kv_format kv) {
    return kv == RS_KV_Q8_0 ? 0 : 8;
}

INLINE void dot_eight(const rs_kv_format kv, int32x4_t sums[2], const uint8x16_t x[2], int16x8_t w) {
    const uint8_t sign = kv == RS_KV_Q8_0 ? 128 : 0;
    int8x16_t a = (int8x16_t)(x[0] ^ sign), b = (int8x16_t)(x[1] ^ sign), bytes = (int8x16_t)w;
    sums[0] = vdotq_laneq_s32(vdotq_laneq_s32(sums[0], a, bytes, 0), b, bytes, 1);
    sums[1] = vdotq_laneq_s32(vdotq_laneq_s32(sums[1], a, bytes, 2), b, bytes, 3);
}

INLINE vi whole_sums(const int32x4_t sums[2]) {
    return (vi)sums[0] + ((vi)sums[1] << 8);
}
#else
INLINE int value_offset(const rs_kv_format kv) {
    return kv == RS_KV_Q8_0 ? 128 : 8;
}

INLINE void dot_four(int32x4_t sums[2], uint8x16_t x, int16x4_t w) {
    int16x8_t even = (int16x8_t)((uint16x8_t)x & 255), odd = (int16x8_t)((uint16x8_t)x >> 8);
    int16x8_t first = vuzp1q_s16(even, odd), last = vuzp2q_s16(even, odd); /* Values 0 and 1, 2 and 3 of each lane. */
    sums[0] = vmlal_high_lane_s16(vmlal_lane_s16(sums[0], vget_low_s16(first), w, 0), first, w, 1);
    sums[1] = vmlal_high_lane_s16(vmlal_lane_s16(sums[1], vget_low_s16(last), w, 2), last, w, 3);
}

INLINE void dot_eight(const rs_kv_format kv, int32x4_t sums[2], const uint8x16_t x[2], int16x8_t w) {
    (void)kv;
    dot_four(sums, x[0], vget_low_s16(w));
    dot_four(sums, x[1], vget_high_s16(w));
}

INLINE vi whole_sums(const int32x4_t sums[2]) {
    return (vi)sums[0] + (vi)sums[1];
}
#endif

/* a and b rounded to eight weights. */
INLINE vi pack_weights(const rs_kv_format kv, vf a, vf b) {
    (void)kv;
    int32x4_t low = vcvtnq_s32_f32((float32x4_t)a), high = vcvtnq_s32_f32((float32x4_t)b);
    return (vi)weights_form(vcombine_s16(vmovn_s32(low), vmovn_s32(high)));
}

/* sum plus all packed weights, in any lanes. */
INLINE vi add_weights(vi sum, vi packed) {
    return (vi)vpadalq_s16((int32x4_t)sum, weights_plain((int16x8_t)packed));
}

/* Eight values of each of 4 lanes: of two lines of bytes, or of one of nibbles. */
INLINE void load_eight(const rs_kv_format kv, const uint8_t *line, uint8x16_t x[2]) {
    x[0] = vld1q_u8(line);
    x[1] = kv == RS_KV_Q8_0 ? vld1q_u8(line + 64) : x[0] >> 4;
    if (kv == RS_KV_Q4_0) x[0] &= 15;
}

/* sum[r][4 * group + j] += weights of row r times the lines of 16 lanes, for one or two rows: their sums take 16 of the
 * 32 registers. */
INLINE void stream_group(const rs_kv_format kv, const int rows, const int group, const uint8_t *line, size_t lines,
                         const int16_t *w, size_t w_stride, ptrdiff_t ahead, vi (*sum)[64 / LANES]) {
    const size_t step = kv == RS_KV_Q8_0 ? 2 : 1;
    int32x4_t sums[2][4][2] = {0};
    for (size_t i = 0; i < lines; i += step, line += 64 * step, w += 8) {
        for (size_t l = 0; l < step; l++) prefetch_line(line + 64 * l, ahead);
        for (int j = 0; j < 4; j++) {
            uint8x16_t x[2];
            load_eight(kv, line + 16 * j, x);
            for (int r = 0; r < rows; r++) dot_eight(kv, sums[r][j], x, vld1q_s16(w + (size_t)r * w_stride));
        }
    }
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < 4; j++) sum[r][4 * group + j] += whole_sums(sums[r][j]);
    }
}

/* sum[r][j] += weights of row r times the lines of `groups` groups of 16 lanes, group_bytes apart. */
INLINE void stream_bytes(const rs_kv_format kv, const int rows, const int groups, const uint8_t *line,
                         size_t group_bytes, size_t lines, const int16_t *w, size_t w_stride, ptrdiff_t ahead,
                         vi (*sum)[64 / LANES]) {
    for (int r = 0; r < rows; r += 2) {
        for (int g = 0; g < groups; g++) {
            stream_group(kv, rows - r < 2 ? 1 : 2, g, line + g * group_bytes, lines, w + (size_t)r * w_stride, w_stride,
                         r == 0 ? ahead : 0, sum + r);
        }
    }
}

#endif
