/* local.c: ranks as threads of one process. A sender posts a pointer, the receiver copies and acknowledges. Both wait
 * awake for a moment, then sleep; no lock is touched unless somebody sleeps. */
#include "comm/local.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/spin.h"

enum { LINE_BYTES = 64 };

/* The foreground and each lane meet in mailboxes of their own, since any may overtake the others. */
typedef uint32_t way; /* a comm_lane, or FOREGROUND */
enum { FOREGROUND = LANES, WAYS };

/* Written by the sender while empty, by the receiver while full. */
typedef struct mailbox {
    _Alignas(LINE_BYTES) const void *data;
    size_t bytes;
    atomic_bool full;
} mailbox;

typedef struct member {
    _Alignas(LINE_BYTES) comm comm; /* first, so that a comm is its member */
    local_group *group;
    pthread_mutex_t lock; /* held to fall asleep and to wake */
    pthread_cond_t wake;
    atomic_bool asleep;
    _Alignas(LINE_BYTES) spin spin; /* the member's alone, and written all the time */
    comm_part out[LANES][RS_RANKS_MAX], in[LANES][RS_RANKS_MAX];
} member;

struct local_group {
    atomic_bool aborted;
    uint32_t ranks;
    mailbox *boxes; /* [ways][ranks to][ranks from] */
    member members[];
};

static mailbox *box(local_group *g, way w, uint32_t from, uint32_t to) {
    return &g->boxes[((size_t)w * g->ranks + to) * g->ranks + from];
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
    while (waits(m, b, full) && spin_on(&m->spin)) continue;
    if (waits(m, b, full)) {
        int timeout = 0;
        pthread_mutex_lock(&m->lock);
        atomic_store(&m->asleep, true);
        while (waits(m, b, full) && timeout == 0) timeout = pthread_cond_timedwait(&m->wake, &m->lock, until);
        atomic_store(&m->asleep, false);
        pthread_mutex_unlock(&m->lock);
    }
    spin_end(&m->spin);
    if (atomic_load(&b->full) == full) return RS_OK;
    if (atomic_load(&g->aborted)) return status_fail(RS_PEER_LOST, "rank %u: the group was aborted", m->comm.rank);
    return status_fail(RS_PEER_LATE, "rank %u waited %.0f s for rank %u", m->comm.rank, m->comm.deadline_s, peer);
}

/* Copies what `peer` posted for this rank. */
static rs_status receive(member *m, way w, uint32_t peer, comm_part part, const struct timespec *until) {
    local_group *g = m->group;
    mailbox *b = box(g, w, peer, m->comm.rank);
    RS_TRY(wait_box(m, b, true, peer, until));
    if (b->bytes != part.bytes) {
        return status_fail(RS_BAD_FORMAT, "rank %u expected %zu bytes from rank %u and got %zu", m->comm.rank,
                           part.bytes, peer, b->bytes);
    }
    memcpy(part.data, b->data, b->bytes);
    set_box(b, false, &g->members[peer]);
    return RS_OK;
}

static rs_status post(member *m, way w, const comm_part *out) {
    local_group *g = m->group;
    if (atomic_load(&g->aborted)) return status_fail(RS_PEER_LOST, "rank %u: the group was aborted", m->comm.rank);
    for (uint32_t p = 0; p < g->ranks; p++) {
        if (p == m->comm.rank || out[p].bytes == 0) continue;
        mailbox *b = box(g, w, m->comm.rank, p);
        b->data = out[p].data;
        b->bytes = out[p].bytes;
        set_box(b, true, &g->members[p]);
    }
    return RS_OK;
}

/* Receives what others posted, and waits until they have what this rank posted. */
static rs_status complete(member *m, way w, const comm_part *out, const comm_part *in) {
    local_group *g = m->group;
    uint32_t own = m->comm.rank;
    struct timespec until = clock_after(m->comm.deadline_s);
    for (uint32_t i = 1; i < g->ranks; i++) {
        uint32_t p = (own + i) % g->ranks; /* everyone starts with another peer */
        if (in[p].bytes > 0) RS_TRY(receive(m, w, p, in[p], &until));
    }
    for (uint32_t p = 0; p < g->ranks; p++) {
        if (p != own && out[p].bytes > 0) RS_TRY(wait_box(m, box(g, w, own, p), false, p, &until));
    }
    return RS_OK;
}

static rs_status exchange(comm *c, const comm_part *out, const comm_part *in) {
    member *m = (member *)c;
    RS_TRY(post(m, FOREGROUND, out));
    return complete(m, FOREGROUND, out, in);
}

static rs_status begin(comm *c, comm_lane lane, const comm_part *out, const comm_part *in) {
    member *m = (member *)c;
    memcpy(m->out[lane], out, c->ranks * sizeof *out);
    memcpy(m->in[lane], in, c->ranks * sizeof *in);
    return post(m, lane, m->out[lane]);
}

static rs_status finish(comm *c, comm_lane lane) {
    member *m = (member *)c;
    return complete(m, lane, m->out[lane], m->in[lane]);
}

static void abort_group(comm *c) {
    local_group *g = ((member *)c)->group;
    atomic_store(&g->aborted, true);
    for (uint32_t p = 0; p < g->ranks; p++) wake(&g->members[p]);
}

rs_status local_group_open(uint32_t ranks, double deadline_s, bool roomy, local_group **out) {
    assert(ranks >= 1 && ranks <= RS_RANKS_MAX);
    size_t bytes = sizeof(local_group) + ranks * sizeof(member);
    local_group *g = aligned_alloc(LINE_BYTES, bytes);
    size_t boxes_bytes = (size_t)WAYS * ranks * ranks * sizeof(mailbox);
    mailbox *boxes = aligned_alloc(LINE_BYTES, boxes_bytes);
    if (g == NULL || boxes == NULL) {
        free(g);
        free(boxes);
        return status_fail(RS_NO_MEMORY, "no memory for a group of %u ranks", ranks);
    }
    memset(g, 0, bytes);
    memset(boxes, 0, boxes_bytes);
    g->ranks = ranks;
    g->boxes = boxes;
    for (uint32_t r = 0; r < ranks; r++) {
        g->members[r].comm = (comm){r, ranks, deadline_s, exchange, begin, finish, abort_group};
        g->members[r].group = g;
        g->members[r].spin = spin_habit(roomy);
        pthread_mutex_init(&g->members[r].lock, NULL);
        clock_condition_init(&g->members[r].wake);
    }
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
