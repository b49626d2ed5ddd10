/* model.c: opens a GGUF file as a model; the public functions about models and their text. */
#include "model/model.h"

#include <stdlib.h>
#include <string.h>

#include "model/partial.h"

static char *copy_text(str text) {
    char *copy = malloc(text.bytes + 1);
    if (copy == NULL) return NULL;
    memcpy(copy, text.data, text.bytes);
    copy[text.bytes] = '\0';
    return copy;
}

/* Sums up the tensors: how many parameters, and the format that most of them have. */
static void survey(rs_model *m) {
    uint64_t count[FORMAT_LIMIT] = {0};
    format most = FORMAT_F32;
    for (size_t i = 0; i < gguf_tensor_count(m->file); i++) {
        const gguf_tensor *t = gguf_tensor_at(m->file, i);
        uint64_t values = t->shape[0] * t->shape[1] * t->shape[2] * t->shape[3];
        m->parameters += values;
        count[t->format] += values;
        if (count[t->format] > count[most]) most = t->format;
    }
    m->weights_name = format_describe(most).name;
}

/* The text of a token, as templates want it; "" for none. */
static str token_text(const rs_model *m, int32_t token) {
    return token < 0 ? (str){"", 0} : tokenizer_piece(m->tokenizer, token);
}

static rs_status open_template(rs_model *m) {
    str source = {NULL, 0};
    RS_TRY(gguf_get_str(m->file, "tokenizer.chat_template", &source));
    if (source.data == NULL || source.bytes == 0) return RS_OK;
    m->chat_source = copy_text(source);
    if (m->chat_source == NULL) return status_fail(RS_NO_MEMORY, "no memory for the chat template");
    return chat_template_open(source, token_text(m, tokenizer_bos(m->tokenizer)),
                              token_text(m, tokenizer_eos(m->tokenizer)), &m->chat);
}

static rs_status open_parts(rs_model *m) {
    RS_TRY(hparams_read(m->file, &m->h));
    RS_TRY(weights_bind(m->file, &m->h, &m->w));
    RS_TRY(tokenizer_open(m->file, &m->tokenizer));
    if (tokenizer_vocab(m->tokenizer) != m->h.vocab) {
        return status_fail(RS_BAD_FORMAT, "the tokenizer has %zu tokens, the embedding %u",
                           tokenizer_vocab(m->tokenizer), m->h.vocab);
    }
    str name = {"", 0};
    RS_TRY(gguf_get_str(m->file, "general.name", &name));
    m->name = copy_text(name);
    if (m->name == NULL) return status_fail(RS_NO_MEMORY, "no memory for the model's name");
    survey(m);
    return open_template(m);
}

/* A model of a file that is open, which it takes over, also on failure. */
static rs_status open_file(gguf *file, rs_model **out) {
    rs_model *m = calloc(1, sizeof *m);
    if (m == NULL) {
        gguf_close(file);
        return status_fail(RS_NO_MEMORY, "no memory to open a model");
    }
    m->file = file;
    rs_status status = open_parts(m);
    if (status != RS_OK) {
        rs_model_close(m);
        return status;
    }
    *out = m;
    return RS_OK;
}

rs_status rs_model_open(const char *path, rs_model **out) {
    gguf *file;
    if (path == NULL || out == NULL)
        return status_fail(RS_BAD_ARGUMENT, "rs_model_open needs a path and a place to write");
    RS_TRY(gguf_open(path, &file));
    return open_file(file, out);
}

rs_status partial_open(uint8_t *data, uint64_t file_bytes, rs_model **out) {
    gguf *file;
    RS_TRY(gguf_adopt(data, file_bytes, &file));
    return open_file(file, out);
}

void rs_model_close(rs_model *m) {
    if (m == NULL) return;
    chat_template_close(m->chat);
    tokenizer_close(m->tokenizer);
    weights_free(&m->w);
    hparams_free(&m->h);
    gguf_close(m->file);
    free(m->name);
    free(m->chat_source);
    free(m);
}

void rs_model_describe(const rs_model *m, rs_model_info *out) {
    const hparams *h = &m->h;
    *out = (rs_model_info){
        .architecture = h->arch->name,
        .name = m->name,
        .weights = m->weights_name,
        .chat_template = m->chat_source,
        .parameters = m->parameters,
        .file_bytes = gguf_file_bytes(m->file),
        .layers = h->layers,
        .dim = h->dim,
        .heads = h->heads,
        .kv_heads = h->kv_heads,
        .head_dim = h->head_dim,
        .ffn_dim = h->ffn_dim,
        .vocab = h->vocab,
        .context_trained = h->context_trained,
        .window = h->window,
        .bos = tokenizer_bos(m->tokenizer),
        .eos = tokenizer_eos(m->tokenizer),
    };
}

rs_status rs_tokenize(const rs_model *m, const char *text, size_t bytes, unsigned flags, int32_t *tokens,
                      size_t capacity, size_t *count) {
    return tokenizer_encode(m->tokenizer, text, bytes, flags, tokens, capacity, count);
}

rs_status rs_detokenize(const rs_model *m, rs_text *stream, int32_t token, bool special, char *out, size_t capacity,
                        size_t *bytes) {
    return tokenizer_decode(m->tokenizer, stream, token, special, out, capacity, bytes);
}

bool rs_token_ends(const rs_model *m, int32_t token) {
    return tokenizer_ends(m->tokenizer, token);
}

rs_status rs_chat_render(const rs_model *m, const rs_message *messages, size_t count, bool add_generation_prompt,
                         char **text) {
    if (m->chat == NULL) return status_fail(RS_UNSUPPORTED, "the model has no chat template; use raw completion");
    return chat_template_render(m->chat, messages, count, add_generation_prompt, text);
}

void rs_free(void *memory) {
    free(memory);
}
