/* links.c: what a message costs between each two ranks, as the planner wants to know it: the time of a small exchange
 * with both ends ready, and bytes per second in one direction. One pair after another, as far as one rank is in both.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/cluster.h"

enum {
    SMALL_BYTES = 256, /* what bytes take is bandwidth, and not counted twice */
    SMALL_TIMES = 10,  /* of one measurement: where both ends wait in turn, one by one they take nothing and twice it */
    SMALL_MEASURES = 5,
    BULK_BYTES_MIN = 256 << 10,
    BULK_BYTES_MAX = 16 << 20,
    BULK_TIMES = 3,
};
static const double bulk_s = 0.05; /* a message that takes so long is large enough */

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* One exchange with another rank, timed. */
static rs_status swap(comm *c, uint32_t other, void *data, size_t out_bytes, void *place, size_t in_bytes,
                      double *seconds) {
    comm_part out[RS_RANKS_MAX] = {0}, in[RS_RANKS_MAX] = {0};
    out[other] = (comm_part){data, out_bytes};
    in[other] = (comm_part){place, in_bytes};
    double begun_s = clock_s();
    RS_TRY(c->exchange(c, out, in));
    *seconds = clock_s() - begun_s;
    return RS_OK;
}

static rs_status measure_latency(comm *c, uint32_t other, uint8_t *memory, double *out) {
    double measures[SMALL_MEASURES], seconds;
    for (int i = -1; i < SMALL_MEASURES; i++) { /* the first one warms up */
        double begun_s = clock_s();
        for (int k = 0; k < SMALL_TIMES; k++) {
            RS_TRY(swap(c, other, memory, SMALL_BYTES, memory + SMALL_BYTES, SMALL_BYTES, &seconds));
        }
        if (i >= 0) measures[i] = (clock_s() - begun_s) / SMALL_TIMES;
    }
    qsort(measures, SMALL_MEASURES, sizeof *measures, compare);
    *out = measures[SMALL_MEASURES / 2];
    return RS_OK;
}

/* Bytes per second from `from` to `to`. Both must go on to the same sizes: the lower rank tells how long each took. */
static rs_status measure_bulk(comm *c, uint32_t from, uint32_t to, uint8_t *memory, double latency_s, double *out) {
    uint32_t other = c->rank == from ? to : from;
    bool tells = c->rank < other, sends = c->rank == from;
    double best = 0;
    for (size_t bytes = BULK_BYTES_MIN; bytes <= BULK_BYTES_MAX; bytes *= 4) {
        double least_s = 0, told, unused;
        for (int i = 0; i < BULK_TIMES; i++) {
            double seconds;
            RS_TRY(swap(c, other, memory, sends ? bytes : 0, memory, sends ? 0 : bytes, &seconds));
            /* The answer makes the time that of a message and its way back, whoever sends. */
            double begun_s = clock_s();
            RS_TRY(swap(c, other, &seconds, sizeof seconds, &told, sizeof told, &unused));
            seconds += clock_s() - begun_s;
            if (i == 0 || seconds < least_s) least_s = seconds;
        }
        double mine = least_s;
        RS_TRY(swap(c, other, &mine, sizeof mine, &told, sizeof told, &unused));
        double seconds = tells ? mine : told;
        best = (double)bytes / (seconds > 2 * latency_s ? seconds - latency_s : seconds / 2);
        if (seconds >= bulk_s) break;
    }
    *out = best;
    return RS_OK;
}

static rs_status measure_pairs(comm *c, uint8_t *memory, rs_link *list) {
    for (uint32_t a = 0; a < c->ranks; a++) {
        for (uint32_t b = a + 1; b < c->ranks; b++) {
            if (c->rank != a && c->rank != b) continue;
            rs_link *there = &list[a * c->ranks + b], *back = &list[b * c->ranks + a];
            RS_TRY(measure_latency(c, c->rank == a ? b : a, memory, &there->latency_s));
            back->latency_s = there->latency_s;
            RS_TRY(measure_bulk(c, a, b, memory, there->latency_s, &there->bytes_per_s));
            RS_TRY(measure_bulk(c, b, a, memory, there->latency_s, &back->bytes_per_s));
        }
    }
    return RS_OK;
}

/* Rank 0 takes from the lower rank of each pair what that one measured. */
static rs_status gather(comm *c, rs_link *list) {
    size_t count = (size_t)c->ranks * c->ranks;
    comm_part out[RS_RANKS_MAX] = {0}, in[RS_RANKS_MAX] = {0};
    rs_link *theirs = c->rank == 0 ? calloc(c->ranks * count, sizeof *theirs) : NULL;
    if (c->rank == 0 && theirs == NULL) return status_fail(RS_NO_MEMORY, "no memory for the links");
    for (uint32_t p = 1; p < c->ranks; p++) {
        if (c->rank == 0) in[p] = (comm_part){theirs + p * count, count * sizeof *theirs};
        if (c->rank == p) out[0] = (comm_part){list, count * sizeof *list};
    }
    rs_status status = c->exchange(c, out, in);
    for (uint32_t a = 1; status == RS_OK && c->rank == 0 && a < c->ranks; a++) {
        for (uint32_t b = a + 1; b < c->ranks; b++) {
            list[a * c->ranks + b] = theirs[a * count + a * c->ranks + b];
            list[b * c->ranks + a] = theirs[a * count + b * c->ranks + a];
        }
    }
    free(theirs);
    return status;
}

rs_status links_measure(comm *c, rs_link *list) {
    uint8_t *memory = calloc(1, BULK_BYTES_MAX);
    if (memory == NULL) return status_fail(RS_NO_MEMORY, "no memory to measure links");
    memset(memory, 1, BULK_BYTES_MAX); /* pages of its own, as real messages have */
    rs_status status = measure_pairs(c, memory, list);
    if (status == RS_OK) status = gather(c, list);
    free(memory);
    return status;
}
