/* memory_tool.c: for test_memory.py: opens a model with a context, fills it, generates a few tokens, and prints as JSON
 * what was planned, the peak of resident memory, and how often memory was allocated per generated token.
 *
 *     memory_tool MODEL CONTEXT RANKS KV(f16|q8_0|q4_0) WEIGHTS(shared|packed) */
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"

enum { GENERATED = 8 };

static atomic_ullong allocations;

/* glibc's own names for what is counted here; the linker prefers ours for the whole process. */
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *old, size_t bytes);

void *malloc(size_t bytes) {
    atomic_fetch_add(&allocations, 1);
    return __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes) {
    atomic_fetch_add(&allocations, 1);
    return __libc_calloc(count, bytes);
}

void *realloc(void *old, size_t bytes) {
    atomic_fetch_add(&allocations, 1);
    return __libc_realloc(old, bytes);
}

static void check(rs_status status) {
    if (status == RS_OK) return;
    fprintf(stderr, "memory_tool: %s\n", rs_last_error());
    exit(2);
}

static uint64_t peak_bytes(void) {
    FILE *file = fopen("/proc/self/status", "r");
    char line[256];
    uint64_t kilobytes = 0;
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (sscanf(line, "VmHWM: %" SCNu64, &kilobytes) == 1) break;
    }
    if (file != NULL) fclose(file);
    return kilobytes * 1024;
}

static rs_kv_format kv_of(const char *name) {
    return strcmp(name, "q8_0") == 0 ? RS_KV_Q8_0 : strcmp(name, "q4_0") == 0 ? RS_KV_Q4_0 : RS_KV_F16;
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    rs_model *model;
    rs_engine *engine;
    rs_session *session;
    rs_options options;
    rs_options_init(&options);
    options.context = (uint32_t)atoi(argv[2]);
    options.ranks = (uint32_t)atoi(argv[3]);
    options.kv_k = options.kv_v = kv_of(argv[4]);
    check(rs_model_open(argv[1], &model));
    check(engine_open(model, &options, strcmp(argv[5], "packed") == 0, &engine));
    check(rs_session_open(engine, &session));
    rs_plan_info info;
    rs_plan_describe(rs_engine_plan(engine), &info);

    /* A chunk of prompt, then the rest of the context as if evaluated, then a few tokens. */
    int32_t *tokens = calloc(options.context, sizeof *tokens);
    const float *logits;
    size_t prompt = info.options.chunk;
    for (size_t i = 0; i < prompt; i++) tokens[i] = (int32_t)(i % 1000);
    check(rs_session_eval(session, tokens, prompt, NULL, NULL, &logits));
    memset(tokens, 0, options.context * sizeof *tokens);
    size_t length = options.context - GENERATED;
    check(rs_session_fill(session, length, 1));
    unsigned long long before = 0;
    for (int i = 0; i < GENERATED; i++) {
        tokens[length++] = 1 + i;
        check(rs_session_eval(session, tokens, length, NULL, NULL, &logits));
        if (i == 0) before = allocations;
    }
    printf("{\"planned\": %" PRIu64 ", \"peak\": %" PRIu64 ", \"program\": %" PRIu64 ", \"allocations\": %llu}\n",
           info.total, peak_bytes(), info.program, (unsigned long long)allocations - before);
    free(tokens);
    rs_session_close(session);
    rs_engine_close(engine);
    rs_model_close(model);
    return 0;
}
