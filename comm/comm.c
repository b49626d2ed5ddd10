/* comm.c: gather, reduce and hop over the one exchange of any network. */
#include "comm/comm.h"

#include <string.h>

rs_status comm_gather(comm *c, const void *mine, size_t mine_bytes, const comm_part *parts) {
    comm_part out[RS_RANKS_MAX];
    for (uint32_t p = 0; p < c->ranks; p++) out[p] = (comm_part){(void *)mine, mine_bytes};
    return c->exchange(c, out, parts);
}

static rs_status reduce_piece(comm *c, float *x, size_t n, float *buffer) {
    comm_part parts[RS_RANKS_MAX];
    for (uint32_t p = 0; p < c->ranks; p++) parts[p] = (comm_part){buffer + p * n, n * sizeof *x};
    RS_TRY(comm_gather(c, x, n * sizeof *x, parts));
    if (c->dry) return RS_OK;
    memcpy(buffer + c->rank * n, x, n * sizeof *x);
    memcpy(x, buffer, n * sizeof *x);
    for (uint32_t p = 1; p < c->ranks; p++) {
        const float *part = buffer + p * n;
        for (size_t i = 0; i < n; i++) x[i] += part[i];
    }
    return RS_OK;
}

rs_status comm_reduce(comm *c, float *x, size_t n, float *buffer, size_t room) {
    if (c->ranks == 1) return RS_OK;
    size_t piece = room / c->ranks;
    for (size_t i = 0; i < n; i += piece) RS_TRY(reduce_piece(c, x + i, n - i < piece ? n - i : piece, buffer));
    return RS_OK;
}

rs_status comm_hop(comm *c, uint32_t from, uint32_t to, void *data, size_t bytes) {
    if (from == to || (c->rank != from && c->rank != to)) return RS_OK;
    comm_part out[RS_RANKS_MAX] = {0}, in[RS_RANKS_MAX] = {0};
    if (c->rank == from) {
        out[to] = (comm_part){data, bytes};
    } else {
        in[from] = (comm_part){data, bytes};
    }
    return c->exchange(c, out, in);
}
