/* head.c: the machine that others join: lets them in, and opens engines on all of them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "comm/discover.h"
#include "engine/words.h"
#include "plan/budget.h"

enum { PIECE_BYTES = 1 << 20 /* of a file that is sent */ };
static const double HELLO_S = 5.0;

/* ---- Letting machines in ---- */

typedef struct sender {
    peer *to;
    uint64_t sent;
} sender;

static rs_status send_piece(void *user, uint64_t offset, const uint8_t *data, size_t bytes) {
    static _Thread_local uint8_t frame[8 + PIECE_BYTES];
    sender *s = user;
    for (int i = 0; i < 8; i++) frame[i] = (uint8_t)(offset >> 8 * i);
    memcpy(frame + 8, data, bytes);
    s->sent += bytes;
    return peer_send(s->to, PEER_BYTES, frame, 8 + bytes);
}

/* RS_UNSUPPORTED, RS_BAD_ARGUMENT: the sentence is for the machine that wants to join. */
static rs_status check_hello(const words_hello *h, const char *own_hash) {
    if (strcmp(h->version, RS_VERSION) != 0) {
        return status_fail(RS_UNSUPPORTED,
                           "the machine that joins runs ringspan %s and the head %s; install one on both", h->version,
                           RS_VERSION);
    }
    if (own_hash[0] != 0 && h->model[0] != 0 && strcmp(h->model, own_hash) != 0) {
        return status_fail(RS_BAD_ARGUMENT,
                           "the model file of the machine that joins is not the head's; give it the same file, or none "
                           "to be sent what it needs");
    }
    return RS_OK;
}

/* Sends a machine without the file what every rank needs of it; an empty frame ends it. */
static rs_status send_model(rs_cluster *c, const rs_model *model, cluster_machine *m) {
    sender s = {m->peer, 0};
    RS_TRY(partial_walk(model, PIECE_BYTES, send_piece, &s));
    cluster_news(c, "%s has no model file: sent %.1f MiB of it", m->host, (double)s.sent / 1048576);
    return peer_send(m->peer, PEER_BYTES, NULL, 0);
}

static rs_status greet(rs_cluster *c, const rs_model *model, cluster_machine *m) {
    channel_frame f;
    words_hello hello;
    words_welcome welcome = {.file_bytes = model != NULL ? gguf_file_bytes(model->file) : 0};
    char *text;
    RS_TRY(peer_expect(m->peer, PEER_HELLO, HELLO_S, &f));
    rs_status status = words_read_hello(&f, &hello);
    free(f.data);
    if (status == RS_OK) {
        snprintf(m->host, sizeof m->host, "%s", hello.host);
        status = check_hello(&hello, c->model);
    }
    if (status != RS_OK) {
        peer_send_failure(m->peer, status, rs_last_error());
        return status;
    }
    m->has_model = hello.model[0] != 0;
    m->known = hello.known;
    m->is = hello.is;
    snprintf(welcome.model, sizeof welcome.model, "%s", c->model);
    snprintf(welcome.host, sizeof welcome.host, "%s", c->machine[0].host);
    RS_TRY(words_write_welcome(&welcome, &text));
    RS_TRY(peer_send_text(m->peer, PEER_WELCOME, text));
    return m->has_model || model == NULL ? RS_OK : send_model(c, model, m);
}

/* Lets in whoever dials next. RS_PEER_LOST for one that was refused: others may come. */
static rs_status admit(rs_cluster *c, const rs_model *model, double deadline_s) {
    const rs_cluster_options *o = &c->options;
    cluster_machine *m = &c->machine[c->machines];
    char address[CHANNEL_PEER_MAX];
    channel *line;
    RS_TRY(channel_accept(c->listener, o->secret, o->secret_bytes, deadline_s, address, &line));
    *m = (cluster_machine){0};
    c->left_early = false; /* nobody whose watch could say so is being let in */
    RS_TRY(peer_open(line, cluster_lost, c, &m->peer));
    rs_status status = greet(c, model, m);
    pthread_mutex_lock(&c->lock); /* its watch looks for itself */
    if (status == RS_OK && c->left_early) status = status_fail(RS_PEER_LOST, "it left at once");
    if (status == RS_OK) c->machines++;
    pthread_mutex_unlock(&c->lock);
    if (status != RS_OK) {
        char why[STATUS_TEXT_MAX];
        snprintf(why, sizeof why, "%s", rs_last_error());
        peer_close(m->peer);
        m->peer = NULL;
        return status_fail(RS_PEER_LOST, "%s (%s) was refused: %.300s", m->host, address, why);
    }
    cluster_news(c, "%s (%s) has joined, %u of %u%s", m->host, address, c->machines, o->hosts,
                 m->has_model || model == NULL ? "" : ", without a model file");
    return RS_OK;
}

static rs_status gather(rs_cluster *c, const rs_model *model) {
    const rs_cluster_options *o = &c->options;
    double until_s = clock_s() + (o->wait_s > 0 ? o->wait_s : INFINITY);
    while (c->machines < o->hosts) {
        if (o->go_on != NULL && !o->go_on(o->user)) return status_fail(RS_CANCELLED, "stopped while waiting");
        RS_TRY(cluster_verdict(c));
        double left_s = until_s - clock_s();
        if (left_s <= 0) {
            return status_fail(RS_PEER_LATE,
                               "%u of %u machines joined within %.0f s; start 'ringspan join' on the rest", c->machines,
                               o->hosts, o->wait_s);
        }
        rs_status status = admit(c, model, fmin(left_s, 0.2));
        if (status == RS_PEER_LOST) cluster_news(c, "%s", rs_last_error());
        if (status != RS_OK && status != RS_PEER_LOST && status != RS_PEER_LATE) return status;
    }
    return RS_OK;
}

/* Says where this head is, to its user and, if wanted, to the network, until all have come. */
static rs_status invite(rs_cluster *c, const rs_model *model, uint16_t port) {
    const rs_cluster_options *o = &c->options;
    const char *colon = strrchr(o->address, ':');
    int host = colon != NULL ? (int)(colon - o->address) : 0;
    bool discover = o->discover && o->hosts > 1;
    announcement *shown = NULL;
    if (discover) RS_TRY(discover_announce(c->machine[0].host, c->listener, &shown));
    cluster_news(c, "waiting for %u more machine%s: run 'ringspan join %.*s:%u' there%s", o->hosts - 1,
                 o->hosts == 2 ? "" : "s", host > 0 ? host : CLUSTER_HOST_MAX,
                 host > 0 ? o->address : c->machine[0].host, port, discover ? ", or 'ringspan join --discover'" : "");
    rs_status status = gather(c, model);
    discover_withdraw(shown);
    return status;
}

static bool all_known(const rs_cluster *c) {
    bool known = true;
    for (uint32_t i = 0; i < c->machines; i++) known = known && c->machine[i].known;
    return known;
}

/* The fastest memory first, behind the head: a plan that leaves machines out leaves out the last. */
static void order_machines(rs_cluster *c) {
    if (!all_known(c)) return; /* nor does a planner choose then: as they came */
    pthread_mutex_lock(&c->lock);
    for (uint32_t i = 2; i < c->machines; i++) {
        cluster_machine m = c->machine[i];
        uint32_t place = i;
        for (; place > 1 && c->machine[place - 1].is.all.read_bytes_per_s < m.is.all.read_bytes_per_s; place--) {
            c->machine[place] = c->machine[place - 1];
        }
        c->machine[place] = m;
    }
    pthread_mutex_unlock(&c->lock);
}

rs_status rs_cluster_open(const rs_model *model, const rs_cluster_options *o, rs_cluster **out) {
    if (o == NULL || out == NULL || o->address == NULL || o->secret == NULL) {
        return status_fail(RS_BAD_ARGUMENT, "rs_cluster_open needs an address and a secret");
    }
    if (o->hosts < 1 || o->hosts > RS_RANKS_MAX) {
        return status_fail(RS_BAD_ARGUMENT, "%u machines asked for, 1 to %d are possible", o->hosts, RS_RANKS_MAX);
    }
    RS_TRY(channel_check_secret(o->secret_bytes));
    rs_cluster *c;
    uint16_t port;
    RS_TRY(cluster_new(o, &c));
    c->leads = true;
    if (model != NULL) model_hash(model, c->model); /* a cold file takes its time: nobody is to wait for it */
    rs_status status = channel_listen(o->address, &c->listener, &port);
    if (status == RS_OK) {
        gethostname(c->machine[0].host, CLUSTER_HOST_MAX - 1);
        c->machine[0].has_model = true;
        c->machine[0].known = o->machine != NULL;
        if (o->machine != NULL) c->machine[0].is = *o->machine;
        c->machine[0].is.memory_bytes = budget_limit();
        status = invite(c, model, port);
        cluster_stop_listening(c);
        order_machines(c);
    }
    c->options.secret = NULL; /* the caller's, and needed no more */
    c->options.machine = NULL;
    if (status != RS_OK) {
        char why[STATUS_TEXT_MAX];
        snprintf(why, sizeof why, "%s", rs_last_error());
        rs_cluster_close(c);
        return status_fail(status, "%s", why);
    }
    *out = c;
    return RS_OK;
}

/* ---- Opening an engine on all ---- */

static rs_status send_plans(rs_cluster *c, const rs_engine *e) {
    char *text;
    words_plan p = {.options = e->plan->options, .epoch = ++c->epoch};
    words_plan_hash(e->plan, c->model, p.hash);
    for (uint32_t r = 0; r < p.options.ranks; r++) p.has_model[r] = c->machine[r].has_model;
    for (p.rank = 1; p.rank < p.options.ranks; p.rank++) {
        RS_TRY(words_write_plan(&p, &text));
        RS_TRY(peer_send_text(c->machine[p.rank].peer, PEER_PLAN, text));
    }
    return RS_OK;
}

static rs_status collect_addresses(rs_cluster *c, uint32_t ranks, words_address *list) {
    for (uint32_t r = 1; r < ranks; r++) {
        channel_frame f;
        rs_status status = peer_expect(c->machine[r].peer, PEER_READY, CLUSTER_ANSWER_S, &f);
        if (status == RS_OK) {
            status = words_read_address(&f, &list[r]);
            free(f.data);
        }
        if (status == RS_OK) continue;
        char why[STATUS_TEXT_MAX];
        snprintf(why, sizeof why, "%s", rs_last_error());
        RS_TRY(cluster_verdict(c)); /* what the member says itself, if it does */
        return status_fail(status, "rank %u (%s): %.400s", r, c->machine[r].host, why);
    }
    return RS_OK;
}

/* Everybody's addresses, to everybody: list and addresses [ranks]. */
static rs_status swap_addresses(rs_cluster *c, uint32_t ranks, const ucx_comm *own, words_address *list,
                                comm_part *addresses) {
    char *text;
    const void *address = ucx_address(own, &list[0].bytes);
    if (list[0].bytes > WORDS_ADDRESS_MAX) return status_fail(RS_LIMIT, "this machine's address is too long");
    memcpy(list[0].data, address, list[0].bytes);
    RS_TRY(collect_addresses(c, ranks, list));
    for (uint32_t r = 1; r < ranks; r++) {
        RS_TRY(words_write_addresses(list, ranks, &text));
        RS_TRY(peer_send_text(c->machine[r].peer, PEER_NAMES, text));
    }
    for (uint32_t r = 0; r < ranks; r++) addresses[r] = (comm_part){list[r].data, list[r].bytes};
    return RS_OK;
}

rs_status cluster_start(rs_cluster *c, rs_engine *e) {
    RS_TRY(cluster_verdict(c));
    uint32_t ranks = e->plan->sharding.ranks;
    if (ranks > c->machines) {
        return status_fail(RS_BAD_ARGUMENT, "%u ranks asked for, and the cluster has %u machines, a rank each", ranks,
                           c->machines);
    }
    for (uint32_t r = 0; r < ranks; r++) e->lacks_model[r] = !c->machine[r].has_model;
    words_address *list = calloc(ranks, sizeof *list);
    if (list == NULL) return status_fail(RS_NO_MEMORY, "no memory for the addresses of %u machines", ranks);
    comm_part addresses[RS_RANKS_MAX];
    uint32_t threads = rank_threads(&e->plan->options, 0);
    rs_status status = ucx_open(threads == e->topology->cpus, &e->ucx);
    if (status == RS_OK) {
        status = send_plans(c, e);
        if (status == RS_OK) status = swap_addresses(c, ranks, e->ucx, list, addresses);
        if (status == RS_OK) status = cluster_connect(c, e, addresses);
        if (status != RS_OK) status = cluster_fail(c, status);
    }
    free(list);
    return status;
}

/* ---- Measuring ---- */

/* links [machines, machines] and room for addresses. */
static rs_status measure_links(rs_cluster *c, ucx_comm *u, words_address *list, rs_link *links) {
    comm_part addresses[RS_RANKS_MAX];
    char *text;
    words_measure m = {.ranks = c->machines, .epoch = ++c->epoch};
    for (m.rank = 1; m.rank < c->machines; m.rank++) {
        RS_TRY(words_write_measure(&m, &text));
        RS_TRY(peer_send_text(c->machine[m.rank].peer, PEER_MEASURE, text));
    }
    RS_TRY(swap_addresses(c, c->machines, u, list, addresses));
    return cluster_measure_links(c, u, 0, c->machines, addresses, links);
}

rs_status rs_cluster_measure(rs_cluster *c, rs_machines *out, bool *known) {
    size_t pairs = (size_t)c->machines * c->machines;
    ucx_comm *u = NULL;
    RS_TRY(cluster_verdict(c));
    *known = all_known(c);
    if (!*known) return RS_OK;
    words_address *list = calloc(c->machines, sizeof *list);
    rs_link *links = calloc(pairs, sizeof *links);
    rs_status status = list != NULL && links != NULL ? RS_OK : status_fail(RS_NO_MEMORY, "no memory to measure links");
    if (status == RS_OK && c->machines > 1) status = ucx_open(true, &u);
    if (status == RS_OK && u != NULL) {
        status = measure_links(c, u, list, links);
        if (status != RS_OK) status = cluster_fail(c, status);
    }
    ucx_close(u);
    if (status == RS_OK) {
        memset(out, 0, sizeof *out);
        out->count = c->machines;
        out->led = true;
        for (uint32_t i = 0; i < c->machines; i++) {
            out->machine[i] = c->machine[i].is;
            snprintf(out->machine[i].name, sizeof out->machine[i].name, "%.47s", c->machine[i].host);
            for (uint32_t k = 0; k < c->machines; k++) out->link[i][k] = links[i * c->machines + k];
        }
    }
    free(links);
    free(list);
    return status;
}
