/* cluster.h: the machines of a cluster as one of them sees the others: the head all members, a member the head.
 *
 * A member dials the head (comm/channel.h), both prove the secret, and it stays connected until either leaves. An
 * engine is opened on all machines by one exchange of words: the head sends each its PLAN, the member makes the same
 * plan of the same model, checks it against its own memory and answers READY with its address for comm/ucx.h; the head
 * sends everybody the NAMES, and the ranks connect. From there on commands go from rank to rank (engine/remote.h). The
 * first bad news of any machine is the cluster's verdict; it aborts the ranks' communicator here. */
#ifndef RS_ENGINE_CLUSTER_H
#define RS_ENGINE_CLUSTER_H

#include "engine/engine.h"
#include "engine/peer.h"
#include "model/partial.h"

enum { CLUSTER_HOST_MAX = 64 };

/* Longer than a machine takes to plan, to touch its memory, or to hash what it has of a model. */
static const double CLUSTER_ANSWER_S = 120.0;

typedef struct cluster_machine {
    peer *peer;                  /* NULL: this machine */
    char host[CLUSTER_HOST_MAX]; /* what it calls itself */
    bool has_model;              /* its disk has the model's file */
    bool known;                  /* what it is */
    rs_machine is;
} cluster_machine;

struct rs_cluster {
    rs_cluster_options options;
    uint32_t machines;           /* known here: all at the head, the head at a member */
    uint32_t epoch;              /* of the latest engine */
    bool leads;                  /* this is the head */
    int listener;                /* the head's, until all have come; -1: none */
    char model[MODEL_HASH_TEXT]; /* hash of the head's; "" where it only measures */

    pthread_mutex_t lock; /* of all below */
    pthread_cond_t judged;
    comm *running;     /* what bad news aborts, or NULL */
    bool left_early;   /* the machine that is being let in is gone again */
    bool over;         /* there is a verdict */
    rs_status verdict; /* RS_OK: the head said BYE */
    char why[STATUS_TEXT_MAX];

    cluster_machine machine[RS_RANKS_MAX]; /* by rank: [0] is the head */
};

/* ---- The head (head.c) ---- */

/* Opens an engine's rank 0 here and its other ranks on the members: e->plan is made. RS_PEER_LOST, RS_PEER_LATE, and
 * what a member refuses. */
rs_status cluster_start(rs_cluster *c, rs_engine *e);

/* ---- Both (cluster.c) ---- */

rs_status cluster_new(const rs_cluster_options *o, rs_cluster **out);

/* Whoever dials, or has dialled and was not let in, then looks on for a head as long as it was told to. */
void cluster_stop_listening(rs_cluster *c);

/* Measures the links of all pairs of ranks, each rank those to the ranks above it, and gathers them at rank 0, whose
 * list [ranks, ranks] is filled in (links.c). Every rank calls it. */
rs_status links_measure(comm *c, rs_link *list);

/* Connects for nothing but links_measure, as rank `own` of `ranks`. */
rs_status cluster_measure_links(rs_cluster *c, ucx_comm *u, uint32_t own, uint32_t ranks, const comm_part *addresses,
                                rs_link *list);

/* The engine's rank here, its communicator and everybody's addresses: [ranks]. */
rs_status cluster_connect(rs_cluster *c, rs_engine *e, const comm_part *addresses);

/* The engine is about to close: news no longer concerns its communicator. */
void cluster_end(rs_cluster *c);

/* A rank failed here: finds out what all began with (a machine that fails is soon followed by others that miss it),
 * tells the other machines, and returns it as this thread's error. */
rs_status cluster_fail(rs_cluster *c, rs_status status);

/* RS_OK while all is well, or when the head said BYE; else the verdict, which is then this thread's error. */
rs_status cluster_verdict(rs_cluster *c);

/* Ends it by this machine's own wish if the caller's go_on says so. */
void cluster_poll(rs_cluster *c);

/* What a rank's machine calls itself. */
const char *cluster_host(const rs_cluster *c, uint32_t index);

/* Tells whoever opened the cluster. */
void cluster_news(rs_cluster *c, const char *text, ...) __attribute__((format(printf, 2, 3)));

/* A peer_lost of both sides. */
void cluster_lost(void *cluster, peer *p, rs_status status, const char *why);

#endif
