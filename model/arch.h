/* arch.h: what the engine must know of a model besides its weights. A family is one row of a table; a model's
 * hyperparameters are that row plus the numbers of its file. */
#ifndef RS_MODEL_ARCH_H
#define RS_MODEL_ARCH_H

#include "base/status.h"
#include "math/kernels.h"
#include "model/gguf.h"

typedef struct arch {
    const char *name; /* general.architecture */
    rope_pairs pairs;
    activation act;
    bool qkv_bias;         /* Q, K and V projections have biases */
    bool qk_norm;          /* RMSNorm of each query and key head before RoPE */
    bool sandwich_norms;   /* RMSNorm of each block's output before it is added */
    bool embed_scaled;     /* embeddings times sqrt(dim) */
    uint32_t global_every; /* every n-th layer sees the whole context, the others a window; 0: all do */
    float local_rope_base; /* of the layers with a window */
} arch;

/* Rotary embedding of one kind of layer: angle of pair i at position p is p * frequency[i]. */
typedef struct rope_table {
    double *frequency; /* [rope_dims / 2] */
    float magnitude;   /* multiplies cosines and sines (YaRN's attention factor) */
} rope_table;

typedef struct hparams {
    const arch *arch;
    uint32_t layers, dim, heads, kv_heads, head_dim, ffn_dim, vocab;
    uint32_t context_trained, window, rope_dims;
    float norm_eps, attention_scale, embed_scale;
    rope_table rope_global, rope_local;
} hparams;

/* Reads and checks the hyperparameters. RS_UNSUPPORTED for an unknown architecture (with the list of known ones) or
 * RoPE scaling, RS_BAD_FORMAT for numbers that are missing or contradict each other. Release with hparams_free. */
rs_status hparams_read(const gguf *file, hparams *out);
void hparams_free(hparams *h);

/* Does this layer see only the window? */
bool hparams_slides(const hparams *h, uint32_t layer);

#endif
