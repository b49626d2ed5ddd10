/* progress.h: one line on a terminal that says how far a long evaluation is. */
#ifndef RS_CLI_PROGRESS_H
#define RS_CLI_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>

typedef struct progress {
    const char *label;
    const char *unit;      /* of the rate shown, "tok/s"; NULL: none */
    bool shown;            /* standard error is a terminal */
    bool drawn;            /* the line is on the screen */
    double redraw_s;       /* no drawing before this clock_s() */
    double latest_s, rate; /* tokens/s of the latest tokens, smoothed; 0 before any */
    size_t latest_done;
} progress;

/* Draws the line of nothing done, whose unit is tokens until the caller says otherwise. `label` is to live until
 * progress_end. Nothing is ever drawn when `quiet` or when stderr is no terminal. */
void progress_begin(progress *p, const char *label, size_t total, bool quiet);

/* An rs_progress whose user is a progress; returns false after Ctrl-C. Draws at most ten times a second. */
bool progress_update(void *user, size_t done, size_t total);

/* Clears the line. */
void progress_end(progress *p);

#endif
