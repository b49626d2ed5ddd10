/* dry_comm.c: times that travel between threads in place of bytes, over comm/local. */
#include "comm/dry_comm.h"

#include <math.h>
#include <stdlib.h>

#include "comm/local.h"

/* Nobody waits long for a thread that only adds up; this bounds the wait if one hangs by a defect. */
static const double DEADLINE_S = 600.0;

/* What is sent in place of a message. */
typedef struct note {
    double path[COSTS];       /* to the moment when its first byte leaves */
    double latency_s, wire_s; /* until the first byte arrives, and from there to the last */
    uint64_t bytes;
} note;

typedef struct member {
    comm comm; /* first */
    comm *inner;
    const rs_link *links; /* [ranks] to each other rank */
    virtual_clock *clock;
    double out_free_s, in_free_s; /* when the link has carried what it was given, in either direction */
    double back_out_s, back_in_s; /* the same of exchanges in the background */
    double before_s;              /* what other messages take of the link while one goes on in the background */
    note sent[RS_RANKS_MAX], got[RS_RANKS_MAX];
    note back_sent[RS_RANKS_MAX], back_got[RS_RANKS_MAX];
    uint64_t back_bytes[RS_RANKS_MAX];
} member;

struct dry_group {
    local_group *local;
    member members[];
};

static double start_of(const note *n) {
    double sum = 0;
    for (int i = 0; i < COSTS; i++) sum += n->path[i];
    return sum;
}

/* Writes the note of a message that leaves when the link is free, at *free_s. */
static void write_note(member *m, uint32_t to, uint64_t bytes, double *free_s, double slower, note *out) {
    const rs_link *link = &m->links[to];
    double now = virtual_now(m->clock), start = fmax(now, *free_s);
    *out = (note){.latency_s = link->latency_s, .bytes = bytes};
    if (link->bytes_per_s > 0) out->wire_s = slower * (double)bytes / link->bytes_per_s;
    memcpy(out->path, m->clock->path, sizeof out->path);
    out->path[COST_NETWORK] += start - now;
    *free_s = start + out->wire_s;
    m->clock->messages++;
    m->clock->bytes += bytes;
}

/* Posts notes in place of what `out` holds; what will come is noted in `in_notes`. */
static void write_all(member *m, const comm_part *out, const comm_part *in, double *free_s, double slower, note *sent,
                      note *got, comm_part *out_notes, comm_part *in_notes) {
    uint32_t ranks = m->comm.ranks, own = m->comm.rank;
    bool any = false;
    for (uint32_t i = 1; i < ranks; i++) {
        uint32_t p = (own + i) % ranks; /* everyone starts with another peer, as comm/local does */
        out_notes[p] = in_notes[p] = (comm_part){NULL, 0};
        any = any || out[p].bytes > 0 || in[p].bytes > 0;
        if (out[p].bytes > 0) {
            write_note(m, p, out[p].bytes, free_s, slower, &sent[p]);
            out_notes[p] = (comm_part){&sent[p], sizeof(note)};
        }
        if (in[p].bytes > 0) in_notes[p] = (comm_part){&got[p], sizeof(note)};
    }
    out_notes[own] = in_notes[own] = (comm_part){NULL, 0};
    m->clock->rounds += any;
}

/* Takes the messages one after another as their first bytes arrive, and waits for the last. `late_s`: what else the
 * link had to carry meanwhile. */
static rs_status read_notes(member *m, const note *got, const uint64_t *bytes, double *free_s, double late_s) {
    bool taken[RS_RANKS_MAX] = {false};
    const note *last = NULL;
    for (;;) {
        uint32_t next = m->comm.ranks;
        for (uint32_t p = 0; p < m->comm.ranks; p++) {
            if (p == m->comm.rank || bytes[p] == 0 || taken[p]) continue;
            if (next == m->comm.ranks ||
                start_of(&got[p]) + got[p].latency_s < start_of(&got[next]) + got[next].latency_s) {
                next = p;
            }
        }
        if (next == m->comm.ranks) break;
        taken[next] = true;
        last = &got[next];
        if (last->bytes != bytes[next]) {
            return status_fail(RS_BAD_FORMAT, "rank %u expected %zu bytes from rank %u and got %zu", m->comm.rank,
                               (size_t)bytes[next], next, (size_t)last->bytes);
        }
        *free_s = fmax(*free_s, start_of(last) + last->latency_s) + last->wire_s;
        m->before_s += last->wire_s;
    }
    if (last == NULL) return RS_OK;
    double path[COSTS];
    memcpy(path, last->path, sizeof path);
    path[COST_NETWORK] += *free_s + late_s - start_of(last);
    virtual_wait(m->clock, path);
    return RS_OK;
}

static rs_status exchange(comm *c, const comm_part *out, const comm_part *in) {
    member *m = (member *)c;
    comm_part out_notes[RS_RANKS_MAX], in_notes[RS_RANKS_MAX];
    uint64_t bytes[RS_RANKS_MAX];
    for (uint32_t p = 0; p < c->ranks; p++) bytes[p] = in[p].bytes;
    /* While an exchange in the background flows, each gets half of the link. */
    double slower = m->back_out_s > virtual_now(m->clock) ? 2 : 1;
    write_all(m, out, in, &m->out_free_s, slower, m->sent, m->got, out_notes, in_notes);
    RS_TRY(m->inner->exchange(m->inner, out_notes, in_notes));
    return read_notes(m, m->got, bytes, &m->in_free_s, 0);
}

static rs_status begin(comm *c, const comm_part *out, const comm_part *in) {
    member *m = (member *)c;
    comm_part out_notes[RS_RANKS_MAX], in_notes[RS_RANKS_MAX];
    for (uint32_t p = 0; p < c->ranks; p++) m->back_bytes[p] = in[p].bytes;
    m->back_out_s = fmax(m->back_out_s, m->out_free_s);
    m->before_s = 0;
    write_all(m, out, in, &m->back_out_s, 1, m->back_sent, m->back_got, out_notes, in_notes);
    return m->inner->begin(m->inner, out_notes, in_notes);
}

static rs_status finish(comm *c) {
    member *m = (member *)c;
    RS_TRY(m->inner->finish(m->inner));
    return read_notes(m, m->back_got, m->back_bytes, &m->back_in_s, m->before_s / 2);
}

static void abort_group(comm *c) {
    member *m = (member *)c;
    m->inner->abort(m->inner);
}

rs_status dry_group_open(uint32_t ranks, const rs_link *links, dry_group **out) {
    dry_group *g = calloc(1, sizeof *g + ranks * sizeof(member));
    if (g == NULL) return status_fail(RS_NO_MEMORY, "no memory for a group of %u ranks", ranks);
    rs_status status = local_group_open(ranks, DEADLINE_S, false, &g->local);
    if (status != RS_OK) {
        free(g);
        return status;
    }
    for (uint32_t r = 0; r < ranks; r++) {
        g->members[r].comm = (comm){r, ranks, DEADLINE_S, exchange, begin, finish, abort_group, .dry = true};
        g->members[r].inner = local_group_comm(g->local, r);
        g->members[r].links = links + (size_t)r * ranks;
    }
    *out = g;
    return RS_OK;
}

void dry_group_close(dry_group *g) {
    if (g == NULL) return;
    local_group_close(g->local);
    free(g);
}

comm *dry_group_comm(dry_group *g, uint32_t rank, virtual_clock *clock) {
    g->members[rank].clock = clock;
    return &g->members[rank].comm;
}

void dry_group_rest(dry_group *g, uint32_t rank) {
    member *m = &g->members[rank];
    m->out_free_s = m->in_free_s = m->back_out_s = m->back_in_s = m->before_s = 0;
}
