/* simd_rows.h: element-wise kernels on rows, the Hadamard transform, and rows into and out of KV planes. */
#ifndef RS_MATH_SIMD_ROWS_H
#define RS_MATH_SIMD_ROWS_H

#include "math/simd_expand.h"

static void rms_norm(const float *x, const float *weight, float eps, float *y, size_t n) {
    vf sums[4] = {0};
    float sum = 0;
    size_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        for (size_t j = 0; j < 4; j++) {
            vf v = load(x + i + j * LANES);
            sums[j] += v * v;
        }
    }
    for (; i < n; i++) sum += x[i] * x[i];
    sum += sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
    float factor = 1 / sqrtf(sum / (float)n + eps);
    for (i = 0; i < n; i++) y[i] = x[i] * factor * weight[i];
}

static void rope(float *x, const float *cos, const float *sin, size_t n_rot, rope_pairs pairs) {
    size_t half = n_rot / 2, apart = pairs == ROPE_HALVES ? half : 1, step = pairs == ROPE_HALVES ? 1 : 2;
    size_t i = 0;
    for (; pairs == ROPE_HALVES && i + LANES <= half; i += LANES) {
        vf a = load(x + i), b = load(x + half + i), c = load(cos + i), s = load(sin + i);
        store(x + i, a * c - b * s);
        store(x + half + i, a * s + b * c);
    }
    for (; i < half; i++) {
        float *p = x + i * step, a = p[0], b = p[apart];
        p[0] = a * cos[i] - b * sin[i];
        p[apart] = a * sin[i] + b * cos[i];
    }
}

/* Both activations are x * sigmoid(z): z = x, or 2 sqrt(2 / pi) (x + 0.044715 x^3) since 1 + tanh(u) = 2 sigmoid(2u).
 */
INLINE vf activate(activation act, vf x) {
    vf z = act == ACTIVATION_SILU ? x : x * (x * x * 0.0713548162726f + 1.59576912161f);
    return x / (exp_of(-z) + 1);
}

INLINE void gate_as(activation act, float *gate, const float *up, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) store(gate + i, activate(act, load(gate + i)) * load(up + i));
    for (; i < n; i++) gate[i] = activate(act, splat(gate[i]))[0] * up[i];
}

static void gate(activation act, float *gate, const float *up, size_t n) {
    if (act == ACTIVATION_SILU) {
        gate_as(ACTIVATION_SILU, gate, up, n);
    } else {
        gate_as(ACTIVATION_GELU_TANH, gate, up, n);
    }
}

static void add(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += x[i];
}

static void scale(float *y, float s, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] *= s;
}

static void hadamard(float *x, size_t n) {
    size_t run = n & (~n + 1); /* The lowest bit set is the largest power of two that divides n. */
    float factor = run > 0 ? 1 / sqrtf((float)run) : 1;
    for (size_t step = 1; step < run; step *= 2) {
        for (size_t begin = 0; begin < n; begin += 2 * step) {
            float *a = x + begin, *b = a + step;
            for (size_t i = 0; i < step; i++) {
                float sum = a[i] + b[i], difference = a[i] - b[i];
                a[i] = sum;
                b[i] = difference;
            }
        }
    }
    scale(x, factor, n);
}

/* Rounds a scale to half, saturating and without the sign of zero, stores it and returns what was stored. */
static float store_scale(uint8_t *dst, float value) {
    uint16_t half = half_from_float(value > HALF_MAX ? HALF_MAX : value < -HALF_MAX ? -HALF_MAX : value);
    if (half == 0x8000) half = 0;
    memcpy(dst, &half, sizeof half);
    return half_to_float(half);
}

INLINE float largest_magnitude(const float *x) {
    vf largest = splat(0);
    for (int i = 0; i < PLANE_BLOCK; i += LANES) largest = max_of(abs_of(load(x + i)), largest); /* Skips NaN. */
    return max_lanes(largest);
}

/* The operations are those of kernels_ref.c one for one, division included: the bytes must be the same. */
static void store_q8_block(uint8_t *scale_out, uint8_t *out, const float *x) {
    typedef int8_t bytes __attribute__((vector_size(LANES)));
    float d = store_scale(scale_out, largest_magnitude(x) / 127);
    for (int i = 0; i < PLANE_BLOCK; i += LANES) {
        vf v = d != 0 ? load(x + i) / d : splat(0);
        v = max_of(min_of(v, splat(127)), splat(-127));
        bytes b =
            __builtin_convertvector((vi)(v + 0x1.8p23f), bytes); /* Rounds to even; the low bits are the integer. */
        memcpy(out + i, &b, sizeof b);
    }
}

static void store_q4_block(uint8_t *scale_out, uint8_t *out, const float *x) {
    typedef uint8_t bytes __attribute__((vector_size(LANES)));
    float magnitude = largest_magnitude(x), largest = 0;
    for (int i = PLANE_BLOCK - 1; i >= 0; i--)
        largest = fabsf(x[i]) == magnitude ? x[i] : largest; /* The first counts. */
    float d = store_scale(scale_out, largest / -8);
    for (int i = 0; i < PLANE_BLOCK / 2; i += LANES) {
        vi q[2];
        for (int j = 0; j < 2; j++) {
            vf v = d != 0 ? load(x + 16 * j + i) / d + 8.5f : splat(8);
            v = max_of(min_of(v, splat(15.5f)), splat(0));
            q[j] = __builtin_convertvector(v, vi);
        }
        bytes b = __builtin_convertvector(q[0] | q[1] << 4, bytes);
        memcpy(out + i, &b, sizeof b);
    }
}

/* A row [lines] of `bytes`-byte values (1 or 2) into its plane: V rows lie together, those of K PAGE_TOKENS apart. */
static void place_row(kv_side side, uint8_t *values, size_t token, const uint8_t *row, size_t lines, size_t bytes) {
    if (side == KV_V) {
        memcpy(values + token * lines * bytes, row, lines * bytes);
        return;
    }
    uint8_t *to = values + token * bytes;
    if (bytes == 2) {
        for (size_t i = 0; i < lines; i++, to += 2 * PAGE_TOKENS) memcpy(to, row + 2 * i, 2);
    } else {
        for (size_t i = 0; i < lines; i++, to += PAGE_TOKENS) *to = row[i];
    }
}

static void kv_store(rs_kv_format kv, kv_side side, uint8_t *plane, size_t token, const float *x, size_t head_dim) {
    uint8_t *values = plane + plane_values_at(kv, head_dim), row[2 * HEAD_DIM_MAX];
    if (kv == RS_KV_F16) {
        size_t i = 0;
        for (; i + LANES <= head_dim; i += LANES) store_half(row + 2 * i, load(x + i));
        for (; i < head_dim; i++) {
            uint16_t half = half_from_float(x[i]);
            memcpy(row + 2 * i, &half, sizeof half);
        }
        place_row(side, values, token, row, head_dim, 2);
        return;
    }
    for (size_t b = 0; b < head_dim / PLANE_BLOCK; b++) {
        uint8_t *scale = plane + plane_scale_at(b, token);
        if (kv == RS_KV_Q8_0) store_q8_block(scale, row + 32 * b, x + 32 * b);
        if (kv == RS_KV_Q4_0) store_q4_block(scale, row + 16 * b, x + 32 * b);
    }
    place_row(side, values, token, row, kv == RS_KV_Q8_0 ? head_dim : head_dim / 2, 1);
}

/* Not for speed: attention reads whole pages. */
static void kv_load(rs_kv_format kv, kv_side side, const uint8_t *plane, size_t token, float *x, size_t head_dim) {
    kernels_ref.kv_load(kv, side, plane, token, x, head_dim);
}

#endif
