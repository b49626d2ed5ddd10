/* bench.c: `ringspan bench`: tokens/s of prompt evaluation and generation at depth, with llama-bench's habits. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/random.h"
#include "cli/commands.h"
#include "cli/hosts.h"
#include "cli/interrupt.h"
#include "cli/progress.h"
#include "cli/report.h"

/* One row: evaluates n_prompt tokens at once, or generates n_predict one by one, behind `depth` tokens. */
typedef struct test {
    uint32_t n_prompt, n_predict, depth; /* one of the first two is 0 */
} test;

enum { TESTS_MAX = 2 * LIST_MAX * LIST_MAX, REPETITIONS_MAX = 1000, SEED = 1 };

typedef struct bench {
    const args *args;
    rs_options options;
    rs_model *model;
    rs_model_info info;
    rs_cluster *cluster; /* with --hosts */
    rs_engine *engine;
    rs_session *session;
    rs_plan_info plan;
    int32_t *tokens; /* [context] */
    size_t n_tests;
    test tests[TESTS_MAX];
    double seconds[REPETITIONS_MAX]; /* of the present test */
    json_t *rows;
} bench;

static uint32_t count_evaluated(const test *t) {
    return t->n_prompt + t->n_predict;
}

static void name_test(const test *t, char *name, size_t bytes) {
    int n = snprintf(name, bytes, "%s%u", t->n_prompt > 0 ? "pp" : "tg", count_evaluated(t));
    if (t->depth > 0) snprintf(name + n, bytes - (size_t)n, " @ d%u", t->depth);
}

/* Lists the rows, depth by depth, and finds the context they need. */
static int list_tests(bench *b) {
    const args *a = b->args;
    uint64_t context = 0;
    for (size_t d = 0; d < a->depths.count; d++) {
        for (size_t i = 0; i < a->prompts.count + a->predicts.count; i++) {
            bool is_prompt = i < a->prompts.count;
            uint32_t n = is_prompt ? a->prompts.items[i] : a->predicts.items[i - a->prompts.count];
            if (n == 0) continue;
            uint64_t needed = (uint64_t)a->depths.items[d] + n;
            if (needed > context) context = needed;
            b->tests[b->n_tests++] = (test){is_prompt ? n : 0, is_prompt ? 0 : n, a->depths.items[d]};
        }
    }
    if (b->n_tests == 0) return output_refuse("nothing to measure: -p and -n are both 0");
    if (context > UINT32_MAX || (b->options.context > 0 && context > b->options.context)) {
        return output_refuse("the tests need a context of %zu tokens and --ctx allows %u", (size_t)context,
                             b->options.context > 0 ? b->options.context : UINT32_MAX);
    }
    if (b->options.context == 0) b->options.context = (uint32_t)context;
    return 0;
}

static int open_all(bench *b) {
    int code = list_tests(b);
    if (code == 0) code = output_status(rs_model_open(b->args->model, &b->model));
    if (code != 0) return code;
    rs_model_describe(b->model, &b->info);
    code = hosts_lead(b->args, b->model, &b->options, &b->cluster);
    if (code == 0) code = output_status(rs_engine_open(b->model, &b->options, &b->engine));
    if (code == 0) code = output_status(rs_session_open(b->engine, &b->session));
    if (code != 0) return code;
    rs_plan_describe(rs_engine_plan(b->engine), &b->plan);
    b->tokens = calloc(b->options.context, sizeof *b->tokens);
    return b->tokens != NULL ? 0 : output_refuse("no memory for %u tokens", b->options.context);
}

/* One measurement. Tokens within the depth are 0, as rs_session_fill leaves them; the others are random. */
static rs_status measure(bench *b, const test *t, progress *bar, double *seconds) {
    const float *logits;
    uint64_t random = SEED;
    rs_status status = rs_session_fill(b->session, t->depth, SEED);
    memset(b->tokens, 0, t->depth * sizeof *b->tokens);
    for (uint32_t i = 0; i < count_evaluated(t); i++) {
        b->tokens[t->depth + i] = (int32_t)(random_next(&random) % b->info.vocab);
    }
    double begun_s = clock_s();
    if (status == RS_OK && t->n_prompt > 0) {
        status = rs_session_eval(b->session, b->tokens, t->depth + t->n_prompt, progress_update, bar, &logits);
    }
    for (uint32_t i = 0; i < t->n_predict && status == RS_OK; i++) {
        status = rs_session_eval(b->session, b->tokens, t->depth + i + 1, NULL, NULL, &logits);
        if (!progress_update(bar, i + 1, t->n_predict)) status = RS_CANCELLED;
    }
    *seconds = clock_s() - begun_s;
    return status;
}

/* Mean of tokens/s over the repetitions and the sample standard deviation. */
static void summarise(const double *values, size_t count, double *mean, double *deviation) {
    double sum = 0, squares = 0;
    for (size_t i = 0; i < count; i++) sum += values[i];
    *mean = sum / (double)count;
    for (size_t i = 0; i < count; i++) squares += (values[i] - *mean) * (values[i] - *mean);
    *deviation = count > 1 ? sqrt(squares / (double)(count - 1)) : 0;
}

static void print_header(const bench *b) {
    if (b->args->json) return;
    printf("| %-16s | %10s | %10s | %5s | %5s | %9s | %7s | %17s | %21s |\n", "model", "size", "params", "ranks",
           "split", "KV", "threads", "test", "t/s");
    printf("| %.16s | %.9s: | %.9s: | %.4s: | %.4s: | %.8s: | %.6s: | %.16s: | %.20s: |\n", "----------------",
           "---------", "---------", "----", "----", "--------", "------", "----------------", "--------------------");
    fflush(stdout);
}

static void print_row(const bench *b, const test *t, double mean, double deviation) {
    char name[64], model[64], kv[24], rate[40];
    const rs_options *o = &b->plan.options;
    name_test(t, name, sizeof name);
    snprintf(model, sizeof model, "%s %s", b->info.architecture, b->info.weights);
    snprintf(kv, sizeof kv, o->kv_k == o->kv_v ? "%s" : "%s/%s", args_kv_name(o->kv_k), args_kv_name(o->kv_v));
    snprintf(rate, sizeof rate, "%.2f \u00b1 %.2f", mean, deviation);
    /* The sign is two bytes and one column. */
    printf("| %-16s | %10s | %8.2f M | %5u | %5s | %9s | %7u | %17s | %22s |\n", model,
           output_bytes(b->info.file_bytes).text, (double)b->info.parameters / 1e6, o->ranks, args_split_text(o).text,
           kv, o->threads, name, rate);
    fflush(stdout);
}

/* Fields that llama-bench has, too, keep its names. */
static void keep_row(bench *b, const test *t, const double *rates, double mean, double deviation) {
    double seconds_mean, seconds_deviation;
    size_t n = b->args->repetitions;
    json_t *samples_ns = json_array(), *samples_ts = json_array();
    summarise(b->seconds, n, &seconds_mean, &seconds_deviation);
    for (size_t i = 0; i < n; i++) {
        json_array_append_new(samples_ns, json_integer((json_int_t)(b->seconds[i] * 1e9)));
        json_array_append_new(samples_ts, json_real(rates[i]));
    }
    json_t *row = json_pack("{so so si si si sI sI sf sf so so}", "model", report_model(b->args->model, &b->info),
                            "options", report_options(&b->plan.options), "n_prompt", (int)t->n_prompt, "n_gen",
                            (int)t->n_predict, "n_depth", (int)t->depth, "avg_ns", (json_int_t)(seconds_mean * 1e9),
                            "stddev_ns", (json_int_t)(seconds_deviation * 1e9), "avg_ts", mean, "stddev_ts", deviation,
                            "samples_ns", samples_ns, "samples_ts", samples_ts);
    json_array_append_new(b->rows, row);
}

/* What wakes the threads and touches weights, cache and links once: two chunks of a prompt, or one token. */
static test warm_up_of(const bench *b, const test *t) {
    test out = *t;
    if (out.n_prompt > 2 * b->plan.options.chunk) out.n_prompt = 2 * b->plan.options.chunk;
    if (out.n_predict > 1) out.n_predict = 1;
    return out;
}

/* Measures one row, after a short run to warm up, and prints or keeps it. */
static rs_status run_test(bench *b, const test *t) {
    static double rates[REPETITIONS_MAX];
    char name[64], label[128];
    double mean, deviation, warm_up_s;
    test warm_up = warm_up_of(b, t);
    name_test(t, name, sizeof name);
    for (uint32_t i = 0; i <= b->args->repetitions; i++) {
        progress bar;
        const test *now = i == 0 ? &warm_up : t;
        snprintf(label, sizeof label, "%s, %u/%u", name, i, b->args->repetitions);
        progress_begin(&bar, label, count_evaluated(now), b->args->quiet);
        rs_status status = measure(b, now, &bar, i == 0 ? &warm_up_s : &b->seconds[i - 1]);
        progress_end(&bar);
        if (status != RS_OK) return status;
        if (i > 0) rates[i - 1] = count_evaluated(t) / b->seconds[i - 1];
    }
    summarise(rates, b->args->repetitions, &mean, &deviation);
    if (b->args->json) {
        keep_row(b, t, rates, mean, deviation);
    } else {
        print_row(b, t, mean, deviation);
    }
    return RS_OK;
}

static int run_tests(bench *b) {
    int code = 0;
    if (b->args->json) b->rows = json_array();
    print_header(b);
    for (size_t i = 0; i < b->n_tests && code == 0 && !ferror(stdout); i++) {
        code = output_status(run_test(b, &b->tests[i]));
    }
    if (!b->args->json) return output_finish(code);
    int printed = output_json(b->rows); /* rows measured before a failure or Ctrl-C, too */
    return code != 0 ? code : printed;
}

int bench_command(const args *a) {
    bench *b = calloc(1, sizeof *b);
    if (b == NULL) return output_refuse("no memory for the tests");
    b->args = a;
    b->options = a->engine;
    int code = open_all(b);
    if (code == 0) {
        interrupt_watch();
        code = run_tests(b);
    }
    rs_session_close(b->session);
    rs_engine_close(b->engine);
    rs_cluster_close(b->cluster);
    rs_model_close(b->model);
    free(b->tokens);
    free(b);
    return code;
}
