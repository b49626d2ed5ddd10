/* spin.h: waiting awake for a moment. Going to sleep and being woken costs tens of microseconds, more than most waits
 * between threads that each have a core; where they share cores, waiting awake keeps the other from finishing. */
#ifndef RS_BASE_SPIN_H
#define RS_BASE_SPIN_H

#include <stdbool.h>

#include "base/clock.h"

/* Longer than the gaps between the operations of one token, shorter than anybody would call busy. */
static const double SPIN_S = 200e-6;

typedef struct spin {
    bool allowed; /* false: spin_on gives up at once */
    unsigned turns;
    double until;
} spin;

/* Pauses the core for some tens of nanoseconds; false when it is time to sleep. To be called between looks at what is
 * waited for, with a spin that has only `allowed` set before the first. */
static inline bool spin_on(spin *s) {
    enum { TURNS_BETWEEN_LOOKS = 64 }; /* the clock is read rarely, and never in a short wait */
    if (!s->allowed) return false;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb"); /* pauses, which `yield` does on few cores */
#endif
    if (++s->turns % TURNS_BETWEEN_LOOKS != 0) return true;
    double now = clock_s();
    if (s->until == 0.0) s->until = now + SPIN_S;
    return now < s->until;
}

#endif
