/* model.h: a model file opened and checked: hyperparameters, weights, tokenizer and chat template. */
#ifndef RS_MODEL_MODEL_H
#define RS_MODEL_MODEL_H

#include "model/chat_template.h"
#include "model/tokenizer.h"
#include "model/weights.h"

struct rs_model {
    gguf *file;
    hparams h;
    weights w;
    tokenizer *tokenizer;
    chat_template *chat;      /* NULL when the file has no template */
    char *name, *chat_source; /* copies, NUL-terminated; chat_source NULL when there is none */
    const char *weights_name;
    uint64_t parameters;
};

#endif
