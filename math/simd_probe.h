/* simd_probe.h: what the instruction set does at best: loads, multiply-adds and int8 dot products, nothing else. */
#ifndef RS_MATH_SIMD_PROBE_H
#define RS_MATH_SIMD_PROBE_H

#include "math/simd.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

/* Chains that wait for nobody but themselves: latency times instructions a cycle at least, and they must all stay in
 * registers. */
#if LANES == 16 || defined(__aarch64__)
enum { PROBE_CHAINS = 16 };
#else
enum { PROBE_CHAINS = 12 };
#endif
enum { PROBE_STREAMS = 4, PROBE_STREAM = PROBE_BLOCK / PROBE_STREAMS, PROBE_LINE = 64 };

/* From here on the compiler knows nothing of the vector v. */
#if defined(__x86_64__)
#define OPAQUE(v) __asm__ volatile("" : "+v"(v))
#elif defined(__aarch64__)
#define OPAQUE(v) __asm__ volatile("" : "+w"(v))
#else
#define OPAQUE(v) __asm__ volatile("" : "+m"(v))
#endif

static uint32_t probe_read(const void *memory, size_t bytes) {
    vu sums[PROBE_STREAMS] = {0};
    for (const uint8_t *block = memory, *end = block + bytes; block < end; block += PROBE_BLOCK) {
        for (size_t i = 0; i < PROBE_STREAM; i += PROBE_LINE) {
            for (size_t s = 0; s < PROBE_STREAMS; s++) {
                for (size_t j = 0; j < PROBE_LINE; j += sizeof(vu)) {
                    vu v;
                    memcpy(&v, block + s * PROBE_STREAM + i + j, sizeof v);
                    sums[s] ^= v;
                }
            }
        }
    }
    uint32_t all = 0;
    for (size_t s = 0; s < PROBE_STREAMS; s++) {
        for (size_t lane = 0; lane < LANES; lane++) all ^= sums[s][lane];
    }
    return all;
}

/* Every multiply-add is 1 * x + 1, so each lane counts them. */
static double probe_multiply_add(size_t n) {
    vf sums[PROBE_CHAINS], one = splat(1);
    double count = 0;
    OPAQUE(one);
    for (size_t c = 0; c < PROBE_CHAINS; c++) {
        sums[c] = splat(0);
        OPAQUE(sums[c]);
    }
    for (size_t i = 0; i < n; i++) {
        for (size_t c = 0; c < PROBE_CHAINS; c++) sums[c] = sums[c] * one + one;
    }
    for (size_t c = 0; c < PROBE_CHAINS; c++) {
        for (size_t lane = 0; lane < LANES; lane++) count += 2 * (double)sums[c][lane];
    }
    return count;
}

/* All int8 values are 1, so each lane counts the pairs multiplied. */
static const uint32_t four_ones = 0x01010101;

INLINE double count_pairs(const vi *sums) {
    double count = 0;
    for (size_t c = 0; c < PROBE_CHAINS; c++) {
        for (size_t lane = 0; lane < LANES; lane++) count += 2 * (double)(uint32_t)sums[c][lane];
    }
    return count;
}

/* sum += four products of int8 in each lane. */
#if LANES == 16
#define DOT8_INSTRUCTION "vpdpbusd (512 bits)"
INLINE vi dot8_add(vi sum, vi a, vi b) {
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
#elif defined(__AVXVNNI__)
#define DOT8_INSTRUCTION "vpdpbusd"
INLINE vi dot8_add(vi sum, vi a, vi b) {
    return (vi)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
}
#elif defined(__AVX2__)
#define DOT8_INSTRUCTION "vpmaddubsw, vpmaddwd"
INLINE vi dot8_add(vi sum, vi a, vi b) {
    return sum + (vi)_mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)a, (__m256i)b), _mm256_set1_epi16(1));
}
#elif defined(__ARM_FEATURE_MATMUL_INT8)
#define DOT8_INSTRUCTION "smmla"
INLINE vi dot8_add(vi sum, vi a, vi b) { /* Eight products in each lane. */
    return (vi)vmmlaq_s32((int32x4_t)sum, (int8x16_t)a, (int8x16_t)b);
}
#elif defined(__ARM_FEATURE_DOTPROD)
#define DOT8_INSTRUCTION "sdot"
INLINE vi dot8_add(vi sum, vi a, vi b) {
    return (vi)vdotq_s32((int32x4_t)sum, (int8x16_t)a, (int8x16_t)b);
}
#elif defined(__aarch64__)
#define DOT8_INSTRUCTION "smull, sadalp"
INLINE vi dot8_add(vi sum, vi a, vi b) {
    int16x8_t low = vmull_s8(vget_low_s8((int8x16_t)a), vget_low_s8((int8x16_t)b));
    return (vi)vpadalq_s16(vpadalq_s16((int32x4_t)sum, low), vmull_high_s8((int8x16_t)a, (int8x16_t)b));
}
#else
#define DOT8_INSTRUCTION "int32 multiplication"
INLINE vi dot8_add(vi sum, vi a, vi b) {
    for (int i = 0; i < 4; i++) sum += ((vi)((vu)a << 8 * i) >> 24) * ((vi)((vu)b << 8 * i) >> 24);
    return sum;
}
#endif

static double probe_dot8(size_t n, const char **instruction) {
    *instruction = DOT8_INSTRUCTION;
    vi sums[PROBE_CHAINS] = {0}, a = (vi)((vu){0} + four_ones), b = a;
    OPAQUE(a);
    for (size_t i = 0; i < n; i++) {
        for (size_t c = 0; c < PROBE_CHAINS; c++) {
            OPAQUE(b); /* Else one product would do for all chains. */
            sums[c] = dot8_add(sums[c], a, b);
        }
    }
    return count_pairs(sums);
}

static const probe_kernels probes = {.read = probe_read, .multiply_add = probe_multiply_add, .dot8 = probe_dot8};

#endif
