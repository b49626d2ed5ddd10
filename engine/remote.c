/* remote.c: passes commands on and collects outcomes. Numbers travel as they lie in memory: every machine that this
 * runs on is little endian. */
#include "engine/remote.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cluster.h"

enum { HEAD = 0, INLINE_TOKENS = 16 /* travel with the command */ };

typedef struct message {
    uint32_t kind;
    uint32_t first, count, want_logits; /* STEP */
    uint32_t length;                    /* FILL */
    int32_t tokens[INLINE_TOKENS];      /* STEP; more follow by themselves */
    uint64_t seed;                      /* FILL */
} message;

typedef struct outcome {
    uint32_t status;
    char text[STATUS_TEXT_MAX];
} outcome;

static bool agrees(command_kind kind) {
    return kind == COMMAND_FURNISH || kind == COMMAND_OPEN || kind == COMMAND_FILL;
}

/* ---- Commands ---- */

static rs_status announce(rank *r, const command *c) {
    message m = {.kind = c->kind,
                 .first = c->step.first,
                 .count = c->step.count,
                 .want_logits = c->step.want_logits,
                 .length = c->length,
                 .seed = c->seed};
    comm_part out[RS_RANKS_MAX], none[RS_RANKS_MAX] = {0};
    bool is_step = c->kind == COMMAND_STEP;
    if (is_step && m.count <= INLINE_TOKENS) memcpy(m.tokens, c->step.tokens, m.count * sizeof *m.tokens);
    for (uint32_t p = 0; p < r->c->ranks; p++) out[p] = (comm_part){&m, sizeof m};
    RS_TRY(r->c->exchange(r->c, out, none));
    if (!is_step || m.count <= INLINE_TOKENS) return RS_OK;
    for (uint32_t p = 0; p < r->c->ranks; p++) {
        out[p] = (comm_part){(void *)c->step.tokens, m.count * sizeof *c->step.tokens};
    }
    return r->c->exchange(r->c, out, none);
}

static rs_status receive_from_head(rank *r, void *data, size_t bytes) {
    comm_part none[RS_RANKS_MAX] = {0}, in[RS_RANKS_MAX] = {0};
    in[HEAD] = (comm_part){data, bytes};
    return r->c->exchange(r->c, none, in);
}

/* What a head in its right mind would send. A session is open or not, and a step lies in its context. */
static bool is_possible(const rank *r, const message *m) {
    const rs_plan *p = r->engine->plan;
    switch (m->kind) {
    case COMMAND_OPEN:
        return !r->open;
    case COMMAND_CLOSE:
        return r->open;
    case COMMAND_STEP:
        return r->open && m->count >= 1 && m->count <= p->view.chunk && m->first <= p->options.context - m->count;
    case COMMAND_FILL:
        return r->open && m->length <= p->options.context;
    default:
        return m->kind == COMMAND_QUIT;
    }
}

static rs_status check_tokens(const rank *r, const int32_t *tokens, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (tokens[i] >= 0 && (uint32_t)tokens[i] < r->engine->plan->view.h->vocab) continue;
        return status_fail(RS_BAD_FORMAT, "the head sent the token %d, which is not in the vocabulary", tokens[i]);
    }
    return RS_OK;
}

/* The head's next command; tokens [chunk] is where a step's land. */
static rs_status receive(rank *r, int32_t *tokens, command *out) {
    message m;
    double deadline_s = r->c->deadline_s;
    r->c->deadline_s = INFINITY;
    rs_status status = receive_from_head(r, &m, sizeof m);
    r->c->deadline_s = deadline_s;
    if (status != RS_OK) return status;
    if (!is_possible(r, &m)) return status_fail(RS_BAD_FORMAT, "the head sent an impossible command");
    if (m.kind == COMMAND_STEP) {
        if (m.count <= INLINE_TOKENS) {
            memcpy(tokens, m.tokens, m.count * sizeof *tokens);
        } else {
            RS_TRY(receive_from_head(r, tokens, m.count * sizeof *tokens));
        }
        RS_TRY(check_tokens(r, tokens, m.count));
    }
    *out = (command){(command_kind)m.kind, {tokens, m.first, m.count, m.want_logits != 0}, m.length, m.seed};
    return RS_OK;
}

/* ---- Slices ---- */

static rs_status receive_slices(rank *r) {
    const slices *s = &r->forward.weights;
    const model_view *m = &r->engine->plan->view;
    const shard *own = r->forward.own;
    for (uint32_t i = 0; i < range_count(own->layers); i++) {
        size_t bytes = run_bytes(&m->w->layers[own->layers.begin + i], m->h, own, RUN_Q);
        RS_TRY(receive_from_head(r, (void *)s->layers[i].q.data, bytes));
    }
    return receive_from_head(r, (void *)s->output.data, s->output.rows * s->output.row_bytes);
}

static rs_status send_one(rank *r, uint32_t to, const void *data, size_t bytes) {
    comm_part out[RS_RANKS_MAX] = {0}, none[RS_RANKS_MAX] = {0};
    out[to] = (comm_part){(void *)data, bytes};
    return r->c->exchange(r->c, out, none);
}

/* `run` has room for any rank's slice of any layer. */
static rs_status send_slices(rank *r, uint32_t to, uint8_t *run) {
    const model_view *m = &r->engine->plan->view;
    const gguf *file = r->engine->model->file;
    const shard *s = &m->s->of[to];
    for (uint32_t layer = s->layers.begin; layer < s->layers.end; layer++) {
        run_pack(&m->w->layers[layer], m->h, s, run);
        RS_TRY(send_one(r, to, run, run_bytes(&m->w->layers[layer], m->h, s, RUN_Q)));
        layer_forget(&m->w->layers[layer], file);
    }
    const matrix *output = &m->w->output;
    size_t row = output->row_bytes;
    RS_TRY(send_one(r, to, output->data + s->vocab.begin * row, range_count(s->vocab) * row));
    gguf_forget(file, output->data, output->rows * row);
    return RS_OK;
}

rs_status remote_slices(rank *r) {
    const rs_engine *e = r->engine;
    const model_view *m = &e->plan->view;
    size_t most = 0;
    if (r->index != HEAD) return e->lacks_model[r->index] ? receive_slices(r) : RS_OK;
    for (uint32_t p = 1; p < r->c->ranks; p++) {
        const shard *s = &m->s->of[p];
        for (uint32_t layer = s->layers.begin; e->lacks_model[p] && layer < s->layers.end; layer++) {
            most = size_max(most, run_bytes(&m->w->layers[layer], m->h, s, RUN_Q));
        }
    }
    /* While the pages, which the plan counts, have not been taken yet. A rank may have an output slice and no layer. */
    uint8_t *run = malloc(size_max(most, 1));
    if (run == NULL) return status_fail(RS_NO_MEMORY, "no memory for a layer's slice of %zu bytes", most);
    rs_status status = RS_OK;
    for (uint32_t p = 1; p < r->c->ranks && status == RS_OK; p++) {
        if (e->lacks_model[p]) status = send_slices(r, p, run);
    }
    free(run);
    return status;
}

/* ---- Outcomes ---- */

/* The first failure of any rank, at the head; this rank's own elsewhere. */
static rs_status agree(rank *r, rs_status own) {
    outcome mine = {.status = own}, *all = NULL;
    comm_part out[RS_RANKS_MAX] = {0}, in[RS_RANKS_MAX] = {0};
    if (own != RS_OK) snprintf(mine.text, sizeof mine.text, "%s", rs_last_error());
    if (r->index != HEAD) {
        out[HEAD] = (comm_part){&mine, sizeof mine};
        rs_status sent = r->c->exchange(r->c, out, in);
        return own == RS_OK ? sent : status_fail(own, "%s", mine.text);
    }
    all = calloc(r->c->ranks, sizeof *all);
    if (all == NULL) return status_fail(RS_NO_MEMORY, "no memory for the outcome of %u ranks", r->c->ranks);
    for (uint32_t p = 1; p < r->c->ranks; p++) in[p] = (comm_part){&all[p], sizeof *all};
    rs_status status = r->c->exchange(r->c, out, in);
    all[HEAD] = mine;
    for (uint32_t p = 0; p < r->c->ranks && status == RS_OK; p++) {
        if (all[p].status == RS_OK) continue;
        all[p].text[STATUS_TEXT_MAX - 1] = 0;
        status = (rs_status)all[p].status;
        if (p == HEAD) {
            status_fail(status, "%s", all[p].text);
        } else {
            status_fail(status, "rank %u (%s): %s", p, cluster_host(r->engine->cluster, p), all[p].text);
        }
    }
    free(all);
    return status;
}

rs_status remote_follow(rank *r) {
    rs_status status = RS_OK;
    command c = {.kind = COMMAND_FOLLOW};
    int32_t *tokens = calloc(r->engine->plan->view.chunk, sizeof *tokens);
    if (tokens == NULL) return status_fail(RS_NO_MEMORY, "no memory for the tokens of a chunk");
    while (status == RS_OK && c.kind != COMMAND_QUIT) {
        status = receive(r, tokens, &c);
        if (status == RS_OK) status = rank_obey(r, &c);
        if (agrees(c.kind)) status = agree(r, status);
    }
    free(tokens);
    return status;
}

rs_status remote_obey(rank *r, const command *c) {
    bool head = r->index == HEAD, passes = head && c->kind != COMMAND_FURNISH;
    if (passes && c->kind == COMMAND_QUIT && r->engine->broken) return RS_OK; /* the others have failed by themselves */
    if (!head && c->kind == COMMAND_QUIT) return RS_OK;
    rs_status status = passes ? announce(r, c) : RS_OK;
    if (status == RS_OK) status = rank_obey(r, c);
    if (agrees(c->kind)) status = agree(r, status);
    return status == RS_OK ? RS_OK : cluster_fail(r->engine->cluster, status);
}
