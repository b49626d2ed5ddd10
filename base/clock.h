/* clock.h: monotonic time and processor time. */
#ifndef RS_BASE_CLOCK_H
#define RS_BASE_CLOCK_H

#include <pthread.h>
#include <time.h>

/* Seconds since an arbitrary start; never goes back. */
double clock_s(void);

/* Seconds of processor time that this thread has had: other programs on a busy machine do not count. */
double clock_cpu_s(void);

/* The CLOCK_MONOTONIC instant `seconds` (may be INFINITY) from now, for timed waits. */
struct timespec clock_after(double seconds);

/* A condition whose timed waits go by clock_after. */
void clock_condition_init(pthread_cond_t *condition);

#endif
