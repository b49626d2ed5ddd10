/* vocabulary.h: the tokens of a GGUF file: their text, kind and score, and the way from text to token.
 *
 * Text is held as the bytes that a token stands for: GPT-2's byte letters (U+0120 for a space, ...) and SentencePiece's
 * U+2581 are undone when the file is opened, so that encoding and decoding work on the user's own bytes. */
#ifndef RS_MODEL_VOCABULARY_H
#define RS_MODEL_VOCABULARY_H

#include "model/gguf.h"

enum {
    TOKEN_NONE = -1,
    /* Longest text of one token. The longest in real vocabularies are runs of a few hundred spaces; the limit keeps
     * matching linear and the buffer of a decoded token small, whatever a file says. */
    TOKEN_BYTES_MAX = 1024,
    VOCABULARY_MAX = 1 << 24,
    /* A chain of occupied slots this long in a hash table at most 2/3 full is the work of a hostile file. */
    VOCABULARY_PROBES_MAX = 2048,
};

#define SPACE_SIGN "\xE2\x96\x81" /* U+2581, how SentencePiece spells a space */
#define RANK_NONE UINT32_MAX      /* worse than every rank */

/* By their numbers in the file; UNDEFINED and unknown numbers are read as NORMAL. */
typedef enum token_kind {
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER_DEFINED = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6,
} token_kind;

typedef struct vocabulary_token {
    uint32_t begin; /* its bytes in vocabulary.text */
    uint32_t rank;  /* smaller merges first: the score turned round; 0 without scores */
    uint16_t bytes;
    uint8_t kind;
    bool plain : 1; /* ordinary text can become this token */
    bool ends : 1;  /* known by name to end a turn */
} vocabulary_token;

typedef struct vocabulary_slot {
    uint32_t hash;
    int32_t token; /* TOKEN_NONE: free */
} vocabulary_slot;

typedef struct vocabulary {
    vocabulary_token *tokens; /* [count] */
    char *text;
    vocabulary_slot *slots; /* [slot_mask + 1] */
    size_t count, text_bytes, slot_mask;
    size_t plain_bytes_max;   /* of the longest plain token */
    int32_t byte_tokens[256]; /* the token of kind BYTE for each byte, or TOKEN_NONE */
} vocabulary;

/* Reads tokenizer.ggml.tokens, token_type and scores. With `byte_letters` (GPT-2) normal tokens are spelt in byte
 * letters, else (SentencePiece) with U+2581 for a space and scores are needed. On failure *v is empty.
 * RS_BAD_FORMAT, RS_NO_MEMORY. */
rs_status vocabulary_open(vocabulary *v, const gguf *file, bool byte_letters);
void vocabulary_close(vocabulary *v);
size_t vocabulary_heap_bytes(const vocabulary *v);

static inline str vocabulary_text(const vocabulary *v, int32_t token) {
    const vocabulary_token *t = &v->tokens[token];
    return (str){v->text + t->begin, t->bytes};
}

/* The token of these bytes (`plain` or not), or TOKEN_NONE. Of the not plain ones, BYTE tokens are never found. */
int32_t vocabulary_find(const vocabulary *v, const char *text, size_t bytes, bool plain);

/* GPT-2's byte letters to bytes: out [spelt.bytes]. False when some character is no byte letter. */
bool vocabulary_spelt(str spelt, char *out, size_t *bytes);

/* A hash of short byte strings: multiply and fold, eight bytes at a time. */
static inline uint64_t hash_mix(uint64_t h) {
    h *= 0x9E3779B97F4A7C15u;
    return h ^ h >> 32;
}
uint64_t hash_bytes(const char *text, size_t bytes);

#endif
