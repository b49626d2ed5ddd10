/* comm.h: bytes between ranks. One operation, a pairwise-synchronised exchange, from which gather, reduce and hop are
 * made; a new network is one more file that fills in this table.
 *
 * All ranks that have bytes for each other in an exchange must call it, in the same order. A rank exchanges nothing,
 * and waits for nobody, where both its sizes are 0. An exchange in the background (begin, finish) belongs to a lane,
 * and each lane has an order of its own, apart from that of the others. A rank may begin it whenever it likes, but all
 * ranks must finish it between the same two other exchanges, where finishing one in another lane counts as one: some
 * networks move its bytes in finish alone. */
#ifndef RS_COMM_COMM_H
#define RS_COMM_COMM_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

typedef struct comm_part {
    void *data; /* not written through when sending */
    size_t bytes;
} comm_part;

/* What may go on in the background at once. */
typedef enum comm_lane { LANE_WEIGHTS, LANE_PAGES, LANES } comm_lane;

typedef struct comm comm;
struct comm {
    uint32_t rank, ranks;
    double deadline_s; /* bounds every wait; INFINITY: none. The owner may change it between two calls */

    /* Sends out[p] to rank p and receives in[p] from it, for every p; out[rank] and in[rank] are ignored. Both arrays
     * are [ranks]. When it returns, what was sent may be overwritten and what was received is complete. RS_PEER_LATE
     * after the deadline, RS_PEER_LOST when a peer aborted, RS_BAD_FORMAT when sizes disagree. */
    rs_status (*exchange)(comm *c, const comm_part *out, const comm_part *in);

    /* An exchange that goes on while this rank computes and exchanges: begin starts it and returns at once, finish
     * waits until it is complete. One at a time in each lane. The two arrays are copied; their data must not be touched
     * in between. */
    rs_status (*begin)(comm *c, comm_lane lane, const comm_part *out, const comm_part *in);
    rs_status (*finish)(comm *c, comm_lane lane);

    /* Makes every present and later exchange of the group fail with RS_PEER_LOST. Any thread. */
    void (*abort)(comm *c);

    bool dry; /* nothing travels but time (comm/dry_comm.h): there is nothing to add up or to copy */
};

/* All-gather: everyone's `mine` [mine_bytes] lands in parts[p] of everyone; parts[rank] is not touched. Sizes may
 * differ by rank and be 0. */
rs_status comm_gather(comm *c, const void *mine, size_t mine_bytes, const comm_part *parts);

/* The largest vector that three ranks and more reduce at once. A larger one goes in two halves: each rank receives
 * (ranks - 1) (ranks - 2) / ranks vectors less, but one exchange more takes place: a latency, in which a link of
 * 1 Gbit/s and 0.5 ms or one of 10 Gbit/s and 50 us carries 62 KB. Three ranks save that of 94 KB, four of 42. A
 * token's row is smaller in any model known. */
enum { REDUCE_AT_ONCE_BYTES = 64 << 10 };

/* Sum over ranks of x [n], in rank order for every element, so that every rank gets the same bits, whatever the way:
 *
 *   at once (small vectors)     everyone sends everyone its vector and adds up all of them: one latency
 *   in halves (large vectors)   everyone sends everyone the other's range, adds up its own, then sends all the sum
 *
 * At once takes ranks * n floats of `buffer`, halves n, rounded up to a multiple of ranks. What does not fit its `room`
 * (>= ranks, and the same on every rank) goes in several pieces. */
rs_status comm_reduce(comm *c, float *x, size_t n, float *buffer, size_t room);

/* One message from rank `from` to rank `to`; other ranks return at once. */
rs_status comm_hop(comm *c, uint32_t from, uint32_t to, void *data, size_t bytes);

#endif
