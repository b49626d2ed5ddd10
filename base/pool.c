/* pool.c: worker threads that spin briefly for the next job, then sleep: jobs of one token follow each other within
 * microseconds, tokens may be seconds apart. */
#include "base/pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { SPINS = 4000 }; /* some 20 to 100 us: more than the gap between two operations, less than a time slice */

struct pool {
    pthread_mutex_t lock;
    pthread_cond_t wake, finished;
    size_t threads;
    pool_work work;
    void *job;
    size_t items;
    atomic_size_t next;       /* the first item nobody has taken */
    atomic_size_t generation; /* counts jobs; workers wait for it to change */
    atomic_size_t busy;       /* workers still in the present job */
    atomic_bool closing;
    struct worker {
        pool *pool;
        size_t index;
        pthread_t thread;
    } workers[];
};

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void take_items(pool *p, size_t thread) {
    for (;;) {
        size_t item = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed);
        if (item >= p->items) return;
        p->work(p->job, item, thread);
    }
}

/* Returns the generation after `seen`, once there is one. */
static size_t next_generation(pool *p, size_t seen) {
    for (int spin = 0; spin < SPINS; spin++) {
        size_t now = atomic_load_explicit(&p->generation, memory_order_acquire);
        if (now != seen) return now;
        relax();
    }
    pthread_mutex_lock(&p->lock);
    while (atomic_load_explicit(&p->generation, memory_order_acquire) == seen) pthread_cond_wait(&p->wake, &p->lock);
    pthread_mutex_unlock(&p->lock);
    return atomic_load_explicit(&p->generation, memory_order_acquire);
}

static void *worker_main(void *argument) {
    struct worker *w = argument;
    pool *p = w->pool;
    size_t seen = 0;
    for (;;) {
        seen = next_generation(p, seen);
        if (atomic_load(&p->closing)) return NULL;
        take_items(p, w->index);
        if (atomic_fetch_sub_explicit(&p->busy, 1, memory_order_acq_rel) == 1) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->finished);
            pthread_mutex_unlock(&p->lock);
        }
    }
}

static void begin_job(pool *p) {
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add_explicit(&p->generation, 1, memory_order_release);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

void pool_run(pool *p, pool_work work, void *job, size_t items) {
    if (p->threads == 1 || items <= 1) {
        for (size_t item = 0; item < items; item++) work(job, item, 0);
        return;
    }
    p->work = work;
    p->job = job;
    p->items = items;
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    atomic_store_explicit(&p->busy, p->threads - 1, memory_order_relaxed);
    begin_job(p);
    take_items(p, 0);
    for (int spin = 0; spin < SPINS; spin++) {
        if (atomic_load_explicit(&p->busy, memory_order_acquire) == 0) return;
        relax();
    }
    pthread_mutex_lock(&p->lock);
    while (atomic_load_explicit(&p->busy, memory_order_acquire) != 0) pthread_cond_wait(&p->finished, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

rs_status pool_open(size_t threads, pool **out) {
    pool *p = calloc(1, sizeof *p + threads * sizeof p->workers[0]);
    if (p == NULL) return status_fail(RS_NO_MEMORY, "no memory for %zu threads", threads);
    p->threads = 1;
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
    begin_job(p);
    for (size_t i = 1; i < p->threads; i++) pthread_join(p->workers[i].thread, NULL);
    pthread_cond_destroy(&p->finished);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

size_t pool_threads(const pool *p) {
    return p->threads;
}
