/* dry_comm.c: times that travel between threads in place of bytes, over comm/local. */
#include "comm/dry_comm.h"

#include <math.h>
#include <stdlib.h>

#include "comm/local.h"

/* Nobody waits long for a thread that only adds up; this bounds the wait if one hangs by a defect. */
static const double DEADLINE_S = 600.0;

typedef uint32_t way; /* a comm_lane, or FOREGROUND */
enum { FOREGROUND = LANES, WAYS };

/* What is sent in place of a message. */
typedef struct note {
    double path[COSTS];       /* to the moment when its first byte leaves */
    double latency_s, wire_s; /* until the first byte arrives, and from there to the last */
    double shared_s[LANES];   /* of that, what each lane had of the link */
    uint64_t bytes;
} note;

/* What goes one way. */
typedef struct flow {
    double out_free_s, in_free_s; /* when the link has carried what it was given, in either direction */
    double late_s;                /* what others had of the link since an exchange in the background began */
    note sent[RS_RANKS_MAX], got[RS_RANKS_MAX];
    uint64_t bytes[RS_RANKS_MAX]; /* that are to come */
} flow;

typedef struct member {
    comm comm; /* first */
    comm *inner;
    const rs_link *links; /* [ranks] to each other rank */
    virtual_clock *clock;
    flow flows[WAYS];
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

/* Writes the note of a message that leaves when the link has carried what went before it the same way. Lanes that
 * still flow share the link with it until they or it have ended, and end later by what it had. */
static void write_note(member *m, way w, uint32_t to, uint64_t bytes, note *out) {
    const rs_link *link = &m->links[to];
    double now = virtual_now(m->clock), start = fmax(now, m->flows[w].out_free_s);
    double alone_s = link->bytes_per_s > 0 ? (double)bytes / link->bytes_per_s : 0;
    *out = (note){.latency_s = link->latency_s, .wire_s = alone_s, .bytes = bytes};
    for (way lane = 0; lane < LANES; lane++) {
        if (lane == w) continue;
        out->shared_s[lane] = fmin(alone_s, fmax(0, m->flows[lane].out_free_s - start));
        out->wire_s += out->shared_s[lane];
        m->flows[lane].out_free_s += out->shared_s[lane];
    }
    memcpy(out->path, m->clock->path, sizeof out->path);
    out->path[COST_NETWORK] += start - now;
    m->flows[w].out_free_s = start + out->wire_s;
    m->clock->messages++;
    m->clock->bytes += bytes;
}

/* Posts notes in place of what `out` holds; what will come is noted in `in_notes`. */
static void write_all(member *m, way w, const comm_part *out, const comm_part *in, comm_part *out_notes,
                      comm_part *in_notes) {
    uint32_t ranks = m->comm.ranks, own = m->comm.rank;
    flow *f = &m->flows[w];
    bool any = false;
    for (uint32_t i = 1; i < ranks; i++) {
        uint32_t p = (own + i) % ranks; /* everyone starts with another peer, as comm/local does */
        out_notes[p] = in_notes[p] = (comm_part){NULL, 0};
        any = any || out[p].bytes > 0 || in[p].bytes > 0;
        f->bytes[p] = in[p].bytes;
        if (out[p].bytes > 0) {
            write_note(m, w, p, out[p].bytes, &f->sent[p]);
            out_notes[p] = (comm_part){&f->sent[p], sizeof(note)};
        }
        if (in[p].bytes > 0) in_notes[p] = (comm_part){&f->got[p], sizeof(note)};
    }
    out_notes[own] = in_notes[own] = (comm_part){NULL, 0};
    m->clock->rounds += any;
}

/* Takes the messages one after another as their first bytes arrive, and waits for the last. */
static rs_status read_notes(member *m, way w) {
    flow *f = &m->flows[w];
    const note *got = f->got, *last = NULL;
    bool taken[RS_RANKS_MAX] = {false};
    for (;;) {
        uint32_t next = m->comm.ranks;
        for (uint32_t p = 0; p < m->comm.ranks; p++) {
            if (p == m->comm.rank || f->bytes[p] == 0 || taken[p]) continue;
            if (next == m->comm.ranks ||
                start_of(&got[p]) + got[p].latency_s < start_of(&got[next]) + got[next].latency_s) {
                next = p;
            }
        }
        if (next == m->comm.ranks) break;
        taken[next] = true;
        last = &got[next];
        if (last->bytes != f->bytes[next]) {
            return status_fail(RS_BAD_FORMAT, "rank %u expected %zu bytes from rank %u and got %zu", m->comm.rank,
                               (size_t)f->bytes[next], next, (size_t)last->bytes);
        }
        f->in_free_s = fmax(f->in_free_s, start_of(last) + last->latency_s) + last->wire_s;
        for (way lane = 0; lane < LANES; lane++) m->flows[lane].late_s += last->shared_s[lane];
    }
    if (last == NULL) return RS_OK;
    f->in_free_s += f->late_s;
    double path[COSTS];
    memcpy(path, last->path, sizeof path);
    path[COST_NETWORK] += f->in_free_s - start_of(last);
    virtual_wait(m->clock, path);
    return RS_OK;
}

static rs_status exchange(comm *c, const comm_part *out, const comm_part *in) {
    member *m = (member *)c;
    comm_part out_notes[RS_RANKS_MAX], in_notes[RS_RANKS_MAX];
    write_all(m, FOREGROUND, out, in, out_notes, in_notes);
    RS_TRY(m->inner->exchange(m->inner, out_notes, in_notes));
    return read_notes(m, FOREGROUND);
}

static rs_status begin(comm *c, comm_lane lane, const comm_part *out, const comm_part *in) {
    member *m = (member *)c;
    flow *f = &m->flows[lane];
    comm_part out_notes[RS_RANKS_MAX], in_notes[RS_RANKS_MAX];
    f->out_free_s = fmax(f->out_free_s, m->flows[FOREGROUND].out_free_s);
    f->late_s = 0;
    write_all(m, lane, out, in, out_notes, in_notes);
    return m->inner->begin(m->inner, lane, out_notes, in_notes);
}

static rs_status finish(comm *c, comm_lane lane) {
    member *m = (member *)c;
    RS_TRY(m->inner->finish(m->inner, lane));
    return read_notes(m, lane);
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
    for (way w = 0; w < WAYS; w++) {
        flow *f = &g->members[rank].flows[w];
        f->out_free_s = f->in_free_s = f->late_s = 0;
    }
}
