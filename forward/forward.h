/* forward.h: tokens to logits on one rank, in step with the other ranks.
 *
 * A step evaluates consecutive tokens in one of two ways. Tokens travel (decode, and short prompts): every rank carries
 * all rows and its slices of the weights; partial attentions and partial sums are exchanged. Rows are spread (prefill
 * of a context-parallel group): every rank carries the rows of its own pages and meets all weights, and in each layer
 * either the pages travel to all rows, in their quantised form, or the rows' queries to all pages and partial
 * attentions back, whichever is fewer bytes, in bounded portions. Ranks that share the mapped file read all weights
 * there; ranks that hold packed slices send each other those of the next layer while one is computed. */
#ifndef RS_FORWARD_FORWARD_H
#define RS_FORWARD_FORWARD_H

#include "comm/comm.h"
#include "kv/cache.h"
#include "model/slices.h"

enum {
    TRAVEL_ROWS = 16,        /* travel_rows of ranks that share the weights: these cost nothing to reach */
    PORTION_PAGES = 48,      /* pages of all ranks together that travel at once, at least one of each; two portions */
                             /* of other ranks' pages are held, one that arrives and one that is attended to */
    QUERY_ROWS = 512,        /* rows of all ranks together whose queries travel at once */
    REDUCE_FLOATS = 1 << 20, /* partial sums of all ranks that are received at once, at least one row of each */
};

/* What all ranks of an engine share; read-only while they run. */
typedef struct model_view {
    const hparams *h;
    const weights *w;
    const sharding *s;
    const deal *deal;
    kv_type kv;
    uint32_t chunk;
    bool packed;          /* ranks hold their slices of the weights and no others */
    uint32_t travel_rows; /* a context-parallel group evaluates up to so many tokens with all rows on every rank */
} model_view;

/* Working memory of one rank. Activations are [rows, ...] of float. */
typedef struct forward_buffers {
    size_t rows;                /* the most of one step */
    float *x, *h, *y;           /* [rows, dim] */
    float *q, *o;               /* [rows, heads, head_dim] */
    float *k, *v;               /* [rows, kv_heads, head_dim] */
    float *max, *sum;           /* [rows, or another rank's if that is more, heads] */
    float *lse;                 /* [rows, heads] */
    float *gate;                /* [rows, ffn_dim or the rank's part of it] */
    float *cosine[2], *sine[2]; /* [rows, rope_dims / 2] of global and local layers */
    int32_t *position, *token;  /* [rows] */
    int32_t *other_position;    /* of another rank's rows, whose queries came here */
    uint8_t **page;             /* [rows] */
    page_ref *list;             /* [list_max] */
    size_t list_max;
    float *logits;         /* [vocab] */
    float *send, *receive; /* exchange between ranks: floats of activations, or bytes of pages */
    size_t reduce_floats;  /* of receive, for partial sums: the same on every rank */
    uint8_t *stream[2];    /* other ranks' slices of the present layer and of the next */
    size_t wire_bytes;     /* of send, receive and stream together */
} forward_buffers;

/* Takes a rank's buffers from the arena. */
void forward_layout(forward_buffers *b, arena *a, const model_view *m, uint32_t rank);

/* The largest operands that the rank's device will meet. */
device_limits forward_limits(const model_view *m, uint32_t rank);

/* The travel_rows that makes for the fewest bytes: where ranks hold packed slices, as many rows as cost as much in
 * partial sums, projections and attentions as the slices of a layer do; else TRAVEL_ROWS. */
uint32_t travel_rows_best(const model_view *m);

/* Pages of each rank that travel at once. */
size_t forward_portion(const model_view *m);

/* Does a step of `count` tokens spread its rows over the ranks? */
bool forward_spreads(const model_view *m, uint32_t count);

typedef struct forward {
    const model_view *m;
    uint32_t rank;
    const shard *own;
    device *d;
    comm *c;
    const kv_cache *kv; /* of the session that is evaluated */
    slices weights;     /* the rank's own */
    forward_buffers b;
    size_t rows; /* of this step on this rank */
} forward;

typedef struct step {
    const int32_t *tokens; /* [count], ids below vocab (checked by the caller) */
    uint32_t first;        /* position of tokens[0]; earlier positions are in the cache */
    uint32_t count;        /* 1 to chunk */
    bool want_logits;      /* of the last token; they land in rank 0's b.logits */
} step;

/* Evaluates a step and appends its K and V. Every rank calls it with the same step. Statuses of comm. */
rs_status forward_step(forward *f, const step *s);

/* ---- between the files of this folder ---- */

/* Attention of q over the whole context, merged over ranks; *o receives [rows, own o_heads or all, head_dim]. */
rs_status attention_run(forward *f, const step *s, uint32_t layer, bool spread, float **o);

/* The two halves of a layer, x += attention(x) and x += ffn(x), with its weights in n parts (run_join) that this rank
 * multiplies by. */
rs_status layer_attention(forward *f, const step *s, uint32_t layer, bool spread, const layer_weights *parts,
                          uint32_t n);
rs_status layer_ffn(forward *f, bool spread, const layer_weights *parts, uint32_t n);

/* Do queries travel to the pages of a layer, and not pages to the queries, in a step whose rows are spread? */
bool travel_as_queries(const model_view *m, const step *s, uint32_t layer);

/* Do the ranks' slices travel in a step whose rows are spread? */
bool stream_needed(const model_view *m);

/* Bytes that a rank sends each other rank of a layer, and the most that one receives of any. */
size_t stream_message_bytes(const model_view *m, uint32_t layer, uint32_t rank);
size_t stream_bytes(const model_view *m, uint32_t rank);

/* Sends this rank's slice of a layer to the others in the background, and receives theirs. */
rs_status stream_begin(forward *f, uint32_t layer);

/* Waits for them: the whole layer in parts [ranks], good until the layer after next begins. */
rs_status stream_finish(forward *f, uint32_t layer, layer_weights parts[]);

#endif
