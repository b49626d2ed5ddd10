/* comm.c: gather, reduce and hop over the one exchange of any network. */
#include "comm/comm.h"

#include <string.h>

rs_status comm_gather(comm *c, const void *mine, size_t mine_bytes, const comm_part *parts) {
    comm_part out[RS_RANKS_MAX];
    for (uint32_t p = 0; p < c->ranks; p++) out[p] = (comm_part){(void *)mine, mine_bytes};
    return c->exchange(c, out, parts);
}

/* x [n] = the sum over ranks of parts [ranks, n], of which this rank's own is x still. */
static void add_up(const comm *c, float *x, size_t n, float *parts) {
    if (c->dry) return;
    memcpy(parts + c->rank * n, x, n * sizeof *x);
    memcpy(x, parts, n * sizeof *x);
    for (uint32_t p = 1; p < c->ranks; p++) {
        const float *part = parts + p * n;
        for (size_t i = 0; i < n; i++) x[i] += part[i];
    }
}

static rs_status reduce_at_once(comm *c, float *x, size_t n, float *buffer) {
    comm_part parts[RS_RANKS_MAX];
    for (uint32_t p = 0; p < c->ranks; p++) parts[p] = (comm_part){buffer + p * n, n * sizeof *x};
    RS_TRY(comm_gather(c, x, n * sizeof *x, parts));
    add_up(c, x, n, buffer);
    return RS_OK;
}

static rs_status reduce_in_halves(comm *c, float *x, size_t n, float *buffer) {
    comm_part ranges[RS_RANKS_MAX] = {0}, in[RS_RANKS_MAX];
    for (uint32_t p = 0; p < c->ranks; p++) {
        size_t begin = n * p / c->ranks, end = n * (p + 1) / c->ranks;
        ranges[p] = (comm_part){x + begin, (end - begin) * sizeof *x};
    }
    comm_part own = ranges[c->rank];
    size_t own_n = own.bytes / sizeof *x;
    for (uint32_t p = 0; p < c->ranks; p++) in[p] = (comm_part){buffer + p * own_n, own.bytes};
    RS_TRY(c->exchange(c, ranges, in));
    add_up(c, own.data, own_n, buffer);
    return comm_gather(c, own.data, own.bytes, ranges);
}

rs_status comm_reduce(comm *c, float *x, size_t n, float *buffer, size_t room) {
    if (c->ranks == 1) return RS_OK;
    bool halves = c->ranks > 2 && n * sizeof *x > REDUCE_AT_ONCE_BYTES;
    size_t place = room / c->ranks, piece = halves ? place * c->ranks : place;
    for (size_t i = 0; i < n; i += piece) {
        size_t count = n - i < piece ? n - i : piece;
        RS_TRY(halves ? reduce_in_halves(c, x + i, count, buffer) : reduce_at_once(c, x + i, count, buffer));
    }
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
