/* progress.c: a bar with rate and remaining time. */
#include "cli/progress.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/interrupt.h"

enum {
    WIDTH_DEFAULT = 80,
    WIDTH_MAX = 200,
    WIDTH_SPARED = 3, /* the last column may wrap, and a terminal writes ^C behind the line */
    BAR_MIN = 10,
    BAR_MAX = 40,
};

static const double redraw_every_s = 0.1;

/* Writes the line of at most `width` columns, NUL-terminated, to out[width + 1]; what matters least gives way first.
 * seconds: left, negative if unknown. */
static void write_line(char *out, size_t width, const progress *p, size_t done, size_t total, double seconds) {
    const char *label = p->label;
    char left[48] = "", speed[32] = "", tail[128];
    double share = total > 0 ? (double)done / (double)total : 0;
    if (seconds >= 0) {
        unsigned long whole = seconds < 359999 ? (unsigned long)ceil(seconds) : 359999; /* 99:59:59 */
        snprintf(left, sizeof left, "  ETA %lu:%02lu:%02lu", whole / 3600, whole / 60 % 60, whole % 60);
        if (p->unit != NULL) snprintf(speed, sizeof speed, "  %.0f %s", p->rate, p->unit);
    }
    int n_tail = snprintf(tail, sizeof tail, " %3.0f%%  %zu/%zu%s%s", 100 * share, done, total, speed, left);
    size_t taken = strlen(label) + (size_t)n_tail + 3; /* a space and two brackets */
    if (taken - 3 > width) {
        snprintf(out, width + 1, "%s %3.0f%%%s", label, 100 * share, left);
        return;
    }
    if (taken + BAR_MIN > width) {
        snprintf(out, width + 1, "%s%s", label, tail);
        return;
    }
    size_t bar = width - taken < BAR_MAX ? width - taken : BAR_MAX;
    size_t full = (size_t)(share * (double)bar);
    char *place = out + snprintf(out, width + 1, "%s [", label);
    memset(place, '#', full);
    memset(place + full, '.', bar - full);
    snprintf(place + bar, width + 1 - (size_t)(place + bar - out), "]%s", tail);
}

static void draw(progress *p, size_t done, size_t total) {
    struct winsize size = {0};
    char line[WIDTH_MAX + 1];
    size_t width =
        ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > WIDTH_SPARED ? size.ws_col : WIDTH_DEFAULT;
    width = width - WIDTH_SPARED < WIDTH_MAX ? width - WIDTH_SPARED : WIDTH_MAX;
    double seconds = p->rate > 0 ? (double)(total - done) / p->rate : -1;
    write_line(line, width, p, done, total, seconds);
    fprintf(stderr, "\r%s\033[K", line);
    p->drawn = true;
}

void progress_begin(progress *p, const char *label, size_t total, bool quiet) {
    double now = clock_s();
    *p = (progress){
        .label = label, .unit = "tok/s", .shown = !quiet && isatty(STDERR_FILENO), .redraw_s = now, .latest_s = now};
    if (p->shown) draw(p, 0, total);
}

bool progress_update(void *user, size_t done, size_t total) {
    progress *p = user;
    if (interrupt_seen()) return false;
    if (!p->shown) return true;
    double now = clock_s();
    if (done > p->latest_done && now > p->latest_s) {
        /* Later chunks see more context and are slower, so the latest say more about the rest than the mean does. */
        double rate = (double)(done - p->latest_done) / (now - p->latest_s);
        p->rate = p->rate > 0 ? 0.7 * p->rate + 0.3 * rate : rate;
        p->latest_done = done;
        p->latest_s = now;
    }
    if (now >= p->redraw_s && done <= total) {
        draw(p, done, total);
        p->redraw_s = now + redraw_every_s;
    }
    return true;
}

void progress_end(progress *p) {
    if (p->drawn) fputs("\r\033[K", stderr);
    p->drawn = false;
}
