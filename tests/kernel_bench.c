/* kernel_bench.c: times every kernel set on one core and sets the result against what the core can do: its read
 * bandwidth and its multiply-add peak, both measured in the same run. The best of many repetitions counts. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tests/kernel_check.h"

static double peak_flop_s, peak_bytes_s;
static uint64_t seed = 1;

/* What `ringspan probe` measures, with the same kernels, but as everything here: on one core, the best of many. */
static void measure_ceilings(void) {
    const kernels *k;
    const char *instruction;
    double peak_op_s = 0;
    size_t bytes = 256u << 20, part = 8u << 20, n = 100000;
    uint8_t *memory = malloc(bytes);
    if (memory == NULL || kernels_find(NULL, &k) != RS_OK) abort();
    memset(memory, 1, bytes);
    for (size_t at = 0; at < bytes; at += part) {
        double start = clock_cpu_s(), flops = k->probe->multiply_add(n), added = clock_cpu_s();
        double ops = k->probe->dot8(n, &instruction), multiplied = clock_cpu_s();
        k->probe->read(memory + at, part);
        peak_flop_s = fmax(peak_flop_s, flops / (added - start));
        peak_op_s = fmax(peak_op_s, ops / (multiplied - added));
        peak_bytes_s = fmax(peak_bytes_s, (double)part / (clock_cpu_s() - multiplied));
    }
    free(memory);
    printf("one core, %s: multiply-add %.1f GFLOP/s, int8 dot product (%s) %.1f GOP/s, read %.1f GB/s\n\n", k->name,
           peak_flop_s / 1e9, instruction, peak_op_s / 1e9, peak_bytes_s / 1e9);
    printf("%-30s %-11s %10s %8s %9s %9s %7s %7s\n", "operation", "set", "us", "GB/s", "Gvalue/s", "GFLOP/s", "% read",
           "% peak");
}

typedef struct work {
    const kernels *k;
    matrix w;
    float *x, *y, *scratch;
    float *packed; /* x, for sets that pack it */
    uint8_t *pages;
    size_t tokens, n;
    attend_head_args attend;
    rs_kv_format kv;
    kv_side side;
} work;

/* Times run(w): bytes read, values handled (weights, or elements), and floating-point operations of one call. */
static void measure(const char *name, void (*run)(work *w), work *w, double bytes, double values, double flops) {
    double best = 1e9, until = clock_cpu_s() + 0.25;
    int calls = 1;
    while (clock_cpu_s() < until) {
        double start = clock_cpu_s();
        for (int i = 0; i < calls; i++) run(w);
        double took = (clock_cpu_s() - start) / calls;
        best = fmin(best, took);
        if (took * calls < 1e-4) calls *= 2;
    }
    printf("%-30s %-11s %10.2f %8.2f %9.2f %9.2f %7.0f %7.0f\n", name, w->k->name, best * 1e6, bytes / best / 1e9,
           values / best / 1e9, flops / best / 1e9, 100 * bytes / best / peak_bytes_s,
           100 * flops / best / peak_flop_s);
    fflush(stdout);
}

static void run_matmul(work *w) {
    for (size_t r = 0; r < w->w.rows; r += MATMUL_ROWS) {
        size_t end = r + MATMUL_ROWS < w->w.rows ? r + MATMUL_ROWS : w->w.rows;
        w->k->matmul(&w->w, r, end, w->x, w->w.cols, w->tokens, w->y, w->w.rows, w->scratch);
    }
}

static void run_packed(work *w) {
    for (size_t r = 0; r < w->w.rows; r += PACKED_ROWS) {
        size_t end = r + PACKED_ROWS < w->w.rows ? r + PACKED_ROWS : w->w.rows;
        w->k->matmul_packed(&w->w, r, end, w->packed, w->tokens, w->y, w->w.rows, w->scratch);
    }
}

static void run_pack(work *w) {
    w->k->pack_x(w->x, w->w.cols, w->tokens, w->w.cols, w->packed);
}

static void bench_matmul(const kernels *k) {
    static const format formats[] = {FORMAT_F16,  FORMAT_BF16, FORMAT_Q8_0, FORMAT_Q4_0, FORMAT_Q5_0,
                                     FORMAT_Q4_K, FORMAT_Q5_K, FORMAT_Q6_K, FORMAT_MXFP4};
    static const struct {
        size_t rows, cols, tokens;
    } shapes[] = {{4096, 4096, 1}, {1024, 4096, 4}, {1024, 4096, 8},
                  {576, 576, 512}, {128, 4096, 16}, {128, 4096, 512}};
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            size_t rows = shapes[s].rows, cols = shapes[s].cols, tokens = shapes[s].tokens;
            if (cols % format_describe(formats[f]).block_values != 0) continue;
            size_t row_bytes = format_bytes(formats[f], cols);
            bool packed = tokens > 8 && k->matmul_packed != NULL;
            size_t scratch = packed ? matmul_packed_scratch_floats(tokens) : matmul_scratch_floats(cols);
            buffer b[5] = {buffer_new(rows * row_bytes), buffer_new(tokens * cols * 4), buffer_new(tokens * rows * 4),
                           buffer_new(scratch * 4), buffer_new(packed ? matmul_packed_floats(tokens, cols) * 4 : 0)};
            work w = {.k = k,
                      .w = {b[0].data, rows, cols, row_bytes, formats[f]},
                      .tokens = tokens,
                      .x = (float *)b[1].data,
                      .y = (float *)b[2].data,
                      .scratch = (float *)b[3].data,
                      .packed = (float *)b[4].data};
            weights_fill(&seed, formats[f], b[0].data, rows * cols);
            values_fill(&seed, VALUES_NORMAL, w.x, tokens * cols);
            char name[64];
            snprintf(name, sizeof name, "matmul %s %zux%zu x %zu", format_describe(formats[f]).name, rows, cols,
                     tokens);
            if (packed) run_pack(&w);
            measure(name, packed ? run_packed : run_matmul, &w, (double)(rows * row_bytes), (double)(rows * cols),
                    2.0 * (double)(rows * cols * tokens));
            if (packed && f == 0) { /* Once for all rows of the matrices that x is multiplied by. */
                snprintf(name, sizeof name, "pack_x %zu x %zu", cols, tokens);
                measure(name, run_pack, &w, (double)b[1].bytes, (double)(tokens * cols), 0);
            }
            for (int i = 0; i < 5; i++) buffer_free(&b[i]);
        }
    }
}

static void run_expand(work *w) {
    w->k->expand(w->w.format, w->w.data, w->y, w->n);
}

static void bench_expand(const kernels *k) {
    int f;
    for (size_t i = 0; (f = format_nth(i)) >= 0; i++) {
        size_t n = 2048; /* From and to L1: what the matmuls do. */
        buffer b[2] = {buffer_new(format_bytes((format)f, n)), buffer_new(n * 4)};
        work w = {.k = k, .w = {.data = b[0].data, .format = (format)f}, .y = (float *)b[1].data, .n = n};
        weights_fill(&seed, (format)f, b[0].data, n);
        char name[64];
        snprintf(name, sizeof name, "expand %s %zu", format_describe((uint32_t)f).name, n);
        measure(name, run_expand, &w, (double)b[0].bytes, (double)n, 0);
        for (int j = 0; j < 2; j++) buffer_free(&b[j]);
    }
}

static void run_attend(work *w) {
    for (size_t r = 0; r < w->attend.rows; r++) w->attend.max[r] = -INFINITY, w->attend.sum[r] = 0;
    w->k->attend_head(&w->attend);
}

static void bench_attend(const kernels *k) {
    static const char *const names[] = {"f16", "q8_0", "q4_0"};
    static const size_t all_rows[] = {1, 3, 4, 8, 48, 96}, dims[] = {64, 128};
    for (size_t i = 0; i < RS_KV_FORMATS * 2 * 6; i++) {
        rs_kv_format kv = (rs_kv_format)(i / 12);
        size_t dim = dims[i / 6 % 2], rows = all_rows[i % 6], pages = rows > 8 ? 16 : 1024;
        size_t plane = kv_plane_bytes(kv, dim);
        buffer b[6] = {buffer_new(2 * pages * plane),
                       buffer_new(rows * dim * 4),
                       buffer_new(rows * dim * 4),
                       buffer_new(rows * 12),
                       buffer_new(attend_scratch_floats(rows, dim) * 4),
                       buffer_new(pages * sizeof(page_ref))};
        page_ref *list = (page_ref *)b[5].data;
        int32_t *position = (int32_t *)b[3].data;
        float x[HEAD_DIM_MAX], *q = (float *)b[1].data;
        for (size_t p = 0; p < 2 * pages * PAGE_TOKENS; p++) {
            if (p < 4 * PAGE_TOKENS) values_fill(&seed, VALUES_NORMAL, x, dim);
            k->kv_store(kv, p / PAGE_TOKENS % 2 == 0 ? KV_K : KV_V, b[0].data + p / PAGE_TOKENS * plane,
                        p % PAGE_TOKENS, x, dim);
        }
        values_fill(&seed, VALUES_NORMAL, q, rows * dim);
        for (size_t r = 0; r < rows; r++) position[r] = INT32_MAX;
        for (size_t p = 0; p < pages; p++)
            list[p] = (page_ref){b[0].data + 2 * p * plane, (int32_t)(p * PAGE_TOKENS), PAGE_TOKENS};
        work w = {.k = k,
                  .attend = {.q = q,
                             .rows = rows,
                             .q_stride = dim,
                             .head_dim = dim,
                             .position = position,
                             .k_format = kv,
                             .v_format = kv,
                             .pages = list,
                             .n_pages = pages,
                             .v_offset = plane,
                             .max = (float *)(position + rows),
                             .sum = (float *)(position + 2 * rows),
                             .out = (float *)b[2].data,
                             .state_stride = 1,
                             .out_stride = dim,
                             .scratch = (float *)b[4].data}};
        char name[64];
        snprintf(name, sizeof name, "attend %s D %zu rows %zu", names[kv], dim, rows);
        double values = (double)(2 * pages * PAGE_TOKENS * dim);
        measure(name, run_attend, &w, (double)b[0].bytes, values, 2.0 * values * (double)rows);
        for (int j = 0; j < 6; j++) buffer_free(&b[j]);
    }
}

static void run_rms_norm(work *w) {
    w->k->rms_norm(w->x, w->scratch, 1e-6f, w->y, w->n);
}

static void run_silu(work *w) {
    memcpy(w->y, w->x, w->n * 4);
    w->k->gate(ACTIVATION_SILU, w->y, w->scratch, w->n);
}

static void run_rope(work *w) {
    w->k->rope(w->y, w->x, w->scratch, w->n, ROPE_HALVES);
}

static void run_neighbours(work *w) {
    w->k->rope(w->y, w->x, w->scratch, w->n, ROPE_NEIGHBOURS);
}

static void run_hadamard(work *w) {
    w->k->hadamard(w->y, w->n);
}

static void run_kv_store(work *w) {
    w->k->kv_store(w->kv, w->side, w->pages, 5, w->x, w->n);
}

static void bench_rows(const kernels *k) {
    static const struct {
        const char *name;
        void (*run)(work *w);
        size_t n;
        rs_kv_format kv;
    } cases[] = {
        {"rms_norm 4096", run_rms_norm, 4096, 0},
        {"gate silu 4096", run_silu, 4096, 0},
        {"rope halves 128", run_rope, 128, 0},
        {"rope neighbours 128", run_neighbours, 128, 0},
        {"hadamard 128", run_hadamard, 128, 0},
        {"kv_store f16 128", run_kv_store, 128, RS_KV_F16},
        {"kv_store q8_0 128", run_kv_store, 128, RS_KV_Q8_0},
        {"kv_store q4_0 128", run_kv_store, 128, RS_KV_Q4_0},
    };
    buffer b[4] = {buffer_new(4096 * 4), buffer_new(4096 * 4), buffer_new(4096 * 4),
                   buffer_new(kv_plane_bytes(RS_KV_F16, 128))};
    work w = {
        .k = k, .x = (float *)b[0].data, .y = (float *)b[1].data, .scratch = (float *)b[2].data, .pages = b[3].data};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (size_t j = 0; j < 4096; j++) { /* As angle's cosine and sine, so that repeated rotations stay in range. */
            w.x[j] = cosf((float)j), w.scratch[j] = sinf((float)j), w.y[j] = 1;
        }
        w.n = cases[i].n, w.kv = cases[i].kv;
        measure(cases[i].name, cases[i].run, &w, 0, (double)w.n, 0);
    }
    for (int j = 0; j < 4; j++) buffer_free(&b[j]);
}

int bench_run(const char *only) {
    static const struct {
        const char *name;
        void (*bench)(const kernels *k);
    } ops[] = {{"matmul", bench_matmul}, {"expand", bench_expand}, {"attend", bench_attend}, {"rows", bench_rows}};
    measure_ceilings();
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) {
        if (only != NULL && strcmp(only, ops[i].name) != 0) continue;
        for (size_t s = 1; kernels_at(s) != NULL; s++) ops[i].bench(kernels_at(s)); /* Not ref: it is not for speed. */
    }
    return 0;
}
