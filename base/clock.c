/* clock.c: monotonic time and processor time. */
#include "base/clock.h"

static double seconds_of(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double clock_s(void) {
    return seconds_of(CLOCK_MONOTONIC);
}

double clock_cpu_s(void) {
    return seconds_of(CLOCK_THREAD_CPUTIME_ID);
}

struct timespec clock_after(double seconds) {
    static const double for_ever_s = 1e9; /* thirty years; INFINITY does not fit a time_t */
    struct timespec t;
    if (!(seconds < for_ever_s)) seconds = for_ever_s;
    clock_gettime(CLOCK_MONOTONIC, &t);
    time_t whole = (time_t)seconds;
    t.tv_sec += whole;
    t.tv_nsec += (long)((seconds - (double)whole) * 1e9);
    if (t.tv_nsec >= 1000000000L) {
        t.tv_sec++;
        t.tv_nsec -= 1000000000L;
    }
    return t;
}

void clock_condition_init(pthread_cond_t *condition) {
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &monotonic);
    pthread_condattr_destroy(&monotonic);
}
