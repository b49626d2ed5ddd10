/* ucx.c: exchanges over UCX's matched messages (UCP tags). Both sides post what they send and what they expect, large
 * messages go straight from memory to memory, and UCX moves them whenever somebody progresses its worker: the rank's
 * thread while it waits, a thread of our own while an exchange goes on in the background and the rank computes.
 *
 * Two ranks that have anything for each other both send in an exchange, the one with nothing an empty message. So no
 * rank is ahead of another by more than one exchange, and what lies unexpected at a slow one stays bounded; UCX's
 * synchronous send, which would do the same, is not to be had together with its detection of lost peers.
 *
 * One lock of our own is held round every call to UCX, which guards the state here as well. UCX's own locking
 * (UCS_THREAD_MODE_MULTI) instead of it would leave that state to guard, and cannot keep the background thread out of
 * the way of the rank's. */
#include "comm/ucx.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <ucp/api/ucp.h>
#include <ucs/debug/log_def.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/spin.h"

/* While the rank's thread is in an exchange, which moves the background's bytes too, the background thread only looks
 * whether that has ended. To be woken by the rank's thread after each exchange would cost that one more. */
static const double NAP_S = 500e-6;

/* Bounds of what goes on after a failure or at the end, when peers may hang: for messages that are under way already,
 * and for connections to be closed. */
static const double SETTLE_S = 0.02, CLOSE_S = 1.0;

/* The foreground and each lane are matched apart, since any may overtake the others. */
typedef uint32_t way; /* a comm_lane, or FOREGROUND */
enum { FOREGROUND = LANES, WAYS };

/* A tag is epoch, way, sender and number of the exchange between the two, modulo its bits: those never differ by more
 * than one between two ranks. */
enum { SEQUENCE_BITS = 24, RANK_BITS = 6, WAY_BITS = 2, EPOCH_SHIFT = 32 };
_Static_assert(1 << RANK_BITS == RS_RANKS_MAX && WAYS <= 1 << WAY_BITS, "a tag tells all ranks and ways apart");
_Static_assert(SEQUENCE_BITS + RANK_BITS + WAY_BITS == EPOCH_SHIFT, "a tag has 64 bits");

/* One message, sent or expected. */
typedef struct transfer {
    struct ucx_comm *owner;
    void *request;  /* UCX's, to cancel it; NULL: none yet */
    bool under_way; /* the caller's memory may be touched */
    bool receives;
    uint8_t way;
    uint32_t peer;
    size_t bytes; /* expected, when receiving */
} transfer;

/* What goes one way. */
typedef struct flow {
    uint32_t open; /* transfers under way */
    uint32_t sequence[RS_RANKS_MAX];
    transfer out[RS_RANKS_MAX], in[RS_RANKS_MAX];
} flow;

/* What a rank tells the others beside exchanges, as an active message without data. */
typedef enum notice_kind { NOTICE_ABORT = 1, NOTICE_LEAVE } notice_kind;
typedef struct notice {
    uint32_t epoch;
    uint8_t kind, sender, culprit, zero;
} notice;
enum { NOTICE_ID = 1 };

struct ucx_comm {
    comm comm; /* first, so that a comm is its ucx_comm */
    ucp_context_h context;
    ucp_worker_h worker;
    ucp_address_t *address;
    size_t address_bytes;
    int event_fd; /* UCX's: readable when an armed worker has something to do */
    int wake_fd;  /* readable for ever once aborted or closing */
    uint32_t epoch;
    atomic_bool aborted;
    atomic_uint wanted; /* threads that want the lock or have it, but the background's */
    spin spin;          /* the rank's */

    pthread_mutex_t lock; /* over all that follows, and calls to UCX */
    pthread_cond_t resume;
    pthread_t thread; /* of the background */
    bool has_thread, thread_polls, closing;
    flow flows[WAYS];
    ucp_ep_h endpoints[RS_RANKS_MAX]; /* NULL: own, not connected or closed */
    bool has_left[RS_RANKS_MAX];
    uint32_t errands; /* notices and closures under way */
    notice notice;    /* being sent */
    bool mute;        /* a transfer could not be ended: progress might touch the caller's memory */

    rs_status status; /* the first failure */
    uint32_t culprit; /* the rank it is blamed on; this rank for its own */
    char error[STATUS_TEXT_MAX];
};

/* ---- Failures */

/* Notes the first failure; whatever comes of it later is not news. */
__attribute__((format(printf, 4, 5))) static void blame(ucx_comm *u, rs_status status, uint32_t culprit,
                                                        const char *format, ...) {
    if (u->status != RS_OK) return;
    va_list args;
    va_start(args, format);
    vsnprintf(u->error, sizeof u->error, format, args);
    va_end(args);
    u->status = status;
    u->culprit = culprit;
}

static void blame_lost(ucx_comm *u, uint32_t peer, const char *how) {
    blame(u, RS_PEER_LOST, peer, "rank %u: rank %u is lost (%s)", u->comm.rank, peer, how);
}

static bool awaits(const ucx_comm *u, uint32_t peer) {
    for (way w = 0; w < WAYS; w++) {
        if (u->flows[w].in[peer].under_way || u->flows[w].out[peer].under_way) return true;
    }
    return false;
}

/* UCX lost the connection. Of a rank that said it leaves that is no news. */
static void on_peer_error(void *argument, ucp_ep_h endpoint, ucs_status_t status) {
    ucx_comm *u = argument;
    for (uint32_t p = 0; p < u->comm.ranks; p++) {
        if (u->endpoints[p] == endpoint && (!u->has_left[p] || awaits(u, p))) {
            blame_lost(u, p, ucs_status_string(status));
        }
    }
}

static ucs_status_t on_notice(void *argument, const void *header, size_t header_bytes, void *data, size_t bytes,
                              const ucp_am_recv_param_t *param) {
    ucx_comm *u = argument;
    notice n;
    (void)data, (void)bytes, (void)param;
    if (header_bytes != sizeof n) return UCS_OK;
    memcpy(&n, header, sizeof n);
    if (n.epoch != u->epoch || n.sender >= u->comm.ranks || n.culprit >= u->comm.ranks) return UCS_OK;
    uint32_t own = u->comm.rank;
    if (n.kind == NOTICE_LEAVE) {
        u->has_left[n.sender] = true;
        if (awaits(u, n.sender)) blame_lost(u, n.sender, "it left");
    } else if (n.culprit == n.sender || n.culprit == own) {
        blame(u, RS_PEER_LOST, n.sender, "rank %u: rank %u aborted the group", own, n.sender);
    } else {
        blame(u, RS_PEER_LOST, n.culprit, "rank %u: rank %u lost rank %u", own, n.sender, n.culprit);
    }
    return UCS_OK;
}

/* ---- The worker: all with the lock held */

static void enter(ucx_comm *u) {
    atomic_fetch_add(&u->wanted, 1);
    pthread_mutex_lock(&u->lock);
}

static void leave(ucx_comm *u) {
    pthread_mutex_unlock(&u->lock);
    atomic_fetch_sub(&u->wanted, 1);
}

/* Sleeps, without the lock, until UCX has something to do, the group is aborted or clock_s() reaches `until`. */
static void sleep_until(ucx_comm *u, double until) {
    ucs_status_t armed = ucp_worker_arm(u->worker);
    if (armed == UCS_ERR_BUSY) return; /* something came meanwhile */
    if (armed != UCS_OK) {
        blame(u, RS_DEVICE, u->comm.rank, "UCX cannot wait for messages: %s", ucs_status_string(armed));
        return;
    }
    pthread_mutex_unlock(&u->lock);
    struct pollfd fds[] = {{.fd = u->event_fd, .events = POLLIN}, {.fd = u->wake_fd, .events = POLLIN}};
    double left = until - clock_s();
    if (left < 1e9) {
        struct timespec timeout = {0};
        if (left > 0.0) {
            timeout.tv_sec = (time_t)left;
            timeout.tv_nsec = (long)((left - (double)timeout.tv_sec) * 1e9);
        }
        ppoll(fds, 2, &timeout, NULL);
    } else {
        ppoll(fds, 2, NULL, NULL);
    }
    pthread_mutex_lock(&u->lock);
}

/* Progresses until *count is 0, for at most `seconds`. */
static void run_down(ucx_comm *u, const uint32_t *count, double seconds) {
    double until = clock_s() + seconds;
    while (*count > 0 && !u->mute && clock_s() < until) {
        if (ucp_worker_progress(u->worker) == 0) sched_yield();
    }
}

/* Has the background thread look for what it is to do. */
static void stir_background(ucx_comm *u) {
    if (u->thread_polls) {
        ucp_worker_signal(u->worker); /* it has to arm again after what was posted */
    } else {
        pthread_cond_signal(&u->resume);
    }
}

/* Gives notices a moment to go, and leaves those that need longer to the background thread: a peer may wait for one
 * for ever, and this rank need not exchange again. */
static void settle_notices(ucx_comm *u) {
    run_down(u, &u->errands, SETTLE_S);
    if (u->errands > 0) stir_background(u);
}

static void on_errand_done(void *request, ucs_status_t status, void *argument) {
    (void)status;
    ((ucx_comm *)argument)->errands--;
    ucp_request_free(request);
}

/* Counts what UCX returned for a notice or a closure: nothing more comes where it is no request. */
static void note_errand(ucx_comm *u, ucs_status_ptr_t request) {
    if (!UCS_PTR_IS_PTR(request)) u->errands--;
}

static void send_notice(ucx_comm *u, uint32_t peer) {
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
                                 .cb.send = on_errand_done,
                                 .user_data = u};
    if (u->endpoints[peer] == NULL || u->has_left[peer]) return;
    u->errands++;
    note_errand(u, ucp_am_send_nbx(u->endpoints[peer], NOTICE_ID, &u->notice, sizeof u->notice, NULL, 0, &param));
}

/* Closes a connection: gracefully, or at once with all that is under way on it. */
static void close_endpoint(ucx_comm *u, uint32_t peer, bool force) {
    ucp_request_param_t param = {.op_attr_mask =
                                     UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS,
                                 .flags = force ? UCP_EP_CLOSE_FLAG_FORCE : 0,
                                 .cb.send = on_errand_done,
                                 .user_data = u};
    ucp_ep_h endpoint = u->endpoints[peer];
    if (endpoint == NULL) return;
    u->endpoints[peer] = NULL;
    u->errands++;
    note_errand(u, ucp_ep_close_nbx(endpoint, &param));
}

static void set_notice(ucx_comm *u, notice_kind kind) {
    u->notice =
        (notice){.epoch = u->epoch, .kind = (uint8_t)kind, .sender = (uint8_t)u->comm.rank, .culprit = u->culprit};
}

/* Transfers under way in the first `ways`: LANES, or WAYS with the foreground. */
static uint32_t open_transfers(const ucx_comm *u, way ways) {
    uint32_t open = 0;
    for (way w = 0; w < ways; w++) open += u->flows[w].open;
    return open;
}

/* After a failure: ends all transfers, so that the caller's memory is his again. What is expected can be withdrawn,
 * but what two ranks are in the midst of ends only with their connection; the other is told first whose fault it is. */
static void withdraw(ucx_comm *u) {
    if (open_transfers(u, WAYS) == 0) return;
    for (way w = 0; w < WAYS; w++) {
        for (uint32_t p = 0; p < u->comm.ranks; p++) {
            transfer *t = &u->flows[w].in[p];
            if (t->under_way && t->request != NULL) ucp_request_cancel(u->worker, t->request);
        }
    }
    for (way w = 0; w < WAYS; w++) run_down(u, &u->flows[w].open, SETTLE_S);
    set_notice(u, NOTICE_ABORT);
    for (uint32_t p = 0; p < u->comm.ranks; p++) {
        if (awaits(u, p)) send_notice(u, p);
    }
    settle_notices(u);
    for (uint32_t p = 0; p < u->comm.ranks; p++) {
        if (awaits(u, p)) close_endpoint(u, p, true);
    }
    for (way w = 0; w < WAYS; w++) run_down(u, &u->flows[w].open, CLOSE_S);
    u->mute = open_transfers(u, WAYS) > 0;
}

/* ---- Exchanges */

static uint64_t tag_of(const ucx_comm *u, way w, uint32_t sender, uint32_t sequence) {
    uint32_t low = (w << RANK_BITS | sender) << SEQUENCE_BITS | (sequence & ((1u << SEQUENCE_BITS) - 1));
    return (uint64_t)u->epoch << EPOCH_SHIFT | low;
}

static void end_transfer(transfer *t, ucs_status_t status, size_t bytes) {
    ucx_comm *u = t->owner;
    t->under_way = false;
    t->request = NULL;
    u->flows[t->way].open--;
    if (status == UCS_ERR_MESSAGE_TRUNCATED || (status == UCS_OK && t->receives && bytes != t->bytes)) {
        blame(u, RS_BAD_FORMAT, u->comm.rank, "rank %u expected %zu bytes from rank %u and got %zu", u->comm.rank,
              t->bytes, t->peer, bytes);
    } else if (status != UCS_OK) {
        blame_lost(u, t->peer, ucs_status_string(status));
    }
}

static void on_sent(void *request, ucs_status_t status, void *argument) {
    end_transfer(argument, status, 0);
    ucp_request_free(request);
}

static void on_received(void *request, ucs_status_t status, const ucp_tag_recv_info_t *info, void *argument) {
    end_transfer(argument, status, info->length);
    ucp_request_free(request);
}

/* UCX returned a request (whose callback it may have called already) or, when it is done at once, a status. */
static void note_transfer(transfer *t, ucs_status_ptr_t request) {
    if (!UCS_PTR_IS_PTR(request)) {
        end_transfer(t, UCS_PTR_RAW_STATUS(request), 0);
    } else if (t->under_way) {
        t->request = request;
    }
}

static transfer *begin_transfer(ucx_comm *u, transfer *t, transfer value) {
    *t = value;
    t->owner = u;
    t->under_way = true;
    u->flows[t->way].open++;
    return t;
}

/* Always by callback: what UCX returns when a message of several pieces is there at once lacks its size. */
static void start_receive(ucx_comm *u, way w, uint32_t peer, comm_part part) {
    flow *f = &u->flows[w];
    transfer *t = begin_transfer(u, &f->in[peer], (transfer){.receives = true, .way = w, .peer = peer});
    t->bytes = part.bytes;
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                                                 UCP_OP_ATTR_FLAG_NO_IMM_CMPL,
                                 .cb.recv = on_received,
                                 .user_data = t};
    uint64_t tag = tag_of(u, w, peer, f->sequence[peer]);
    note_transfer(t, ucp_tag_recv_nbx(u->worker, part.data, part.bytes, tag, UINT64_MAX, &param));
}

static void start_send(ucx_comm *u, way w, uint32_t peer, comm_part part) {
    flow *f = &u->flows[w];
    transfer *t = begin_transfer(u, &f->out[peer], (transfer){.way = w, .peer = peer});
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA, .cb.send = on_sent, .user_data = t};
    uint64_t tag = tag_of(u, w, u->comm.rank, f->sequence[peer]++);
    note_transfer(t, ucp_tag_send_nbx(u->endpoints[peer], part.data, part.bytes, tag, &param));
}

/* Everything is expected before anything is sent, so that messages find their place when they come. */
static void post(ucx_comm *u, way w, const comm_part *out, const comm_part *in) {
    uint32_t own = u->comm.rank, ranks = u->comm.ranks;
    for (uint32_t p = 0; p < ranks; p++) {
        if (p == own || (out[p].bytes == 0 && in[p].bytes == 0)) continue;
        if (u->endpoints[p] == NULL || u->has_left[p]) blame_lost(u, p, "it left");
    }
    for (uint32_t p = 0; p < ranks && u->status == RS_OK; p++) {
        if (p != own && (out[p].bytes > 0 || in[p].bytes > 0)) start_receive(u, w, p, in[p]);
    }
    for (uint32_t i = 1; i < ranks && u->status == RS_OK; i++) {
        uint32_t p = (own + i) % ranks; /* everyone starts with another peer */
        if (out[p].bytes > 0 || in[p].bytes > 0) start_send(u, w, p, out[p]);
    }
}

static void look_for_abort(ucx_comm *u) {
    if (atomic_load(&u->aborted)) blame(u, RS_PEER_LOST, u->comm.rank, "rank %u: the group was aborted", u->comm.rank);
}

static void blame_late(ucx_comm *u, const flow *f) {
    uint32_t p = 0;
    while (p + 1 < u->comm.ranks && !f->in[p].under_way) p++;
    for (uint32_t q = 0; !f->in[p].under_way && q < u->comm.ranks; q++) {
        if (f->out[q].under_way) p = q;
    }
    blame(u, RS_PEER_LATE, p, "rank %u waited %.0f s for rank %u", u->comm.rank, u->comm.deadline_s, p);
}

/* Waits until nothing of the flow is under way, or in vain. */
static void complete(ucx_comm *u, const flow *f) {
    double until = clock_s() + u->comm.deadline_s;
    for (look_for_abort(u); f->open > 0 && u->status == RS_OK; look_for_abort(u)) {
        if (ucp_worker_progress(u->worker) == 0) {
            pthread_mutex_unlock(&u->lock); /* for abort, which must not wait for a spinning thread */
            bool awake = spin_on(&u->spin);
            pthread_mutex_lock(&u->lock);
            if (awake) continue;
            sleep_until(u, until);
        }
        if (clock_s() >= until && f->open > 0) blame_late(u, f);
    }
    spin_end(&u->spin);
}

/* Forwards the first failure to the rank's thread, with its memory no longer in use. */
static rs_status verdict(ucx_comm *u) {
    if (u->status == RS_OK) return RS_OK;
    withdraw(u);
    return status_fail(u->status, "%s", u->error);
}

static rs_status exchange(comm *c, const comm_part *out, const comm_part *in) {
    ucx_comm *u = (ucx_comm *)c;
    enter(u);
    look_for_abort(u);
    if (u->status == RS_OK) post(u, FOREGROUND, out, in);
    complete(u, &u->flows[FOREGROUND]);
    rs_status status = verdict(u);
    leave(u);
    return status;
}

static rs_status begin(comm *c, comm_lane lane, const comm_part *out, const comm_part *in) {
    ucx_comm *u = (ucx_comm *)c;
    enter(u);
    look_for_abort(u);
    if (u->status == RS_OK) post(u, lane, out, in);
    rs_status status = verdict(u);
    stir_background(u);
    leave(u);
    return status;
}

static rs_status finish(comm *c, comm_lane lane) {
    ucx_comm *u = (ucx_comm *)c;
    enter(u);
    complete(u, &u->flows[lane]);
    rs_status status = verdict(u);
    leave(u);
    return status;
}

static void wake(ucx_comm *u) {
    while (eventfd_write(u->wake_fd, 1) != 0 && errno == EINTR) continue;
}

static void abort_group(comm *c) {
    ucx_comm *u = (ucx_comm *)c;
    atomic_store(&u->aborted, true);
    wake(u);
    enter(u);
    look_for_abort(u);
    set_notice(u, NOTICE_ABORT);
    for (uint32_t p = 0; p < u->comm.ranks; p++) send_notice(u, p);
    settle_notices(u);
    leave(u);
}

/* This thread was born on the core of the one that connected, which may be pinned there and is to compute meanwhile.
 * The process's first thread never is pinned (base/topology.h). */
static void go_anywhere(void) {
    cpu_set_t all;
    if (sched_getaffinity(getpid(), sizeof all, &all) == 0) sched_setaffinity(0, sizeof all, &all);
}

static void nap(ucx_comm *u) {
    struct timespec end = clock_after(NAP_S);
    pthread_cond_timedwait(&u->resume, &u->lock, &end);
}

/* Exchanges in the background; after a failure or an abort only what tells the others of it. */
static bool background_has_work(const ucx_comm *u) {
    bool failed = u->status != RS_OK || atomic_load(&u->aborted);
    return failed ? u->errands > 0 && !u->mute : open_transfers(u, LANES) > 0;
}

/* Moves the background's bytes while the rank's thread is elsewhere. */
static void *background_main(void *argument) {
    ucx_comm *u = argument;
    go_anywhere();
    pthread_mutex_lock(&u->lock);
    while (!u->closing) {
        if (!background_has_work(u)) {
            pthread_cond_wait(&u->resume, &u->lock);
        } else if (atomic_load(&u->wanted) > 0) {
            nap(u);
        } else if (ucp_worker_progress(u->worker) > 0) {
            continue;
        } else if (atomic_load(&u->aborted)) {
            nap(u); /* sleep_until would not sleep any more */
        } else {
            u->thread_polls = true;
            sleep_until(u, INFINITY);
            u->thread_polls = false;
        }
    }
    pthread_mutex_unlock(&u->lock);
    return NULL;
}

/* ---- Opening and closing */

/* Shared memory is left out by UCX when lost peers are to be detected, unless it is told to look now and then whether
 * the peer's process lives: here every second. Connecting over TCP would block for minutes where nobody answers.
 * Before UCX sends what is large it asks, two latencies more; by itself it calls some 20 KB large, whatever the
 * network. No rank is ahead of another by more than one exchange, so what comes unasked to a slow one is less than
 * this from each peer and way. The names are those of version 1.13 (MM: its shared memory); one that does not know
 * them warns and goes on. */
static ucs_status_t set_options(ucp_config_t *config) {
    static const char *const options[][2] = {
        {"KEEPALIVE_INTERVAL", "1s"}, {"MM_ERROR_HANDLING", "y"}, {"CONN_NB", "y"}, {"RNDV_THRESH", "1m"}};
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        ucs_status_t status = ucp_config_modify(config, options[i][0], options[i][1]);
        if (status != UCS_OK) return status;
    }
    return UCS_OK;
}

/* UCX logs to stdout, which is not ours. Its warnings tell of failures that our statuses tell; its errors may tell a
 * user what is wrong with the network; more comes only when UCX_LOG_LEVEL asks for it. */
__attribute__((format(printf, 6, 0))) static ucs_log_func_rc_t
log_to_stderr(const char *file, unsigned line, const char *function, ucs_log_level_t level,
              const ucs_log_component_config_t *component, const char *format, va_list args) {
    (void)file, (void)line, (void)function, (void)component;
    if (level == UCS_LOG_LEVEL_WARN) return UCS_LOG_FUNC_RC_STOP;
    char text[STATUS_TEXT_MAX];
    vsnprintf(text, sizeof text, format, args);
    fprintf(stderr, "UCX: %s\n", text);
    return UCS_LOG_FUNC_RC_STOP;
}

static void redirect_log(void) {
    ucs_log_push_handler(log_to_stderr);
}

static ucs_status_t open_context(ucx_comm *u) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    ucp_config_t *config;
    pthread_once(&once, redirect_log);
    ucs_status_t status = ucp_config_read(NULL, NULL, &config);
    if (status != UCS_OK) return status;
    ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES,
                           .features = UCP_FEATURE_TAG | UCP_FEATURE_AM | UCP_FEATURE_WAKEUP};
    status = set_options(config);
    if (status == UCS_OK) status = ucp_init(&params, config, &u->context);
    ucp_config_release(config);
    return status;
}

static ucs_status_t open_worker(ucx_comm *u) {
    ucp_worker_params_t params = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
                                  .thread_mode = UCS_THREAD_MODE_SERIALIZED};
    ucp_am_handler_param_t handler = {.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                                                    UCP_AM_HANDLER_PARAM_FIELD_ARG,
                                      .id = NOTICE_ID,
                                      .cb = on_notice,
                                      .arg = u};
    ucs_status_t status = ucp_worker_create(u->context, &params, &u->worker);
    if (status != UCS_OK) return status;
    status = ucp_worker_set_am_recv_handler(u->worker, &handler);
    if (status == UCS_OK) status = ucp_worker_get_efd(u->worker, &u->event_fd);
    if (status == UCS_OK) status = ucp_worker_get_address(u->worker, &u->address, &u->address_bytes);
    return status;
}

static void close_worker(ucx_comm *u) {
    if (u->address != NULL) ucp_worker_release_address(u->worker, u->address);
    if (u->worker != NULL) ucp_worker_destroy(u->worker);
    if (u->context != NULL) ucp_cleanup(u->context);
    if (u->wake_fd >= 0) close(u->wake_fd);
    pthread_cond_destroy(&u->resume);
    pthread_mutex_destroy(&u->lock);
    free(u);
}

rs_status ucx_open(bool roomy, ucx_comm **out) {
    ucx_comm *u = calloc(1, sizeof *u);
    if (u == NULL) return status_fail(RS_NO_MEMORY, "no memory for a rank's connections");
    u->comm = (comm){.exchange = exchange, .begin = begin, .finish = finish, .abort = abort_group};
    u->spin = spin_habit(roomy);
    pthread_mutex_init(&u->lock, NULL);
    clock_condition_init(&u->resume);
    u->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ucs_status_t status = u->wake_fd < 0 ? UCS_ERR_IO_ERROR : open_context(u);
    if (status == UCS_OK) status = open_worker(u);
    if (status != UCS_OK) {
        close_worker(u);
        return status_fail(RS_DEVICE, "UCX cannot start: %s", ucs_status_string(status));
    }
    *out = u;
    return RS_OK;
}

const void *ucx_address(const ucx_comm *u, size_t *bytes) {
    *bytes = u->address_bytes;
    return u->address;
}

size_t ucx_resident(uint32_t ranks) {
    const size_t itself = 12 << 20, peer = 4 << 20;
    return ranks > 1 ? itself + (ranks - 1) * peer : 0;
}

comm *ucx_comm_of(ucx_comm *u) {
    return &u->comm;
}

static void connect_peer(ucx_comm *u, uint32_t peer, comm_part address) {
    ucp_ep_params_t params = {.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                                            UCP_EP_PARAM_FIELD_ERR_HANDLER,
                              .address = address.data,
                              .err_mode = UCP_ERR_HANDLING_MODE_PEER,
                              .err_handler = {.cb = on_peer_error, .arg = u}};
    ucs_status_t status = ucp_ep_create(u->worker, &params, &u->endpoints[peer]);
    if (status == UCS_OK) return;
    u->endpoints[peer] = NULL;
    blame(u, RS_PEER_LOST, peer, "rank %u cannot connect to rank %u: %s", u->comm.rank, peer,
          ucs_status_string(status));
}

rs_status ucx_connect(ucx_comm *u, uint32_t rank, uint32_t ranks, const comm_part *addresses, uint32_t epoch,
                      double deadline_s) {
    assert(ranks >= 1 && ranks <= RS_RANKS_MAX && rank < ranks && u->comm.ranks == 0);
    enter(u);
    u->epoch = epoch;
    u->culprit = rank;
    u->comm.rank = rank;
    u->comm.ranks = ranks;
    u->comm.deadline_s = deadline_s;
    for (uint32_t p = 0; p < ranks && u->status == RS_OK; p++) {
        if (p != rank) connect_peer(u, p, addresses[p]);
    }
    rs_status status = verdict(u);
    if (status == RS_OK) u->has_thread = pthread_create(&u->thread, NULL, background_main, u) == 0;
    leave(u);
    if (status != RS_OK) return status;
    if (!u->has_thread) return status_fail(RS_NO_MEMORY, "rank %u cannot start its background thread", rank);

    uint32_t theirs[RS_RANKS_MAX];
    comm_part parts[RS_RANKS_MAX];
    for (uint32_t p = 0; p < ranks; p++) parts[p] = (comm_part){&theirs[p], sizeof *theirs};
    RS_TRY(comm_gather(&u->comm, &ranks, sizeof ranks, parts));
    for (uint32_t p = 0; p < ranks; p++) {
        if (p == rank || theirs[p] == ranks) continue;
        return status_fail(RS_BAD_FORMAT, "rank %u is one of %u, rank %u one of %u", rank, ranks, p, theirs[p]);
    }
    return RS_OK;
}

void ucx_close(ucx_comm *u) {
    if (u == NULL) return;
    enter(u);
    u->closing = true;
    wake(u);
    pthread_cond_signal(&u->resume);
    leave(u);
    if (u->has_thread) pthread_join(u->thread, NULL);
    enter(u);
    look_for_abort(u);
    withdraw(u);
    set_notice(u, u->status == RS_OK ? NOTICE_LEAVE : NOTICE_ABORT);
    for (uint32_t p = 0; p < u->comm.ranks; p++) send_notice(u, p);
    run_down(u, &u->errands, SETTLE_S);
    for (uint32_t p = 0; p < u->comm.ranks; p++) close_endpoint(u, p, u->status != RS_OK);
    run_down(u, &u->errands, CLOSE_S);
    leave(u);
    close_worker(u);
}
