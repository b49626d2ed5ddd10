/* slices.c: copies slices of matrices into runs, and finds them there. */
#include "model/slices.h"

#include <string.h>

static void list_matrices(layer_weights *l, matrix *out[RUN_MATRICES]) {
    matrix *const list[RUN_MATRICES] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
    memcpy(out, list, sizeof list);
}

run_matrix run_travels_from(const sharding *s) {
    if (s->qkv_sliced || s->split == RS_SPLIT_TP) return RUN_Q;
    return s->o_sliced ? RUN_O : s->ffn_sliced ? RUN_GATE : RUN_MATRICES;
}

static layer_weights slice_of(const layer_weights *whole, const hparams *h, const shard *s) {
    return layer_slice(whole, h, s->heads, s->kv_heads, s->o_heads, s->ffn);
}

/* Makes the matrices from `first` on tight and places them in a run (NULL: measures), and empties those before. Returns
 * the run's bytes. */
static size_t place(layer_weights *l, run_matrix first, const uint8_t *run) {
    arena a = {.base = (uint8_t *)run, .size = SIZE_MAX};
    matrix *list[RUN_MATRICES];
    list_matrices(l, list);
    for (int i = 0; i < RUN_MATRICES; i++) {
        matrix *m = list[i];
        if (i < (int)first) {
            *m = (matrix){.format = m->format};
            continue;
        }
        m->row_bytes = format_bytes(m->format, m->cols);
        m->data = arena_take(&a, m->rows, m->row_bytes);
    }
    return a.used;
}

size_t run_bytes(const layer_weights *whole, const hparams *h, const shard *s, run_matrix first) {
    layer_weights l = slice_of(whole, h, s);
    return place(&l, first, NULL);
}

layer_weights run_view(const layer_weights *whole, const hparams *h, const shard *s, run_matrix first,
                       const uint8_t *run) {
    layer_weights l = slice_of(whole, h, s);
    place(&l, first, run);
    return l;
}

/* Copies a matrix to one of the same shape, which the caller may write to. */
static void copy_matrix(const matrix *to, const matrix *from) {
    size_t bytes = format_bytes(from->format, from->cols);
    for (size_t r = 0; r < from->rows && bytes > 0; r++) {
        memcpy((uint8_t *)to->data + r * to->row_bytes, from->data + r * from->row_bytes, bytes);
    }
}

void run_pack(const layer_weights *whole, const hparams *h, const shard *s, uint8_t *run) {
    layer_weights from = slice_of(whole, h, s), to = from;
    matrix *sources[RUN_MATRICES], *targets[RUN_MATRICES];
    place(&to, RUN_Q, run);
    list_matrices(&from, sources);
    list_matrices(&to, targets);
    for (int i = 0; i < RUN_MATRICES; i++) copy_matrix(targets[i], sources[i]);
}

void run_join(const layer_weights *whole, const hparams *h, const sharding *s, uint32_t rank, const layer_weights *own,
              const uint8_t *const runs[], layer_weights parts[]) {
    run_matrix first = run_travels_from(s);
    layer_weights mine = *own;
    matrix *held[RUN_MATRICES], *list[RUN_MATRICES];
    list_matrices(&mine, held);
    for (uint32_t p = 0; p < s->ranks; p++) {
        parts[p] = p == rank ? *own : run_view(whole, h, &s->of[p], first, runs[p]);
        list_matrices(&parts[p], list);
        for (int i = 0; i < (int)first; i++) *list[i] = p == 0 ? *held[i] : (matrix){.format = held[i]->format};
    }
}

void slices_layout(slices *s, arena *a, const hparams *h, const weights *w, const shard *own, bool packed) {
    uint32_t count = range_count(own->layers);
    layer_weights *layers = arena_take(a, count, sizeof *layers);
    for (uint32_t i = 0; i < count; i++) {
        const layer_weights *whole = &w->layers[own->layers.begin + i];
        const uint8_t *run = packed ? arena_take(a, run_bytes(whole, h, own, RUN_Q), 1) : NULL;
        if (layers != NULL) layers[i] = packed ? run_view(whole, h, own, RUN_Q, run) : slice_of(whole, h, own);
    }
    *s = (slices){layers, matrix_rows(&w->output, own->vocab.begin, own->vocab.end)};
    if (packed) s->output.data = arena_take(a, s->output.rows, s->output.row_bytes);
}

static void forget(const gguf *file, const matrix *m) {
    gguf_forget(file, m->data, m->rows * m->row_bytes);
}

void layer_forget(const layer_weights *whole, const gguf *file) {
    layer_weights layer = *whole;
    matrix *wholes[RUN_MATRICES];
    list_matrices(&layer, wholes);
    for (int m = 0; m < RUN_MATRICES; m++) forget(file, wholes[m]);
}

void slices_pack(const slices *s, const hparams *h, const weights *w, const shard *own, const gguf *file) {
    for (uint32_t i = 0; i < range_count(own->layers); i++) {
        const layer_weights *whole = &w->layers[own->layers.begin + i];
        run_pack(whole, h, own, (uint8_t *)s->layers[i].q.data);
        layer_forget(whole, file);
    }
    matrix output = matrix_rows(&w->output, own->vocab.begin, own->vocab.end);
    copy_matrix(&s->output, &output);
    forget(file, &w->output);
}

uint64_t slices_rest_bytes(const hparams *h, const weights *w, const gguf *file) {
    uint64_t all = gguf_file_bytes(file), packed = 0;
    for (uint32_t i = 0; i < h->layers; i++) packed += layer_bytes(&w->layers[i]);
    if (w->output.data != w->embedding.data) packed += w->output.rows * w->output.row_bytes;
    return all > packed ? all - packed : 0;
}
