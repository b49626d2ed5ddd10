/* ringspan.h: the whole public interface of libringspan, long-context inference split over ranks.
 *
 * A model is a GGUF file; an engine is that model loaded on one or more ranks; a session is one timeline of tokens
 * whose KV cache is reserved on every rank before the first token. The caller hands the session the whole prefix each
 * time; what is already in the cache is kept, what differs is rewound and evaluated.
 *
 * Threads: a model may be read from any thread. An engine and its sessions belong to one thread at a time.
 * Errors: every function that can fail returns rs_status and writes its results only on RS_OK;
 * rs_last_error() then holds one sentence with the cause and the way out, per thread.
 */
#ifndef RINGSPAN_H
#define RINGSPAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default) /* libringspan exports these functions and nothing else */

#define RS_VERSION "0.1.0"
enum { RS_RANKS_MAX = 64 };

/* Grouped by how much is lost. */
typedef enum rs_status {
    RS_OK = 0,
    /* This request. */
    RS_BAD_ARGUMENT, /* a parameter that cannot be meant */
    RS_BAD_FORMAT,   /* a file or text that breaks its own rules */
    RS_UNSUPPORTED,  /* valid, but not known here */
    RS_LIMIT,        /* larger than a buffer, the context or the memory allowed */
    RS_CANCELLED,    /* the caller's progress callback asked to stop */
    /* The group of ranks. */
    RS_PEER_LOST, /* another rank failed or went away */
    RS_PEER_LATE, /* another rank missed its deadline */
    /* The process. */
    RS_NO_MEMORY,
    RS_IO,
    RS_DEVICE,
} rs_status;

/* How K or V rows are kept. q8_0 (one scale a row of a head) and q4_0 (one for 32 values) are rotated by a
 * Walsh-Hadamard transform before they are quantised. */
typedef enum rs_kv_format { RS_KV_F16, RS_KV_Q8_0, RS_KV_Q4_0, RS_KV_FORMATS } rs_kv_format;

/* Who holds which weights and which KV (docs/ARCHITECTURE.md has the table). */
typedef enum rs_split {
    RS_SPLIT_AUTO,
    RS_SPLIT_R1, /* context parallel, all weights replicated */
    RS_SPLIT_R2, /* context parallel, FFN sliced */
    RS_SPLIT_R3, /* context parallel, FFN and output projection sliced */
    RS_SPLIT_R4, /* context parallel, every block sliced */
    RS_SPLIT_TP, /* tensor parallel: KV split by heads */
    RS_SPLIT_PP, /* pipeline parallel: layers split */
    RS_SPLITS
} rs_split;

typedef struct rs_model rs_model;
typedef struct rs_plan rs_plan;
typedef struct rs_engine rs_engine;
typedef struct rs_session rs_session;
typedef struct rs_sampler rs_sampler;
typedef struct rs_cluster rs_cluster;

/* ---- 1. Process ---------------------------------------------------------------------------------------------- */

/* A short name such as "bad argument"; static. */
const char *rs_status_name(rs_status status);

/* The sentence of this thread's latest failure; "" before any. Valid until the next failing call on this thread. */
const char *rs_last_error(void);

/* ---- 2. Model ------------------------------------------------------------------------------------------------ */

typedef struct rs_model_info {
    const char *architecture;  /* "llama", "qwen2", "qwen3", "gemma3" */
    const char *name;          /* general.name, or "" */
    const char *weights;       /* the most common weight format, such as "Q4_K" */
    const char *chat_template; /* Jinja2 source, or NULL */
    uint64_t parameters, file_bytes;
    uint32_t layers, dim, heads, kv_heads, head_dim, ffn_dim, vocab;
    uint32_t context_trained; /* tokens */
    uint32_t window;          /* tokens a sliding-window layer sees, 0 when every layer sees all */
    int32_t bos, eos;         /* token ids, -1 when the file names none */
} rs_model_info;

/* Maps and checks a GGUF file (v2 or v3) and its tokenizer. Free with rs_model_close after every engine on it.
 * RS_IO, RS_BAD_FORMAT, RS_UNSUPPORTED, RS_NO_MEMORY. */
rs_status rs_model_open(const char *path, rs_model **out);
void rs_model_close(rs_model *model);

/* Strings live as long as the model. */
void rs_model_describe(const rs_model *model, rs_model_info *out);

/* ---- 3. Text ------------------------------------------------------------------------------------------------- */

enum {
    RS_TOKENS_ADD_SPECIAL = 1,   /* add BOS/EOS as the model's metadata says */
    RS_TOKENS_PARSE_SPECIAL = 2, /* "<|im_start|>" in the text is the control token, not its letters */
};

/* Text (any bytes; invalid UTF-8 included) to token ids. Writes up to `capacity` ids; *count is the full count, and
 * RS_LIMIT is returned when that is more (call again with more room). */
rs_status rs_tokenize(const rs_model *model, const char *text, size_t bytes, unsigned flags, int32_t *tokens,
                      size_t capacity, size_t *count);

/* State of one stream of tokens turned back into text: bytes of a UTF-8 character whose rest has not come yet. */
typedef struct rs_text {
    char held[16];
    uint32_t n_held;
    bool started; /* the first token of the text has been seen (SentencePiece drops its leading space) */
} rs_text;

/* Appends token's text to the stream and writes what is complete to `out` (not NUL-terminated). Never cuts a UTF-8
 * character. Zero-initialise `stream` first. With token -1 flushes what is held (as U+FFFD when it is no character).
 * Control tokens give no text unless `special`. RS_LIMIT when `capacity` (256 always suffices for real vocabularies)
 * is too small; nothing is then consumed. */
rs_status rs_detokenize(const rs_model *model, rs_text *stream, int32_t token, bool special, char *out, size_t capacity,
                        size_t *bytes);

/* True for EOS and the model's other end-of-turn tokens. */
bool rs_token_ends(const rs_model *model, int32_t token);

typedef struct rs_message {
    const char *role;    /* "system", "user", "assistant" */
    const char *content; /* UTF-8 */
} rs_message;

/* Renders messages with the model's chat template, run by Jinja2 in a sandboxed helper process. *text is to be freed
 * with rs_free. RS_UNSUPPORTED without template or without python3-jinja2; RS_BAD_FORMAT when the template fails. */
rs_status rs_chat_render(const rs_model *model, const rs_message *messages, size_t count, bool add_generation_prompt,
                         char **text);
void rs_free(void *memory);

/* ---- 4. Plan: who holds what, in bytes ------------------------------------------------------------------------ */

typedef struct rs_options {
    uint32_t context;            /* tokens a session may hold; 0: what the model was trained for */
    uint32_t ranks;              /* 1 to RS_RANKS_MAX */
    double shares[RS_RANKS_MAX]; /* relative share of each rank, of pages and of weights; all 0: equal */
    /* Of the weights alone; all 0: as shares. A rank with 0 beside others with more keeps KV only (split r4). */
    double weight_shares[RS_RANKS_MAX];
    rs_split split;
    /* Parts that KV heads are cut into (tensor parallel attention, in r3 and r4): each part is held by ranks / tpa
     * neighbours, who share the context. A divisor of the ranks below them, at most the KV heads; 0: 1. Prompts then
     * go through the exchanges of decoding, as in split tp, and not spread over the ranks. */
    uint32_t tpa;
    rs_kv_format kv_k, kv_v;
    uint32_t chunk;        /* prompt tokens evaluated at once; 0: 512, or 128 a rank if that is more */
    uint32_t threads;      /* of all ranks together; 0: the cores this process may use */
    uint64_t memory_limit; /* bytes, 0: what the machine (or its cgroup) has free */
    /* "ref", "portable", "avx2", "avx_vnni", "avx512", "amx", "neon", "neon_dot" or "neon_i8mm"; NULL: the best that
     * this CPU runs, but not "amx", whose prefill is less exact than the others' */
    const char *kernels;
    rs_cluster *cluster; /* NULL: ranks are threads of this process; else one rank on each of its machines, of which
                            threads, memory_limit and kernels are then the head's alone */
} rs_options;

/* Defaults: one rank, auto split, f16 KV. */
void rs_options_init(rs_options *options);

typedef struct rs_plan_rank {
    uint64_t weights;     /* bytes of weights this rank reads to decode one token */
    uint64_t kv;          /* bytes reserved for KV pages */
    uint64_t activations; /* bytes of working buffers */
    uint64_t wire;        /* bytes of buffers for exchange with other ranks */
    uint64_t slices;      /* bytes of weights in memory of the rank's own; 0 where all read them from the mapped file */
    uint32_t pages;       /* KV pages of a full context, of one full-attention layer; 0 on a rank without KV */
    uint32_t layer_begin, layer_end;
    uint32_t head_begin, head_end; /* query heads it projects when decoding */
    uint32_t ffn_begin, ffn_end;
    uint32_t vocab_begin, vocab_end;
} rs_plan_rank;

typedef struct rs_plan_info {
    rs_options options; /* with every default filled in */
    uint32_t page_tokens;
    uint64_t weights;     /* bytes of the mapped file that ranks of one process read and share */
    uint64_t program;     /* bytes of code, libraries, tokenizer and tables, as measured in this process, and of UCX */
    uint64_t ranks;       /* bytes of KV, activations, wire buffers and slices of all ranks */
    uint64_t tables;      /* bytes of the page deal and of the timeline of tokens */
    uint64_t total;       /* the sum: peak resident memory of this process (with one rank of a cluster) */
    uint64_t limit;       /* bytes allowed */
    uint32_t context_max; /* largest context that fits the limit, 0 when none does */
} rs_plan_info;

/* Computes the plan by walking the real layout. It succeeds also when the plan does not fit (total > limit).
 * RS_BAD_ARGUMENT, RS_UNSUPPORTED (a split or format this model cannot have), RS_NO_MEMORY. Free with rs_plan_free. */
rs_status rs_plan_make(const rs_model *model, const rs_options *options, rs_plan **out);
void rs_plan_free(rs_plan *plan);
void rs_plan_describe(const rs_plan *plan, rs_plan_info *out);

/* rank < the plan's ranks (asserted, here and below). */
void rs_plan_describe_rank(const rs_plan *plan, uint32_t rank, rs_plan_rank *out);

/* Tokens whose KV (of its layers and heads) lies on `rank` when a session holds `length` tokens. */
size_t rs_plan_tokens(const rs_plan *plan, uint32_t rank, size_t length);

/* ---- 5. Engine and session ------------------------------------------------------------------------------------ */

/* Starts the ranks; with a cluster, on all its machines. RS_LIMIT when one session of options->context tokens would not
 * fit the memory limit; the error names the largest context that does. The model must outlive the engine. */
rs_status rs_engine_open(const rs_model *model, const rs_options *options, rs_engine **out);

/* Stops the ranks; closes and frees a session that is still open. NULL is allowed, as for every close and free here. */
void rs_engine_close(rs_engine *engine);
const rs_plan *rs_engine_plan(const rs_engine *engine); /* lives as long as the engine */

/* One session at a time: reserves (and touches) the whole context's KV on every rank. */
rs_status rs_session_open(rs_engine *engine, rs_session **out);
void rs_session_close(rs_session *session);

/* Called between chunks with tokens done and to do; return false to stop (RS_CANCELLED; what is done stays). */
typedef bool (*rs_progress)(void *user, size_t done, size_t total);

/* Makes the timeline equal to tokens[0..count) and gives the logits of its last token, [vocab] floats that live until
 * the next call. The longest common prefix with the present timeline is kept (of a model with sliding windows only
 * while they reach back no further than what its layers still hold; else all is evaluated again). count >= 1; progress
 * may be NULL. RS_BAD_ARGUMENT, RS_LIMIT (context full), RS_CANCELLED, RS_PEER_LOST, RS_PEER_LATE. */
rs_status rs_session_eval(rs_session *session, const int32_t *tokens, size_t count, rs_progress progress, void *user,
                          const float **logits);

/* Tokens whose KV is in the cache. */
size_t rs_session_length(const rs_session *session);

/* Makes the timeline `count` tokens of id 0 (none for 0) with pseudo-random K and V of seed, to measure speed at depth
 * without evaluating a prompt. */
rs_status rs_session_fill(rs_session *session, size_t count, uint64_t seed);

/* ---- 6. Sampling ---------------------------------------------------------------------------------------------- */

typedef struct rs_sampling {
    float temperature;                         /* 0: greedy */
    uint32_t top_k;                            /* 0: off */
    float top_p, min_p;                        /* 1 and 0: off */
    float repeat_penalty;                      /* 1: off */
    float presence_penalty, frequency_penalty; /* 0: off */
    uint32_t penalty_last;                     /* how many last tokens the penalties look at */
    uint64_t seed;
} rs_sampling;

void rs_sampling_init(rs_sampling *sampling); /* llama.cpp's defaults: 0.8, 40, 0.95, 0.05, no penalties over 64 */

/* A sampler takes 20 bytes for each token of the vocabulary, which no plan counts. RS_BAD_ARGUMENT, RS_NO_MEMORY. */
rs_status rs_sampler_open(const rs_model *model, const rs_sampling *sampling, rs_sampler **out);
void rs_sampler_close(rs_sampler *sampler);

typedef struct rs_logprob {
    int32_t token;
    float logprob; /* natural log of the probability before temperature and filters */
} rs_logprob;

/* Picks a token from logits [vocab]; tokens[0..count) is the text so far, for the penalties. When `top` is not NULL it
 * receives the n_top most probable tokens, and *picked the chosen one with its log-probability. RS_BAD_ARGUMENT,
 * RS_DEVICE (logits that are no numbers). */
rs_status rs_sampler_pick(rs_sampler *sampler, const float *logits, const int32_t *tokens, size_t count,
                          rs_logprob *picked, rs_logprob *top, size_t n_top);

/* ---- 7. Machines: how fast the operations of a forward pass are ------------------------------------------------ */

enum {
    RS_WEIGHT_FORMATS = 40, /* GGUF's type numbers are below this */
    RS_QUERIES = 3,         /* numbers of query rows that share a KV head for which attention is rated: */
};
#define RS_QUERIES_AT                                                                                                  \
    { 1, 4, 16 }

/* An operation takes its launch and then the longer of bytes / bandwidth and operations / peak; products take what
 * comes with their shape besides. Rates that are 0 are not known and cost nothing; of a weight format, the slowest one
 * known stands in. */
typedef struct rs_rates {
    double read_bytes_per_s;                              /* from memory, at best */
    double small_s;                                       /* launch of an operation on a few thousand values, */
    double launch_s;                                      /* of one that all cores (or all of a GPU) work on */
    double vector_bytes_per_s;                            /* of elementwise operations, read and written */
    double weights_bytes_per_s[RS_WEIGHT_FORMATS];        /* a matrix times one token */
    double weights_few_flop_per_s[RS_WEIGHT_FORMATS];     /* times a few tokens */
    double weights_many_flop_per_s[RS_WEIGHT_FORMATS];    /* times many */
    double rows_per_s;                                    /* besides: ends of sums, times a few tokens, */
    double outputs_per_s;                                 /* times many; */
    double inputs_per_s;                                  /* and the many's values made ready for it */
    double attend_bytes_per_s[RS_KV_FORMATS][RS_QUERIES]; /* KV that one token's queries meet */
    double attend_many_flop_per_s[RS_KV_FORMATS];         /* a prompt's rows: queries times keys, and values */
} rs_rates;

/* A message arrives `latency_s` after it was sent (both ends ready, as in an exchange of a few bytes by everybody with
 * everybody) plus what its bytes take. */
typedef struct rs_link {
    double latency_s, bytes_per_s;
} rs_link;

typedef struct rs_machine {
    char name[48];
    uint64_t memory_bytes; /* that a rank may take */
    uint32_t threads;      /* that `all` was measured with; 1 where that says nothing, as on a GPU */
    rs_rates all, one;     /* of all threads together, and of one alone */
    rs_link local;         /* between ranks that are threads of this machine, each thread with a core of its own, */
    rs_link crowded;       /* and with more threads than cores */
} rs_machine;

/* ---- 8. Probe: what this machine does at best ------------------------------------------------------------------- */

typedef struct rs_rate {
    double median, least, most; /* over the repetitions */
} rs_rate;

typedef struct rs_ceilings {
    rs_rate read_bytes_per_s; /* from memory, with the set's widest loads, several streams a thread */
    rs_rate copy_bytes_per_s; /* within memory: bytes read plus bytes written */
    rs_rate fp32_flop_per_s;  /* a multiply-add is 2 */
    rs_rate int8_op_per_s;    /* of dot products; a pair multiplied and added is 2 */
} rs_ceilings;

typedef struct rs_probe {
    char cpu[96];           /* the processor's name */
    const char *kernels;    /* the kernel set measured; static */
    const char *int8_by;    /* the instructions of its int8 dot product; static */
    uint32_t cpus;          /* hardware threads that this process may use */
    uint32_t cores;         /* that those belong to */
    uint32_t numa_nodes;    /* of those */
    uint32_t threads;       /* of `all` */
    uint32_t repetitions;   /* of each measurement, at least */
    uint64_t memory_bytes;  /* of the machine */
    uint64_t allowed_bytes; /* of that, what this process could still take when it began */
    uint64_t cache_bytes;   /* of their last-level caches; 0 when unknown */
    uint64_t buffer_bytes;  /* what is read and copied */
    double duration_s;
    double cpu_share;     /* of the time measured, what the threads were running: less than 1 on a busy machine */
    rs_ceilings one, all; /* of one thread alone, of all together */
    rs_machine machine;   /* the same for the operations of a forward pass, by the engine's own device */
} rs_probe;

/* Measures this machine for some seconds; of options, threads, memory_limit and kernels count. progress (may be NULL)
 * is called between repetitions. RS_BAD_ARGUMENT, RS_UNSUPPORTED (kernels unknown here, or not for speed), RS_LIMIT
 * (the buffer, beyond all caches, is more than a quarter of the memory it may take), RS_CANCELLED, RS_NO_MEMORY. */
rs_status rs_probe_run(const rs_options *options, rs_progress progress, void *user, rs_probe *out);

/* ---- 9. Search: which plan is fastest, on machines that are here or not ----------------------------------------- */

/* Machines that each run one rank; or, with one machine and `local`, threads of one process on it. */
typedef struct rs_machines {
    uint32_t count;
    bool local;
    bool led; /* they are a cluster, whose ranks are in this order: only the last ones can be left out */
    rs_machine machine[RS_RANKS_MAX];
    rs_link link[RS_RANKS_MAX][RS_RANKS_MAX]; /* from, to; not looked at when local */
} rs_machines;

/* Seconds by what they are spent on. */
typedef struct rs_parts {
    double weights, kv, network, rest;
} rs_parts;

enum { RS_DEPTHS_MAX = 8 };

/* A plan with its price. */
typedef struct rs_price {
    rs_options options;             /* complete */
    uint32_t machine[RS_RANKS_MAX]; /* of each rank */
    uint64_t held[RS_RANKS_MAX];    /* bytes that a rank takes of its machine: weights, KV, buffers, program */
    uint64_t weights[RS_RANKS_MAX]; /* of these: weights */
    uint64_t kv[RS_RANKS_MAX];      /* and KV */
    bool fits;
    uint32_t lacks;       /* unless it fits: the rank whose machine has too little memory */
    uint32_t context_max; /* the largest context that fits, 0 when none does; of the choice only */
    uint32_t depth[RS_DEPTHS_MAX];
    rs_parts token[RS_DEPTHS_MAX]; /* one decoded token at each depth, along the longest chain of work and messages */
    rs_parts token_at_end;         /* and as the last one of the context, by which plans are compared */
    rs_parts rank[RS_RANKS_MAX];   /* what each rank does for that one; network: what it waits */
    rs_parts prefill;              /* a prompt that fills the context; of the choice only */
    uint32_t rounds;               /* exchanges of the rank with the most, per token */
    uint32_t messages;             /* that this rank sends */
    uint64_t wire;                 /* and their bytes */
} rs_price;

/* Runs the real forward pass of every candidate on a device and a network that only add up time, and sorts: list[0] is
 * the choice, then come the others that fit, fastest first, then those that do not. options says what may be chosen:
 * ranks 0 any number of the machines, split auto and tpa 0 any, shares 0 by speed and memory; what is given stays. The
 * KV formats stay; the choice is priced with the others, too, and these come last, from *others on. Where they are
 * local the choice is what rs_engine_open would do. depths (n_depths <= RS_DEPTHS_MAX) beyond the context are left out
 * (their price is 0). Takes about 10 ms a candidate. RS_BAD_ARGUMENT, RS_UNSUPPORTED, RS_NO_MEMORY; RS_LIMIT when
 * capacity (512 always suffices) is too small. */
rs_status rs_plan_search(const rs_model *model, const rs_options *options, const rs_machines *machines,
                         const uint32_t *depths, size_t n_depths, rs_price *list, size_t capacity, size_t *count,
                         size_t *others);

/* ---- 10. Cluster: ranks on several machines --------------------------------------------------------------------- */

typedef struct rs_cluster_options {
    const char *address; /* where the head listens ("HOST:PORT" or "PORT"), or where a member finds it ("HOST:PORT") */
    const void *secret;  /* known to all machines, at least 8 bytes; not needed after the call */
    size_t secret_bytes;
    const rs_machine *machine; /* this one (rs_probe.machine), for plans; NULL: not known. Not needed after the call */
    uint32_t hosts;            /* the head: machines to wait for, itself included */
    double wait_s; /* for the machines, or for the head to be found and to answer; 0: for ever, or a moment and once */
    bool discover; /* by multicast DNS: the head can be found while it waits; a member whose address is NULL finds it */
    bool (*go_on)(void *user); /* asked now and then; false ends it with RS_CANCELLED. NULL: always true */
    void (*news)(void *user, const char *line); /* told in one line what happens; NULL: nobody. Both: caller's thread */
    void *user;
} rs_cluster_options;

/* Opens the head of a cluster: listens, and waits until all machines have joined with the same secret, version and
 * model (or with no model file: they are then sent what they need). The model must outlive it; NULL where machines are
 * to be measured and nothing else. RS_BAD_ARGUMENT, RS_IO (the address, or no network to be found on), RS_PEER_LATE,
 * RS_PEER_LOST, RS_CANCELLED, RS_NO_MEMORY. */
rs_status rs_cluster_open(const rs_model *model, const rs_cluster_options *options, rs_cluster **out);

/* What its machines say of themselves, in the order in which ranks are given to them, and their links, which this
 * measures (a second or so). *known: all of them said it; else nothing is measured, and *out not set. RS_PEER_LOST,
 * RS_PEER_LATE, RS_NO_MEMORY. */
rs_status rs_cluster_measure(rs_cluster *cluster, rs_machines *out, bool *known);

/* After every engine on it. The other machines return from rs_cluster_join. */
void rs_cluster_close(rs_cluster *cluster);

/* Joins a head and serves it until it leaves (RS_OK). Of `own`, threads, memory_limit and kernels count. model: the
 * head's, or NULL. RS_BAD_ARGUMENT (the address, several heads found, the secret, another model), RS_UNSUPPORTED
 * (another version), RS_LIMIT (the head's plan does not fit here), RS_PEER_LATE, RS_PEER_LOST, RS_CANCELLED,
 * RS_NO_MEMORY. */
rs_status rs_cluster_join(const rs_cluster_options *options, const rs_options *own, const rs_model *model);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
