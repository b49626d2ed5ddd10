/* pool.c: worker threads that spin briefly for the next job, then sleep: jobs of one token follow each other within
 * microseconds, tokens may be seconds apart. */
#include "base/pool.h"

#include <assert.h>
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
    _Atomic uint64_t ticket; /* items << 32 | the first item nobody has taken */
    atomic_size_t left;      /* items not done yet */
    atomic_size_t sleepers;  /* workers that must be woken */
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

static bool has_items(uint64_t ticket) {
    return (uint32_t)ticket < ticket >> 32;
}

/* Takes items until none is left. A worker that comes late finds none, and nobody waits for it. One that read the
 * ticket of an earlier job and then takes an item of the present one is right too: it reads `work` and `job` after
 * that. */
static void take_items(pool *p, size_t thread) {
    uint64_t ticket = atomic_load(&p->ticket);
    while (has_items(ticket)) {
        if (!atomic_compare_exchange_weak(&p->ticket, &ticket, ticket + 1)) continue;
        p->work(p->job, (uint32_t)ticket, thread);
        if (atomic_fetch_sub(&p->left, 1) == 1 && thread != 0) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->finished);
            pthread_mutex_unlock(&p->lock);
        }
        ticket = atomic_load(&p->ticket);
    }
}

static bool idle(pool *p) {
    return !has_items(atomic_load(&p->ticket)) && !atomic_load(&p->closing);
}

static void *worker_main(void *argument) {
    struct worker *w = argument;
    pool *p = w->pool;
    while (!atomic_load(&p->closing)) {
        take_items(p, w->index);
        for (int spin = 0; spin < SPINS && idle(p); spin++) relax();
        pthread_mutex_lock(&p->lock);
        atomic_fetch_add(&p->sleepers, 1);
        while (idle(p)) pthread_cond_wait(&p->wake, &p->lock);
        atomic_fetch_sub(&p->sleepers, 1);
        pthread_mutex_unlock(&p->lock);
    }
    return NULL;
}

static void wake_all(pool *p) {
    if (atomic_load(&p->sleepers) == 0) return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

void pool_run(pool *p, pool_work work, void *job, size_t items) {
    assert(items <= UINT32_MAX);
    if (p->threads == 1 || items <= 1) {
        for (size_t item = 0; item < items; item++) work(job, item, 0);
        return;
    }
    p->work = work;
    p->job = job;
    atomic_store(&p->left, items);
    atomic_store(&p->ticket, (uint64_t)items << 32);
    wake_all(p);
    take_items(p, 0);
    for (int spin = 0; spin < SPINS; spin++) {
        if (atomic_load(&p->left) == 0) return;
        relax();
    }
    pthread_mutex_lock(&p->lock);
    while (atomic_load(&p->left) != 0) pthread_cond_wait(&p->finished, &p->lock);
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
