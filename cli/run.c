/* run.c: `ringspan run`: evaluates a prompt and streams the answer. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "cli/commands.h"
#include "cli/hosts.h"
#include "cli/input.h"
#include "cli/interrupt.h"
#include "cli/progress.h"
#include "cli/report.h"

enum { LOGPROBS_MAX = 100, PIECE_BYTES = 4096 };

static const double logprob_least = -9999; /* JSON has no infinity */

typedef struct run {
    const args *args;
    rs_options options;
    rs_sampling sampling;
    rs_model *model;
    rs_model_info info;
    rs_cluster *cluster; /* with --hosts */
    rs_engine *engine;
    rs_session *session;
    rs_sampler *sampler;
    int32_t *tokens; /* [n_tokens]: prompt, then what was generated; room for the whole context and one more */
    size_t n_prompt, n_tokens, n_picked; /* n_picked counts the end token, too */
    rs_text stream;
    FILE *out; /* standard output, or with --json a stream into text [text_bytes] */
    char *text;
    size_t text_bytes;
    json_t *logprobs;
    const char *finish; /* "stop", "length", "context", "cancelled" or "unwritable" */
    double prefill_s, ttft_s, decode_s;
} run;

/* ---- Before the engine ---- */

/* The prompt as the model is to see it; *flags tell rs_tokenize what it holds. */
static int render_prompt(run *r, char **text, size_t *bytes, unsigned *flags) {
    const args *a = r->args;
    *flags = RS_TOKENS_PARSE_SPECIAL | RS_TOKENS_ADD_SPECIAL;
    r->stream.started = true; /* a continuation keeps its leading space */
    int code = input_read(a, text, bytes);
    if (code != 0 || a->raw) return code;
    if (r->info.chat_template == NULL) {
        if (a->system != NULL) return output_refuse("--system needs a chat template, and this model has none");
        if (!a->quiet) {
            fputs("ringspan: note: this model has no chat template, so it continues the prompt as with --raw\n",
                  stderr);
        }
        return 0;
    }
    if (*bytes == 0) return output_refuse("the prompt is empty; give -p TEXT or -f FILE");
    if (memchr(*text, 0, *bytes) != NULL) {
        return output_refuse("the prompt holds a NUL byte, which a chat cannot; remove it or use --raw");
    }
    rs_message messages[2];
    size_t n = 0;
    if (a->system != NULL) messages[n++] = (rs_message){"system", a->system};
    messages[n++] = (rs_message){"user", *text};
    char *rendered = NULL;
    rs_status status = rs_chat_render(r->model, messages, n, true, &rendered);
    if (status != RS_OK) {
        return output_refuse("%s; --raw continues the prompt without the chat template", rs_last_error());
    }
    free(*text);
    *bytes = strlen(rendered);
    *text = strdup(rendered); /* input_read's memory is freed by free, rs_chat_render's by rs_free */
    rs_free(rendered);
    r->stream.started = false;        /* an answer begins anew */
    *flags = RS_TOKENS_PARSE_SPECIAL; /* the template writes BOS itself */
    return *text != NULL ? 0 : output_refuse("no memory for the prompt");
}

/* Sets r->tokens, with room for the context, and r->options.context. */
static int choose_context(run *r) {
    size_t predict = r->args->predict;
    uint64_t context = r->options.context;
    if (context == 0 && predict == PREDICT_ALL) {
        context = r->info.context_trained;
        if (context == 0) return output_refuse("the model does not say its context; give --ctx or -n");
    }
    if (context == 0) context = (uint64_t)r->n_prompt + predict;
    if (r->n_prompt > context) {
        return output_refuse("the prompt has %zu tokens and the context %zu; raise it with --ctx or shorten the prompt",
                             r->n_prompt, (size_t)context);
    }
    if (context > UINT32_MAX) return output_refuse("a context of %zu tokens is too long", (size_t)context);
    r->options.context = (uint32_t)context;
    int32_t *larger = realloc(r->tokens, (context + 1) * sizeof *larger);
    if (larger == NULL) return output_refuse("no memory for %zu tokens", (size_t)context);
    r->tokens = larger;
    if (!r->args->quiet && r->info.context_trained > 0 && context > r->info.context_trained) {
        fprintf(stderr, "ringspan: note: the context of %zu tokens is longer than the %u the model was trained for\n",
                (size_t)context, r->info.context_trained);
    }
    return 0;
}

static int tokenize_prompt(run *r) {
    char *text = NULL;
    size_t bytes = 0, count = 0;
    unsigned flags;
    int code = render_prompt(r, &text, &bytes, &flags);
    if (code != 0) goto out;
    size_t capacity = bytes / 2 + 16; /* mostly enough at once */
    r->tokens = malloc(capacity * sizeof *r->tokens);
    if (r->tokens == NULL) goto no_memory;
    rs_status status = rs_tokenize(r->model, text, bytes, flags, r->tokens, capacity, &count);
    if (status == RS_LIMIT && count > capacity) {
        capacity = count;
        free(r->tokens);
        r->tokens = malloc(capacity * sizeof *r->tokens);
        if (r->tokens == NULL) goto no_memory;
        status = rs_tokenize(r->model, text, bytes, flags, r->tokens, capacity, &count);
    }
    code = output_status(status);
    if (code == 0 && count == 0) code = output_refuse("the prompt is empty; give -p TEXT or -f FILE");
    r->n_prompt = r->n_tokens = count;
    goto out;
no_memory:
    code = output_refuse("no memory for the prompt's tokens");
out:
    free(text);
    return code;
}

static int open_all(run *r) {
    int code = output_status(rs_model_open(r->args->model, &r->model));
    if (code != 0) return code;
    rs_model_describe(r->model, &r->info);
    code = tokenize_prompt(r);
    if (code == 0) code = choose_context(r);
    if (code != 0) return code;
    uint64_t seed;
    if (!r->args->seed_given && getrandom(&seed, sizeof seed, 0) == (ssize_t)sizeof seed) {
        r->sampling.seed = seed >> 12; /* a number that every JSON reader keeps exactly */
    }
    code = output_status(rs_sampler_open(r->model, &r->sampling, &r->sampler));
    if (code == 0) code = hosts_lead(r->args, r->model, &r->options, &r->cluster);
    if (code == 0) code = output_status(rs_engine_open(r->model, &r->options, &r->engine));
    if (code == 0) code = output_status(rs_session_open(r->engine, &r->session));
    return code;
}

/* ---- Generation ---- */

/* Writes the text that `token` (-1: the end) completes. */
static rs_status emit(run *r, int32_t token) {
    char piece[PIECE_BYTES];
    size_t bytes = 0;
    rs_status status = rs_detokenize(r->model, &r->stream, token, false, piece, sizeof piece, &bytes);
    if (status != RS_OK || bytes == 0) return status;
    fwrite(piece, 1, bytes, r->out);
    if (fflush(r->out) != 0) r->finish = "unwritable"; /* run_command tells why */
    return RS_OK;
}

/* A token's own text, special tokens included. */
static json_t *token_text(const run *r, int32_t token) {
    char piece[PIECE_BYTES], rest[PIECE_BYTES];
    size_t bytes = 0, n_rest = 0;
    rs_text alone = {.started = true};
    if (rs_detokenize(r->model, &alone, token, true, piece, sizeof piece, &bytes) != RS_OK) bytes = 0;
    if (alone.n_held > 0 && rs_detokenize(r->model, &alone, -1, true, rest, sizeof rest, &n_rest) == RS_OK &&
        n_rest <= sizeof piece - bytes) {
        memcpy(piece + bytes, rest, n_rest);
        bytes += n_rest;
    }
    return output_string(piece, bytes);
}

static json_t *logprob_json(const run *r, const rs_logprob *l) {
    return json_pack("{si so sf}", "token", (int)l->token, "text", token_text(r, l->token), "logprob",
                     isfinite(l->logprob) ? (double)l->logprob : logprob_least);
}

static size_t count_top(const run *r) {
    return r->args->logprobs < r->info.vocab ? r->args->logprobs : r->info.vocab;
}

static void keep_logprobs(run *r, const rs_logprob *picked, const rs_logprob *top, size_t n_top) {
    json_t *entry = logprob_json(r, picked), *list = json_array();
    for (size_t i = 0; i < n_top; i++) json_array_append_new(list, logprob_json(r, &top[i]));
    json_object_set_new(entry, "top", list);
    if (r->logprobs == NULL) r->logprobs = json_array();
    json_array_append_new(r->logprobs, entry);
}

/* Appends the next token to r->tokens. False at the end of the answer or when *status is a failure. */
static bool take_token(run *r, const float *logits, double begun_s, rs_status *status) {
    rs_logprob picked, top[LOGPROBS_MAX];
    size_t n_top = count_top(r);
    *status = rs_sampler_pick(r->sampler, logits, r->tokens, r->n_tokens, &picked, n_top > 0 ? top : NULL, n_top);
    if (*status != RS_OK) return false;
    double now_s = clock_s();
    if (r->n_picked++ == 0) r->ttft_s = now_s - begun_s;
    r->decode_s = now_s - begun_s - r->ttft_s;
    if (rs_token_ends(r->model, picked.token) && !r->args->ignore_eos) {
        r->finish = "stop";
        return false;
    }
    if (n_top > 0) keep_logprobs(r, &picked, top, n_top);
    r->tokens[r->n_tokens++] = picked.token;
    *status = emit(r, picked.token);
    return *status == RS_OK && r->finish == NULL;
}

/* Whether generation must end before the tokens so far are evaluated. */
static bool is_over(run *r) {
    if (interrupt_seen()) {
        r->finish = "cancelled";
    } else if (r->n_tokens - r->n_prompt == r->args->predict) {
        r->finish = "length";
    } else if (r->n_tokens > r->options.context) {
        r->finish = "context";
    }
    return r->finish != NULL;
}

static rs_status generate(run *r) {
    progress bar;
    const float *logits = NULL;
    double begun_s = clock_s();
    progress_begin(&bar, "prefill", r->n_prompt, r->args->quiet);
    rs_status status = rs_session_eval(r->session, r->tokens, r->n_prompt, progress_update, &bar, &logits);
    progress_end(&bar);
    r->prefill_s = clock_s() - begun_s;
    while (status == RS_OK && !is_over(r) && take_token(r, logits, begun_s, &status) && !is_over(r)) {
        status = rs_session_eval(r->session, r->tokens, r->n_tokens, NULL, NULL, &logits);
    }
    if (status == RS_CANCELLED) {
        r->finish = "cancelled";
        status = RS_OK;
    }
    return status == RS_OK ? emit(r, -1) : status;
}

/* ---- Afterwards ---- */

static double rate(size_t count, double seconds) {
    return count > 0 && seconds > 0 ? (double)count / seconds : 0;
}

/* Tokens of the prompt that were evaluated: all, unless Ctrl-C came between. */
static size_t count_prefilled(const run *r) {
    size_t length = rs_session_length(r->session);
    return length < r->n_prompt ? length : r->n_prompt;
}

static size_t count_decoded(const run *r) {
    return r->n_picked > 0 ? r->n_picked - 1 : 0; /* the first comes out of the prefill */
}

static int print_json(run *r) {
    json_t *tokens = json_array();
    for (size_t i = r->n_prompt; i < r->n_tokens; i++) json_array_append_new(tokens, json_integer(r->tokens[i]));
    rs_plan_info plan;
    rs_plan_describe(rs_engine_plan(r->engine), &plan);
    size_t n_prefilled = count_prefilled(r), n_decoded = count_decoded(r);
    json_t *timings = json_pack("{sI sI sf sf sI sf sf sf}", "prompt_tokens", (json_int_t)r->n_prompt, "prefill_tokens",
                                (json_int_t)n_prefilled, "prefill_s", r->prefill_s, "prefill_tokens_per_s",
                                rate(n_prefilled, r->prefill_s), "decode_tokens", (json_int_t)n_decoded, "decode_s",
                                r->decode_s, "decode_tokens_per_s", rate(n_decoded, r->decode_s), "ttft_s", r->ttft_s);
    json_t *object =
        json_pack("{so so so so ss sI so so}", "model", report_model(r->args->model, &r->info), "options",
                  report_options(&plan.options), "text", output_string(r->text, r->text_bytes), "tokens", tokens,
                  "finish_reason", r->finish, "seed", (json_int_t)r->sampling.seed, "timings", timings, "ranks",
                  report_ranks(rs_engine_plan(r->engine), rs_session_length(r->session)));
    if (object != NULL && r->logprobs != NULL) json_object_set(object, "logprobs", r->logprobs);
    return output_json(object);
}

static const char *finish_text(const run *r) {
    static const struct {
        const char *finish, *text;
    } texts[] = {
        {"stop", "ended by the model"},
        {"length", "ended by -n"},
        {"context", "ended by the full context"},
        {"cancelled", "stopped by the user"},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        if (strcmp(r->finish, texts[i].finish) == 0) return texts[i].text;
    }
    return r->finish;
}

static void print_summary(const run *r) {
    size_t n_prefilled = count_prefilled(r), n_generated = r->n_tokens - r->n_prompt, n_decoded = count_decoded(r);
    fprintf(stderr, "\nprompt     %7zu ", n_prefilled);
    if (n_prefilled < r->n_prompt) fprintf(stderr, "of %zu ", r->n_prompt);
    fprintf(stderr, "tokens  %8.1f tokens/s", rate(n_prefilled, r->prefill_s));
    if (r->n_picked > 0) fprintf(stderr, "  first token after %.2f s", r->ttft_s);
    fprintf(stderr, "\ngenerated  %7zu tokens  ", n_generated);
    if (n_decoded > 0) {
        fprintf(stderr, "%8.1f tokens/s", rate(n_decoded, r->decode_s));
    } else {
        fprintf(stderr, "%17s", "");
    }
    fprintf(stderr, "  %s\n\n", finish_text(r));
    report_kv_table(rs_engine_plan(r->engine), rs_session_length(r->session), stderr);
}

static void close_all(run *r) {
    rs_session_close(r->session);
    rs_engine_close(r->engine);
    rs_cluster_close(r->cluster);
    rs_sampler_close(r->sampler);
    rs_model_close(r->model);
    json_decref(r->logprobs);
    if (r->out != NULL && r->out != stdout) fclose(r->out);
    free(r->tokens);
    free(r->text);
}

int run_command(const args *a) {
    run r = {.args = a, .options = a->engine, .sampling = a->sampling};
    int code = open_all(&r);
    r.out = a->json ? open_memstream(&r.text, &r.text_bytes) : stdout;
    if (code == 0 && r.out == NULL) code = output_refuse("no memory for the text");
    if (code == 0) {
        interrupt_watch();
        code = output_status(generate(&r));
    }
    if (code == 0 && a->json && ferror(r.out)) code = output_refuse("no memory for the text");
    if (code == 0) {
        if (a->json) {
            code = print_json(&r);
        } else {
            putchar('\n');
            code = output_finish(0);
        }
        if (code == 0 && !a->quiet) print_summary(&r);
        if (code == 0 && strcmp(r.finish, "cancelled") == 0) code = interrupt_code();
    }
    close_all(&r);
    return code;
}
