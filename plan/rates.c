/* rates.c: times the device's own operations, on shapes like those of a model, with data beyond the caches. What an
 * operation takes besides (its launch) is measured apart and taken off. */
#include "plan/rates.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "comm/local.h"

enum {
    REPEATS = 15, /* of a measurement, of which the fastest counts: other programs only ever slow one down */
    HEAD_DIM = 128,
    KV_HEADS = 4,
    QUERIES_MOST = 16,       /* per KV head */
    ATTEND_BYTES = 16 << 20, /* of KV that a token's queries meet at once */
    ROWS_MANY = 128,         /* of a prompt, to attend */
    PAGES_MANY = 32,
    TOKENS_MANY = 256, /* of a prompt, to multiply */
    LAUNCH_ROWS = 256,
    LAUNCH_COLS = 1024,
    COLS = 4096,
    ROWS = 2048,
    OUTPUTS = 8192, /* rows of the tallest matrix times many tokens */
    LINK_ROUNDS = 2000,
    LINK_BYTES = 256,
    LINK_LARGE_ROUNDS = 20,
    LINK_LARGE_BYTES = 4 << 20,
    FILL = 0x3C /* every byte: as a half, a float, a scale or a code it is an ordinary number */
};
static const double repeat_s = 0.004; /* about; of each repetition: a time slice, so that some meet no other program */
static const double DEADLINE_S = 60;

/* Those that files have most; an unknown one's rate is taken from these (device/dry.c). */
static const format formats[] = {FORMAT_F32,  FORMAT_F16,  FORMAT_BF16, FORMAT_Q8_0, FORMAT_Q4_0, FORMAT_Q4_1,
                                 FORMAT_Q5_0, FORMAT_Q5_1, FORMAT_Q4_K, FORMAT_Q5_K, FORMAT_Q6_K};
enum { N_FORMATS = sizeof formats / sizeof *formats };

typedef struct bench {
    device *d;
    pool *pool;
    uint8_t *memory;
    size_t bytes;
    arena working;
    float *x, *y, *q, *out, *max, *sum; /* operands of the largest shapes */
    int32_t *position;
    page_ref *pages;
    size_t pages_max;
    double launch_s;
    /* the present measurement */
    void (*run)(struct bench *b, size_t turn);
    format format;
    size_t tokens, rows, cols;
    attend_args attend;
} bench;

/* ---- Operations ---- */

/* Another part of the memory each turn, so that nothing is read from a cache. */
static void run_product(bench *b, size_t turn) {
    size_t row_bytes = format_bytes(b->format, b->cols), matrix_bytes = b->rows * row_bytes;
    size_t places = b->bytes / matrix_bytes;
    matrix w = {b->memory + turn % places * matrix_bytes, b->rows, b->cols, row_bytes, b->format};
    b->d->ops->matmul(b->d, &(product){&w, NULL, b->y}, 1, b->x, b->cols, b->tokens);
}

static void run_attend(bench *b, size_t turn) {
    size_t one = page_bytes(b->attend.kv, KV_HEADS, HEAD_DIM), n = b->attend.n_pages;
    uint8_t *place = b->memory + turn % (b->bytes / (n * one)) * n * one;
    for (size_t i = 0; i < n; i++) b->pages[i].data = place + i * one;
    b->d->ops->attend_begin(b->d, b->attend.state, b->attend.rows, b->attend.heads, HEAD_DIM);
    b->d->ops->attend(b->d, &b->attend);
}

static void run_norm(bench *b, size_t turn) {
    (void)turn;
    b->d->ops->rms_norm(b->d, b->x, b->x, 1e-6f, b->y, b->rows, b->cols);
}

/* ---- Timing ---- */

/* Seconds of one run. */
static double time_runs(bench *b, void (*run)(bench *b, size_t turn)) {
    double best_s = INFINITY;
    size_t turn = 0, times = 1;
    run(b, turn++);
    for (double took_s = 0; took_s < repeat_s / 4; times *= 2) { /* how many fill a repetition */
        double begun_s = clock_s();
        for (size_t i = 0; i < times; i++) run(b, turn++);
        took_s = clock_s() - begun_s;
        if (took_s > repeat_s / 4) break;
    }
    times *= 2;
    for (int r = 0; r < REPEATS; r++) {
        double begun_s = clock_s();
        for (size_t i = 0; i < times; i++) run(b, turn++);
        best_s = fmin(best_s, (clock_s() - begun_s) / (double)times);
    }
    return best_s;
}

static double rate(const bench *b, double work, double seconds) {
    return work / fmax(seconds - b->launch_s, seconds / 10);
}

static double time_product(bench *b, format f, size_t rows, size_t cols, size_t tokens) {
    b->format = f;
    b->rows = rows;
    b->cols = cols;
    b->tokens = tokens;
    return time_runs(b, run_product);
}

/* What is left of a product in cache when its work is taken off, which twice as many rows have twice. */
static double time_launch(bench *b) {
    size_t bytes = b->bytes;
    b->bytes = 2 * LAUNCH_ROWS * format_bytes(FORMAT_Q8_0, LAUNCH_COLS); /* always the same rows */
    double once_s = time_product(b, FORMAT_Q8_0, LAUNCH_ROWS, LAUNCH_COLS, 1);
    double twice_s = time_product(b, FORMAT_Q8_0, 2 * LAUNCH_ROWS, LAUNCH_COLS, 1);
    b->bytes = bytes;
    return fmax(2 * once_s - twice_s, once_s / 10);
}

/* What rows, outputs and inputs cost beside bytes and operations: by a narrow matrix as small models have them, and by
 * others that are taller, or of few rows. */
static void measure_shapes(bench *b, rs_rates *r) {
    const size_t narrow = 576, tall = 16, rows = 1024, cols = COLS / 2, few_rows = 64, many = TOKENS_MANY;
    const format f = FORMAT_Q8_0;
    double narrow_s = time_product(b, f, rows, narrow, 1);
    double read_s = (double)rows * (double)format_bytes(f, narrow) / r->weights_bytes_per_s[f];
    r->rows_per_s = (double)rows / fmax(narrow_s - b->launch_s - read_s, narrow_s / 100);
    double wide_s = time_product(b, f, rows, cols, many);
    double tall_s = time_product(b, f, rows * tall / 2, cols / tall * 2, many);
    r->outputs_per_s = (double)(rows * (tall / 2 - 1) * many) / fmax(tall_s - wide_s, tall_s / 100);
    double small_s = time_product(b, f, few_rows, COLS, many), outputs = (double)(few_rows * many);
    double rest_s = b->launch_s + 2 * outputs * COLS / r->weights_many_flop_per_s[f] + outputs / r->outputs_per_s;
    r->inputs_per_s = (double)COLS * many / fmax(small_s - rest_s, small_s / 100);
}

static double time_norm(bench *b, size_t rows, size_t cols) {
    b->rows = rows;
    b->cols = cols;
    return time_runs(b, run_norm);
}

/* `rows` rows with so many queries a KV head attend to n_pages, or for 0 to ATTEND_BYTES of them. */
static double time_attend(bench *b, rs_kv_format kv, size_t rows, size_t queries, size_t n_pages, double *bytes) {
    kv_type type = {kv, kv};
    size_t one = page_bytes(type, KV_HEADS, HEAD_DIM);
    if (n_pages == 0) n_pages = ATTEND_BYTES / one;
    for (size_t i = 0; i < n_pages; i++) b->pages[i] = (page_ref){NULL, (int32_t)(i * PAGE_TOKENS), PAGE_TOKENS};
    for (size_t i = 0; i < rows; i++) b->position[i] = (int32_t)(n_pages * PAGE_TOKENS);
    b->attend = (attend_args){.q = b->q,
                              .position = b->position,
                              .rows = rows,
                              .heads = queries * KV_HEADS,
                              .kv_heads = KV_HEADS,
                              .head_dim = HEAD_DIM,
                              .kv = type,
                              .pages = b->pages,
                              .n_pages = n_pages,
                              .state = {b->max, b->sum, b->out}};
    *bytes = (double)n_pages * (double)one;
    return time_runs(b, run_attend);
}

/* ---- Everything ---- */

static rs_status ask(rates_tick tick, void *user) {
    return tick == NULL || tick(user) ? RS_OK : status_fail(RS_CANCELLED, "stopped while probing");
}

static rs_status measure_products(bench *b, rates_tick tick, void *user, rs_rates *r) {
    for (size_t i = 0; i < N_FORMATS; i++) {
        format f = formats[i];
        double values = (double)ROWS * COLS;
        double one_s = time_product(b, f, ROWS, COLS, 1), few_s = time_product(b, f, ROWS, COLS, FEW_TOKENS);
        RS_TRY(ask(tick, user));
        double many_s = time_product(b, f, ROWS / 2, COLS / 2, TOKENS_MANY);
        r->weights_bytes_per_s[f] = rate(b, (double)ROWS * (double)format_bytes(f, COLS), one_s);
        r->weights_few_flop_per_s[f] = rate(b, 2 * values * FEW_TOKENS, few_s);
        r->weights_many_flop_per_s[f] = rate(b, 2 * values / 4 * TOKENS_MANY, many_s);
        RS_TRY(ask(tick, user));
    }
    return RS_OK;
}

static rs_status measure_attention(bench *b, rates_tick tick, void *user, rs_rates *r) {
    static const size_t queries[RS_QUERIES] = RS_QUERIES_AT;
    double bytes;
    for (rs_kv_format kv = RS_KV_F16; kv < RS_KV_FORMATS; kv++) {
        for (size_t i = 0; i < RS_QUERIES; i++) {
            double seconds = time_attend(b, kv, 1, queries[i], 0, &bytes);
            r->attend_bytes_per_s[kv][i] = rate(b, bytes, seconds);
            RS_TRY(ask(tick, user));
        }
        double seconds = time_attend(b, kv, ROWS_MANY, 4, PAGES_MANY, &bytes);
        double flop = 4.0 * ROWS_MANY * 4 * KV_HEADS * HEAD_DIM * PAGES_MANY * PAGE_TOKENS;
        r->attend_many_flop_per_s[kv] = rate(b, flop, seconds);
        RS_TRY(ask(tick, user));
    }
    return RS_OK;
}

/* Fills memory anew, in pages as small as those of a mapped file, where weights lie, or huge, as those of KV: what a
 * page costs besides its bytes shows in the rates. */
static void fill(const bench *b, int advice) {
    madvise(b->memory, b->bytes, MADV_DONTNEED);
    madvise(b->memory, b->bytes, advice);
    memset(b->memory, FILL, b->bytes);
}

static rs_status measure_all(bench *b, rates_tick tick, void *user, rs_rates *out) {
    rs_rates r = {0};
    fill(b, MADV_NOHUGEPAGE);
    r.small_s = time_norm(b, 1, COLS / 4);
    r.launch_s = b->launch_s = time_launch(b);
    double vectors_s = time_norm(b, TOKENS_MANY, COLS);
    r.vector_bytes_per_s = 2.0 * TOKENS_MANY * COLS * sizeof(float) / fmax(vectors_s - b->launch_s, vectors_s / 10);
    RS_TRY(ask(tick, user));
    RS_TRY(measure_products(b, tick, user, &r));
    measure_shapes(b, &r);
    fill(b, MADV_HUGEPAGE);
    RS_TRY(measure_attention(b, tick, user, &r));
    *out = r;
    return RS_OK;
}

/* Operands and the device's own buffers. */
static void layout(bench *b, cpu_buffers *buffers, arena *a, const kernels *k, size_t threads) {
    const size_t heads = (size_t)KV_HEADS * QUERIES_MOST, f = sizeof(float);
    device_limits limits = {TOKENS_MANY, COLS, heads, KV_HEADS, HEAD_DIM};
    cpu_layout(buffers, a, k, &limits, threads);
    b->x = arena_take(a, (size_t)TOKENS_MANY * COLS, f);
    b->y = arena_take(a, (size_t)TOKENS_MANY * OUTPUTS, f);
    b->q = arena_take(a, ROWS_MANY * heads * HEAD_DIM, f);
    b->out = arena_take(a, ROWS_MANY * heads * HEAD_DIM, f);
    b->max = arena_take(a, ROWS_MANY * heads, f);
    b->sum = arena_take(a, ROWS_MANY * heads, f);
    b->position = arena_take(a, ROWS_MANY, sizeof *b->position);
    b->pages = arena_take(a, b->pages_max, sizeof *b->pages);
}

rs_status rates_measure(const kernels *k, const topology *t, size_t threads, uint8_t *memory, size_t bytes,
                        rates_tick tick, void *user, rs_rates *out) {
    bench b = {.memory = memory, .bytes = bytes};
    cpu_buffers buffers;
    arena sizes = {0};
    b.pages_max = ATTEND_BYTES / page_bytes((kv_type){RS_KV_Q4_0, RS_KV_Q4_0}, KV_HEADS, HEAD_DIM);
    layout(&b, &buffers, &sizes, k, threads);
    RS_TRY(arena_map(&b.working, sizes.used));
    layout(&b, &buffers, &b.working, k, threads);
    for (size_t i = 0; i < (size_t)TOKENS_MANY * COLS; i++) b.x[i] = (float)(i % 17) / 16 - 0.5f;
    for (size_t i = 0; i < (size_t)ROWS_MANY * KV_HEADS * QUERIES_MOST * HEAD_DIM; i++) b.q[i] = (float)(i % 13) / 128;
    rs_status status = pool_open(threads, t, 0, &b.pool);
    if (status == RS_OK) status = cpu_open(k, &buffers, b.pool, &b.d);
    if (status == RS_OK) status = measure_all(&b, tick, user, out);
    if (b.d != NULL) b.d->ops->close(b.d);
    pool_close(b.pool);
    arena_unmap(&b.working);
    return status;
}

/* ---- Exchanges between threads ---- */

typedef struct talker {
    comm *c;
    const topology *t;
    uint8_t *send, *receive;
    size_t bytes, rounds;
    double seconds;
    rs_status status;
} talker;

static void *talk(void *argument) {
    talker *m = argument;
    comm_part parts[RS_RANKS_MAX];
    topology_pin(m->t, m->c->rank);
    for (uint32_t p = 0; p < m->c->ranks; p++) parts[p] = (comm_part){m->receive + p * m->bytes, m->bytes};
    m->status = comm_gather(m->c, m->send, m->bytes, parts); /* all are there */
    double begun_s = clock_s();
    for (size_t i = 0; i < m->rounds && m->status == RS_OK; i++) {
        m->status = comm_gather(m->c, m->send, m->bytes, parts);
    }
    m->seconds = (clock_s() - begun_s) / (double)m->rounds;
    return NULL;
}

/* Seconds of an all-gather in which everybody sends `bytes`. */
static rs_status time_exchange(const topology *t, uint32_t ranks, size_t bytes, size_t rounds, double *seconds) {
    local_group *group;
    pthread_t threads[RS_RANKS_MAX];
    talker talkers[RS_RANKS_MAX];
    uint32_t started = 0;
    uint8_t *memory = calloc((size_t)ranks * (ranks + 1), bytes);
    if (memory == NULL) return status_fail(RS_NO_MEMORY, "no memory to probe exchanges");
    rs_status status = local_group_open(ranks, DEADLINE_S, topology_roomy(t), &group);
    if (status != RS_OK) goto free_memory;
    for (; started < ranks; started++) {
        uint8_t *own = memory + (size_t)started * (ranks + 1) * bytes;
        talkers[started] = (talker){local_group_comm(group, started), t, own, own + bytes, bytes, rounds, 0, RS_OK};
        if (pthread_create(&threads[started], NULL, talk, &talkers[started]) != 0) break;
    }
    if (started < ranks) {
        status = status_fail(RS_NO_MEMORY, "cannot start %u threads to probe exchanges", ranks);
        local_group_comm(group, 0)->abort(local_group_comm(group, 0));
    }
    *seconds = 0;
    for (uint32_t r = 0; r < started; r++) {
        pthread_join(threads[r], NULL);
        *seconds = fmax(*seconds, talkers[r].seconds);
        if (status == RS_OK) status = talkers[r].status;
    }
    local_group_close(group);
free_memory:
    free(memory);
    return status;
}

rs_status rates_measure_link(const topology *t, uint32_t ranks, rs_link *out) {
    double small_s, large_s;
    RS_TRY(time_exchange(t, ranks, LINK_BYTES, LINK_ROUNDS, &small_s));
    RS_TRY(time_exchange(t, ranks, LINK_LARGE_BYTES, LINK_LARGE_ROUNDS, &large_s));
    *out = (rs_link){small_s, (ranks - 1.0) * LINK_LARGE_BYTES / fmax(large_s - small_s, large_s / 10)};
    return RS_OK;
}
