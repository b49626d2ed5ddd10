/* tokenizer.h: text to token ids and back, from a GGUF file's own tokenizer.ggml.* metadata.
 *
 * "gpt2": byte-level BPE (Sennrich et al., arXiv:1508.07909) after a pre-tokenizer regular expression named by
 * tokenizer.ggml.pre. "llama": SentencePiece-style BPE by scores with byte fallback (Kudo, Richardson,
 * arXiv:1808.06226). Immutable after tokenizer_open, so any thread may read it. */
#ifndef RS_MODEL_TOKENIZER_H
#define RS_MODEL_TOKENIZER_H

#include "base/text.h"
#include "model/gguf.h"
#include "ringspan.h"

typedef struct tokenizer tokenizer;

/* RS_UNSUPPORTED for an unknown tokenizer.ggml.model or .pre (naming the known ones), RS_BAD_FORMAT for tables that
 * contradict themselves. `file` must outlive the tokenizer. */
rs_status tokenizer_open(const gguf *file, tokenizer **out);
void tokenizer_close(tokenizer *t);

size_t tokenizer_vocab(const tokenizer *t);
size_t tokenizer_heap_bytes(const tokenizer *t); /* memory taken, for the plan */
int32_t tokenizer_bos(const tokenizer *t);       /* -1: none */
int32_t tokenizer_eos(const tokenizer *t);

/* True for EOS, EOT, EOM and the end-of-turn tokens known by name (<|im_end|>, <|eot_id|>, <end_of_turn>, ...). */
bool tokenizer_ends(const tokenizer *t, int32_t token);

/* The bytes a token stands for, living as long as the tokenizer: also of control tokens; empty for no token. */
str tokenizer_piece(const tokenizer *t, int32_t token);

/* The contracts of rs_tokenize and rs_detokenize. */
rs_status tokenizer_encode(const tokenizer *t, const char *text, size_t bytes, unsigned flags, int32_t *tokens,
                           size_t capacity, size_t *count);
rs_status tokenizer_decode(const tokenizer *t, rs_text *stream, int32_t token, bool special, char *out, size_t capacity,
                           size_t *bytes);

#endif
