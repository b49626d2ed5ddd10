/* session.c: one timeline of tokens and its KV pages on every rank. */
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"

struct rs_session {
    rs_engine *engine;
    int32_t *tokens;  /* [context] the timeline */
    uint32_t length;  /* tokens in the cache */
    uint32_t longest; /* the most since the pages were last written from the start */
};

rs_status rs_session_open(rs_engine *e, rs_session **out) {
    if (e == NULL || out == NULL) return status_fail(RS_BAD_ARGUMENT, "rs_session_open needs an engine");
    if (e->session != NULL)
        return status_fail(RS_LIMIT, "the engine's memory is planned for one session, and one is open");
    uint32_t context = e->plan->options.context;
    rs_session *s = calloc(1, sizeof *s);
    int32_t *tokens = calloc(context, sizeof *tokens);
    rs_status status = s != NULL && tokens != NULL ? engine_run(e, &(command){.kind = COMMAND_OPEN})
                                                   : status_fail(RS_NO_MEMORY, "no memory for %u tokens", context);
    if (status != RS_OK) {
        free(tokens);
        free(s);
        return status;
    }
    *s = (rs_session){.engine = e, .tokens = tokens};
    e->session = s;
    *out = s;
    return RS_OK;
}

void rs_session_close(rs_session *s) {
    if (s == NULL) return;
    s->engine->session = NULL;
    engine_run(s->engine, &(command){.kind = COMMAND_CLOSE}); /* a broken engine gives its pages back when it closes */
    free(s->tokens);
    free(s);
}

size_t rs_session_length(const rs_session *s) {
    return s->length;
}

static rs_status check_room(const rs_session *s, size_t count) {
    uint32_t context = s->engine->plan->options.context;
    if (count <= context) return RS_OK;
    return status_fail(RS_LIMIT, "%zu tokens do not fit the context of %u", count, context);
}

/* Rewinds to what the timeline and the new tokens have in common. The last token is always evaluated, for its logits.
 */
static void rewind_to_common(rs_session *s, const int32_t *tokens, size_t count) {
    const rs_plan *p = s->engine->plan;
    uint32_t common = 0;
    while (common < s->length && common + 1 < count && s->tokens[common] == tokens[common]) common++;
    if (common < s->length) common = kv_keep(p->view.h, &p->deal, p->view.chunk, common, s->longest);
    if (common == 0) s->longest = 0;
    s->length = common;
}

rs_status rs_session_eval(rs_session *s, const int32_t *tokens, size_t count, rs_progress progress, void *user,
                          const float **logits) {
    if (s == NULL || tokens == NULL || logits == NULL)
        return status_fail(RS_BAD_ARGUMENT, "rs_session_eval needs tokens");
    rs_engine *e = s->engine;
    const model_view *m = &e->plan->view;
    if (count == 0) return status_fail(RS_BAD_ARGUMENT, "a timeline to evaluate has at least one token");
    RS_TRY(check_room(s, count));
    for (size_t i = 0; i < count; i++) {
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= m->h->vocab) {
            return status_fail(RS_BAD_ARGUMENT, "token %d at %zu is not in the vocabulary of %u", tokens[i], i,
                               m->h->vocab);
        }
    }
    rewind_to_common(s, tokens, count);
    size_t start = s->length;
    while (s->length < count) {
        size_t n = count - s->length < m->chunk ? count - s->length : m->chunk;
        command c = {.kind = COMMAND_STEP,
                     .step = {tokens + s->length, s->length, (uint32_t)n, s->length + n == count}};
        RS_TRY(engine_run(e, &c));
        memcpy(s->tokens + s->length, tokens + s->length, n * sizeof *tokens);
        s->length += (uint32_t)n;
        if (s->length > s->longest) s->longest = s->length;
        if (progress != NULL && !progress(user, s->length - start, count - start) && s->length < count) {
            return status_fail(RS_CANCELLED, "stopped after %u of %zu tokens", s->length, count);
        }
    }
    *logits = e->ranks[0].forward.b.logits;
    return RS_OK;
}

rs_status rs_session_fill(rs_session *s, size_t count, uint64_t seed) {
    if (s == NULL) return status_fail(RS_BAD_ARGUMENT, "rs_session_fill needs a session");
    RS_TRY(check_room(s, count));
    RS_TRY(engine_run(s->engine, &(command){.kind = COMMAND_FILL, .length = (uint32_t)count, .seed = seed}));
    memset(s->tokens, 0, count * sizeof *s->tokens);
    s->length = s->longest = (uint32_t)count;
    return RS_OK;
}
