/* spin.h: waiting awake for a moment. Going to sleep and being woken costs tens of microseconds, more than most waits
 * between the threads of one token. A thread with a core to itself pauses it; one that shares it yields it at every
 * turn, for it may be what the awaited one needs. Other programs share cores too, and nobody says so: a wait that turns
 * out long makes the next one sleep sooner. */
#ifndef RS_BASE_SPIN_H
#define RS_BASE_SPIN_H

#include <sched.h>
#include <stdbool.h>

#include "base/clock.h"

/* Longer than the gaps between the operations of one token, shorter than anybody would call busy. */
static const double SPIN_MOST_S = 200e-6, SPIN_LEAST_S = 3e-6;

/* One waiter's habit, made by spin_habit. A wait is `while (!ready() && spin_on(&s)) continue;`, then, unless ready,
 * sleep, then spin_end. */
typedef struct spin {
    bool roomy;
    double limit_s; /* of waiting awake */
    double begin_s; /* of this wait; 0 before the clock was read */
    unsigned turns;
} spin;

/* `roomy`: the thread has a core to itself. */
static inline spin spin_habit(bool roomy) {
    return (spin){.roomy = roomy, .limit_s = SPIN_MOST_S};
}

/* Pauses for some tens of nanoseconds, or lets others run; false when it is time to sleep. */
static inline bool spin_on(spin *s) {
    enum { TURNS_BETWEEN_LOOKS = 64 }; /* at the clock, which a short wait never reads */
    if (s->roomy) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("isb"); /* pauses, which `yield` does on few processors */
#endif
        if (++s->turns % TURNS_BETWEEN_LOOKS != 0) return true;
    } else {
        sched_yield();
    }
    double now = clock_s();
    if (s->begin_s == 0.0) s->begin_s = now;
    return now - s->begin_s < s->limit_s;
}

/* Learns from a wait that is over, asleep or awake. */
static inline void spin_end(spin *s) {
    bool brief = s->begin_s == 0.0 || clock_s() - s->begin_s < SPIN_MOST_S;
    double limit = brief ? 2.0 * s->limit_s : 0.25 * s->limit_s;
    s->limit_s = limit > SPIN_MOST_S ? SPIN_MOST_S : limit < SPIN_LEAST_S ? SPIN_LEAST_S : limit;
    s->begin_s = 0.0;
    s->turns = 0;
}

#endif
