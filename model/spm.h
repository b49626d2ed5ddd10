/* spm.h: SentencePiece's BPE (arXiv:1808.06226): symbols are characters, neighbours join when together they are a
 * piece, the one with the best score first; characters without a piece become their bytes. */
#ifndef RS_MODEL_SPM_H
#define RS_MODEL_SPM_H

#include "model/word.h"

enum { SPM_PAIR_BITS = 20 };

typedef struct spm {
    const vocabulary *vocabulary;
    int32_t unknown; /* for what has neither piece nor bytes; TOKEN_NONE: it is left out */
    uint8_t *pairs;  /* [1 << SPM_PAIR_BITS] bits: by its hash, whether two characters are neighbours in some piece */
} spm;

/* On failure *s is empty. RS_NO_MEMORY. */
rs_status spm_open(spm *s, const vocabulary *v, int32_t unknown);
void spm_close(spm *s);
size_t spm_heap_bytes(const spm *s);

/* Encodes text whose spaces are ' '. It is cut, without changing a token, between characters that are neighbours in no
 * piece; mostly that is before each word, and words repeat. `e` must have been opened with spm_rules. RS_NO_MEMORY. */
rs_status spm_encode(const spm *s, word_encoder *e, const char *text, size_t bytes);

extern const word_rules spm_rules; /* their model is an spm */

#endif
