/* kernel_check.c: every kernel set against the meaning of each operation, on random and adversarial input; with
 * --quick, without the largest of it; with --bench, timing (kernel_bench.c). Exit status 0 says that all agree. */
#include "tests/kernel_check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
enum { GUARD = 0 };
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
enum { GUARD = 0 };
#else
enum { GUARD = 64 };
#endif
#else
enum { GUARD = 64 };
#endif

/* ---- Buffers and values -------------------------------------------------------------------------------------- */

buffer buffer_new(size_t bytes) {
    buffer b = {.bytes = bytes};
    if (posix_memalign(&b.memory, 64, bytes + 2 * GUARD) != 0) abort();
    memset(b.memory, 0xA5, bytes + 2 * GUARD);
    b.data = (uint8_t *)b.memory + GUARD;
    return b;
}

static float signed_unit(uint64_t *seed) {
    return (float)(2 * random_unit(seed) - 1);
}

void values_fill(uint64_t *seed, values_kind kind, float *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float bell = signed_unit(seed) + signed_unit(seed) + signed_unit(seed);
        float power = powf(10, 9 * (float)random_unit(seed) - 6);
        switch (kind) {
        case VALUES_ZERO:
            x[i] = 0;
            break;
        case VALUES_LARGE:
            x[i] = bell * 1e15f;
            break;
        case VALUES_DENORMAL:
            x[i] = bell * 1e-39f;
            break;
        case VALUES_MIXED:
            x[i] = random_next(seed) % 8 == 0 ? 0 : bell * power;
            break;
        default:
            x[i] = bell;
            break;
        }
    }
}

void weights_fill(uint64_t *seed, format f, uint8_t *dst, size_t values) {
    static const int8_t scale_at[FORMAT_LIMIT][2] = {
        [FORMAT_Q8_0] = {0, 0}, [FORMAT_Q4_0] = {0, 0},   [FORMAT_Q4_1] = {0, 2},     [FORMAT_Q5_0] = {0, 0},
        [FORMAT_Q5_1] = {0, 2}, [FORMAT_Q2_K] = {80, 82}, [FORMAT_Q3_K] = {108, 108}, [FORMAT_Q4_K] = {0, 2},
        [FORMAT_Q5_K] = {0, 2}, [FORMAT_IQ4_NL] = {0, 0},
    };
    format_info info = format_describe(f);
    for (size_t i = 0; i < values; i += info.block_values, dst += info.block_bytes) {
        float value = signed_unit(seed);
        uint16_t half = half_from_float(value), scales[2] = {half_from_float(0.02f * value), half_from_float(0.05f)};
        for (size_t j = 0; j < info.block_bytes; j++) dst[j] = (uint8_t)random_next(seed);
        if (f == FORMAT_F32) {
            memcpy(dst, &value, 4);
        } else if (f == FORMAT_F16) {
            memcpy(dst, &half, 2);
        } else if (f == FORMAT_BF16) {
            memcpy(dst, (uint8_t *)&value + 2, 2);
        } else if (f == FORMAT_MXFP4) {
            dst[0] = (uint8_t)(118 + random_next(seed) % 8);
        } else if (f == FORMAT_Q6_K) {
            memcpy(dst + 208, scales, 2);
        } else {
            memcpy(dst + scale_at[f][1], scales + 1, 2);
            memcpy(dst + scale_at[f][0], scales, 2);
        }
    }
}

int format_nth(size_t index) {
    for (int f = 0; f < FORMAT_LIMIT; f++) {
        if (format_describe((uint32_t)f).name != NULL && index-- == 0) return f;
    }
    return -1;
}

/* ---- Verdicts ------------------------------------------------------------------------------------------------ */

static struct {
    const char *op, *set;
    size_t cases, failures, failures_all;
    double worst; /* largest error / allowed error */
} verdict;

/* One comparison: `error` against what is allowed; `what` names the case when it fails. */
static void expect(bool good, const char *what, size_t a, size_t b, size_t c) {
    verdict.cases++;
    if (good) return;
    verdict.failures++;
    if (verdict.failures <= 5) printf("  %s %s: %s fails (%zu, %zu, %zu)\n", verdict.op, verdict.set, what, a, b, c);
}

void buffer_free(buffer *b) {
    bool whole = true;
    for (int i = 0; i < GUARD; i++) whole = whole && b->data[-1 - i] == 0xA5 && b->data[b->bytes + (size_t)i] == 0xA5;
    expect(whole, "guard bytes", b->bytes, 0, 0);
    free(b->memory);
}

static bool within(double got, double expected, double allowed) {
    if (isnan(expected) || isinf(expected)) return isnan(expected) ? isnan(got) : got == expected;
    double share = fabs(got - expected) / (allowed > 0 ? allowed : 1e-300);
    if (share > verdict.worst) verdict.worst = share;
    return share <= 1; /* False for NaN. */
}

static float *floats_new(buffer *b, size_t n) {
    *b = buffer_new(n * sizeof(float));
    return (float *)b->data;
}

static uint64_t seed = 1;
static bool quick; /* for emulators */

/* ---- Weights ------------------------------------------------------------------------------------------------- */

/* Any bytes: same bits, but for which NaN. Products of a scale and a quant fit a float exactly, so that fused or not,
 * the results are the same. */
static void check_expand(const kernels *k) {
    int f;
    for (size_t i = 0; (f = format_nth(i)) >= 0; i++) {
        format_info info = format_describe((uint32_t)f);
        size_t blocks = info.block_values == 1 ? 1003 : 96, values = blocks * info.block_values;
        buffer src = buffer_new(values / info.block_values * info.block_bytes + 1), got_b, expected_b;
        float *got = floats_new(&got_b, values), *expected = floats_new(&expected_b, values);
        bool good = true;
        for (size_t j = 0; j < src.bytes; j++) src.data[j] = (uint8_t)random_next(&seed);
        k->expand((format)f, src.data + 1, got, values); /* Odd address. */
        format_expand((format)f, src.data + 1, expected, values);
        for (size_t j = 0; j < values; j++) {
            good = good && (isnan(expected[j]) ? isnan(got[j]) : memcmp(got + j, expected + j, 4) == 0);
        }
        expect(good, info.name, values, 0, 0);
        k->expand((format)f, src.data, got, 0);
        buffer_free(&src);
        buffer_free(&got_b);
        buffer_free(&expected_b);
    }
}

typedef struct matmul_case {
    format f;
    size_t rows, cols, tokens, row_begin, row_end;
    values_kind kind;
    bool packed; /* x is */
} matmul_case;

/* y of some rows of w, of x as the case has it. */
static void multiply_rows(const kernels *k, const matmul_case *c, const matrix *w, size_t begin, size_t end,
                          const float *x, float *y, float *scratch) {
    size_t x_stride = c->cols + 3, y_stride = c->rows + 5;
    if (c->packed) {
        k->matmul_packed(w, begin, end, x, c->tokens, y, y_stride, scratch);
    } else {
        k->matmul(w, begin, end, x, x_stride, c->tokens, y, y_stride, scratch);
    }
}

/* All rows at once to y, and in runs to y2, with x packed in runs of tokens. */
static void multiply_case(const kernels *k, const matmul_case *c, const matrix *w, const float *x, float *y,
                          float *y2) {
    size_t packed_floats = c->packed ? matmul_packed_floats(c->tokens, c->cols) : 0, x_stride = c->cols + 3;
    size_t floats = c->packed ? matmul_packed_scratch_floats(c->tokens) : matmul_scratch_floats(c->cols);
    buffer sb, pb, p2b;
    float *scratch = floats_new(&sb, floats), *packed = floats_new(&pb, packed_floats);
    float *packed2 = floats_new(&p2b, packed_floats);
    memset(scratch, 0xFF, sb.bytes); /* NaN: what is read must have been written. */
    if (c->packed) k->pack_x(x, x_stride, c->tokens, c->cols, packed);
    for (size_t t = 0; c->packed && t < c->tokens; t += PACK_TOKENS) {
        size_t n = c->tokens - t < PACK_TOKENS ? c->tokens - t : PACK_TOKENS;
        k->pack_x(x + t * x_stride, x_stride, n, c->cols, packed2 + matmul_packed_floats(t, c->cols));
    }
    multiply_rows(k, c, w, c->row_begin, c->row_end, c->packed ? packed : x, y, scratch);
    for (size_t r = c->row_begin; r < c->row_end; r += MATMUL_ROWS) {
        size_t end = r + MATMUL_ROWS < c->row_end ? r + MATMUL_ROWS : c->row_end;
        multiply_rows(k, c, w, r, end, c->packed ? packed2 : x, y2, scratch);
    }
    buffer_free(&p2b);
    buffer_free(&pb);
    buffer_free(&sb);
}

/* What matmul_packed promises (math/kernels.h): products within 3 * 2^-16, and beside it an absolute error where a
 * factor, a product or a sum falls below 2^-126. */
static double packed_allowed(const float *w, const float *x, size_t n, double magnitude) {
    double small = 0;
    for (size_t i = 0; i < n; i++) small += fabs((double)w[i]) + fabs((double)x[i]) + 3;
    return (3 * 0x1p-16 + 1e-6) * magnitude + 0x1p-126 * small;
}

static void check_matmul_case(const kernels *k, const matmul_case *c) {
    size_t x_stride = c->cols + 3, y_stride = c->rows + 5, row_bytes = format_bytes(c->f, c->cols) + 1;
    size_t y_size = c->tokens > 0 ? (c->tokens - 1) * y_stride + c->rows : 0, x_size = c->tokens * x_stride;
    buffer wb = buffer_new(c->rows * row_bytes), line_b, xb, yb, y2b;
    float *x = floats_new(&xb, x_size - (c->tokens > 0 ? 3 : 0)), *y = floats_new(&yb, y_size);
    float *y2 = floats_new(&y2b, y_size), *line = floats_new(&line_b, c->cols);
    /* Rows end right at the guard and start at odd addresses. */
    matrix w = {wb.data + 1, c->rows, c->cols, row_bytes, c->f};
    for (size_t r = 0; r < c->rows; r++) weights_fill(&seed, c->f, wb.data + 1 + r * row_bytes, c->cols);
    values_fill(&seed, c->kind, x, xb.bytes / 4);
    multiply_case(k, c, &w, x, y, y2);
    expect(memcmp(y, y2, yb.bytes) == 0, "row runs give the same bits", c->rows, c->cols, c->tokens);

    bool good = true, untouched = true;
    for (size_t r = 0; r < c->rows; r++) {
        format_expand(c->f, w.data + r * row_bytes, line, c->cols);
        for (size_t t = 0; t < c->tokens; t++) {
            double sum = 0, magnitude = 0;
            for (size_t i = 0; i < c->cols; i++) sum += (double)line[i] * x[t * x_stride + i];
            for (size_t i = 0; i < c->cols; i++) magnitude += fabs((double)line[i] * x[t * x_stride + i]);
            float got = y[t * y_stride + r];
            double allowed = 1e-6 * magnitude + 1e-44 * (double)(c->cols + 1);
            if (c->packed) allowed = packed_allowed(line, x + t * x_stride, c->cols, magnitude);
            if (r >= c->row_begin && r < c->row_end) {
                good = good && within(got, sum, allowed);
            } else {
                untouched = untouched && memcmp(&got, "\xA5\xA5\xA5\xA5", 4) == 0;
            }
        }
    }
    expect(good, format_describe((uint32_t)c->f).name, c->rows, c->cols, c->tokens);
    expect(untouched, "rows outside the range untouched", c->rows, c->cols, c->tokens);
    buffer_free(&wb);
    buffer_free(&xb);
    buffer_free(&yb);
    buffer_free(&y2b);
    buffer_free(&line_b);
}

static void check_matmul_packed(const kernels *k) {
    static const size_t tokens[] = {0, 1, 9, 16, 17, 31, 32, 33, 70}, rows[] = {1, 15, 17, 33, 64, 70, 150};
    int f, turn = 0;
    for (size_t i = 0; (f = format_nth(i)) >= 0; i++) {
        size_t block = format_describe((uint32_t)f).block_values, of_one[] = {0, 1, 7, 33, 257, 545};
        for (size_t j = 0; j < (block == 1 ? 6u : 3u); j++) {
            for (size_t t = 0; t < sizeof tokens / sizeof *tokens; t++, turn++) {
                size_t n = rows[turn % 7], cols = block == 1 ? of_one[j] : block * (size_t[]){1, 2, 9}[j];
                values_kind kind = (values_kind)(turn % 3 == 0 ? turn / 3 % VALUES_KINDS : VALUES_NORMAL);
                matmul_case c = {(format)f, n, cols, tokens[t], turn % 2 == 0 ? n / 3 : 0, n - n / 4, kind, true};
                check_matmul_case(k, &c);
            }
        }
    }
}

static void check_matmul(const kernels *k) {
    static const size_t tokens[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 17}, rows[] = {1, 4, 31, 33, 70};
    static const size_t odd_cols[] = {0, 1, 7, 33, 257}, block_cols[] = {32, 256, 288, 576}, k_cols[] = {256, 768};
    int f;
    for (size_t i = 0; (f = format_nth(i)) >= 0; i++) {
        size_t block = format_describe((uint32_t)f).block_values;
        const size_t *cols = block == 1 ? odd_cols : block == 32 ? block_cols : k_cols;
        for (size_t j = 0; j < (block == 1 ? 5u : block == 32 ? 4u : 2u); j++) {
            for (size_t t = 0; t < sizeof tokens / sizeof *tokens; t++) {
                size_t n = rows[(i + j + t) % 5];
                values_kind kind = (values_kind)((t + j) % VALUES_KINDS);
                matmul_case c = {(format)f, n, cols[j], tokens[t], n / 3, n, kind, false};
                check_matmul_case(k, &c);
                c.kind = VALUES_NORMAL;
                c.row_begin = 0;
                c.row_end = n - n / 4;
                check_matmul_case(k, &c);
            }
        }
    }
    for (size_t t = 0; t < 9; t++) { /* Columns that go through in several runs. */
        matmul_case c = {FORMAT_Q8_0, 37, t < 2 ? 4128 : 2112, t + 1, 0, 37, VALUES_NORMAL, false};
        check_matmul_case(k, &c);
        c.f = FORMAT_F16, c.cols += 5, c.row_begin = 3;
        check_matmul_case(k, &c);
        c.f = FORMAT_Q6_K, c.cols = t < 2 ? 4352 : 2304;
        check_matmul_case(k, &c);
    }
    matmul_case nothing = {FORMAT_Q8_0, 40, 64, 3, 7, 7, VALUES_NORMAL, false};
    check_matmul_case(k, &nothing);
    if (k->matmul_packed != NULL) check_matmul_packed(k);
}

/* ---- Rows ---------------------------------------------------------------------------------------------------- */

static const size_t lengths[] = {0, 1, 2, 3, 7, 8, 15, 16, 33, 64, 80, 96, 576, 1000};
enum { LENGTHS = sizeof lengths / sizeof *lengths };

/* One kernel on rows of n floats: up to three inputs, of which the first is changed in place. */
typedef void (*row_kernel)(const kernels *k, float *a, const float *b, const float *c, size_t n);

/* Compares with ref within `relative` of each value, `of_largest` of the row's largest magnitude, and `absolute`. */
static void check_rows(const kernels *k, const char *what, row_kernel run, double relative, double of_largest,
                       double absolute) {
    for (size_t l = 0; l < LENGTHS; l++) {
        for (int kind = 0; kind < VALUES_KINDS; kind++) {
            size_t n = lengths[l];
            buffer buffers[4];
            float *row[4]; /* got, expected, b, c */
            for (int i = 0; i < 4; i++) row[i] = floats_new(&buffers[i], n);
            values_fill(&seed, (values_kind)kind, row[0], n);
            values_fill(&seed, VALUES_NORMAL, row[2], n);
            values_fill(&seed, VALUES_NORMAL, row[3], n);
            if (n > 0) memcpy(row[1], row[0], n * sizeof(float));
            run(k, row[0], row[2], row[3], n);
            run(kernels_at(0), row[1], row[2], row[3], n);
            double largest = 0;
            bool good = true;
            for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs(row[1][i]));
            for (size_t i = 0; i < n; i++) {
                good =
                    good && within(row[0][i], row[1][i], relative * fabs(row[1][i]) + of_largest * largest + absolute);
            }
            expect(good, what, n, (size_t)kind, 0);
            for (int i = 0; i < 4; i++) buffer_free(&buffers[i]);
        }
    }
}

static void run_rms_norm(const kernels *k, float *a, const float *b, const float *c, size_t n) {
    (void)c;
    k->rms_norm(a, b, 1e-6f, a, n);
}

static void check_rms_norm(const kernels *k) {
    check_rows(k, "against ref", run_rms_norm, 2e-6, 0, 1e-44);
}

static void run_rope_halves(const kernels *k, float *a, const float *b, const float *c, size_t n) {
    k->rope(a, b, c, n / 2 * 2, ROPE_HALVES);
}

static void run_rope_neighbours(const kernels *k, float *a, const float *b, const float *c, size_t n) {
    k->rope(a, b, c, n / 2 * 2, ROPE_NEIGHBOURS);
}

static void check_rope(const kernels *k) {
    check_rows(k, "halves", run_rope_halves, 1e-6, 1e-6, 1e-43);
    check_rows(k, "neighbours", run_rope_neighbours, 1e-6, 1e-6, 1e-43);
    float x[96], cos_of[48], sin_of[48], before = 0, after = 0; /* Law: a rotation keeps the length. */
    values_fill(&seed, VALUES_NORMAL, x, 96);
    for (int i = 0; i < 48; i++) cos_of[i] = cosf(0.37f * (float)i), sin_of[i] = sinf(0.37f * (float)i);
    for (int i = 0; i < 96; i++) before += x[i] * x[i];
    k->rope(x, cos_of, sin_of, 96, ROPE_HALVES);
    for (int i = 0; i < 96; i++) after += x[i] * x[i];
    expect(within(after, before, 1e-5 * before), "keeps the length", 96, 0, 0);
}

static void run_silu(const kernels *k, float *a, const float *b, const float *c, size_t n) {
    (void)c;
    k->gate(ACTIVATION_SILU, a, b, n);
}

static void run_gelu(const kernels *k, float *a, const float *b, const float *c, size_t n) {
    (void)c;
    k->gate(ACTIVATION_GELU_TANH, a, b, n);
}

static void check_gate(const kernels *k) {
    check_rows(k, "silu", run_silu, 1e-6, 0, 1e-35);
    check_rows(k, "gelu", run_gelu, 2e-6, 0, 1e-6);
    for (float x = -120; x <= 120; x += 0.37f) { /* The whole range, and one value at a time. */
        for (int act = 0; act < 2; act++) {
            float got = x, expected = x, one = 1;
            k->gate((activation)act, &got, &one, 1);
            kernels_at(0)->gate((activation)act, &expected, &one, 1);
            expect(within(got, expected, 2e-6 * fabs(expected) + 3e-7), "activation", (size_t)fabsf(x), (size_t)act, 0);
        }
    }
}

static void run_add(const kernels *k, float *a, const float *b, const float *c, size_t n) {
    (void)c;
    k->add(a, b, n);
}

static void check_add(const kernels *k) {
    check_rows(k, "against ref", run_add, 0, 0, 0);
}

static void run_scale(const kernels *k, float *a, const float *b, const float *c, size_t n) {
    (void)b, (void)c;
    k->scale(a, 0.3f, n);
}

static void check_scale(const kernels *k) {
    check_rows(k, "against ref", run_scale, 0, 0, 0);
}

static void run_hadamard(const kernels *k, float *a, const float *b, const float *c, size_t n) {
    (void)b, (void)c;
    k->hadamard(a, n);
}

static void run_hadamard_twice(const kernels *k, float *a, const float *b, const float *c, size_t n) {
    if (k == kernels_at(0) && strcmp(verdict.set, "ref") != 0) return; /* The expected side: unchanged. */
    run_hadamard(k, a, b, c, n);
    run_hadamard(k, a, b, c, n);
}

static void check_hadamard(const kernels *k) {
    check_rows(k, "against ref", run_hadamard, 1e-6, 1e-6, 1e-43);
    check_rows(k, "twice is identity", run_hadamard_twice, 1e-6, 1e-6, 1e-43);
    float x[64] = {0}, y[64]; /* Against the definition: entry (i, j) is (-1)^popcount(i & j) / sqrt(n). */
    for (int j = 0; j < 64; j++) {
        memset(x, 0, sizeof x);
        x[j] = 1;
        memcpy(y, x, sizeof y);
        k->hadamard(y, 64);
        bool good = true;
        for (int i = 0; i < 64; i++)
            good = good && within(y[i], __builtin_popcount((unsigned)(i & j)) % 2 ? -0.125 : 0.125, 1e-6);
        expect(good, "definition", (size_t)j, 0, 0);
    }
}

/* ---- KV rows ------------------------------------------------------------------------------------------------- */

static const char *const kv_names[RS_KV_FORMATS] = {"f16", "q8_0", "q4_0"};

/* Same bytes as ref, only the row's own bytes written, load as ref, store of the loaded row again the same bytes. */
static void check_kv_row(const kernels *k, rs_kv_format kv, kv_side side, size_t head_dim, int kind, size_t token) {
    const kernels *ref = kernels_at(0);
    size_t bytes = kv_plane_bytes(kv, head_dim);
    buffer plane = buffer_new(bytes), plane_ref = buffer_new(bytes), xb, yb, zb;
    float *x = floats_new(&xb, head_dim), *y = floats_new(&yb, head_dim), *z = floats_new(&zb, head_dim);
    values_fill(&seed, kind < VALUES_KINDS ? (values_kind)kind : VALUES_NORMAL, x, head_dim);
    if (kind == VALUES_KINDS) { /* What no model should give must still be the same everywhere. */
        x[0] = INFINITY, x[1] = NAN, x[head_dim - 1] = -INFINITY;
    }
    if (kind == VALUES_KINDS + 1) { /* Ties of rounding, which only a division finds, and of magnitude. */
        for (size_t i = 0, steps = kv == RS_KV_Q4_0 ? 8 : 127; i < head_dim; i++) {
            float d = half_to_float((uint16_t)(0x2000 + i / 32 * 311 + token));
            float tie = ((float)(random_next(&seed) % (2 * steps - 1)) - (float)steps + 0.5f) * d;
            x[i] = i % 32 == 0 ? -(float)steps * d : i % 32 == 1 ? (float)steps * d : tie;
        }
    }
    k->kv_store(kv, side, plane.data, token, x, head_dim);
    ref->kv_store(kv, side, plane_ref.data, token, x, head_dim);
    expect(memcmp(plane.data, plane_ref.data, bytes) == 0, "store gives ref's bytes", (size_t)kv, head_dim,
           (size_t)kind);
    k->kv_load(kv, side, plane.data, token, y, head_dim);
    ref->kv_load(kv, side, plane_ref.data, token, z, head_dim);
    bool good = true, close = true;
    double largest = 0;
    for (size_t i = 0; i < head_dim; i++) {
        good = good && within(y[i], z[i], 0);
        size_t block = kv == RS_KV_Q4_0 ? 32 : head_dim;
        largest = i % block == 0 ? 0 : largest;
        for (size_t j = 0; i % block == 0 && j < block; j++) largest = fmax(largest, fabsf(x[i + j]));
        double step = kv == RS_KV_F16 ? 0x1p-11 * fabsf(x[i]) + 0x1p-25 : largest / (kv == RS_KV_Q8_0 ? 127 : 8);
        close = close && fabs(y[i] - x[i]) <= step * (kv == RS_KV_Q8_0 ? 0.57 : 1.01) + 1e-5;
    }
    expect(good, "load gives ref's values", (size_t)kv, head_dim, (size_t)kind);
    if (kind == VALUES_NORMAL || kind == VALUES_ZERO || kind == VALUES_DENORMAL) {
        expect(close, "load is close to what was stored", (size_t)kv, head_dim, (size_t)kind);
        k->kv_store(kv, side, plane.data, token, y, head_dim);
        expect(memcmp(plane.data, plane_ref.data, bytes) == 0, "store of load is the same", (size_t)kv, head_dim,
               (size_t)kind);
    }
    buffer_free(&plane);
    buffer_free(&plane_ref);
    buffer_free(&xb);
    buffer_free(&yb);
    buffer_free(&zb);
}

static void check_kv(const kernels *k) {
    static const size_t dims[] = {2, 34, 80, 32, 64, 96, 128, 256, 512};
    for (int kv = 0; kv < RS_KV_FORMATS; kv++) {
        for (size_t i = kv == RS_KV_F16 ? 0 : 3; i < sizeof dims / sizeof *dims; i++) {
            for (int kind = 0; kind < VALUES_KINDS + 2; kind++) {
                for (size_t token = 0; token < PAGE_TOKENS; token += 21)
                    check_kv_row(k, (rs_kv_format)kv, token % 2 == 0 ? KV_K : KV_V, dims[i], kind, token);
            }
        }
    }
}

/* ---- Attention ----------------------------------------------------------------------------------------------- */

typedef struct attend_case {
    rs_kv_format k, v;
    size_t head_dim, rows;
    int32_t first_position, page_position, page_count, window;
    float sharpness; /* factor on q */
    size_t pages;
} attend_case;

/* States [rows]: max, sum, and out apart, so that each has guards. */
typedef struct states {
    buffer max_b, sum_b, out_b;
    float *max, *sum, *out;
    size_t out_stride;
} states;

static states states_new(size_t rows, size_t head_dim, bool empty) {
    states s = {.out_stride = head_dim + 3};
    s.max = floats_new(&s.max_b, 2 * rows - 1); /* Two apart. */
    s.sum = floats_new(&s.sum_b, 2 * rows - 1);
    s.out = floats_new(&s.out_b, rows * s.out_stride - 3);
    memset(s.out, 0xFF, s.out_b.bytes); /* NaN: out of an empty state may hold anything. */
    for (size_t r = 0; r < rows; r++) {
        s.max[2 * r] = empty || r % 4 == 3 ? -INFINITY : signed_unit(&seed);
        s.sum[2 * r] = empty || r % 4 == 3 ? 0 : 3;
        if (s.sum[2 * r] > 0) values_fill(&seed, VALUES_NORMAL, s.out + r * s.out_stride, head_dim);
    }
    return s;
}

static states states_copy(const states *s) {
    states copy = *s;
    copy.max = floats_new(&copy.max_b, s->max_b.bytes / 4);
    copy.sum = floats_new(&copy.sum_b, s->sum_b.bytes / 4);
    copy.out = floats_new(&copy.out_b, s->out_b.bytes / 4);
    memcpy(copy.max, s->max, s->max_b.bytes);
    memcpy(copy.sum, s->sum, s->sum_b.bytes);
    memcpy(copy.out, s->out, s->out_b.bytes);
    return copy;
}

static void states_free(states *s) {
    buffer_free(&s->max_b);
    buffer_free(&s->sum_b);
    buffer_free(&s->out_b);
}

/* Rows and gaps: what is not the state of a row that sees something must be as before (bit for bit). */
static bool same_state(const states *a, const states *b, size_t row, size_t head_dim) {
    return memcmp(a->max + 2 * row, b->max + 2 * row, 4) == 0 && memcmp(a->sum + 2 * row, b->sum + 2 * row, 4) == 0 &&
           memcmp(a->out + row * a->out_stride, b->out + row * b->out_stride, head_dim * 4) == 0;
}

/* Random page; rows from page_count on are all ones (NaN as halves): what they are must not matter. */
static buffer page_new(const kernels *k, rs_kv_format kv, kv_side side, size_t head_dim, int count) {
    buffer plane = buffer_new(kv_plane_bytes(kv, head_dim));
    memset(plane.data, 0xFF, plane.bytes);
    float x[HEAD_DIM_MAX];
    for (int j = 0; j < count; j++) {
        values_fill(&seed, VALUES_NORMAL, x, head_dim);
        k->kv_store(kv, side, plane.data, (size_t)j, x, head_dim);
    }
    return plane;
}

/* Floats are within 1e-5 of the largest values; integers of 15 bits, where they are used, within ten times that, which
 * is a fiftieth of what the formats themselves round. */
static double attend_tolerance(rs_kv_format k, rs_kv_format v) {
    return k == RS_KV_F16 && v == RS_KV_F16 ? 1e-5 : 1e-4;
}

static bool close_state(const states *got, const states *expected, size_t row, size_t head_dim, double tolerance) {
    /* The tolerance grows with the scores, whose float rounding exp turns into a relative error.
     * Both relative to the expected maximum: the sets may pick maxima a rounding apart. */
    double factor = exp((double)got->max[2 * row] - expected->max[2 * row]), sum = expected->sum[2 * row];
    bool good = within(got->max[2 * row], expected->max[2 * row], tolerance * (1 + fabs(expected->max[2 * row])));
    good = good && within(got->sum[2 * row] * factor, sum, tolerance * sum);
    for (size_t i = 0; i < head_dim; i++) {
        double value = expected->out[row * expected->out_stride + i];
        good = good && within(got->out[row * got->out_stride + i] * factor, value, tolerance * (sum * 3 + fabs(value)));
    }
    return good;
}

static void check_attend_case(const kernels *k, const attend_case *c) {
    buffer kb = page_new(k, c->k, KV_K, c->head_dim, c->page_count),
           vb = page_new(k, c->v, KV_V, c->head_dim, c->page_count);
    buffer qb, sb, pb = buffer_new(c->rows * sizeof(int32_t));
    size_t q_stride = c->head_dim + 5;
    float *q = floats_new(&qb, c->rows * q_stride - 5),
          *scratch = floats_new(&sb, attend_scratch_floats(c->rows, c->head_dim));
    int32_t *position = (int32_t *)pb.data;
    values_fill(&seed, VALUES_NORMAL, q, qb.bytes / 4);
    for (size_t i = 0; i < qb.bytes / 4; i++) q[i] *= c->sharpness / sqrtf((float)c->head_dim);
    for (size_t r = 0; r < c->rows; r++) position[r] = c->first_position + (int32_t)(r / 2);
    memset(scratch, 0xFF, sb.bytes);
    states before = states_new(c->rows, c->head_dim, c->first_position % 2 == 0);
    states got = states_copy(&before), expected = states_copy(&before);
    /* The same rows may be seen as two pages: only then may a set sum in integers. */
    const page_ref pages[2] = {{kb.data, c->page_position, c->page_count},
                               {kb.data, c->page_position - PAGE_TOKENS, c->page_count}};
    attend_head_args args = {
        .q = q,
        .rows = c->rows,
        .q_stride = q_stride,
        .head_dim = c->head_dim,
        .position = position,
        .pages = pages,
        .n_pages = c->pages,
        .v_offset = (size_t)(vb.data - kb.data),
        .k_format = c->k,
        .v_format = c->v,
        .window = c->window,
        .max = got.max,
        .sum = got.sum,
        .out = got.out,
        .state_stride = 2,
        .out_stride = got.out_stride,
        .scratch = scratch,
    };
    k->attend_head(&args);
    args.max = expected.max, args.sum = expected.sum, args.out = expected.out;
    kernels_at(0)->attend_head(&args);
    bool good = true, kept = true;
    for (size_t r = 0; r < c->rows; r++) {
        int64_t newest = position[r], oldest = c->window > 0 ? newest - c->window + 1 : 0;
        bool sees = false;
        for (size_t p = 0; p < c->pages; p++)
            sees = sees || (newest >= pages[p].position && oldest < (int64_t)pages[p].position + pages[p].count);
        double tolerance = c->sharpness * (c->pages == 1 ? 1e-5 : attend_tolerance(c->k, c->v));
        if (sees) good = good && close_state(&got, &expected, r, c->head_dim, tolerance);
        if (!sees && before.sum[2 * r] > 0) kept = kept && same_state(&got, &before, r, c->head_dim);
        if (!sees && before.sum[2 * r] == 0) kept = kept && got.max[2 * r] == -INFINITY && got.sum[2 * r] == 0;
    }
    expect(good, kv_names[c->k], c->head_dim, c->rows, (size_t)c->page_count);
    expect(kept, "rows that see nothing keep their state", c->head_dim, c->rows, (size_t)c->page_count);
    states_free(&before);
    states_free(&got);
    states_free(&expected);
    buffer_free(&kb);
    buffer_free(&vb);
    buffer_free(&qb);
    buffer_free(&sb);
    buffer_free(&pb);
}

/* The law: many pages in one state, any split merged, and the plain softmax over all tokens are the same. */
static void check_attend_split(const kernels *k, rs_kv_format kv, size_t rows, size_t split) {
    enum { PAGES = 5, DIM = 64, TOKENS = (PAGES - 1) * PAGE_TOKENS + 19 };
    buffer planes[2][PAGES], qb, sb, pb = buffer_new(rows * sizeof(int32_t));
    float *q = floats_new(&qb, rows * DIM), *scratch = floats_new(&sb, attend_scratch_floats(rows, DIM));
    int32_t *position = (int32_t *)pb.data;
    values_fill(&seed, VALUES_NORMAL, q, rows * DIM);
    for (size_t r = 0; r < rows; r++) position[r] = TOKENS - 1 - (int32_t)(r * 7 % TOKENS);
    for (int i = 0; i < 2 * PAGES; i++)
        planes[i / PAGES][i % PAGES] =
            page_new(k, kv, i < PAGES ? KV_K : KV_V, DIM, i % PAGES < PAGES - 1 ? PAGE_TOKENS : 19);
    states half[2] = {states_new(rows, DIM, true), states_new(rows, DIM, true)};
    for (size_t p = 0; p < PAGES; p++) {
        states *s = &half[p >= split];
        const page_ref page = {planes[0][p].data, (int32_t)p * PAGE_TOKENS, p < PAGES - 1 ? PAGE_TOKENS : 19};
        attend_head_args args = {
            .q = q,
            .rows = rows,
            .q_stride = DIM,
            .head_dim = DIM,
            .position = position,
            .pages = &page,
            .n_pages = 1,
            .v_offset = (size_t)(planes[1][p].data - planes[0][p].data),
            .k_format = kv,
            .v_format = kv,
            .max = s->max,
            .sum = s->sum,
            .out = s->out,
            .state_stride = 2,
            .out_stride = s->out_stride,
            .scratch = scratch,
        };
        k->attend_head(&args);
    }
    for (size_t r = 0; r < rows; r++) {
        states *a = &half[0], *b = &half[1];
        k->merge(a->max + 2 * r, a->sum + 2 * r, a->out + r * a->out_stride, b->max[2 * r], b->sum[2 * r],
                 b->out + r * b->out_stride, DIM);
        double total = 0, out[DIM] = {0};
        float line[DIM];
        for (int j = 0; j <= position[r]; j++) { /* Scores are small here, so no maximum is needed. */
            double score = 0;
            kernels_at(0)->kv_load(kv, KV_K, planes[0][j / PAGE_TOKENS].data, (size_t)j % PAGE_TOKENS, line, DIM);
            for (int i = 0; i < DIM; i++) score += (double)q[r * DIM + (size_t)i] * line[i];
            kernels_at(0)->kv_load(kv, KV_V, planes[1][j / PAGE_TOKENS].data, (size_t)j % PAGE_TOKENS, line, DIM);
            total += exp(score);
            for (int i = 0; i < DIM; i++) out[i] += exp(score) * line[i];
        }
        double tolerance = 2 * attend_tolerance(kv, kv);
        bool good = within(a->max[2 * r] + log(a->sum[2 * r]), log(total), tolerance);
        for (int i = 0; i < DIM; i++)
            good =
                good && within(a->out[r * a->out_stride + (size_t)i] / a->sum[2 * r], out[i] / total, 1.5 * tolerance);
        expect(good, "any split merges to the whole", rows, split, r);
    }
    states_free(&half[0]);
    states_free(&half[1]);
    buffer_free(&qb);
    buffer_free(&sb);
    buffer_free(&pb);
    for (int i = 0; i < 2 * PAGES; i++) buffer_free(&planes[i / PAGES][i % PAGES]);
}

static void check_attend(const kernels *k) {
    enum { QUICK_SIZE = 48 * 128 };
    static const size_t dims[] = {2, 34, 80, 32, 64, 96, 128, 256, 512}, rows[] = {1, 2, 3, 5, 8, 9, 13, 48, 200};
    static const int32_t counts[] = {64, 1, 63, 7, 64}, windows[] = {0, 1, 5, 100};
    size_t turn = 0;
    for (int kv = 0; kv < RS_KV_FORMATS * RS_KV_FORMATS; kv++) {
        rs_kv_format of_k = (rs_kv_format)(kv % RS_KV_FORMATS), of_v = (rs_kv_format)(kv / RS_KV_FORMATS);
        for (size_t d = of_k == RS_KV_F16 && of_v == RS_KV_F16 ? 0 : 3; d < sizeof dims / sizeof *dims; d++) {
            for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
                /* Large cases take most of the time and run the code of smaller ones. */
                if (quick && rows[r] * dims[d] > QUICK_SIZE) continue;
                /* The page lies before the rows, across their diagonal, and after them. */
                for (int32_t first = 60; first <= 260; first += 67) {
                    turn++;
                    attend_case c = {of_k,
                                     of_v,
                                     dims[d],
                                     rows[r],
                                     first,
                                     128,
                                     counts[turn % 5],
                                     windows[turn % 4],
                                     turn % 7 == 0 ? 40 : 2,
                                     turn % 3 == 0 ? 1 : 2};
                    check_attend_case(k, &c);
                }
            }
        }
        attend_case far = {of_k,           of_v, 64, 4, INT32_MAX - 2,
                           INT32_MAX - 40, 39,   0,  1, 2}; /* Positions do not overflow. */
        check_attend_case(k, &far);
    }
    for (int kv = 0; kv < RS_KV_FORMATS; kv++) {
        for (size_t split = 0; split <= 5; split++) {
            check_attend_split(k, (rs_kv_format)kv, 3, split);
            check_attend_split(k, (rs_kv_format)kv, 25, split);
        }
    }
}

/* Merging into a sum of 0 shows the sets' exponential itself. */
static void check_exp(const kernels *k) {
    for (float x = 0; x < 87; x += 0.013f) {
        float max = 0, sum = 0;
        k->merge(&max, &sum, NULL, -x, 1, NULL, 0);
        expect(within(sum, exp(-(double)x), 1e-7 * exp(-(double)x)), "exp", (size_t)x, 0, 0);
    }
}

static void check_merge(const kernels *k) {
    check_exp(k);
    for (size_t l = 0; l < LENGTHS; l++) {
        size_t n = lengths[l];
        buffer ob, eb, tb;
        float *out = floats_new(&ob, n), *expected = floats_new(&eb, n), *other = floats_new(&tb, n);
        values_fill(&seed, VALUES_NORMAL, out, n);
        values_fill(&seed, VALUES_NORMAL, other, n);
        if (n > 0) memcpy(expected, out, n * 4);
        float max = 1.5f, sum = 2, max2 = 1.5f, sum2 = 2;
        k->merge(&max, &sum, out, -INFINITY, 0, other, n);
        bool same = max == max2 && sum == sum2 && (n == 0 || memcmp(out, expected, n * 4) == 0);
        expect(same, "an empty state changes nothing", n, 0, 0);
        max2 = -INFINITY, sum2 = 0;
        if (n > 0) memset(expected, 0xFF, n * 4);
        k->merge(&max2, &sum2, expected, max, sum, out, n);
        same = max == max2 && sum == sum2 && (n == 0 || memcmp(out, expected, n * 4) == 0);
        expect(same, "into an empty state copies", n, 0, 0);
        for (float apart = -200; apart <= 200; apart += 9.7f) {
            k->merge(&max, &sum, out, 1.5f + apart, 3, other, n);
            kernels_at(0)->merge(&max2, &sum2, expected, 1.5f + apart, 3, other, n);
            bool good = max == max2 && within(sum, sum2, 1e-5 * sum2);
            for (size_t i = 0; i < n; i++) good = good && within(out[i], expected[i], 1e-5 * (fabs(expected[i]) + 1));
            expect(good, "against ref", n, 0, 0);
        }
        buffer_free(&ob);
        buffer_free(&eb);
        buffer_free(&tb);
    }
}

/* The probes prove what they did: the XOR of all that was read, and operations that count themselves. */
static void check_probe(const kernels *k) {
    const probe_kernels *probe = k->probe;
    if (probe == NULL) return;
    const char *instruction = "";
    double flops = probe->multiply_add(1), ops = probe->dot8(1, &instruction);
    expect(flops > 0 && ops > 0 && instruction[0] != 0, "some work", 0, 0, 0);
    for (size_t n = 0; n < 100; n += 33) {
        expect(probe->multiply_add(n) == (double)n * flops, "multiply-adds", n, 0, 0);
        expect(probe->dot8(n, &instruction) == (double)n * ops, "dot products", n, 0, 0);
    }
    for (size_t blocks = 0; blocks < 4; blocks++) {
        buffer b = buffer_new(blocks * PROBE_BLOCK);
        uint32_t word, all = 0;
        for (size_t i = 0; i < b.bytes; i += sizeof word) {
            word = (uint32_t)random_next(&seed);
            all ^= word;
            memcpy(b.data + i, &word, sizeof word);
        }
        expect(probe->read(b.data, b.bytes) == all, "every word is read", blocks, 0, 0);
        buffer_free(&b);
    }
}

/* ---- Main ---------------------------------------------------------------------------------------------------- */

static void check_lookup(void) {
    const kernels *k = NULL;
    verdict.op = "find", verdict.set = "all";
    for (size_t i = 0; kernels_at(i) != NULL; i++) {
        expect(kernels_find(kernels_at(i)->name, &k) == RS_OK && k == kernels_at(i), "name finds its table", i, 0, 0);
    }
    expect(kernels_find(NULL, &k) == RS_OK && k != NULL && strcmp(k->name, "ref") != 0, "the best is not ref", 0, 0, 0);
    expect(kernels_find("abacus", &k) == RS_UNSUPPORTED && strstr(rs_last_error(), "portable") != NULL,
           "names what works", 0, 0, 0);
    verdict.failures_all += verdict.failures;
}

static const struct {
    const char *name;
    void (*check)(const kernels *k);
} ops[] = {
    {"expand", check_expand}, {"matmul", check_matmul}, {"rms_norm", check_rms_norm}, {"rope", check_rope},
    {"gate", check_gate},     {"add", check_add},       {"scale", check_scale},       {"hadamard", check_hadamard},
    {"kv_rows", check_kv},    {"attend", check_attend}, {"merge", check_merge},       {"probe", check_probe},
};
enum { OPS = sizeof ops / sizeof *ops };

static bool is_op(const char *name) {
    for (size_t i = 0; i < OPS; i++) {
        if (strcmp(name, ops[i].name) == 0) return true;
    }
    return false;
}

static bool is_set(const char *name) {
    const kernels *k;
    return kernels_find(name, &k) == RS_OK;
}

/* Those that the CPUs which run the tests may lack. */
static const char *const newer_sets[] = {
#if defined(__x86_64__)
    "avx2", "avx_vnni", "avx512", "amx",
#elif defined(__aarch64__)
    "neon_dot", "neon_i8mm",
#endif
    NULL};

/* Whether `name` is among the arguments, or nothing of its kind is. */
static bool is_asked(const char *name, bool (*is_kind)(const char *name), char **arguments) {
    bool all = true;
    for (; *arguments != NULL; arguments++) {
        if (strcmp(name, *arguments) == 0) return true;
        all = all && !is_kind(*arguments);
    }
    return all;
}

/* Arguments: --quick, names of the operations and of the sets to check (all); or --bench and the name of one benchmark
 * (all). */
int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) return bench_run(argc > 2 ? argv[2] : NULL);
    for (int i = 1; i < argc; i++) {
        bool is_quick = strcmp(argv[i], "--quick") == 0;
        quick = quick || is_quick;
        if (is_quick || is_op(argv[i]) || is_set(argv[i])) continue;
        fprintf(stderr, "kernel_check: '%s' is neither an operation nor a set of this CPU\n", argv[i]);
        return EXIT_FAILURE;
    }
    check_lookup();
    for (size_t i = 0; i < OPS; i++) {
        if (!is_asked(ops[i].name, is_op, argv + 1)) continue;
        for (size_t s = 0; kernels_at(s) != NULL; s++) {
            if (!is_asked(kernels_at(s)->name, is_set, argv + 1)) continue;
            verdict.op = ops[i].name, verdict.set = kernels_at(s)->name;
            verdict.cases = verdict.failures = 0, verdict.worst = 0, seed = 1;
            ops[i].check(kernels_at(s));
            verdict.failures_all += verdict.failures;
            printf("%-9s %-11s %6zu checks, error at most %5.3f of what is allowed: %s\n", verdict.op, verdict.set,
                   verdict.cases, verdict.worst, verdict.failures == 0 ? "ok" : "FAILED");
            if (verdict.failures > 0) printf("  %zu failures\n", verdict.failures);
        }
    }
    for (const char *const *set = newer_sets; *set != NULL; set++) {
        if (!is_set(*set)) printf("skipped %s: %s\n", *set, rs_last_error());
    }
    return verdict.failures_all == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
