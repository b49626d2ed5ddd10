/* bpe.h: byte-level BPE: symbols are bytes, and a table of ranked merges says which neighbours join. */
#ifndef RS_MODEL_BPE_H
#define RS_MODEL_BPE_H

#include "model/word.h"

/* A merge of two tokens; left is TOKEN_NONE in a free slot. */
typedef struct bpe_slot {
    int32_t left, right;
    uint32_t rank;
    int32_t token;
} bpe_slot;

typedef struct bpe {
    int32_t bytes[256]; /* the token of each byte, or TOKEN_NONE: text with such a byte loses it, as in the reference */
    bpe_slot *slots;    /* [slot_mask + 1] */
    size_t slot_mask;
} bpe;

/* Reads tokenizer.ggml.merges. On failure *b is empty. RS_BAD_FORMAT when a merge or what it gives is no token. */
rs_status bpe_open(bpe *b, const vocabulary *v, const gguf *file);
void bpe_close(bpe *b);
size_t bpe_heap_bytes(const bpe *b);

extern const word_rules bpe_rules; /* their model is a bpe */

#endif
