/* spin.h: waiting awake for a moment. Going to sleep and being woken costs tens of microseconds, more than most waits
 * between the threads of one token. A thread with a core to itself pauses it; one that shares it yields it at every
 * turn, for it may be what the awaited one needs. (A limit that shrank after long waits was tried: on virtual machines,
 * where waking takes 0.1 ms, it stuck at sleeping in every wait and doubled the time of a token.) */
#ifndef RS_BASE_SPIN_H
#define RS_BASE_SPIN_H

#include <sched.h>
#include <stdbool.h>

#include "base/clock.h"

/* Longer than the gaps between the operations of one token, shorter than anybody would call busy; less where awaited
 * threads may need the core. */
static const double SPIN_ROOMY_S = 1e-3, SPIN_CROWDED_S = 200e-6;

/* One waiter's habit, made by spin_habit. A wait is `while (!ready() && spin_on(&s)) continue;`, then, unless ready,
 * sleep, then spin_end. */
typedef struct spin {
    bool roomy;
    double begin_s; /* of this wait; 0 before the clock was read */
    unsigned turns;
} spin;

/* `roomy`: the thread has a core to itself. */
static inline spin spin_habit(bool roomy) {
    return (spin){.roomy = roomy};
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
    return now - s->begin_s < (s->roomy ? SPIN_ROOMY_S : SPIN_CROWDED_S);
}

/* After every wait, asleep or awake. */
static inline void spin_end(spin *s) {
    s->begin_s = 0.0;
    s->turns = 0;
}

#endif
