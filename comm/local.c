/* local.c: ranks as threads of one process. A sender posts a pointer, the receiver copies and acknowledges. Waits
 * sleep: ranks may outnumber cores, and polling would take the core from the peer that is waited for. */
#include "comm/local.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

typedef struct mailbox {
    const void *data;
    size_t bytes;
    bool full;
} mailbox;

typedef struct member {
    comm comm; /* first, so that a comm is its member */
    local_group *group;
    pthread_cond_t wake;
} member;

struct local_group {
    pthread_mutex_t lock;
    double deadline_s;
    bool aborted;
    uint32_t ranks;
    mailbox *boxes; /* [ranks to][ranks from] */
    member members[];
};

static mailbox *box(local_group *g, uint32_t from, uint32_t to) {
    return &g->boxes[(size_t)to * g->ranks + from];
}

/* Sleeps, lock held, until the box is full (or empty) or the wait is in vain. */
static rs_status wait_box(member *m, const mailbox *b, bool full, uint32_t peer, const struct timespec *until) {
    local_group *g = m->group;
    while (b->full != full) {
        if (g->aborted) return status_fail(RS_PEER_LOST, "rank %u: the group was aborted", m->comm.rank);
        if (pthread_cond_timedwait(&m->wake, &g->lock, until) != 0 && b->full != full && !g->aborted) {
            return status_fail(RS_PEER_LATE, "rank %u waited %.0f s for rank %u", m->comm.rank, g->deadline_s, peer);
        }
    }
    return RS_OK;
}

/* Copies what `peer` posted for this rank, with the lock released meanwhile. */
static rs_status receive(member *m, uint32_t peer, comm_part part, const struct timespec *until) {
    local_group *g = m->group;
    mailbox *b = box(g, peer, m->comm.rank);
    RS_TRY(wait_box(m, b, true, peer, until));
    if (b->bytes != part.bytes) {
        return status_fail(RS_BAD_FORMAT, "rank %u expected %zu bytes from rank %u and got %zu", m->comm.rank,
                           part.bytes, peer, b->bytes);
    }
    pthread_mutex_unlock(&g->lock);
    memcpy(part.data, b->data, b->bytes);
    pthread_mutex_lock(&g->lock);
    b->full = false;
    pthread_cond_signal(&g->members[peer].wake);
    return RS_OK;
}

static void post(member *m, const comm_part *out) {
    local_group *g = m->group;
    for (uint32_t p = 0; p < g->ranks; p++) {
        if (p == m->comm.rank || out[p].bytes == 0) continue;
        *box(g, m->comm.rank, p) = (mailbox){out[p].data, out[p].bytes, true};
        pthread_cond_signal(&g->members[p].wake);
    }
}

static rs_status exchange(comm *c, const comm_part *out, const comm_part *in) {
    member *m = (member *)c;
    local_group *g = m->group;
    rs_status status = RS_OK;
    struct timespec until = clock_after(g->deadline_s);
    pthread_mutex_lock(&g->lock);
    if (g->aborted) status = status_fail(RS_PEER_LOST, "rank %u: the group was aborted", c->rank);
    if (status == RS_OK) post(m, out);
    for (uint32_t i = 1; i < g->ranks && status == RS_OK; i++) {
        uint32_t p = (c->rank + i) % g->ranks; /* everyone starts with another peer */
        if (in[p].bytes > 0) status = receive(m, p, in[p], &until);
    }
    for (uint32_t p = 0; p < g->ranks && status == RS_OK; p++) {
        if (p != c->rank && out[p].bytes > 0) status = wait_box(m, box(g, c->rank, p), false, p, &until);
    }
    pthread_mutex_unlock(&g->lock);
    return status;
}

static void abort_group(comm *c) {
    local_group *g = ((member *)c)->group;
    pthread_mutex_lock(&g->lock);
    g->aborted = true;
    for (uint32_t p = 0; p < g->ranks; p++) pthread_cond_broadcast(&g->members[p].wake);
    pthread_mutex_unlock(&g->lock);
}

rs_status local_group_open(uint32_t ranks, double deadline_s, local_group **out) {
    assert(ranks >= 1 && ranks <= RS_RANKS_MAX);
    local_group *g = calloc(1, sizeof *g + ranks * sizeof g->members[0]);
    mailbox *boxes = calloc((size_t)ranks * ranks, sizeof *boxes);
    if (g == NULL || boxes == NULL) {
        free(g);
        free(boxes);
        return status_fail(RS_NO_MEMORY, "no memory for a group of %u ranks", ranks);
    }
    g->deadline_s = deadline_s;
    g->ranks = ranks;
    g->boxes = boxes;
    pthread_mutex_init(&g->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    for (uint32_t r = 0; r < ranks; r++) {
        g->members[r].comm = (comm){r, ranks, exchange, abort_group};
        g->members[r].group = g;
        pthread_cond_init(&g->members[r].wake, &monotonic);
    }
    pthread_condattr_destroy(&monotonic);
    *out = g;
    return RS_OK;
}

void local_group_close(local_group *g) {
    if (g == NULL) return;
    for (uint32_t r = 0; r < g->ranks; r++) pthread_cond_destroy(&g->members[r].wake);
    pthread_mutex_destroy(&g->lock);
    free(g->boxes);
    free(g);
}

comm *local_group_comm(local_group *g, uint32_t rank) {
    return &g->members[rank].comm;
}
