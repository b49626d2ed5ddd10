/* pool.c: worker threads that wait awake for the next job, briefly, then sleep: jobs of one token follow each other
 * within microseconds, tokens may be seconds apart.
 *
 * A token is some two hundred jobs, so what counts is how often a cache line travels between cores during one. The job
 * and the ticket lie on one line, which the worker's first look brings; the items done are counted by each thread for
 * itself and told once; and nobody touches the lock unless somebody sleeps. */
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

    _Alignas(LINE_BYTES) _Atomic uint64_t done; /* items that workers have done, over all jobs */

    _Alignas(LINE_BYTES) atomic_size_t sleepers; /* workers that must be woken */
    atomic_bool caller_sleeps;
    atomic_bool closing;
    uint64_t handed_out; /* items that workers have taken in all, for the caller alone */
    size_t threads;
    const topology *topology;
    size_t place;
    bool roomy;

    pthread_mutex_t lock;
    pthread_cond_t wake, finished;
    struct worker {
        pool *pool;
        size_t index;
        pthread_t thread;
    } workers[];
};

static bool has_items(uint64_t ticket) {
    return (uint32_t)ticket < ticket >> 32;
}

/* Takes items until none is left; how many it did. A worker that comes late finds none, and nobody waits for it. One
 * that saw an earlier job and then takes an item of the present one is right too: it reads `work` and `job` after that.
 * Each try counts the ticket up, by at most one per thread beyond the last item. */
static size_t take_items(pool *p, size_t thread) {
    for (size_t n = 0;; n++) {
        uint64_t ticket = atomic_fetch_add(&p->ticket, 1);
        if (!has_items(ticket)) return n;
        p->work(p->job, (uint32_t)ticket, thread);
    }
}

static bool idle(pool *p) {
    return !has_items(atomic_load(&p->ticket)) && !atomic_load(&p->closing);
}

static void work_once(pool *p, size_t thread) {
    size_t n = take_items(p, thread);
    if (n == 0) return;
    atomic_fetch_add(&p->done, n);
    if (!atomic_load(&p->caller_sleeps)) return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_signal(&p->finished);
    pthread_mutex_unlock(&p->lock);
}

static void *worker_main(void *argument) {
    struct worker *w = argument;
    pool *p = w->pool;
    topology_pin(p->topology, p->place + w->index);
    while (!atomic_load(&p->closing)) {
        spin s = {.allowed = p->roomy};
        while (idle(p) && spin_on(&s)) continue;
        if (idle(p)) {
            pthread_mutex_lock(&p->lock);
            atomic_fetch_add(&p->sleepers, 1);
            while (idle(p)) pthread_cond_wait(&p->wake, &p->lock);
            atomic_fetch_sub(&p->sleepers, 1);
            pthread_mutex_unlock(&p->lock);
        }
        work_once(p, w->index);
    }
    return NULL;
}

static void wake_all(pool *p) {
    if (atomic_load(&p->sleepers) == 0) return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

static void wait_for_workers(pool *p) {
    spin s = {.allowed = p->roomy};
    while (atomic_load(&p->done) != p->handed_out) {
        if (spin_on(&s)) continue;
        pthread_mutex_lock(&p->lock);
        atomic_store(&p->caller_sleeps, true);
        while (atomic_load(&p->done) != p->handed_out) pthread_cond_wait(&p->finished, &p->lock);
        atomic_store(&p->caller_sleeps, false);
        pthread_mutex_unlock(&p->lock);
    }
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
    p->handed_out += items - 1 - take_items(p, 0);
    wait_for_workers(p);
}

rs_status pool_open(size_t threads, const topology *t, size_t place, pool **out) {
    size_t bytes = sizeof(pool) + threads * sizeof(struct worker);
    pool *p = aligned_alloc(LINE_BYTES, (bytes + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES);
    if (p == NULL) return status_fail(RS_NO_MEMORY, "no memory for %zu threads", threads);
    *p = (pool){.threads = 1, .topology = t, .place = place, .roomy = topology_roomy(t)};
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
