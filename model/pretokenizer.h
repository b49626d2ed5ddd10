/* pretokenizer.h: cuts text into the words that byte-level BPE merges within, by the regular expressions that each
 * model family was trained with (the "pre_tokenizer" of its Hugging Face tokenizer.json, named by tokenizer.ggml.pre).
 */
#ifndef RS_MODEL_PRETOKENIZER_H
#define RS_MODEL_PRETOKENIZER_H

#include "base/text.h"
#include "ringspan.h"

enum { PRETOKENIZER_STEPS_MAX = 3 };

/* One family of pre-tokenizers. */
typedef struct pretokenizer_family {
    const char *names;                            /* values of tokenizer.ggml.pre, separated and surrounded by spaces */
    const char *patterns[PRETOKENIZER_STEPS_MAX]; /* each cuts the pieces that the one before it left */
    bool whole_words; /* a word that is a token as it stands is not merged ("ignore_merges") */
    bool add_bos;     /* when the file does not say */
} pretokenizer_family;

typedef struct pretokenizer pretokenizer;

/* RS_UNSUPPORTED for a name not known (the sentence lists those that are), RS_NO_MEMORY. */
rs_status pretokenizer_open(str name, pretokenizer **out);
void pretokenizer_close(pretokenizer *p);
const pretokenizer_family *pretokenizer_describe(const pretokenizer *p);
size_t pretokenizer_heap_bytes(const pretokenizer *p);

/* What one thread needs while it splits. RS_NO_MEMORY. */
typedef struct pretokenizer_scratch pretokenizer_scratch;
rs_status pretokenizer_scratch_open(const pretokenizer *p, pretokenizer_scratch **out);
void pretokenizer_scratch_close(pretokenizer_scratch *scratch);

typedef rs_status (*pretokenizer_word)(void *user, const char *word, size_t bytes);

/* Calls `word` for each word of text[0..bytes), valid UTF-8, from left to right; together they are the text. A failure
 * of `word` is forwarded; RS_LIMIT when the regular expressions give up (matching is linear in the text for all of
 * them, so it takes a defect). */
rs_status pretokenizer_split(const pretokenizer *p, pretokenizer_scratch *scratch, const char *text, size_t bytes,
                             pretokenizer_word word, void *user);

#endif
