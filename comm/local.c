/* local.c: ranks as threads of one process. A sender posts a pointer, the receiver copies and acknowledges. Waits are
 * awake for a moment where every thread of every rank has a core; else they sleep at once, for the peer that is waited
 * for may need the core. */
#include "comm/local.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/spin.h"

enum { LINE_BYTES = 64 };

/* Written by the sender while empty, by the receiver while full. */
typedef struct mailbox {
    _Alignas(LINE_BYTES) const void *data;
    size_t bytes;
    atomic_bool full;
} mailbox;

typedef struct member {
    comm comm; /* first, so that a comm is its member */
    local_group *group;
    pthread_mutex_t lock; /* held to fall asleep and to wake */
    pthread_cond_t wake;
    atomic_bool asleep;
} member;

struct local_group {
    double deadline_s;
    bool roomy;
    atomic_bool aborted;
    uint32_t ranks;
    mailbox *boxes; /* [ranks to][ranks from] */
    member members[];
};

static mailbox *box(local_group *g, uint32_t from, uint32_t to) {
    return &g->boxes[(size_t)to * g->ranks + from];
}

static void wake(member *m) {
    pthread_mutex_lock(&m->lock);
    pthread_cond_signal(&m->wake);
    pthread_mutex_unlock(&m->lock);
}

/* Fills or empties a box that `other` may wait for. */
static void set_box(mailbox *b, bool full, member *other) {
    atomic_store(&b->full, full);
    if (atomic_load(&other->asleep)) wake(other);
}

static bool waits(const member *m, const mailbox *b, bool full) {
    return atomic_load(&b->full) != full && !atomic_load(&m->group->aborted);
}

/* Waits until the box is full (or empty) or the wait is in vain. */
static rs_status wait_box(member *m, const mailbox *b, bool full, uint32_t peer, const struct timespec *until) {
    local_group *g = m->group;
    spin s = {.allowed = g->roomy};
    while (waits(m, b, full) && spin_on(&s)) continue;
    if (waits(m, b, full)) {
        int timeout = 0;
        pthread_mutex_lock(&m->lock);
        atomic_store(&m->asleep, true);
        while (waits(m, b, full) && timeout == 0) timeout = pthread_cond_timedwait(&m->wake, &m->lock, until);
        atomic_store(&m->asleep, false);
        pthread_mutex_unlock(&m->lock);
    }
    if (atomic_load(&b->full) == full) return RS_OK;
    if (atomic_load(&g->aborted)) return status_fail(RS_PEER_LOST, "rank %u: the group was aborted", m->comm.rank);
    return status_fail(RS_PEER_LATE, "rank %u waited %.0f s for rank %u", m->comm.rank, g->deadline_s, peer);
}

/* Copies what `peer` posted for this rank. */
static rs_status receive(member *m, uint32_t peer, comm_part part, const struct timespec *until) {
    local_group *g = m->group;
    mailbox *b = box(g, peer, m->comm.rank);
    RS_TRY(wait_box(m, b, true, peer, until));
    if (b->bytes != part.bytes) {
        return status_fail(RS_BAD_FORMAT, "rank %u expected %zu bytes from rank %u and got %zu", m->comm.rank,
                           part.bytes, peer, b->bytes);
    }
    memcpy(part.data, b->data, b->bytes);
    set_box(b, false, &g->members[peer]);
    return RS_OK;
}

static void post(member *m, const comm_part *out) {
    local_group *g = m->group;
    for (uint32_t p = 0; p < g->ranks; p++) {
        if (p == m->comm.rank || out[p].bytes == 0) continue;
        mailbox *b = box(g, m->comm.rank, p);
        b->data = out[p].data;
        b->bytes = out[p].bytes;
        set_box(b, true, &g->members[p]);
    }
}

static rs_status exchange(comm *c, const comm_part *out, const comm_part *in) {
    member *m = (member *)c;
    local_group *g = m->group;
    struct timespec until = clock_after(g->deadline_s);
    if (atomic_load(&g->aborted)) return status_fail(RS_PEER_LOST, "rank %u: the group was aborted", c->rank);
    post(m, out);
    for (uint32_t i = 1; i < g->ranks; i++) {
        uint32_t p = (c->rank + i) % g->ranks; /* everyone starts with another peer */
        if (in[p].bytes > 0) RS_TRY(receive(m, p, in[p], &until));
    }
    for (uint32_t p = 0; p < g->ranks; p++) {
        if (p != c->rank && out[p].bytes > 0) RS_TRY(wait_box(m, box(g, c->rank, p), false, p, &until));
    }
    return RS_OK;
}

static void abort_group(comm *c) {
    local_group *g = ((member *)c)->group;
    atomic_store(&g->aborted, true);
    for (uint32_t p = 0; p < g->ranks; p++) wake(&g->members[p]);
}

rs_status local_group_open(uint32_t ranks, double deadline_s, bool roomy, local_group **out) {
    assert(ranks >= 1 && ranks <= RS_RANKS_MAX);
    local_group *g = calloc(1, sizeof *g + ranks * sizeof g->members[0]);
    mailbox *boxes = aligned_alloc(LINE_BYTES, (size_t)ranks * ranks * sizeof *boxes);
    if (g == NULL || boxes == NULL) {
        free(g);
        free(boxes);
        return status_fail(RS_NO_MEMORY, "no memory for a group of %u ranks", ranks);
    }
    memset(boxes, 0, (size_t)ranks * ranks * sizeof *boxes);
    g->deadline_s = deadline_s;
    g->roomy = roomy;
    g->ranks = ranks;
    g->boxes = boxes;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    for (uint32_t r = 0; r < ranks; r++) {
        g->members[r].comm = (comm){r, ranks, exchange, abort_group};
        g->members[r].group = g;
        pthread_mutex_init(&g->members[r].lock, NULL);
        pthread_cond_init(&g->members[r].wake, &monotonic);
    }
    pthread_condattr_destroy(&monotonic);
    *out = g;
    return RS_OK;
}

void local_group_close(local_group *g) {
    if (g == NULL) return;
    for (uint32_t r = 0; r < g->ranks; r++) {
        pthread_cond_destroy(&g->members[r].wake);
        pthread_mutex_destroy(&g->members[r].lock);
    }
    free(g->boxes);
    free(g);
}

comm *local_group_comm(local_group *g, uint32_t rank) {
    return &g->members[rank].comm;
}
