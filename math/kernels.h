/* kernels.h: the table of compute kernels, one row per instruction set.
 *
 * "ref" accumulates in double and is never optimised: it is the meaning. "portable" is plain C in float, "avx2" and
 * "avx512" are the same for wider vectors, "avx_vnni" and "avx512" with integer dot products, "neon", "neon_dot" (with
 * dot products of bytes) and "neon_i8mm" (with products of 8-bit matrices) for 64-bit ARM. "amx" is avx512 with a
 * prefill on tiles: faster, and off by up to 2^-16 of each product, which a model's layers can amplify past what the
 * other sets are held to, so it runs only when it is named. Every set is compared with ref, and timed, by
 * tests/kernel_check. Kernels run on one thread, allocate nothing and have no state; who splits the work over threads
 * is device/cpu. All float arrays are 4-byte aligned at least; lengths may be any value >= 0 unless said. */
#ifndef RS_MATH_KERNELS_H
#define RS_MATH_KERNELS_H

#include <stdbool.h>

#include "math/format.h"
#include "ringspan.h"

enum {
    PAGE_TOKENS = 64, /* tokens of a KV page */
    FEW_TOKENS = 8,   /* up to so many tokens, weights are multiplied as they are read; with more, pack_x pays */
    MATMUL_ROWS = 32, /* callers split a matmul over threads in runs of up to this many rows */
    PACKED_ROWS = 64, /* and one of a packed x of up to this many: each run reads all of x */
    PACK_TOKENS = 32, /* tokens that are packed together */
    HEAD_DIM_MAX = 512,
    PROBE_BLOCK = 64 * 1024, /* bytes that the read probe takes at a time */
};

typedef enum rope_pairs {
    ROPE_HALVES,    /* (i, i + n/2): NeoX style; qwen2, qwen3, gemma3 */
    ROPE_NEIGHBOURS /* (2i, 2i+1): llama's GGUF order */
} rope_pairs;

typedef enum activation { ACTIVATION_SILU, ACTIVATION_GELU_TANH } activation;

/* One page plane is PAGE_TOKENS rows (of K or of V) of one kv head, head_dim values each, in lines of 64 bytes.
 * Attention sums over the dimensions of K and over the tokens of V; the other axis is that of the lanes: a line holds
 * the values of several lanes at one place, or at a few neighbouring ones, of the axis that is summed over. So scores
 * and values accumulate lane by lane, without sums across lanes, and a plane is read front to back.
 *
 *         lanes  K                                                   V
 * - f16   32     [PAGE_TOKENS/32][head_dim][32] half                 [head_dim/32][PAGE_TOKENS][32] half
 * - q8_0  16     scales, [PAGE_TOKENS/16][head_dim/4][16][4] bytes   scales, [head_dim/16][PAGE_TOKENS/4][16][4] bytes
 * - q4_0  16     scales, [PAGE_TOKENS/16][head_dim/8][16][4] bytes   scales, [head_dim/16][PAGE_TOKENS/8][16][4] bytes
 *
 * The last block of an f16 V has head_dim % 32 lanes if that is not 0. scales are half: [PAGE_TOKENS] of q8_0, one for
 * a row, and [head_dim/32][PAGE_TOKENS] of q4_0; value = scale * q. A q8_0 byte is q + 128; byte j of four q4_0 bytes
 * holds value j of eight in its low nibble and value 4 + j in its high one, each stored + 8. The caller has
 * Hadamard-rotated the row, so that no value sticks out and spoils the scale of the others.
 *
 * Quantised rows: scale = max|x| / 127 (q8_0), or the signed value of largest magnitude / -8 (q4_0) as ggml does,
 * rounded to half (at most 65504) before use; q = x / scale rounded to even (q8_0), floor(x / scale + 8.5) - 8 (q4_0),
 * clamped; with a zero scale every q is 0. All sets store the same bytes. head_dim is a multiple of 32 for the
 * quantised formats, of 2 for f16. Tokens of a q4_0 V share bytes: rows of one plane are stored by one thread at a
 * time. */
typedef enum kv_side { KV_K, KV_V } kv_side;
size_t kv_plane_bytes(rs_kv_format format, size_t head_dim);

/* One page as attention reads it: for each kv head its K plane, then its V plane. */
typedef struct page_ref {
    const uint8_t *data;
    int32_t position; /* absolute, of its first token */
    int32_t count;    /* tokens written, 1 to PAGE_TOKENS; what lies behind them does not matter */
} page_ref;

/* Some query rows of one kv head against some pages. The softmax stays open: the state (max, sum, out) joins pages in
 * any order (online softmax: Milakov, Gimelshein, arXiv:1805.02867).
 * Row r sees token j of a page when j < count and position[r] - window < page.position + j <= position[r]
 * (window 0: no lower bound). A row that sees nothing keeps its state.
 * Several pages of quantised formats may be summed in integers: q and the weights of a page are then rounded to 15 bits
 * of their largest value, which stays below a fiftieth of the format's own rounding. */
typedef struct attend_head_args {
    const float *q; /* row r at q + r * q_stride: [head_dim], already scaled by 1/sqrt(head_dim) */
    size_t rows, q_stride, head_dim;
    const int32_t *position; /* [rows] absolute position of each query row */
    const page_ref *pages;   /* [n_pages] */
    size_t n_pages;
    size_t k_offset, v_offset; /* bytes from a page's data to the planes of this head */
    rs_kv_format k_format, v_format;
    int32_t window;
    float *max; /* row r at max[r * state_stride]: natural-log units; -INFINITY before the first token */
    float *sum; /* row r at sum[r * state_stride]: sum of exp(score - max) */
    float *out; /* row r at out + r * out_stride: sum of exp(score - max) * v; anything while max is -INFINITY */
    size_t state_stride, out_stride;
    float *scratch; /* attend_scratch_floats(rows, head_dim) floats, 64-byte aligned */
} attend_head_args;
size_t attend_scratch_floats(size_t rows, size_t head_dim);

/* What the instruction set does at best: ceilings for the other kernels and for plans (plan/probe.c,
 * kernel_check --bench). Results come out of the very work, so that no compiler leaves any of it out. */
typedef struct probe_kernels {
    /* The XOR of all 32-bit words; bytes is a multiple of PROBE_BLOCK. A block is read as several streams side by
     * side, as attention reads K and V. */
    uint32_t (*read)(const void *memory, size_t bytes);

    /* Independent chains of n multiply-adds, n <= 2^24: the floating-point operations done, 2 each. */
    double (*multiply_add)(size_t n);

    /* Independent chains of n int8 dot products summed in int32, n <= 2^28: the operations done, 2 for each pair
     * multiplied. *instruction (static) says how. */
    double (*dot8)(size_t n, const char **instruction);
} probe_kernels;

typedef struct kernels {
    const char *name;
    const probe_kernels *probe; /* NULL: this set is not for speed */

    /* y[t * y_stride + r] = sum_c w[r, c] * x[t * x_stride + c] for r in [row_begin, row_end), t in [0, tokens).
     * y is indexed by w's absolute row. How rows are split into calls does not change a bit of the result. scratch:
     * matmul_scratch_floats(cols) floats, 64-byte aligned. */
    void (*matmul)(const matrix *w, size_t row_begin, size_t row_end, const float *x, size_t x_stride, size_t tokens,
                   float *y, size_t y_stride, float *scratch);

    /* For many tokens, where the set has it (else both are NULL): the same product of an x that is packed once for all
     * rows. pack_x: matmul_packed_floats(tokens, cols) floats, 64-byte aligned; any run of PACK_TOKENS tokens may be
     * packed on its own, to where matmul_packed_floats(tokens before, cols) says. scratch:
     * matmul_packed_scratch_floats(tokens) floats, 64-byte aligned. Each product is within 3 * 2^-16 of itself, on top
     * of what summing floats costs; values, products and sums below 2^-126 count as 0, infinite values (or
     * any above 3.38e38) give NaN. */
    void (*pack_x)(const float *x, size_t x_stride, size_t tokens, size_t cols, float *packed);
    void (*matmul_packed)(const matrix *w, size_t row_begin, size_t row_end, const float *packed, size_t tokens,
                          float *y, size_t y_stride, float *scratch);

    /* The same bits as format_expand. */
    void (*expand)(format f, const void *src, float *dst, size_t values);

    /* y = x / sqrt(mean(x^2) + eps) * weight; y may be x. (RMSNorm: Zhang, Sennrich, arXiv:1910.07467) */
    void (*rms_norm)(const float *x, const float *weight, float eps, float *y, size_t n);

    /* Rotates n_rot (even) leading values of one head by angles whose cosines and sines are cos, sin [n_rot / 2].
     * (RoPE: Su et al., arXiv:2104.09864) */
    void (*rope)(float *x, const float *cos, const float *sin, size_t n_rot, rope_pairs pairs);

    /* gate = act(gate) * up, elementwise. */
    void (*gate)(activation act, float *gate, const float *up, size_t n);

    /* y += x; y *= s. */
    void (*add)(float *y, const float *x, size_t n);
    void (*scale)(float *y, float s, size_t n);

    /* Orthonormal Walsh-Hadamard transform (its own inverse) of each run of the largest power of two that divides n. */
    void (*hadamard)(float *x, size_t n);

    /* Quantises one row x [head_dim] into token `token` of a plane, and back (for checks, snapshots and other devices).
     * Neither rotates. */
    void (*kv_store)(rs_kv_format format, kv_side side, uint8_t *plane, size_t token, const float *x, size_t head_dim);
    void (*kv_load)(rs_kv_format format, kv_side side, const uint8_t *plane, size_t token, float *x, size_t head_dim);

    void (*attend_head)(const attend_head_args *args);

    /* Joins another state into this one, exactly: both are (max, sum, out [head_dim]) of one row and head.
     * Either may be empty (max -INFINITY). */
    void (*merge)(float *max, float *sum, float *out, float other_max, float other_sum, const float *other_out,
                  size_t head_dim);
} kernels;

size_t matmul_scratch_floats(size_t cols);
size_t matmul_packed_floats(size_t tokens, size_t cols);
size_t matmul_packed_scratch_floats(size_t tokens);

/* The table called `name`, or the best this CPU runs for NULL. RS_UNSUPPORTED with the list of names that would work.
 */
rs_status kernels_find(const char *name, const kernels **out);

/* All tables this CPU can run, ref first; NULL past the end. Tables the CPU lacks are left out. */
const kernels *kernels_at(size_t index);

#endif
