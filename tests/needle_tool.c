/* needle_tool.c: for test_needle.py: evaluates a text on some ranks, continues it greedily, and prints as JSON the
 * logits that decided; then prints logits of the text's last token (every 16th) and how far they move when each KV page
 * is taken away in turn.
 *
 *     needle_tool MODEL RANKS KV(f16|q8_0|q4_0) TEXT_FILE CONTINUATION REMOVE(0|1) */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"

enum { TOKENS_MAX = 16384, OWNER_NOBODY = 0xFF, LOGITS_STRIDE = 16 };

static void check(rs_status status) {
    if (status == RS_OK) return;
    fprintf(stderr, "needle_tool: %s\n", rs_last_error());
    exit(2);
}

static size_t read_text(const char *path, char **text) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) exit(2);
    *text = malloc(1 << 20);
    size_t bytes = fread(*text, 1, 1 << 20, file);
    fclose(file);
    return bytes;
}

static int32_t best_but(const float *logits, uint32_t vocab, int32_t wanted) {
    int32_t best = wanted == 0 ? 1 : 0;
    for (int32_t i = 0; i < (int32_t)vocab; i++) {
        if (i != wanted && logits[i] > logits[best]) best = i;
    }
    return best;
}

/* ||a - b|| / ||b|| */
static double distance(const float *a, const float *b, uint32_t n) {
    double difference = 0.0, norm = 0.0;
    for (uint32_t i = 0; i < n; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    return sqrt(difference / norm);
}

/* Evaluates the last token again without each page but the last, which belongs to it. */
static void remove_pages(rs_engine *e, rs_session *s, const int32_t *tokens, size_t count, uint32_t vocab) {
    const float *logits;
    float *whole = malloc(vocab * sizeof *whole);
    check(rs_session_eval(s, tokens, count, NULL, NULL, &logits));
    memcpy(whole, logits, vocab * sizeof *whole);
    printf(", \"logits\": [");
    for (uint32_t i = 0; i < vocab; i += LOGITS_STRIDE) printf("%s%.6f", i ? ", " : "", (double)whole[i]);
    printf("], \"removed\": [");
    for (uint32_t page = 0; page < (count - 1) / PAGE_TOKENS; page++) {
        uint8_t owner = e->plan->deal.owner[page];
        e->plan->deal.owner[page] = OWNER_NOBODY;
        check(rs_session_eval(s, tokens, count, NULL, NULL, &logits));
        e->plan->deal.owner[page] = owner;
        printf("%s[%u, %.3e]", page ? ", " : "", owner, distance(logits, whole, vocab));
    }
    printf("]");
    free(whole);
}

int main(int argc, char **argv) {
    if (argc != 7) return 2;
    rs_model *model;
    rs_engine *engine;
    rs_session *session;
    rs_options options;
    rs_model_info info;
    check(rs_model_open(argv[1], &model));
    rs_model_describe(model, &info);
    static int32_t tokens[TOKENS_MAX], wanted[64];
    size_t count, n_wanted;
    char *text;
    size_t bytes = read_text(argv[4], &text);
    check(rs_tokenize(model, text, bytes, RS_TOKENS_ADD_SPECIAL | RS_TOKENS_PARSE_SPECIAL, tokens, TOKENS_MAX, &count));
    check(rs_tokenize(model, argv[5], strlen(argv[5]), 0, wanted, 64, &n_wanted));

    rs_options_init(&options);
    options.context = (uint32_t)(count + n_wanted);
    options.ranks = (uint32_t)atoi(argv[2]);
    options.kv_k = options.kv_v = strcmp(argv[3], "q8_0") == 0   ? RS_KV_Q8_0
                                  : strcmp(argv[3], "q4_0") == 0 ? RS_KV_Q4_0
                                                                 : RS_KV_F16;
    check(rs_engine_open(model, &options, &engine));
    check(rs_session_open(engine, &session));
    printf("{\"tokens\": %zu, \"margins\": [", count);
    for (size_t i = 0; i < n_wanted; i++) {
        const float *logits;
        check(rs_session_eval(session, tokens, count + i, NULL, NULL, &logits));
        printf("%s%.6f", i ? ", " : "", (double)(logits[wanted[i]] - logits[best_but(logits, info.vocab, wanted[i])]));
        tokens[count + i] = wanted[i];
    }
    printf("]");
    if (atoi(argv[6])) remove_pages(engine, session, tokens, count, info.vocab);
    printf("}\n");
    free(text);
    rs_session_close(session);
    rs_engine_close(engine);
    rs_model_close(model);
    return 0;
}
