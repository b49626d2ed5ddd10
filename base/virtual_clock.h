/* virtual_clock.h: the time of a rank that computes and exchanges on paper only, and what it was spent on. */
#ifndef RS_BASE_VIRTUAL_CLOCK_H
#define RS_BASE_VIRTUAL_CLOCK_H

#include <stdint.h>
#include <string.h>

typedef enum cost { COST_WEIGHTS, COST_KV, COST_NETWORK, COST_REST, COSTS } cost;

typedef struct virtual_clock {
    double
        path[COSTS];   /* how this moment came about, along the longest chain of work and messages: it sums up to now */
    double own[COSTS]; /* what the rank did itself; network: how long it waited */
    uint32_t rounds, messages; /* exchanges that it took part in, and what it sent in them */
    uint64_t bytes;
} virtual_clock;

static inline double virtual_now(const virtual_clock *c) {
    double sum = 0;
    for (int i = 0; i < COSTS; i++) sum += c->path[i];
    return sum;
}

static inline void virtual_spend(virtual_clock *c, cost what, double seconds) {
    c->path[what] += seconds;
    c->own[what] += seconds;
}

/* Waits for what `path` led to, unless that is over. */
static inline void virtual_wait(virtual_clock *c, const double path[COSTS]) {
    double then = 0, now = virtual_now(c);
    for (int i = 0; i < COSTS; i++) then += path[i];
    if (then <= now) return;
    memcpy(c->path, path, sizeof c->path);
    c->own[COST_NETWORK] += then - now;
}

#endif
