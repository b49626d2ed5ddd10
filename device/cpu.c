/* cpu.c: operations on this machine's cores: splits each over the thread pool and calls the kernels.
 *
 * How work is cut depends on shapes alone, never on the number of threads, so that results repeat. */
#include "device/cpu.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    ATTEND_ROWS = 96, /* query rows (tokens x group) that share one expanded page: q and out stay in L2 */
    ATTEND_RUN = 16,  /* pages that all blocks of rows see before any sees the next, so that most find them in cache */
    SPLIT_TOKENS = 4, /* with so few tokens, attention is split over the pages too */
    SPLIT_PARTS = 64, /* into at most this many parts */
    SPLIT_PAGES = 8,  /* of at least this many pages, */
    SPLIT_RUN = 64,   /* and no more than this many while the parts last: they cost a merge each */
    ELEMENTS_PER_ITEM = 16384,
    SMALL_ROWS = 2048, /* for few tokens, matrices of fewer rows are cut into items of half as many rows */
};

typedef struct cpu {
    device device; /* first */
    const kernels *k;
    pool *pool;
    cpu_buffers b;
} cpu;

size_t page_bytes(kv_type kv, size_t kv_heads, size_t head_dim) {
    return kv_heads * (kv_plane_bytes(kv.k, head_dim) + kv_plane_bytes(kv.v, head_dim));
}

static size_t round_floats(size_t n) {
    return (n + 15) / 16 * 16;
}

/* Tokens of one attention item. */
static size_t block_tokens(size_t group) {
    size_t tokens = ATTEND_ROWS / group;
    return tokens > 0 ? tokens : 1;
}

/* Scratch of one attention item: q and out [rows, head_dim], max, sum and position [rows], then the kernel's own. */
static size_t attend_item_floats(size_t rows, size_t head_dim) {
    return 2 * round_floats(rows * head_dim) + 3 * round_floats(rows) + attend_scratch_floats(rows, head_dim);
}

void cpu_layout(cpu_buffers *b, arena *a, const kernels *k, const device_limits *limits, size_t threads) {
    *b = (cpu_buffers){.limits = *limits, .threads = threads};
    size_t group = limits->kv_heads > 0 ? (limits->heads + limits->kv_heads - 1) / limits->kv_heads : 1;
    size_t rows = size_min(limits->rows, block_tokens(group)) * group;
    size_t attend_floats = attend_item_floats(rows, limits->head_dim);
    bool packs = k->matmul_packed != NULL;
    size_t packed_scratch = packs ? matmul_packed_scratch_floats(limits->rows) : 0;
    b->matmul_floats = round_floats(size_max(matmul_scratch_floats(limits->cols), packed_scratch));
    size_t part_floats = limits->rows * (packs ? PACKED_ROWS : MATMUL_ROWS);
    b->scratch_floats = round_floats(size_max(attend_floats, b->matmul_floats + part_floats));
    b->scratch = arena_take(a, size_mul(threads, b->scratch_floats), sizeof(float));
    size_t part = size_min(limits->rows, SPLIT_TOKENS) * limits->heads * (limits->head_dim + 2);
    b->parts = arena_take(a, SPLIT_PARTS * part, sizeof(float));
    b->packed = arena_take(a, packs ? matmul_packed_floats(limits->rows, limits->cols) : 0, sizeof(float));
}

static float *thread_scratch(const cpu *c, size_t thread) {
    return c->b.scratch + thread * c->b.scratch_floats;
}

/* ---- Rows and elements ---- */

typedef struct embed_job {
    const cpu *c;
    const matrix *table;
    const int32_t *tokens;
    float scale, *x;
} embed_job;

static void embed_item(void *job, size_t item, size_t thread) {
    (void)thread;
    const embed_job *j = job;
    float *row = j->x + item * j->table->cols;
    j->c->k->expand(j->table->format, j->table->data + (size_t)j->tokens[item] * j->table->row_bytes, row,
                    j->table->cols);
    if (j->scale != 1.0f) j->c->k->scale(row, j->scale, j->table->cols);
}

static void embed(device *d, const matrix *table, const int32_t *tokens, size_t n, float scale, float *x) {
    cpu *c = (cpu *)d;
    embed_job job = {c, table, tokens, scale, x};
    pool_run(c->pool, embed_item, &job, n);
}

typedef struct matmul_job {
    const cpu *c;
    enum { STORE, ADD, GATE } what;
    const product *list; /* [n]; one where sums are added or gated */
    size_t n;
    const matrix *up;
    activation act;
    const float *x;
    size_t x_stride, tokens, rows_per_item;
    bool packed;
} matmul_job;

static void pack_item(void *job, size_t item, size_t thread) {
    (void)thread;
    const matmul_job *j = job;
    size_t first = item * PACK_TOKENS, n = size_min(PACK_TOKENS, j->tokens - first), cols = j->list->w->cols;
    j->c->k->pack_x(j->x + first * j->x_stride, j->x_stride, n, cols,
                    j->c->b.packed + matmul_packed_floats(first, cols));
}

static void multiply(const matmul_job *j, const matrix *w, size_t begin, size_t end, float *y, size_t y_stride,
                     float *scratch) {
    if (j->packed) {
        j->c->k->matmul_packed(w, begin, end, j->c->b.packed, j->tokens, y, y_stride, scratch);
    } else {
        j->c->k->matmul(w, begin, end, j->x, j->x_stride, j->tokens, y, y_stride, scratch);
    }
}

static size_t matmul_items(const matmul_job *j, const matrix *w) {
    return (w->rows + j->rows_per_item - 1) / j->rows_per_item;
}

static void matmul_item(void *job, size_t item, size_t thread) {
    const matmul_job *j = job;
    const kernels *k = j->c->k;
    const product *p = j->list;
    for (; item >= matmul_items(j, p->w); p++) item -= matmul_items(j, p->w);
    size_t begin = item * j->rows_per_item, end = size_min(begin + j->rows_per_item, p->w->rows), n = end - begin;
    size_t y_stride = p->y_stride, part_stride = j->rows_per_item;
    float *scratch = thread_scratch(j->c, thread), *part = scratch + j->c->b.matmul_floats; /* [tokens, part_stride] */
    if (j->what != ADD) multiply(j, p->w, begin, end, p->y, y_stride, scratch);
    if (j->what != STORE) {
        matrix other = matrix_rows(j->what == ADD ? p->w : j->up, begin, end);
        multiply(j, &other, 0, n, part, part_stride, scratch);
    }
    for (size_t t = 0; t < j->tokens; t++, part += part_stride) {
        float *y = p->y + t * y_stride + begin;
        if (j->what == ADD) k->add(y, part, n);
        if (j->what == GATE) k->gate(j->act, y, part, n);
        if (p->bias != NULL) k->add(y, p->bias + begin, n);
    }
}

/* In decode small matrices are cut finer, so that many threads have work; larger pieces suit the panels of prefill, and
 * larger ones still pay where each reads all of a packed x. */
static size_t item_rows(const matmul_job *j, size_t rows) {
    if (rows < SMALL_ROWS) return j->tokens <= FEW_TOKENS ? MATMUL_ROWS / 2 : MATMUL_ROWS;
    return j->packed ? PACKED_ROWS : MATMUL_ROWS;
}

static void run_matmul(device *d, matmul_job job) {
    if (job.tokens == 0) return;
    job.c = (cpu *)d;
    size_t rows = 0, items = 0;
    for (size_t i = 0; i < job.n; i++) rows += job.list[i].w->rows;
    job.packed = job.tokens > FEW_TOKENS && job.c->k->matmul_packed != NULL;
    job.rows_per_item = item_rows(&job, rows);
    if (job.packed) pool_run(job.c->pool, pack_item, &job, (job.tokens + PACK_TOKENS - 1) / PACK_TOKENS);
    for (size_t i = 0; i < job.n; i++) items += matmul_items(&job, job.list[i].w);
    pool_run(job.c->pool, matmul_item, &job, items);
}

static void matmul(device *d, const product *list, size_t n, const float *x, size_t x_stride, size_t tokens) {
    run_matmul(d, (matmul_job){.what = STORE, .list = list, .n = n, .x = x, .x_stride = x_stride, .tokens = tokens});
}

static void matmul_add(device *d, const matrix *w, const float *x, size_t x_stride, size_t tokens, float *y) {
    const product p = {w, NULL, y, w->rows};
    run_matmul(d, (matmul_job){.what = ADD, .list = &p, .n = 1, .x = x, .x_stride = x_stride, .tokens = tokens});
}

static void matmul_gate(device *d, activation act, const matrix *gate, const matrix *up, const float *x, size_t tokens,
                        float *y, size_t y_stride) {
    const product p = {gate, NULL, y, y_stride};
    run_matmul(
        d,
        (matmul_job){
            .what = GATE, .list = &p, .n = 1, .up = up, .act = act, .x = x, .x_stride = gate->cols, .tokens = tokens});
}

/* A job over rows of n floats each, cut into runs of whole rows. */
typedef struct rows_job {
    const cpu *c;
    void (*one)(const struct rows_job *j, size_t row);
    size_t rows, rows_per_item, n;
    float *x;
    const float *y, *weight, *cos, *sin;
    float eps;
    size_t head_dim, n_rot;
    rope_pairs pairs;
} rows_job;

static void rows_item(void *job, size_t item, size_t thread) {
    (void)thread;
    const rows_job *j = job;
    size_t end = size_min((item + 1) * j->rows_per_item, j->rows);
    for (size_t row = item * j->rows_per_item; row < end; row++) j->one(j, row);
}

static void run_rows(device *d, rows_job *j) {
    if (j->rows == 0 || j->n == 0) return;
    j->c = (cpu *)d;
    j->rows_per_item = j->n >= ELEMENTS_PER_ITEM ? 1 : ELEMENTS_PER_ITEM / j->n;
    pool_run(j->c->pool, rows_item, j, (j->rows + j->rows_per_item - 1) / j->rows_per_item);
}

static void rms_norm_row(const rows_job *j, size_t row) {
    j->c->k->rms_norm(j->y + row * j->n, j->weight, j->eps, j->x + row * j->n, j->n);
}

static void rms_norm(device *d, const float *x, const float *weight, float eps, float *y, size_t rows, size_t n) {
    rows_job j = {.one = rms_norm_row, .rows = rows, .n = n, .x = y, .y = x, .weight = weight, .eps = eps};
    run_rows(d, &j);
}

static void rope_row(const rows_job *j, size_t row) {
    const float *cos = j->cos + row * (j->n_rot / 2), *sin = j->sin + row * (j->n_rot / 2);
    float *x = j->x + row * j->n;
    for (size_t i = 0; i < j->n; i += j->head_dim) j->c->k->rope(x + i, cos, sin, j->n_rot, j->pairs);
}

static void rope(device *d, float *x, const float *cos, const float *sin, size_t rows, size_t heads, size_t head_dim,
                 size_t n_rot, rope_pairs pairs) {
    rows_job j = {.one = rope_row,
                  .rows = rows,
                  .n = heads * head_dim,
                  .x = x,
                  .cos = cos,
                  .sin = sin,
                  .head_dim = head_dim,
                  .n_rot = n_rot,
                  .pairs = pairs};
    run_rows(d, &j);
}

static void hadamard_row(const rows_job *j, size_t row) {
    j->c->k->hadamard(j->x + row * j->n, j->n);
}

static void hadamard(device *d, float *x, size_t rows, size_t n) {
    rows_job j = {.one = hadamard_row, .rows = rows, .n = n, .x = x};
    run_rows(d, &j);
}

/* A job over n elements. */
typedef struct element_job {
    const cpu *c;
    enum { ADD_ELEMENTS, SCALE } what;
    float *y;
    const float *x;
    size_t n;
    float s;
} element_job;

static void element_item(void *job, size_t item, size_t thread) {
    (void)thread;
    const element_job *j = job;
    size_t begin = item * ELEMENTS_PER_ITEM, n = size_min(ELEMENTS_PER_ITEM, j->n - begin);
    switch (j->what) {
    case ADD_ELEMENTS:
        j->c->k->add(j->y + begin, j->x + begin, n);
        break;
    case SCALE:
        j->c->k->scale(j->y + begin, j->s, n);
        break;
    }
}

static void run_elements(device *d, element_job job) {
    job.c = (cpu *)d;
    pool_run(job.c->pool, element_item, &job, (job.n + ELEMENTS_PER_ITEM - 1) / ELEMENTS_PER_ITEM);
}

static void add(device *d, float *y, const float *x, size_t n) {
    run_elements(d, (element_job){.what = ADD_ELEMENTS, .y = y, .x = x, .n = n});
}

static void scale(device *d, float *y, float s, size_t n) {
    run_elements(d, (element_job){.what = SCALE, .y = y, .n = n, .s = s});
}

/* ---- Attention ---- */

typedef struct append_job {
    const cpu *c;
    const append_args *a;
    size_t k_bytes, v_bytes;
} append_job;

/* The first row at or after `row` whose page is not that of the row before it. */
static size_t page_begin(const append_args *a, size_t row) {
    while (row > 0 && row < a->rows && a->pages[row] == a->pages[row - 1]) row++;
    return size_min(row, a->rows);
}

/* Some pages' rows of one kv head: tokens of a page may share bytes, so no two threads write to one plane. */
static void append_item(void *job, size_t item, size_t thread) {
    (void)thread;
    const append_job *j = job;
    const append_args *a = j->a;
    size_t head = item % a->kv_heads, first = item / a->kv_heads * PAGE_TOKENS;
    size_t end = page_begin(a, first + PAGE_TOKENS);
    for (size_t row = page_begin(a, first); row < end; row++) {
        if (a->pages[row] == NULL) continue;
        size_t token = (size_t)a->position[row] % PAGE_TOKENS, offset = row * a->stride + head * a->head_dim;
        uint8_t *plane = a->pages[row] + head * (j->k_bytes + j->v_bytes);
        j->c->k->kv_store(a->kv.k, KV_K, plane, token, a->k + offset, a->head_dim);
        j->c->k->kv_store(a->kv.v, KV_V, plane + j->k_bytes, token, a->v + offset, a->head_dim);
    }
}

static void append(device *d, const append_args *a) {
    append_job job = {(cpu *)d, a, kv_plane_bytes(a->kv.k, a->head_dim), kv_plane_bytes(a->kv.v, a->head_dim)};
    pool_run(job.c->pool, append_item, &job, (a->rows + PAGE_TOKENS - 1) / PAGE_TOKENS * a->kv_heads);
}

typedef struct attend_job {
    const cpu *c;
    const attend_args *a;
    size_t group;  /* query heads per kv head */
    size_t block;  /* tokens per item */
    size_t blocks; /* of tokens */
    size_t parts;  /* of the page list; with more than one, each has a state of its own in `states` */
    size_t part_pages;
    attend_state *states; /* [parts] */
} attend_job;

/* One kv head's rows of one block, gathered from [tokens, heads, ...] into runs of their own and back. */
typedef struct attend_rows {
    size_t tokens, rows;
    float *q, *out, *max, *sum, *kernel;
    int32_t *position;
} attend_rows;

static void place_rows(attend_rows *r, float *scratch, size_t head_dim) {
    size_t vectors = round_floats(r->rows * head_dim), scalars = round_floats(r->rows);
    r->q = scratch;
    r->out = r->q + vectors;
    r->max = r->out + vectors;
    r->sum = r->max + scalars;
    r->position = (int32_t *)(r->sum + scalars);
    r->kernel = r->sum + 2 * scalars;
}

/* Moves q and the state of the item's rows in (load) or the state out. */
static void move_rows(const attend_job *j, const attend_rows *r, const attend_state *state, size_t kv_head,
                      size_t first_token, bool load) {
    const attend_args *a = j->a;
    size_t head_bytes = a->head_dim * sizeof(float);
    for (size_t i = 0; i < r->rows; i++) {
        size_t token = first_token + i / j->group;
        size_t row = token * a->heads + kv_head * j->group + i % j->group;
        float *out = r->out + i * a->head_dim;
        if (load) {
            memcpy(r->q + i * a->head_dim, a->q + row * a->head_dim, head_bytes);
            r->position[i] = a->position[token];
            r->max[i] = state->max[row];
            r->sum[i] = state->sum[row];
            memcpy(out, state->out + row * a->head_dim, head_bytes);
        } else {
            state->max[row] = r->max[i];
            state->sum[row] = r->sum[i];
            memcpy(state->out + row * a->head_dim, out, head_bytes);
        }
    }
}

static void attend_item(void *job, size_t item, size_t thread) {
    const attend_job *j = job;
    const attend_args *a = j->a;
    size_t kv_head = item % a->kv_heads, part = item / a->kv_heads % j->parts, block = item / a->kv_heads / j->parts;
    size_t first = block * j->block;
    attend_rows r = {.tokens = size_min(j->block, a->rows - first)};
    r.rows = r.tokens * j->group;
    place_rows(&r, thread_scratch(j->c, thread), a->head_dim);
    move_rows(j, &r, &j->states[part], kv_head, first, true);
    size_t k_bytes = kv_plane_bytes(a->kv.k, a->head_dim), v_bytes = kv_plane_bytes(a->kv.v, a->head_dim);
    size_t begin = part * j->part_pages, end = size_min(begin + j->part_pages, a->n_pages);
    attend_head_args args = {
        .q = r.q,
        .rows = r.rows,
        .q_stride = a->head_dim,
        .head_dim = a->head_dim,
        .position = r.position,
        .pages = a->pages + begin,
        .n_pages = end - begin,
        .k_offset = kv_head * (k_bytes + v_bytes),
        .v_offset = kv_head * (k_bytes + v_bytes) + k_bytes,
        .k_format = a->kv.k,
        .v_format = a->kv.v,
        .window = a->window,
        .max = r.max,
        .sum = r.sum,
        .out = r.out,
        .state_stride = 1,
        .out_stride = a->head_dim,
        .scratch = r.kernel,
    };
    j->c->k->attend_head(&args);
    move_rows(j, &r, &j->states[part], kv_head, first, false);
}

static void clear_state(attend_state state, size_t rows, size_t head_dim) {
    for (size_t i = 0; i < rows; i++) state.max[i] = -INFINITY;
    memset(state.sum, 0, rows * sizeof(float));
    memset(state.out, 0, rows * head_dim * sizeof(float));
}

static void attend_begin(device *d, attend_state state, size_t rows, size_t heads, size_t head_dim) {
    (void)d;
    clear_state(state, rows * heads, head_dim);
}

/* Splits the page list into parts with states of their own, so that few tokens still keep all cores busy. */
static void split_pages(attend_job *j, attend_state *states) {
    const attend_args *a = j->a;
    size_t fewest = size_max((a->n_pages + SPLIT_PARTS - 1) / SPLIT_PARTS, SPLIT_PAGES);
    j->part_pages = size_max(fewest, size_min(a->n_pages / (SPLIT_PARTS / 4), SPLIT_RUN));
    j->parts = (a->n_pages + j->part_pages - 1) / j->part_pages;
    if (j->parts <= 1) return;
    size_t rows = a->rows * a->heads;
    float *place = j->c->b.parts;
    for (size_t i = 0; i < j->parts; i++) {
        states[i] = (attend_state){place, place + rows, place + 2 * rows};
        clear_state(states[i], rows, a->head_dim);
        place += rows * (a->head_dim + 2);
    }
    j->states = states;
}

/* Few tokens: over parts of the page list, merged in order. */
static void attend_parts(attend_job j) {
    const attend_args *a = j.a;
    const cpu *c = j.c;
    attend_state whole = a->state, states[SPLIT_PARTS];
    split_pages(&j, states);
    pool_run(c->pool, attend_item, &j, a->kv_heads * j.blocks * j.parts);
    if (j.parts <= 1) return;
    for (size_t row = 0; row < a->rows * a->heads; row++) {
        for (size_t i = 0; i < j.parts; i++) {
            c->k->merge(&whole.max[row], &whole.sum[row], whole.out + row * a->head_dim, states[i].max[row],
                        states[i].sum[row], states[i].out + row * a->head_dim, a->head_dim);
        }
    }
}

/* Many tokens: a run of pages after another. */
static void attend_runs(attend_job j) {
    attend_args run = *j.a;
    size_t pages = run.n_pages, most = j.blocks > 1 ? ATTEND_RUN : pages;
    j.a = &run;
    for (size_t first = 0; first < pages; first += most) {
        j.part_pages = run.n_pages = size_min(most, pages - first);
        pool_run(j.c->pool, attend_item, &j, run.kv_heads * j.blocks);
        run.pages += run.n_pages;
    }
}

static void attend(device *d, const attend_args *a) {
    if (a->rows == 0 || a->heads == 0 || a->n_pages == 0) return;
    attend_state whole = a->state;
    size_t group = a->heads / a->kv_heads, block = block_tokens(group);
    attend_job j = {.c = (cpu *)d,
                    .a = a,
                    .group = group,
                    .block = block,
                    .blocks = (a->rows + block - 1) / block,
                    .parts = 1,
                    .part_pages = a->n_pages,
                    .states = &whole};
    if (a->rows <= SPLIT_TOKENS) {
        attend_parts(j);
    } else {
        attend_runs(j);
    }
}

static void attend_finish(device *d, attend_state state, float *lse, size_t rows, size_t heads, size_t head_dim) {
    const cpu *c = (cpu *)d;
    for (size_t i = 0; i < rows * heads; i++) {
        bool empty = state.sum[i] == 0.0f;
        c->k->scale(state.out + i * head_dim, empty ? 0.0f : 1.0f / state.sum[i], head_dim);
        lse[i] = empty ? -INFINITY : state.max[i] + logf(state.sum[i]);
    }
}

static void merge(device *d, float *o, float *lse, const float *other_o, const float *other_lse, size_t rows,
                  size_t heads, size_t head_dim) {
    const cpu *c = (cpu *)d;
    for (size_t i = 0; i < rows * heads; i++) {
        /* A closed part is an open one whose sum is 1. */
        float max = lse[i], sum = max == -INFINITY ? 0.0f : 1.0f;
        float other_sum = other_lse[i] == -INFINITY ? 0.0f : 1.0f;
        float *out = o + i * head_dim;
        c->k->merge(&max, &sum, out, other_lse[i], other_sum, other_o + i * head_dim, head_dim);
        if (sum == 0.0f) continue;
        c->k->scale(out, 1.0f / sum, head_dim);
        lse[i] = max + logf(sum);
    }
}

static void cpu_close(device *d) {
    free(d);
}

static const device_ops cpu_ops = {
    cpu_close, embed,    matmul, matmul_add,   matmul_gate, rms_norm,      rope,  add,
    scale,     hadamard, append, attend_begin, attend,      attend_finish, merge,
};

rs_status cpu_open(const kernels *k, const cpu_buffers *buffers, pool *threads, device **out) {
    assert(pool_threads(threads) == buffers->threads);
    cpu *c = calloc(1, sizeof *c);
    if (c == NULL) return status_fail(RS_NO_MEMORY, "no memory for a device");
    *c = (cpu){.device.ops = &cpu_ops, .k = k, .b = *buffers, .pool = threads};
    *out = &c->device;
    return RS_OK;
}
