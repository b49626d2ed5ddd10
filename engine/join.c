/* join.c: a machine that joins a head: finds it, gets what it lacks of the model, and does what it is told until the
 * head leaves. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "comm/discover.h"
#include "engine/words.h"
#include "plan/budget.h"

static const double FIND_S = 2;   /* the least in which a head is found */
static const double DIAL_S = 1;   /* one that was found at the last moment has this left to answer */
static const double POLL_S = 0.2; /* between two looks at what the user wants */

/* ---- Getting in ---- */

/* The address of a head that announces itself, where none was given. */
static rs_status find_head(rs_cluster *c, discover_head *found) {
    rs_cluster_options *o = &c->options;
    double begin_s = clock_s();
    cluster_news(c, "looking for a head on this network");
    RS_TRY(discover_find(o->wait_s > 0 ? o->wait_s : FIND_S, o->go_on, o->user, found));
    cluster_news(c, "found %s (%s)", found->name, found->address);
    o->address = found->address;
    o->wait_s = fmax(o->wait_s - (clock_s() - begin_s), DIAL_S);
    return RS_OK;
}

static rs_status say_hello(rs_cluster *c, const rs_options *own, const char *hash) {
    words_hello hello = {.version = RS_VERSION};
    char *text;
    if (gethostname(hello.host, sizeof hello.host - 1) != 0) hello.host[0] = 0;
    snprintf(hello.model, sizeof hello.model, "%s", hash);
    hello.known = c->options.machine != NULL;
    if (hello.known) hello.is = *c->options.machine;
    hello.is.memory_bytes = own->memory_limit > 0 ? own->memory_limit : budget_limit();
    RS_TRY(words_write_hello(&hello, &text));
    return peer_send_text(c->machine[0].peer, PEER_HELLO, text);
}

/* The next frame of a kind from the head, within CLUSTER_ANSWER_S unless its user stops it; the head's own last words
 * where there are some. */
static rs_status expect(rs_cluster *c, peer_kind kind, channel_frame *f) {
    double until_s = clock_s() + CLUSTER_ANSWER_S;
    char why[STATUS_TEXT_MAX];
    rs_status status;
    do {
        status = peer_expect(c->machine[0].peer, kind, POLL_S, f);
        if (status != RS_PEER_LOST && status != RS_PEER_LATE) return status;
        snprintf(why, sizeof why, "%s", rs_last_error());
        cluster_poll(c);
        RS_TRY(cluster_verdict(c));
    } while (status == RS_PEER_LATE && clock_s() < until_s);
    if (status == RS_PEER_LOST) return status_fail(status, "%s", why);
    return status_fail(status, "no answer from %s within %.0f s", c->machine[0].host, CLUSTER_ANSWER_S);
}

/* Receives what every rank needs of a model into `data`. */
static rs_status receive_model(rs_cluster *c, uint8_t *data, uint64_t file_bytes) {
    for (;;) {
        channel_frame f;
        uint64_t offset = 0;
        RS_TRY(expect(c, PEER_BYTES, &f));
        for (int i = 0; i < 8 && f.bytes > 8; i++) offset |= (uint64_t)f.data[i] << 8 * i;
        bool last = f.bytes == 0, fits = f.bytes > 8 && offset <= file_bytes && f.bytes - 8 <= file_bytes - offset;
        if (fits) memcpy(data + offset, f.data + 8, f.bytes - 8);
        free(f.data);
        if (last) return RS_OK;
        if (!fits) return status_fail(RS_BAD_FORMAT, "the head sent bytes that lie outside the model's file");
        cluster_poll(c);
        RS_TRY(cluster_verdict(c));
    }
}

static rs_status fetch_model(rs_cluster *c, const words_welcome *w, rs_model **out) {
    uint8_t *data;
    cluster_news(c, "no model file here: the head sends what is needed");
    RS_TRY(partial_map(w->file_bytes, &data));
    rs_status status = receive_model(c, data, w->file_bytes);
    if (status != RS_OK) {
        partial_unmap(data, w->file_bytes);
        return status;
    }
    return partial_open(data, w->file_bytes, out);
}

/* ---- An engine ---- */

/* The head's plan, made again here, must be the same and fit. */
static rs_status check_plan(const rs_cluster *c, const rs_engine *e, const words_plan *w) {
    char hash[MODEL_HASH_TEXT];
    const rs_plan_info *info = &e->plan->info;
    words_plan_hash(e->plan, c->model, hash);
    if (strcmp(hash, w->hash) != 0) {
        return status_fail(RS_BAD_FORMAT,
                           "this machine makes another plan than the head; is ringspan the same on both?");
    }
    if (info->total <= info->limit) return RS_OK;
    return status_fail(RS_LIMIT,
                       "a context of %u tokens needs %.1f MiB here and %.1f MiB are allowed; the largest context that "
                       "fits here is %u tokens",
                       info->options.context, (double)info->total / 1048576, (double)info->limit / 1048576,
                       info->context_max);
}

/* Everybody's addresses, once this machine has told its own: list and addresses [ranks]. */
static rs_status swap_addresses(rs_cluster *c, uint32_t ranks, const ucx_comm *own, words_address *list,
                                comm_part *addresses) {
    channel_frame f;
    char *text;
    size_t bytes;
    const void *address = ucx_address(own, &bytes);
    RS_TRY(words_write_address(address, bytes, &text));
    RS_TRY(peer_send_text(c->machine[0].peer, PEER_READY, text));
    RS_TRY(expect(c, PEER_NAMES, &f));
    rs_status status = words_read_addresses(&f, ranks, list);
    free(f.data);
    for (uint32_t r = 0; r < ranks; r++) addresses[r] = (comm_part){list[r].data, list[r].bytes};
    return status;
}

static rs_status open_engine(rs_cluster *c, rs_engine *e, const words_plan *w) {
    comm_part addresses[RS_RANKS_MAX];
    uint32_t ranks = w->options.ranks;
    plan_scope scope = {.packed = true, .local = {w->rank, w->rank + 1}};
    c->epoch = w->epoch;
    e->first = w->rank;
    for (uint32_t r = 0; r < ranks; r++) e->lacks_model[r] = !w->has_model[r];
    RS_TRY(topology_open(NULL, &e->topology));
    RS_TRY(plan_make(e->model, &w->options, scope, &e->plan));
    RS_TRY(check_plan(c, e, w));
    RS_TRY(ucx_open(rank_threads(&e->plan->options, w->rank) == e->topology->cpus, &e->ucx));
    words_address *list = calloc(ranks, sizeof *list);
    if (list == NULL) return status_fail(RS_NO_MEMORY, "no memory for the addresses of %u machines", ranks);
    rs_status status = swap_addresses(c, ranks, e->ucx, list, addresses);
    if (status == RS_OK) status = cluster_connect(c, e, addresses);
    free(list);
    return status;
}

/* Takes part in measuring the links. */
static rs_status measure(rs_cluster *c, const channel_frame *f) {
    comm_part addresses[RS_RANKS_MAX];
    words_measure m;
    ucx_comm *u = NULL;
    RS_TRY(words_read_measure(f, &m));
    c->epoch = m.epoch;
    words_address *list = calloc(m.ranks, sizeof *list);
    rs_link *links = calloc((size_t)m.ranks * m.ranks, sizeof *links);
    rs_status status = list != NULL && links != NULL ? RS_OK : status_fail(RS_NO_MEMORY, "no memory to measure links");
    if (status == RS_OK) status = ucx_open(true, &u);
    if (status == RS_OK) status = swap_addresses(c, m.ranks, u, list, addresses);
    if (status == RS_OK) status = cluster_measure_links(c, u, m.rank, m.ranks, addresses, links);
    if (status != RS_OK) status = cluster_fail(c, status);
    ucx_close(u);
    free(links);
    free(list);
    return status;
}

static void tell_engine(rs_cluster *c, const rs_engine *e) {
    const rs_plan_info *info = &e->plan->info;
    cluster_news(c, "rank %u of %u for a context of %u tokens: %.1f MiB of at most %.1f", e->first, info->options.ranks,
                 info->options.context, (double)info->total / 1048576, (double)info->limit / 1048576);
}

static rs_status run_engine(rs_cluster *c, const rs_model *model, const rs_options *own, const channel_frame *f) {
    words_plan w;
    rs_engine *e;
    RS_TRY(words_read_plan(f, &w));
    w.options.threads = own->threads;
    w.options.memory_limit = own->memory_limit;
    w.options.kernels = own->kernels;
    w.options.cluster = c;
    RS_TRY(engine_new(model, &e));
    rs_status status = open_engine(c, e, &w);
    if (status == RS_OK) {
        tell_engine(c, e);
        status = engine_run(e, &(command){.kind = COMMAND_FURNISH});
        if (status == RS_OK) status = engine_run(e, &(command){.kind = COMMAND_FOLLOW});
    } else {
        status = cluster_fail(c, status);
    }
    char why[STATUS_TEXT_MAX];
    snprintf(why, sizeof why, "%s", rs_last_error());
    rs_engine_close(e);
    return status == RS_OK ? RS_OK : status_fail(status, "%s", why);
}

/* Measures and opens engines as the head asks, until it leaves. */
static rs_status serve_head(rs_cluster *c, const rs_model *model, const rs_options *own) {
    for (;;) {
        channel_frame f;
        rs_status status = peer_next(c->machine[0].peer, POLL_S, &f);
        if (status == RS_PEER_LATE) {
            cluster_poll(c);
            RS_TRY(cluster_verdict(c));
            continue;
        }
        if (status == RS_PEER_LOST) return cluster_verdict(c); /* RS_OK: the head said BYE */
        RS_TRY(status);
        if (f.kind == PEER_MEASURE) {
            status = measure(c, &f);
        } else if (f.kind == PEER_PLAN && model != NULL) {
            status = run_engine(c, model, own, &f);
        } else {
            status = status_fail(RS_BAD_FORMAT, "the head sent a frame of kind %u out of turn", f.kind);
        }
        free(f.data);
        RS_TRY(status);
    }
}

static rs_status join(rs_cluster *c, const rs_options *own, const rs_model *model, const char *hash) {
    rs_model *fetched = NULL;
    channel_frame f;
    words_welcome w;
    RS_TRY(say_hello(c, own, hash));
    RS_TRY(expect(c, PEER_WELCOME, &f));
    rs_status status = words_read_welcome(&f, &w);
    free(f.data);
    if (status != RS_OK) return status;
    snprintf(c->machine[0].host, sizeof c->machine[0].host, "%s", w.host);
    snprintf(c->model, sizeof c->model, "%s", w.model);
    cluster_news(c, "joined %s (%s)", w.host, c->options.address);
    if (model == NULL && w.file_bytes > 0) {
        RS_TRY(fetch_model(c, &w, &fetched));
        model = fetched;
    }
    status = serve_head(c, model, own);
    rs_model_close(fetched);
    if (status == RS_OK) cluster_news(c, "the head has left");
    return status;
}

rs_status rs_cluster_join(const rs_cluster_options *o, const rs_options *own, const rs_model *model) {
    if (o == NULL || own == NULL || (o->address == NULL && !o->discover) || o->secret == NULL) {
        return status_fail(RS_BAD_ARGUMENT, "rs_cluster_join needs an address, or to look for one, and a secret");
    }
    rs_cluster *c;
    channel *line;
    discover_head found;
    char hash[MODEL_HASH_TEXT] = "";
    RS_TRY(channel_check_secret(o->secret_bytes));
    RS_TRY(cluster_new(o, &c));
    if (model != NULL) model_hash(model, hash); /* a cold file takes its time, and a head none for a hello */
    const rs_cluster_options *given = &c->options;
    rs_status status = o->address == NULL ? find_head(c, &found) : RS_OK;
    if (status == RS_OK) {
        status = channel_dial(given->address, o->secret, o->secret_bytes, given->wait_s, o->go_on, o->user, &line);
    }
    if (status == RS_OK) {
        snprintf(c->machine[0].host, sizeof c->machine[0].host, "%s", given->address); /* until it says its name */
        status = peer_open(line, cluster_lost, c, &c->machine[0].peer);
    }
    if (status == RS_OK) status = join(c, own, model, hash);
    char why[STATUS_TEXT_MAX];
    snprintf(why, sizeof why, "%s", rs_last_error());
    rs_cluster_close(c);
    return status == RS_OK ? RS_OK : status_fail(status, "%s", why);
}
