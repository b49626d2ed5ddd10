/* word.h: merges the symbols of one word pair by pair, best rank first (arXiv:1508.07909), in O(n log n), and remembers
 * the words of a call. Byte-level BPE and SentencePiece differ only in the word_rules they give it. */
#ifndef RS_MODEL_WORD_H
#define RS_MODEL_WORD_H

#include "model/vocabulary.h"

enum { WORD_KEPT_TOKENS = 12 };

/* Part of a word; its bytes end where the next one's begin. */
typedef struct word_symbol {
    uint32_t begin;
    int32_t previous, next; /* -1: none */
    int32_t token;          /* TOKEN_NONE: no token has this text */
    uint32_t rank;          /* of merging it with the next one; RANK_NONE: they do not merge */
    int32_t merged;         /* the token they would become */
} word_symbol;

typedef struct word_merge {
    uint32_t rank;
    int32_t token;
} word_merge;

/* A word and its tokens; the text is the caller's, which lives as long as the call. */
typedef struct word_kept {
    const char *text;
    uint32_t bytes;
    uint32_t n_tokens;
    int32_t tokens[WORD_KEPT_TOKENS];
} word_kept;

typedef struct word_encoder word_encoder;

typedef struct word_rules {
    /* The bytes of the symbol that text[0..bytes) begins with, and its token. */
    size_t (*first)(const void *model, const char *text, size_t bytes, int32_t *token);
    /* What left and the symbol after it, which are text[0..bytes) together, become. */
    word_merge (*merge)(const void *model, int32_t left, int32_t right, const char *text, size_t bytes);
    /* Emits something for a symbol that no token has. */
    void (*missing)(const void *model, word_encoder *e, const char *text, size_t bytes);
    const vocabulary *whole_words; /* not NULL: a word that is a plain token as it stands is not merged */
} word_rules;

/* The state of one call of tokenizer_encode. */
struct word_encoder {
    const word_rules *rules;
    const void *model; /* what the rules work on */
    int32_t *tokens;   /* [capacity] the caller's */
    size_t capacity, count;
    int32_t fused, last;  /* a run of the token `fused` is emitted once */
    word_symbol *symbols; /* [symbols_max] */
    uint64_t *heap;       /* [2 * symbols_max] rank << 32 | symbol */
    size_t symbols_max, heap_count;
    word_kept *kept; /* [kept_mask + 1] or NULL */
    size_t kept_mask;
    word_kept fresh; /* the tokens of the present word */
};

/* For a text of `bytes`. A failed allocation of what only makes it faster is no failure. Everything is freed by
 * word_encoder_close. */
void word_encoder_open(word_encoder *e, const word_rules *rules, const void *model, size_t bytes);
void word_encoder_close(word_encoder *e);

void word_emit(word_encoder *e, int32_t token);

/* Emits the tokens of one word; its text must stay as it is until the encoder is closed. RS_NO_MEMORY: a word takes
 * about 40 bytes of memory a symbol. */
rs_status word_encode(word_encoder *e, const char *text, size_t bytes);

#endif
