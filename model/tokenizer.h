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

/* RS_UNSUPPORTED for an unknown tokenizer.ggml.model or .pre (naming the known ones). RS_BAD_FORMAT for tables that
 * contradict themselves: counts that differ, two tokens of one text, ids out of range, merges of what is no token,
 * texts over 1,024 bytes. Tolerated, as llama.cpp does: empty tokens (never produced), unknown kinds (normal), no
 * token_type (all normal), no pre (gpt-2), -1 for an id that is none. RS_NO_MEMORY. `file` is not needed afterwards. */
rs_status tokenizer_open(const gguf *file, tokenizer **out);
void tokenizer_close(tokenizer *t);

size_t tokenizer_vocab(const tokenizer *t);
size_t tokenizer_heap_bytes(const tokenizer *t); /* memory taken */
int32_t tokenizer_bos(const tokenizer *t);       /* -1: none */
int32_t tokenizer_eos(const tokenizer *t);

/* True for EOS, EOT, EOM and the end-of-turn tokens known by name (<|im_end|>, <|eot_id|>, <end_of_turn>, ...). */
bool tokenizer_ends(const tokenizer *t, int32_t token);

/* The bytes a token stands for, living as long as the tokenizer: also of control tokens; empty for no token. */
str tokenizer_piece(const tokenizer *t, int32_t token);

/* The contract of rs_tokenize.
 *
 * Special tokens are taken out first, the leftmost, of those the longest: user-defined ones always, control ones with
 * RS_TOKENS_PARSE_SPECIAL. Byte-level BPE: a run of bytes that are in no UTF-8 character is a word of its own, so the
 * pieces of the tokens are the text, byte for byte; only a byte for which the vocabulary has no token (SmolLM2: 21
 * that valid text hardly ever has) is left out, as Hugging Face's tokenizers do. SentencePiece: such bytes are byte
 * tokens, or the unknown token, and U+2581 cannot be told from a space. Text is not normalised (Qwen's own tokenizer
 * makes NFC of it; llama.cpp does not either).
 *
 * At most 256 MiB of text. Memory during the call: 1 MiB, about 40 bytes for each byte of the longest word (a run in
 * which every two neighbours occur in some token), and with SentencePiece up to three copies of the text. */
rs_status tokenizer_encode(const tokenizer *t, const char *text, size_t bytes, unsigned flags, int32_t *tokens,
                           size_t capacity, size_t *count);

/* The contract of rs_detokenize. Bytes that are no UTF-8 come out as U+FFFD, one for each longest run that begins a
 * character and breaks off (what Python's errors="replace" does). */
rs_status tokenizer_decode(const tokenizer *t, rs_text *stream, int32_t token, bool special, char *out, size_t capacity,
                           size_t *bytes);

#endif
