/* words.c: the messages of engine/words.h. */
#include "engine/words.h"

#include <jansson.h>
#include <math.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

/* ---- Either way ---- */

static rs_status finish(json_t *object, char **out) {
    *out = object != NULL ? json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(17)) : NULL;
    json_decref(object);
    return *out != NULL ? RS_OK : status_fail(RS_NO_MEMORY, "no memory for a message to another machine");
}

static rs_status parse(const channel_frame *f, const char *what, json_t **out) {
    json_error_t error;
    *out = json_loadb((const char *)f->data, f->bytes, JSON_REJECT_DUPLICATES, &error);
    if (*out != NULL) return RS_OK;
    return status_fail(RS_BAD_FORMAT, "%s from the other machine is no JSON: %s", what, error.text);
}

static rs_status refuse(json_t *object, const char *what) {
    json_decref(object);
    return status_fail(RS_BAD_FORMAT, "%s from the other machine cannot be understood", what);
}

/* Copies a text if it fits. */
static bool copy(char *to, size_t room, const char *text) {
    size_t bytes = strlen(text);
    if (bytes >= room) return false;
    memcpy(to, text, bytes + 1);
    return true;
}

/* ---- Bytes as hex digits ---- */

static json_t *hex_json(const void *data, size_t bytes) {
    char hex[2 * WORDS_ADDRESS_MAX + 1];
    if (bytes > WORDS_ADDRESS_MAX) return NULL;
    return json_string(sodium_bin2hex(hex, sizeof hex, data, bytes));
}

static bool read_hex(const json_t *value, void *data, size_t room, size_t *bytes) {
    const char *hex = json_string_value(value), *end;
    return hex != NULL && sodium_hex2bin(data, room, hex, strlen(hex), NULL, bytes, &end) == 0 && *end == 0 &&
           *bytes > 0;
}

/* ---- Hello, welcome ---- */

_Static_assert(sizeof(rs_machine) <= WORDS_ADDRESS_MAX, "a machine goes as bytes: all of one version lay it out alike");

rs_status words_write_hello(const words_hello *h, char **out) {
    return finish(json_pack("{ss ss ss so}", "version", h->version, "host", h->host, "model", h->model, "machine",
                            h->known ? hex_json(&h->is, sizeof h->is) : json_null()),
                  out);
}

/* Rates that can be meant: every number of a machine is a time, a rate or a count. */
static bool is_plausible(rs_machine *m) {
    const double *sets[2] = {(const double *)&m->all, (const double *)&m->one};
    m->name[sizeof m->name - 1] = 0;
    for (size_t i = 0; i < 2 * sizeof(rs_rates) / sizeof(double); i++) {
        double value = sets[i % 2][i / 2];
        if (!isfinite(value) || value < 0) return false;
    }
    return m->all.read_bytes_per_s > 0 && m->all.vector_bytes_per_s > 0 && m->threads > 0;
}

rs_status words_read_hello(const channel_frame *f, words_hello *out) {
    const char *version, *host, *model;
    json_t *object, *machine;
    size_t bytes = 0;
    RS_TRY(parse(f, "a hello", &object));
    if (json_unpack(object, "{ss ss ss so}", "version", &version, "host", &host, "model", &model, "machine",
                    &machine) != 0 ||
        !copy(out->version, sizeof out->version, version) || !copy(out->host, sizeof out->host, host) ||
        !copy(out->model, sizeof out->model, model)) {
        return refuse(object, "a hello");
    }
    /* Another version, which is refused next, may tell of its machine otherwise. */
    out->known =
        read_hex(machine, &out->is, sizeof out->is, &bytes) && bytes == sizeof out->is && is_plausible(&out->is);
    if (!out->known) out->is = (rs_machine){0};
    json_decref(object);
    return RS_OK;
}

rs_status words_write_welcome(const words_welcome *w, char **out) {
    return finish(json_pack("{ss ss sI}", "host", w->host, "model", w->model, "file_bytes", (json_int_t)w->file_bytes),
                  out);
}

rs_status words_read_welcome(const channel_frame *f, words_welcome *out) {
    const char *host, *model;
    json_int_t file_bytes;
    json_t *object;
    RS_TRY(parse(f, "a welcome", &object));
    if (json_unpack(object, "{ss ss sI}", "host", &host, "model", &model, "file_bytes", &file_bytes) != 0 ||
        !copy(out->host, sizeof out->host, host) || !copy(out->model, sizeof out->model, model) || file_bytes < 0) {
        return refuse(object, "a welcome");
    }
    out->file_bytes = (uint64_t)file_bytes;
    json_decref(object);
    return RS_OK;
}

/* ---- Measure, plan ---- */

rs_status words_write_measure(const words_measure *m, char **out) {
    return finish(json_pack("{si si si}", "rank", (int)m->rank, "ranks", (int)m->ranks, "epoch", (int)m->epoch), out);
}

rs_status words_read_measure(const channel_frame *f, words_measure *out) {
    int own, ranks, epoch;
    json_t *object;
    RS_TRY(parse(f, "a wish to measure", &object));
    if (json_unpack(object, "{si si si}", "rank", &own, "ranks", &ranks, "epoch", &epoch) != 0 || ranks < 2 ||
        ranks > RS_RANKS_MAX || own < 1 || own >= ranks) {
        return refuse(object, "a wish to measure");
    }
    *out = (words_measure){(uint32_t)own, (uint32_t)ranks, (uint32_t)epoch};
    json_decref(object);
    return RS_OK;
}

static json_t *numbers(const double *values, uint32_t count) {
    json_t *list = json_array();
    for (uint32_t i = 0; i < count; i++) json_array_append_new(list, json_real(values[i]));
    return list;
}

static json_t *truths(const bool *values, uint32_t count) {
    json_t *list = json_array();
    for (uint32_t i = 0; i < count; i++) json_array_append_new(list, json_boolean(values[i]));
    return list;
}

rs_status words_write_plan(const words_plan *p, char **out) {
    const rs_options *o = &p->options;
    return finish(json_pack("{sI si si sI si si sI so so so si si ss}", "context", (json_int_t)o->context, "ranks",
                            (int)o->ranks, "split", (int)o->split, "tpa", (json_int_t)o->tpa, "kv_k", (int)o->kv_k,
                            "kv_v", (int)o->kv_v, "chunk", (json_int_t)o->chunk, "shares", numbers(o->shares, o->ranks),
                            "weight_shares", numbers(o->weight_shares, o->ranks), "has_model",
                            truths(p->has_model, o->ranks), "rank", (int)p->rank, "epoch", (int)p->epoch, "hash",
                            p->hash),
                  out);
}

rs_status words_read_plan(const channel_frame *f, words_plan *out) {
    json_int_t context, chunk, tpa;
    int ranks, split, kv_k, kv_v, own, epoch;
    json_t *object, *shares, *weight_shares, *has_model;
    const char *hash;
    *out = (words_plan){0};
    RS_TRY(parse(f, "a plan", &object));
    if (json_unpack(object, "{sI si si sI si si sI so so so si si ss}", "context", &context, "ranks", &ranks, "split",
                    &split, "tpa", &tpa, "kv_k", &kv_k, "kv_v", &kv_v, "chunk", &chunk, "shares", &shares,
                    "weight_shares", &weight_shares, "has_model", &has_model, "rank", &own, "epoch", &epoch, "hash",
                    &hash) != 0 ||
        ranks < 2 || ranks > RS_RANKS_MAX || own < 1 || own >= ranks || context < 1 || context > UINT32_MAX ||
        chunk < 1 || chunk > UINT32_MAX || tpa < 0 || tpa > RS_RANKS_MAX || json_array_size(shares) != (size_t)ranks ||
        json_array_size(weight_shares) != (size_t)ranks || json_array_size(has_model) != (size_t)ranks ||
        !copy(out->hash, sizeof out->hash, hash)) {
        return refuse(object, "a plan");
    }
    rs_options_init(&out->options);
    out->options.context = (uint32_t)context;
    out->options.ranks = (uint32_t)ranks;
    out->options.split = (rs_split)split;
    out->options.tpa = (uint32_t)tpa;
    out->options.kv_k = (rs_kv_format)kv_k;
    out->options.kv_v = (rs_kv_format)kv_v;
    out->options.chunk = (uint32_t)chunk;
    for (int i = 0; i < ranks; i++) {
        out->options.shares[i] = json_number_value(json_array_get(shares, (size_t)i));
        out->options.weight_shares[i] = json_number_value(json_array_get(weight_shares, (size_t)i));
        out->has_model[i] = json_is_true(json_array_get(has_model, (size_t)i));
    }
    out->rank = (uint32_t)own;
    out->epoch = (uint32_t)epoch;
    json_decref(object);
    return RS_OK;
}

void words_plan_hash(const rs_plan *p, const char *model, char out[MODEL_HASH_TEXT]) {
    crypto_generichash_state state;
    uint8_t digest[MODEL_HASH_BYTES];
    const sharding *s = &p->sharding;
    const uint32_t numbers_of[] = {p->options.context, p->view.chunk, p->view.kv.k,       p->view.kv.v,
                                   s->ranks,           s->split,      p->view.travel_rows};
    crypto_generichash_init(&state, NULL, 0, sizeof digest);
    crypto_generichash_update(&state, (const uint8_t *)RS_VERSION, sizeof RS_VERSION);
    crypto_generichash_update(&state, (const uint8_t *)model, strlen(model));
    crypto_generichash_update(&state, (const uint8_t *)numbers_of, sizeof numbers_of);
    crypto_generichash_update(&state, (const uint8_t *)s->of, s->ranks * sizeof *s->of);
    crypto_generichash_update(&state, p->deal.owner, p->deal.pages);
    crypto_generichash_final(&state, digest, sizeof digest);
    sodium_bin2hex(out, MODEL_HASH_TEXT, digest, sizeof digest);
}

/* ---- Addresses ---- */

rs_status words_write_address(const void *address, size_t bytes, char **out) {
    if (bytes > WORDS_ADDRESS_MAX) return status_fail(RS_LIMIT, "this machine's address has %zu bytes", bytes);
    return finish(json_pack("{so}", "address", hex_json(address, bytes)), out);
}

rs_status words_read_address(const channel_frame *f, words_address *out) {
    json_t *object;
    RS_TRY(parse(f, "an address", &object));
    if (!read_hex(json_object_get(object, "address"), out->data, sizeof out->data, &out->bytes))
        return refuse(object, "an address");
    json_decref(object);
    return RS_OK;
}

rs_status words_write_addresses(const words_address *list, uint32_t count, char **out) {
    json_t *array = json_array();
    for (uint32_t i = 0; i < count; i++) json_array_append_new(array, hex_json(list[i].data, list[i].bytes));
    return finish(json_pack("{so}", "addresses", array), out);
}

rs_status words_read_addresses(const channel_frame *f, uint32_t count, words_address *list) {
    json_t *object;
    RS_TRY(parse(f, "a list of addresses", &object));
    const json_t *array = json_object_get(object, "addresses");
    bool good = json_array_size(array) == count;
    for (uint32_t i = 0; good && i < count; i++)
        good = read_hex(json_array_get(array, i), list[i].data, sizeof list[i].data, &list[i].bytes);
    if (!good) return refuse(object, "a list of addresses");
    json_decref(object);
    return RS_OK;
}
