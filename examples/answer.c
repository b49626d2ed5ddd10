/* answer.c: asks a model one question with libringspan, its context split over three ranks of this process.
 *
 *     cc answer.c $(pkg-config --cflags --libs ringspan) -o answer
 *     ./answer MODEL.gguf "Why is the sky blue?" */
#include <ringspan.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONTEXT = 1024, ANSWER_MAX = 64 };

/* Every call that fails leaves one sentence that says why. */
static void check(rs_status status) {
    if (status == RS_OK) return;
    fprintf(stderr, "answer: %s\n", rs_last_error());
    exit(2);
}

/* The question as the model wants to be asked: rendered by its chat template when it has one. */
static size_t prompt_tokens(const rs_model *model, const char *question, int32_t *tokens) {
    rs_model_info info;
    rs_model_describe(model, &info);
    size_t count;
    if (info.chat_template == NULL) {
        check(rs_tokenize(model, question, strlen(question), RS_TOKENS_ADD_SPECIAL, tokens, CONTEXT, &count));
        return count;
    }
    const rs_message message = {"user", question};
    char *text;
    check(rs_chat_render(model, &message, 1, true, &text));
    check(rs_tokenize(model, text, strlen(text), RS_TOKENS_PARSE_SPECIAL, tokens, CONTEXT, &count));
    rs_free(text);
    return count;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: answer MODEL.gguf QUESTION\n");
        return 2;
    }
    rs_model *model;
    rs_engine *engine;
    rs_session *session;
    rs_sampler *sampler;
    check(rs_model_open(argv[1], &model));

    rs_options options;
    rs_options_init(&options);
    options.context = CONTEXT;
    options.ranks = 3;
    check(rs_engine_open(model, &options, &engine));
    check(rs_session_open(engine, &session));

    rs_sampling greedy;
    rs_sampling_init(&greedy);
    greedy.temperature = 0;
    check(rs_sampler_open(model, &greedy, &sampler));

    int32_t tokens[CONTEXT];
    size_t count = prompt_tokens(model, argv[2], tokens);
    rs_text stream = {0};
    for (int i = 0; i < ANSWER_MAX && count < CONTEXT; i++) {
        const float *logits;
        rs_logprob picked;
        char text[256];
        size_t bytes;
        check(rs_session_eval(session, tokens, count, NULL, NULL, &logits)); /* the whole prefix, each time */
        check(rs_sampler_pick(sampler, logits, tokens, count, &picked, NULL, 0));
        if (rs_token_ends(model, picked.token)) break;
        tokens[count++] = picked.token;
        check(rs_detokenize(model, &stream, picked.token, false, text, sizeof text, &bytes));
        fwrite(text, 1, bytes, stdout);
        fflush(stdout);
    }
    putchar('\n');

    rs_sampler_close(sampler);
    rs_session_close(session);
    rs_engine_close(engine);
    rs_model_close(model);
    return 0;
}
