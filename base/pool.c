/* pool.c: worker threads that wait awake for the next job, briefly, then sleep: jobs of one token follow each other
 * within microseconds, tokens may be seconds apart.
 *
 * A token is some two hundred jobs, so what counts is how often a cache line travels between cores during one. The job
 * and the ticket lie on one line, which the worker's first look brings; each thread counts the items that it has done
 * on a line of its own, which the caller reads when nothing else is left to do; and nobody touches the lock unless
 * somebody sleeps. */
#include "base/pool.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/spin.h"

enum { LINE_BYTES = 128 }; /* two lines of 64 bytes: processors fetch them in pairs */

struct pool {
    _Alignas(LINE_BYTES) _Atomic uint64_t ticket; /* items << 32 | the first item nobody has taken, or more */
    pool_work work;
    void *job;

    _Alignas(LINE_BYTES) uint64_t handed_out; /* items that workers have taken, over all jobs; the caller's */
    spin spin;                                /* the caller's */

    _Alignas(LINE_BYTES) atomic_size_t sleepers; /* workers that must be woken */
    atomic_bool caller_sleeps;
    atomic_bool closing;
    size_t threads;
    const topology *topology;
    size_t place;

    pthread_mutex_t lock;
    pthread_cond_t wake, finished;
    struct worker {
        _Alignas(LINE_BYTES) _Atomic uint64_t done; /* items, over all jobs */
        pool *pool;
        size_t index;
        pthread_t thread;
    } workers[];
};

static bool has_items(uint64_t ticket) {
    return (uint32_t)ticket < ticket >> 32;
}

/* Takes and does items until none is left; how many it did. A worker that comes late finds none, and nobody waits for
 * it. One that saw an earlier job and then takes an item of the present one is right too: it reads `work` and `job`
 * after that. Each try counts the ticket up, by at most one per thread beyond the last item. */
static uint64_t do_items(pool *p, size_t thread) {
    for (uint64_t n = 0;;) {
        uint64_t ticket = atomic_fetch_add(&p->ticket, 1);
        if (!has_items(ticket)) return n;
        p->work(p->job, (uint32_t)ticket, thread);
        n++;
        if (!has_items(ticket + 1)) return n; /* without a vain try, which would fetch the ticket's line */
    }
}

static bool idle(pool *p) {
    return !has_items(atomic_load(&p->ticket)) && !atomic_load(&p->closing);
}

static void help(struct worker *w) {
    pool *p = w->pool;
    uint64_t n = do_items(p, w->index);
    if (n == 0) return;
    atomic_store(&w->done, atomic_load_explicit(&w->done, memory_order_relaxed) + n);
    if (!atomic_load(&p->caller_sleeps)) return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_signal(&p->finished);
    pthread_mutex_unlock(&p->lock);
}

static void *worker_main(void *argument) {
    struct worker *w = argument;
    pool *p = w->pool;
    topology_pin(p->topology, p->place + w->index);
    spin s = spin_habit(topology_roomy(p->topology));
    while (!atomic_load(&p->closing)) {
        while (idle(p) && spin_on(&s)) continue;
        if (idle(p)) {
            pthread_mutex_lock(&p->lock);
            atomic_fetch_add(&p->sleepers, 1);
            while (idle(p)) pthread_cond_wait(&p->wake, &p->lock);
            atomic_fetch_sub(&p->sleepers, 1);
            pthread_mutex_unlock(&p->lock);
        }
        spin_end(&s);
        help(w);
    }
    return NULL;
}

static void wake_all(pool *p) {
    if (atomic_load(&p->sleepers) == 0) return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

static bool all_done(pool *p) {
    uint64_t done = 0;
    for (size_t i = 1; i < p->threads; i++) done += atomic_load(&p->workers[i].done);
    return done == p->handed_out;
}

static void wait_for_workers(pool *p) {
    while (!all_done(p) && spin_on(&p->spin)) continue;
    if (!all_done(p)) {
        pthread_mutex_lock(&p->lock);
        atomic_store(&p->caller_sleeps, true);
        while (!all_done(p)) pthread_cond_wait(&p->finished, &p->lock);
        atomic_store(&p->caller_sleeps, false);
        pthread_mutex_unlock(&p->lock);
    }
    spin_end(&p->spin);
}

void pool_run(pool *p, pool_work work, void *job, size_t items) {
    assert(items <= UINT32_MAX / 2);
    if (p->threads == 1 || items <= 1) {
        for (size_t item = 0; item < items; item++) work(job, item, 0);
        return;
    }
    p->work = work;
    p->job = job;
    atomic_store(&p->ticket, (uint64_t)items << 32 | 1); /* the first item is the caller's: nothing to contend for */
    wake_all(p);
    work(job, 0, 0);
    p->handed_out += items - 1 - do_items(p, 0);
    wait_for_workers(p);
}

rs_status pool_open(size_t threads, const topology *t, size_t place, pool **out) {
    size_t bytes = sizeof(pool) + threads * sizeof(struct worker);
    pool *p = aligned_alloc(LINE_BYTES, (bytes + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES);
    if (p == NULL) return status_fail(RS_NO_MEMORY, "no memory for %zu threads", threads);
    *p = (pool){.threads = 1, .topology = t, .place = place, .spin = spin_habit(topology_roomy(t))};
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->finished, NULL);
    for (size_t i = 1; i < threads; i++) {
        p->workers[i] = (struct worker){.pool = p, .index = i};
        if (pthread_create(&p->workers[i].thread, NULL, worker_main, &p->workers[i]) != 0) {
            pool_close(p);
            return status_fail(RS_NO_MEMORY, "cannot start thread %zu of %zu", i + 1, threads);
        }
        p->threads++;
    }
    *out = p;
    return RS_OK;
}

void pool_close(pool *p) {
    if (p == NULL) return;
    atomic_store(&p->closing, true);
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (size_t i = 1; i < p->threads; i++) pthread_join(p->workers[i].thread, NULL);
    pthread_cond_destroy(&p->finished);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

size_t pool_threads(const pool *p) {
    return p->threads;
}
