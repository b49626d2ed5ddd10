/* stream.c: slices of the weights on their way to ranks that hold others, a layer ahead of its use. */
#include "forward/forward.h"

bool stream_needed(const model_view *m) {
    return m->packed && m->s->rows_spread && run_travels_from(m->s) != RUN_MATRICES;
}

size_t stream_message_bytes(const model_view *m, uint32_t layer, uint32_t rank) {
    return run_bytes(&m->w->layers[layer], m->h, &m->s->of[rank], run_travels_from(m->s));
}

size_t stream_bytes(const model_view *m, uint32_t rank) {
    size_t most = 0;
    for (uint32_t layer = 0; stream_needed(m) && layer < m->h->layers; layer++) {
        size_t bytes = 0;
        for (uint32_t p = 0; p < m->s->ranks; p++) bytes += p == rank ? 0 : stream_message_bytes(m, layer, p);
        most = size_max(most, bytes);
    }
    return most;
}

/* Where the messages of a layer lie in its half of the buffer; none for this rank's own. */
static void place_messages(const forward *f, uint32_t layer, comm_part in[]) {
    uint8_t *place = f->b.stream[layer % 2];
    for (uint32_t p = 0; p < f->c->ranks; p++) {
        in[p] = (comm_part){place, p == f->rank ? 0 : stream_message_bytes(f->m, layer, p)};
        place += in[p].bytes;
    }
}

rs_status stream_begin(forward *f, uint32_t layer) {
    comm_part out[RS_RANKS_MAX], in[RS_RANKS_MAX];
    const model_view *m = f->m;
    size_t whole = run_bytes(&m->w->layers[layer], m->h, f->own, RUN_Q),
           bytes = stream_message_bytes(m, layer, f->rank);
    const uint8_t *run = f->weights.layers[layer].q.data; /* ranks whose pages are dealt run every layer */
    for (uint32_t p = 0; p < f->c->ranks; p++) out[p] = (comm_part){(void *)(run + whole - bytes), bytes};
    place_messages(f, layer, in);
    return f->c->begin(f->c, LANE_WEIGHTS, out, in);
}

rs_status stream_finish(forward *f, uint32_t layer, layer_weights parts[]) {
    comm_part in[RS_RANKS_MAX];
    const uint8_t *runs[RS_RANKS_MAX];
    const model_view *m = f->m;
    RS_TRY(f->c->finish(f->c, LANE_WEIGHTS));
    place_messages(f, layer, in);
    for (uint32_t p = 0; p < f->c->ranks; p++) runs[p] = in[p].data;
    run_join(&m->w->layers[layer], m->h, m->s, f->rank, &f->weights.layers[layer], runs, parts);
    return RS_OK;
}
