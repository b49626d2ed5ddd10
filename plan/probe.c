/* probe.c: measures what this machine does at best with the kernel sets' probes: first with one thread, then with all.
 *
 * Threads start each repetition together, every one on its own part of a buffer that it has touched itself, so the
 * part lies on its NUMA node (threads are pinned as an engine's are). A repetition's rate is the work of all by the
 * time from the first start to the last end.
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/clock.h"
#include "base/pool.h"
#include "plan/budget.h"
#include "plan/plan.h"
#include "plan/rates.h"

enum {
    MEASURES = 4,
    REPETITIONS_MIN = 5,
    REPETITIONS_MAX = 11,
    CACHE_TIMES = 4,  /* the buffer is so much larger than the caches, so that hardly a line of it stays in them */
    MEMORY_PARTS = 4, /* and takes one of so many parts of the memory allowed, or nothing is measured */
    COPY_PIECE = 256 << 10,
    ROUND = 10000,       /* multiply-adds or dot products of a chain between two looks at the amount */
    PART_ALIGN = 2 << 20 /* a huge page: it lies on one NUMA node */
};
static const double repetition_s = 0.05; /* about; some time slices long */
static const double measure_s = 1; /* on a slow or busy machine a measure ends after this with fewer repetitions */
static const size_t buffer_bytes_min = (size_t)256 << 20;

/* The threads of a measurement and what each of them does and did. */
typedef struct crew {
    const probe_kernels *probes;
    pool *pool;
    pthread_barrier_t start;
    uint8_t *memory; /* [threads, part_bytes] */
    size_t part_bytes, bytes;
    double (*work)(const struct crew *c, uint8_t *part); /* returns the work done, in bytes or operations */
    size_t amount;                                       /* times that work goes over its part, or does a ROUND */
    struct turn {
        double begun_s, ended_s, cpu_s, done;
    } * turns; /* [threads] */
} crew;

/* Who is told how far the whole probe is. */
typedef struct listener {
    rs_progress progress;
    void *user;
    size_t done, total;
    double cpu_s, wall_s; /* of all threads in all repetitions */
    size_t repetitions;   /* of the measure with the fewest */
} listener;

/* ---- What a thread does ---- */

static double touch(const crew *c, uint8_t *part) {
    memset(part, 1, c->part_bytes);
    return (double)c->part_bytes;
}

static double read_all(const crew *c, uint8_t *part) {
    for (size_t i = 0; i < c->amount; i++) c->probes->read(part, c->part_bytes);
    return (double)c->amount * (double)c->part_bytes;
}

static double copy_all(const crew *c, uint8_t *part) {
    size_t half = c->part_bytes / 2;
    for (size_t i = 0; i < c->amount; i++) {
        for (size_t at = 0; at < half; at += COPY_PIECE) memcpy(part + half + at, part + at, COPY_PIECE);
    }
    return (double)c->amount * 2 * (double)half;
}

static double multiply_add_all(const crew *c, uint8_t *part) {
    double done = 0;
    (void)part;
    for (size_t i = 0; i < c->amount; i++) done += c->probes->multiply_add(ROUND);
    return done;
}

static double dot8_all(const crew *c, uint8_t *part) {
    const char *instruction;
    double done = 0;
    (void)part;
    for (size_t i = 0; i < c->amount; i++) done += c->probes->dot8(ROUND, &instruction);
    return done;
}

/* ---- All threads together ---- */

static void take_turn(void *job, size_t item, size_t thread) {
    crew *c = job;
    struct turn *t = &c->turns[thread];
    (void)item; /* Every thread takes exactly one: none goes on before all have one. */
    pthread_barrier_wait(&c->start);
    double had_s = clock_cpu_s();
    t->begun_s = clock_s();
    t->done = c->work(c, c->memory + thread * c->part_bytes);
    t->ended_s = clock_s();
    t->cpu_s = clock_cpu_s() - had_s;
}

/* Seconds from the first start to the last end, and the work done meanwhile. */
static double run(crew *c, double *done) {
    size_t threads = pool_threads(c->pool);
    double begun_s = INFINITY, ended_s = 0;
    pool_run(c->pool, take_turn, c, threads);
    *done = 0;
    for (size_t i = 0; i < threads; i++) {
        begun_s = fmin(begun_s, c->turns[i].begun_s);
        ended_s = fmax(ended_s, c->turns[i].ended_s);
        *done += c->turns[i].done;
    }
    return fmax(ended_s - begun_s, 1e-9);
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static rs_status measure(crew *c, double (*work)(const crew *c, uint8_t *part), listener *l, rs_rate *out) {
    double rates[REPETITIONS_MAX], done, begun_s = clock_s();
    size_t n = 0, end = l->done + REPETITIONS_MAX;
    c->work = work;
    c->amount = 1;
    run(c, &done); /* It warms up, too. Processor time, so that a busy machine repeats as much as an idle one. */
    c->amount = (size_t)fmin(ceil(repetition_s / fmax(c->turns[0].cpu_s, 1e-6)), 1e6);
    while (n < REPETITIONS_MIN || (n < REPETITIONS_MAX && clock_s() - begun_s < measure_s)) {
        double seconds = run(c, &done);
        rates[n++] = done / seconds;
        for (size_t t = 0; t < pool_threads(c->pool); t++) {
            l->cpu_s += c->turns[t].cpu_s;
            l->wall_s += c->turns[t].ended_s - c->turns[t].begun_s;
        }
        if (l->progress != NULL && !l->progress(l->user, ++l->done, l->total)) {
            return status_fail(RS_CANCELLED, "stopped while probing");
        }
    }
    qsort(rates, n, sizeof *rates, compare);
    *out = (rs_rate){.median = rates[n / 2], .least = rates[0], .most = rates[n - 1]};
    l->done = end;
    l->repetitions = size_min(l->repetitions, n);
    return RS_OK;
}

static rs_status measure_all(crew *c, listener *l, rs_ceilings *out) {
    double done;
    c->work = touch;
    run(c, &done);
    RS_TRY(measure(c, read_all, l, &out->read_bytes_per_s));
    RS_TRY(measure(c, copy_all, l, &out->copy_bytes_per_s));
    RS_TRY(measure(c, multiply_add_all, l, &out->fp32_flop_per_s));
    return measure(c, dot8_all, l, &out->int8_op_per_s);
}

/* Each thread's part of a buffer of at least `bytes`. */
static size_t part_of(size_t bytes, size_t threads) {
    return (bytes / threads + PART_ALIGN - 1) / PART_ALIGN * PART_ALIGN;
}

static bool tick(void *user) {
    listener *l = user;
    return l->progress == NULL || l->progress(l->user, ++l->done, l->total);
}

static rs_status measure_with(size_t threads, const topology *t, const kernels *k, size_t bytes, listener *l,
                              rs_ceilings *out, rs_rates *rates) {
    crew c = {.probes = k->probe, .part_bytes = part_of(bytes, threads)};
    c.bytes = threads * c.part_bytes;
    c.turns = calloc(threads, sizeof *c.turns);
    if (c.turns == NULL) return status_fail(RS_NO_MEMORY, "no memory for %zu threads", threads);
    rs_status status = pool_open(threads, t, 0, &c.pool);
    if (status != RS_OK) goto free_turns;
    c.memory = mmap(NULL, c.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (c.memory == MAP_FAILED) {
        status = status_fail(RS_NO_MEMORY, "cannot map %zu bytes to probe: %s", c.bytes, strerror(errno));
        goto close_pool;
    }
    madvise(c.memory, c.bytes, MADV_HUGEPAGE); /* as for KV pages */
    pthread_barrier_init(&c.start, NULL, (unsigned)threads);
    status = measure_all(&c, l, out);
    pthread_barrier_destroy(&c.start);
    size_t end = l->done + RATES_TICKS;
    if (status == RS_OK) status = rates_measure(k, t, threads, c.memory, c.bytes, tick, l, rates);
    rates->read_bytes_per_s = out->read_bytes_per_s.median;
    l->done = end;
    munmap(c.memory, c.bytes);
close_pool:
    pool_close(c.pool);
free_turns:
    free(c.turns);
    return status;
}

/* ---- The machine ---- */

static void name_cpu(char *out, size_t bytes) {
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[256], *value;
    snprintf(out, bytes, "unknown processor");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, "model name", 10) != 0 || (value = strchr(line, ':')) == NULL) continue;
        line[strcspn(line, "\n")] = 0;
        snprintf(out, bytes, "%s", value + 1 + strspn(value + 1, " "));
        break;
    }
    if (file != NULL) fclose(file);
}

static void describe_machine(const topology *t, rs_probe *p) {
    p->cpus = t->cpus;
    p->cores = t->cores;
    p->numa_nodes = t->nodes;
    p->cache_bytes = t->cache_bytes;
    p->memory_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    name_cpu(p->cpu, sizeof p->cpu);
}

/* Decides the buffer; RS_LIMIT when it would take too much of what is free. */
static rs_status size_buffer(const rs_options *o, rs_probe *p) {
    uint64_t limit = o->memory_limit > 0 ? o->memory_limit : budget_limit(), has = budget_resident(NULL, 0);
    p->allowed_bytes = limit > has ? limit - has : 0;
    size_t wanted = size_max(buffer_bytes_min, CACHE_TIMES * p->cache_bytes);
    p->buffer_bytes = size_max(part_of(wanted, p->threads) * p->threads, part_of(wanted, 1));
    if (p->buffer_bytes <= p->allowed_bytes / MEMORY_PARTS) return RS_OK;
    return status_fail(RS_LIMIT,
                       "the probe reads %" PRIu64 " MiB, to be well beyond the caches, and takes at most a quarter of "
                       "the memory it may have, which is %" PRIu64 " MiB; free or allow %" PRIu64 " MiB",
                       p->buffer_bytes >> 20, p->allowed_bytes >> 20, (MEMORY_PARTS * p->buffer_bytes + has) >> 20);
}

/* Exchanges between two ranks with a core each, and between one more than there are cores. Where one of them cannot be
 * had, the other stands in. */
static rs_status measure_links(topology *t, rs_machine *m) {
    static const uint32_t single[RS_RANKS_MAX] = {[0 ... RS_RANKS_MAX - 1] = 1};
    uint32_t crowd = t->cpus + 1;
    if (t->cpus > 1) {
        topology_deal(t, 2, single);
        RS_TRY(rates_measure_link(t, 2, &m->local));
    }
    m->crowded = m->local;
    if (crowd <= RS_RANKS_MAX) {
        topology_deal(t, crowd, single);
        RS_TRY(rates_measure_link(t, crowd, &m->crowded));
    }
    if (t->cpus == 1) m->local = m->crowded;
    return RS_OK;
}

static rs_status probe_on(topology *t, const kernels *k, const rs_options *options, listener *l, rs_probe *p) {
    cpu_set_t before;
    describe_machine(t, p);
    RS_TRY(size_buffer(options, p));
    topology_deal(t, 1, &p->threads);
    bool pinned = sched_getaffinity(0, sizeof before, &before) == 0;
    if (pinned) topology_pin(t, 0); /* The caller is thread 0, and gets its freedom back. */
    rs_machine *m = &p->machine;
    rs_status status = measure_with(1, t, k, p->buffer_bytes, l, &p->one, &m->one);
    p->all = p->one;
    m->all = m->one;
    if (status == RS_OK && p->threads > 1) {
        status = measure_with(p->threads, t, k, p->buffer_bytes, l, &p->all, &m->all);
    }
    if (pinned) sched_setaffinity(0, sizeof before, &before);
    if (status == RS_OK) status = measure_links(t, m);
    if (status != RS_OK) return status;
    snprintf(m->name, sizeof m->name, "%.47s", p->cpu);
    m->memory_bytes = p->allowed_bytes;
    m->threads = p->threads;
    return RS_OK;
}

rs_status rs_probe_run(const rs_options *options, rs_progress progress, void *user, rs_probe *out) {
    if (options == NULL || out == NULL) return status_fail(RS_BAD_ARGUMENT, "rs_probe_run needs options and a result");
    const kernels *k;
    topology *t;
    rs_probe p = {.threads = options->threads};
    double begun_s = clock_s();
    RS_TRY(plan_threads(&p.threads));
    RS_TRY(kernels_find(options->kernels, &k));
    if (k->probe == NULL)
        return status_fail(RS_UNSUPPORTED, "kernels '%s' are not for speed: nothing to probe", k->name);
    p.kernels = k->name;
    k->probe->dot8(0, &p.int8_by);
    RS_TRY(topology_open(NULL, &t));
    listener l = {progress, user, .total = (size_t)(p.threads > 1 ? 2 : 1) * (MEASURES * REPETITIONS_MAX + RATES_TICKS),
                  .repetitions = REPETITIONS_MAX};
    rs_status status = probe_on(t, k, options, &l, &p);
    topology_close(t);
    if (status != RS_OK) return status;
    p.repetitions = (uint32_t)l.repetitions;
    p.cpu_share = fmin(l.cpu_s / l.wall_s, 1);
    p.duration_s = clock_s() - begun_s;
    *out = p;
    return RS_OK;
}
