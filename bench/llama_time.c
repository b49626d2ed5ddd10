/* llama_time.c: times llama.cpp's library behind a KV cache of any depth without evaluating that many tokens first.
 *
 *   llama_time MODEL THREADS KV_FORMAT CONTEXT
 *
 * Prints one line, the library's version and system information, then answers every line of standard input,
 * "prompt DEPTH N" or "decode DEPTH N" ("real-..." evaluates the tokens of the depth instead of copying them), with the
 * seconds that N tokens took behind DEPTH others: evaluated at once, or one by one.
 *
 * How the cache is filled: BLOCK tokens are evaluated, their cells saved with llama_state_seq_get_data, and the saved
 * cells loaded again and again with their positions moved on, each time into a spare sequence whose cells sequence 0
 * then shares. So every cell of the depth holds real K and V rows of the right format and has its own position; a
 * decode step reads them all. Flash attention is on, batch sizes and thread pool are those of llama-bench. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <llama.h>

enum { BLOCK = 256, BATCH = 2048, UBATCH = 512, MAIN = 0, SPARE = 1 };

/* Where a saved sequence keeps its cells: after four words (magic, sequence, streams, cells), three words a cell, of
 * which the first is the position. Checked before it is relied on. */
enum { HEADER_WORDS = 4, CELL_WORDS = 3 };

typedef struct bench {
    struct llama_context *context;
    llama_memory_t memory;
    int32_t vocab;
    uint32_t random;
    uint8_t *block; /* BLOCK cells as saved */
    size_t block_bytes;
    int32_t filled; /* positions 0 .. filled - 1 of MAIN are in the cache */
    bool real;      /* and were evaluated */
} bench;

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fail(const char *why) {
    fprintf(stderr, "llama_time: %s\n", why);
    exit(1);
}

static void log_errors(enum ggml_log_level level, const char *text, void *unused) {
    (void)unused;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

/* Evaluates n random tokens of MAIN, which continue what the cache holds, at most `step` at once. */
static void evaluate(bench *b, int32_t n, int32_t step) {
    llama_token tokens[BATCH];
    for (int32_t done = 0; done < n; done += step) {
        int32_t count = n - done < step ? n - done : step;
        for (int32_t i = 0; i < count; i++) {
            b->random = b->random * 1664525u + 1013904223u;
            tokens[i] = (llama_token)((b->random >> 8) % (uint32_t)b->vocab);
        }
        if (llama_decode(b->context, llama_batch_get_one(tokens, count)) != 0) fail("llama_decode failed");
        llama_synchronize(b->context);
    }
}

static void save_block(bench *b) {
    evaluate(b, BLOCK, BATCH);
    b->block_bytes = llama_state_seq_get_size(b->context, MAIN);
    b->block = malloc(b->block_bytes);
    if (b->block == NULL) fail("no memory for a block of cells");
    if (llama_state_seq_get_data(b->context, b->block, b->block_bytes, MAIN) != b->block_bytes) fail("no state saved");
    const int32_t *words = (const int32_t *)(void *)b->block;
    bool known = words[2] == 1 && words[3] == BLOCK;
    for (int32_t i = 0; i < BLOCK && known; i++) {
        const int32_t *cell = words + HEADER_WORDS + CELL_WORDS * i;
        known = cell[0] == i && cell[1] == 1 && cell[2] == MAIN;
    }
    if (!known) fail("this version saves a sequence in a form that is not known here; use llama-bench -d instead");
    llama_memory_seq_rm(b->memory, MAIN, -1, -1);
}

static void copy_block(bench *b, int32_t first) {
    int32_t *words = (int32_t *)(void *)b->block;
    for (int32_t i = 0; i < BLOCK; i++) words[HEADER_WORDS + CELL_WORDS * i] = first + i;
    if (llama_state_seq_set_data(b->context, b->block, b->block_bytes, SPARE) != b->block_bytes) {
        fail("llama_state_seq_set_data failed");
    }
    llama_memory_seq_cp(b->memory, SPARE, MAIN, -1, -1);
    llama_memory_seq_rm(b->memory, SPARE, -1, -1);
}

/* Leaves exactly the positions 0 .. depth - 1 in the cache. */
static void fill(bench *b, int32_t depth, bool real) {
    if (depth < b->filled || real != b->real) {
        llama_memory_clear(b->memory, false);
        b->filled = 0;
        b->real = real;
    }
    llama_memory_seq_rm(b->memory, MAIN, b->filled, -1);
    if (real) {
        evaluate(b, depth - b->filled, BATCH);
    } else {
        int32_t first = b->filled - b->filled % BLOCK;
        llama_memory_seq_rm(b->memory, MAIN, first, -1);
        for (; first < depth; first += BLOCK) copy_block(b, first);
        llama_memory_seq_rm(b->memory, MAIN, depth, -1);
    }
    b->filled = depth;
    if (depth > 0 && (llama_memory_seq_pos_min(b->memory, MAIN) != 0 ||
                      llama_memory_seq_pos_max(b->memory, MAIN) != depth - 1)) {
        fail("the cache does not hold the positions asked for");
    }
}

static void use_threads(bench *b, int32_t threads) {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (cpu == NULL) fail("no CPU backend found beside the library");
    ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(cpu);
    struct ggml_threadpool *(*pool_new)(struct ggml_threadpool_params *) = NULL;
    *(void **)&pool_new = ggml_backend_reg_get_proc_address(registry, "ggml_threadpool_new");
    if (pool_new == NULL) fail("no ggml_threadpool_new in the CPU backend");
    struct ggml_threadpool_params params = ggml_threadpool_params_default(threads);
    llama_attach_threadpool(b->context, pool_new(&params), NULL);
}

static void open_all(bench *b, const char *path, int32_t threads, const char *format, uint32_t tokens) {
    struct llama_model_params model_params = llama_model_default_params();
    struct llama_model *model = llama_model_load_from_file(path, model_params);
    if (model == NULL) fail("the model does not load");
    enum ggml_type type = strcmp(format, "q8_0") == 0   ? GGML_TYPE_Q8_0
                          : strcmp(format, "q4_0") == 0 ? GGML_TYPE_Q4_0
                                                        : GGML_TYPE_F16;
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = tokens + 2 * BLOCK;
    params.n_batch = BATCH;
    params.n_ubatch = UBATCH;
    params.n_seq_max = 2;
    params.kv_unified = true; /* one set of cells for both sequences */
    params.n_threads = params.n_threads_batch = threads;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.type_k = params.type_v = type;
    b->context = llama_init_from_model(model, params);
    if (b->context == NULL) fail("no context");
    b->memory = llama_get_memory(b->context);
    b->vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    use_threads(b, threads);
    save_block(b);
}

int main(int count, char **values) {
    char line[128], what[32];
    int32_t depth, n;
    bench b = {.random = 1};
    if (count != 5) fail("usage: llama_time MODEL THREADS f16|q8_0|q4_0 CONTEXT");
    llama_log_set(log_errors, NULL);
    ggml_backend_load_all();
    open_all(&b, values[1], atoi(values[2]), values[3], (uint32_t)strtoul(values[4], NULL, 10));
    printf("llama.cpp %s; %s\n", llama_version(), llama_print_system_info());
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        if (sscanf(line, "%31s %d %d", what, &depth, &n) != 3 || depth < 0 || n < 1) fail("'prompt|decode DEPTH N'?");
        bool real = strncmp(what, "real-", 5) == 0;
        fill(&b, depth, real);
        double begun = seconds();
        evaluate(&b, n, strcmp(what + (real ? 5 : 0), "decode") == 0 ? 1 : BATCH);
        printf("%.9f\n", seconds() - begun);
        fflush(stdout);
    }
    return 0;
}
