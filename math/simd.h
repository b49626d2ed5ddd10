/* simd.h: vectors of LANES floats (GCC vector extensions) and the few operations that differ by instruction set.
 *
 * The simd_*.h headers are the vectorised kernels, written once. kernels_portable.c, kernels_avx*.c and kernels_neon*.c
 * define LANES and include them; everything is static, so code compiled for one instruction set never leaks into
 * another. NEON is 1 in its own sets alone: "portable" stays plain C where the CPU has it too. */
#ifndef RS_MATH_SIMD_H
#define RS_MATH_SIMD_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __SSE2__
#include <immintrin.h>
#endif
#ifndef NEON
#define NEON 0
#endif
#if NEON
#include <arm_neon.h>
#endif

#include "math/format_blocks.h"
#include "math/kernels_sets.h"

#ifndef LANES
#error "define LANES before including simd.h"
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));

INLINE vf load(const float *src) {
    vf v;
    memcpy(&v, src, sizeof v);
    return v;
}

INLINE void store(float *dst, vf v) {
    memcpy(dst, &v, sizeof v);
}

INLINE vf splat(float x) {
    return x - (vf){0}; /* Subtracting +0 keeps every value, -0 too. */
}

/* a where mask (all ones or all zeros in each lane), else b. */
INLINE vf choose(vi mask, vf a, vf b) {
    return (vf)((mask & (vi)a) | (~mask & (vi)b));
}

/* b when either is NaN, as the x86 instructions have it. */
INLINE vf min_of(vf a, vf b) {
#if LANES == 16
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__) && LANES == 8
    return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return choose(a < b, a, b);
#endif
}

INLINE vf max_of(vf a, vf b) {
#if LANES == 16
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__) && LANES == 8
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return choose(a > b, a, b);
#endif
}

INLINE vf abs_of(vf v) {
    return (vf)((vi)v & 0x7FFFFFFF);
}

/* v with its halves, quarters (...) swapped: folding with all of them brings every lane together. */
#if LANES == 16
#define SWAP_8(v) __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
#define SWAP_4(v) __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
#define SWAP_2(v) __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
#define SWAP_1(v) __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
#elif LANES == 8
#define SWAP_4(v) __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3)
#define SWAP_2(v) __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5)
#define SWAP_1(v) __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6)
#else
#define SWAP_2(v) __builtin_shufflevector(v, v, 2, 3, 0, 1)
#define SWAP_1(v) __builtin_shufflevector(v, v, 1, 0, 3, 2)
#endif

INLINE float sum_lanes(vf v) {
#ifdef SWAP_8
    v += SWAP_8(v);
#endif
#ifdef SWAP_4
    v += SWAP_4(v);
#endif
    v += SWAP_2(v);
    v += SWAP_1(v);
    return v[0];
}

INLINE float max_lanes(vf v) {
#ifdef SWAP_8
    v = max_of(v, SWAP_8(v));
#endif
#ifdef SWAP_4
    v = max_of(v, SWAP_4(v));
#endif
    v = max_of(v, SWAP_2(v));
    v = max_of(v, SWAP_1(v));
    return v[0];
}

#if NEON
/* Four bytes, then zeros. Compilers widen vectors shorter than 8 bytes one element at a time. */
INLINE uint8x8_t load_four(const uint8_t *src) {
    uint32_t word;
    memcpy(&word, src, sizeof word);
    return vreinterpret_u8_u32((uint32x2_t){word});
}
#endif

/* LANES integers from memory of any alignment, and as floats. */
INLINE vi load_u8(const uint8_t *src) {
#if defined(__AVX2__) && LANES == 8
    return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)src));
#elif defined(__AVX512F__) && LANES == 16
    return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)src));
#elif NEON
    return (vi)vmovl_u16(vget_low_u16(vmovl_u8(load_four(src))));
#else
    typedef uint8_t bytes __attribute__((vector_size(LANES)));
    bytes b;
    memcpy(&b, src, sizeof b);
    return __builtin_convertvector(b, vi);
#endif
}

INLINE vi load_i8(const uint8_t *src) {
#if defined(__AVX2__) && LANES == 8
    return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)src));
#elif defined(__AVX512F__) && LANES == 16
    return (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)src));
#elif NEON
    return (vi)vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(load_four(src)))));
#else
    typedef int8_t bytes __attribute__((vector_size(LANES)));
    bytes b;
    memcpy(&b, src, sizeof b);
    return __builtin_convertvector(b, vi);
#endif
}

INLINE vu load_u16(const uint8_t *src) {
#if NEON
    return (vu)vmovl_u16(vreinterpret_u16_u8(vld1_u8(src)));
#else
    typedef uint16_t words __attribute__((vector_size(2 * LANES)));
    words w;
    memcpy(&w, src, sizeof w);
    return __builtin_convertvector(w, vu);
#endif
}

INLINE vf to_float(vi v) {
    return __builtin_convertvector(v, vf);
}

INLINE vf load_half(const uint8_t *src) {
#if defined(__F16C__) && LANES == 8
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)src));
#elif defined(__AVX512F__) && LANES == 16
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)src));
#elif NEON
    return (vf)vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(src)));
#else
    vu half = load_u16(src), sign = (half & 0x8000) << 16, magnitude = half & 0x7FFF;
    vf value = (vf)(magnitude << 13) * 0x1p112f; /* Moves the exponent's bias; exact, denormals included. */
    vu special = (vu)(magnitude >= 0x7C00) & 0x7F800000;
    special |= (vu)(magnitude > 0x7C00) & 0x400000; /* A NaN becomes quiet, as in the hardware conversion. */
    return (vf)((vu)value | sign | special);
#endif
}

INLINE float half_at(const uint8_t *src) {
#ifdef __F16C__
    uint16_t half;
    memcpy(&half, src, sizeof half);
    return _cvtsh_ss(half);
#elif NEON
    __fp16 half;
    memcpy(&half, src, sizeof half);
    return (float)half;
#else
    return format_half_at(src);
#endif
}

INLINE void store_half(uint8_t *dst, vf v) {
#if defined(__F16C__) && LANES == 8
    _mm_storeu_si128((__m128i *)dst, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX512F__) && LANES == 16
    _mm256_storeu_si256((__m256i *)dst, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif NEON
    vst1_u8(dst, vreinterpret_u8_f16(vcvt_f16_f32((float32x4_t)v)));
#else
    for (int i = 0; i < LANES; i++) {
        uint16_t half = half_from_float(v[i]);
        memcpy(dst + 2 * i, &half, sizeof half);
    }
#endif
}

/* e^(x - n ln2), n whole and next to x / ln2: with r = x - n ln2, |r| <= ln2 / 2, it is 1 + r + r^2 P(r), P being the
 * polynomial of least relative error. */
INLINE vf exp_rest(vf x, vf n) {
    vf r = (x - n * 0x1.62ep-1f) - n * 0x1.0bfbe8p-15f; /* ln2 in two parts; n times the first is exact. */
    vf p = ((((r * 0x1.6a2434p-10f + 0x1.1239e2p-7f) * r + 0x1.5558f2p-5f) * r + 0x1.555492p-3f) * r + 0x1.fffffcp-2f);
    return r * r * p + r + 1;
}

/* exp(x) within 1e-7 (relative) for -87.3 < x < 88.3; 0 below, so exp(-INFINITY) is 0, and INFINITY above; NaN stays
 * NaN. */
INLINE vf exp_of(vf x) {
#if LANES == 16
    __m512 n = _mm512_roundscale_ps((__m512)(x * 0x1.715476p+0f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __mmask16 counts = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.3f), _CMP_NLT_UQ); /* NaN does. */
    return (vf)_mm512_maskz_scalef_ps(counts, (__m512)exp_rest(x, (vf)n), n);
#else
    const vf round = splat(0x1.8p23f); /* Adding this rounds to an integer, which ends up in the low bits. */
    vi zero = x < splat(-87.3f);
    vi huge = x > splat(88.3f);
    x = choose(zero | huge, splat(0), x);
    vf shifted = x * 0x1.715476p+0f + round;
    vf mantissa = exp_rest(x, shifted - round);
    vf power = (vf)(((vi)shifted << 23) + (127 << 23));
    return choose(huge, splat(INFINITY), (vf)(~zero & (vi)(mantissa * power)));
#endif
}

/* The same for x <= 0 alone, in fewer steps: what softmax weights need. */
INLINE vf exp_of_negative(vf x) {
#if LANES == 16
    return exp_of(x);
#else
    const vf round = splat(0x1.8p23f);
    vf shifted = x * 0x1.715476p+0f + round;
    vf mantissa = exp_rest(x, shifted - round);
    return (vf)(~(x < splat(-87.3f)) & (vi)((vu)mantissa + ((vu)shifted << 23)));
#endif
}

#endif
