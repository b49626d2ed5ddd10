/* cluster.c: what head and members share: the verdict, the communicator, news. */
#include "engine/cluster.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

static const double CONNECT_S = 20.0;
static const double VERDICT_S = PEER_SILENCE_S + 1; /* until a machine that is gone has been found to be */

rs_status cluster_new(const rs_cluster_options *o, rs_cluster **out) {
    rs_cluster *c = calloc(1, sizeof *c);
    if (c == NULL) return status_fail(RS_NO_MEMORY, "no memory for a cluster");
    c->options = *o;
    c->listener = -1;
    pthread_mutex_init(&c->lock, NULL);
    clock_condition_init(&c->judged);
    c->machines = 1; /* the head */
    *out = c;
    return RS_OK;
}

void cluster_stop_listening(rs_cluster *c) {
    if (c->listener >= 0) close(c->listener);
    c->listener = -1;
}

void rs_cluster_close(rs_cluster *c) {
    if (c == NULL) return;
    for (uint32_t i = 0; i < c->machines; i++) {
        if (c->machine[i].peer != NULL) peer_send(c->machine[i].peer, PEER_BYE, NULL, 0);
    }
    for (uint32_t i = 0; i < c->machines; i++) peer_close(c->machine[i].peer);
    cluster_stop_listening(c);
    pthread_cond_destroy(&c->judged);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

void cluster_news(rs_cluster *c, const char *text, ...) {
    char line[STATUS_TEXT_MAX];
    va_list list;
    if (c->options.news == NULL) return;
    va_start(list, text);
    status_format(line, sizeof line, text, list);
    va_end(list);
    c->options.news(c->options.user, line);
}

const char *cluster_host(const rs_cluster *c, uint32_t index) {
    return index < c->machines ? c->machine[index].host : "unknown";
}

/* ---- The verdict ---- */

/* Keeps the first news of an end and fails the ranks. */
static void judge(rs_cluster *c, rs_status status, const char *why) {
    pthread_mutex_lock(&c->lock);
    if (!c->over) {
        c->over = true;
        c->verdict = status;
        snprintf(c->why, sizeof c->why, "%s", why);
    }
    /* A head that leaves as it should has told the ranks to quit, by another way than its word that it leaves, which
     * may come first; one that has not is missed by them. */
    if (c->running != NULL && status != RS_OK) c->running->abort(c->running);
    pthread_cond_broadcast(&c->judged);
    pthread_mutex_unlock(&c->lock);
}

void cluster_lost(void *cluster, peer *p, rs_status status, const char *why) {
    rs_cluster *c = cluster;
    char text[STATUS_TEXT_MAX];
    uint32_t i = 0;
    pthread_mutex_lock(&c->lock);
    while (i < c->machines && c->machine[i].peer != p) i++;
    bool known = i < c->machines; /* else it was not let in yet: one at a time is */
    if (!known) c->left_early = true;
    pthread_mutex_unlock(&c->lock);
    if (!known) return;
    if (!c->leads) {
        snprintf(text, sizeof text, "the head (%s): %.400s", c->machine[i].host, why);
    } else {
        snprintf(text, sizeof text, "rank %u (%s): %.400s", i, c->machine[i].host, why);
        /* A member may leave as it, or its user, likes, but not unnoticed. */
        if (status == RS_OK || status == RS_CANCELLED) status = RS_PEER_LOST;
    }
    judge(c, status, text);
}

void cluster_poll(rs_cluster *c) {
    if (c->options.go_on != NULL && !c->options.go_on(c->options.user)) judge(c, RS_CANCELLED, "its user stopped it");
}

/* Waits for the verdict, which a lost peer's own last words may be late to give. */
static bool await_verdict(rs_cluster *c, double seconds) {
    struct timespec until = clock_after(seconds);
    int late = 0;
    pthread_mutex_lock(&c->lock);
    while (!c->over && late == 0) late = pthread_cond_timedwait(&c->judged, &c->lock, &until);
    bool over = c->over;
    pthread_mutex_unlock(&c->lock);
    return over;
}

rs_status cluster_fail(rs_cluster *c, rs_status status) {
    char why[STATUS_TEXT_MAX];
    snprintf(why, sizeof why, "%s", rs_last_error());
    if (status == RS_PEER_LOST) await_verdict(c, VERDICT_S);
    judge(c, status, why);
    rs_status verdict = cluster_verdict(c);
    if (verdict == RS_OK) return status_fail(RS_PEER_LOST, "the head left in the middle of a command");
    snprintf(why, sizeof why, "%s", rs_last_error());
    for (uint32_t i = 0; i < c->machines; i++) {
        if (c->machine[i].peer != NULL) peer_send_failure(c->machine[i].peer, verdict, why);
    }
    return status_fail(verdict, "%s", why);
}

rs_status cluster_verdict(rs_cluster *c) {
    pthread_mutex_lock(&c->lock);
    rs_status status = c->over ? c->verdict : RS_OK;
    if (status != RS_OK) status_fail(status, "%s", c->why);
    pthread_mutex_unlock(&c->lock);
    return status;
}

/* ---- The ranks ---- */

/* From here on bad news fails this communicator. */
static void run_on(rs_cluster *c, comm *ends) {
    pthread_mutex_lock(&c->lock);
    c->running = ends;
    bool over = c->over;
    pthread_mutex_unlock(&c->lock);
    if (over) ends->abort(ends);
}

/* ucx_connect, which says what may be wrong where machines reach the head but not each other. */
static rs_status connect_ranks(const rs_cluster *c, ucx_comm *u, uint32_t own, uint32_t ranks,
                               const comm_part *addresses) {
    rs_status status = ucx_connect(u, own, ranks, addresses, c->epoch, CONNECT_S);
    if (status != RS_PEER_LATE && status != RS_PEER_LOST) return status;
    return status_fail(status,
                       "%.300s; UCX opens ports of its own between all machines: let them through, or name the network "
                       "that all share in UCX_NET_DEVICES",
                       rs_last_error());
}

rs_status cluster_measure_links(rs_cluster *c, ucx_comm *u, uint32_t own, uint32_t ranks, const comm_part *addresses,
                                rs_link *list) {
    RS_TRY(connect_ranks(c, u, own, ranks, addresses));
    comm *ends = ucx_comm_of(u);
    ends->deadline_s = CLUSTER_ANSWER_S;
    run_on(c, ends);
    rs_status status = links_measure(ends, list);
    cluster_end(c);
    return status;
}

rs_status cluster_connect(rs_cluster *c, rs_engine *e, const comm_part *addresses) {
    uint32_t ranks = e->plan->sharding.ranks, threads[RS_RANKS_MAX] = {rank_threads(&e->plan->options, e->first)};
    RS_TRY(connect_ranks(c, e->ucx, e->first, ranks, addresses));
    /* A process that leaves units to others does not pin: several ranks of one machine would meet on the same ones. */
    if (threads[0] == e->topology->cpus) topology_deal(e->topology, 1, threads);
    e->cluster = c;
    comm *ends = ucx_comm_of(e->ucx);
    ends->deadline_s = RANK_DEADLINE_S;
    run_on(c, ends);
    return engine_start(e, 0, ends);
}

void cluster_end(rs_cluster *c) {
    pthread_mutex_lock(&c->lock);
    c->running = NULL;
    pthread_mutex_unlock(&c->lock);
}
