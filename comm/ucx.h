/* ucx.h: ranks that are processes, of one host or of several, over UCX: shared memory, TCP or RDMA, as UCX finds them
 * (its environment variables, UCX_TLS and UCX_NET_DEVICES among them, are obeyed). docs/ARCHITECTURE.md, "Network".
 *
 * A failure is for good: every later exchange fails with the first one's status and text, and no memory of the caller
 * is touched any more. Who wants to go on opens anew, with another epoch. */
#ifndef RS_COMM_UCX_H
#define RS_COMM_UCX_H

#include "comm/comm.h"

typedef struct ucx_comm ucx_comm;

/* Opens a worker with an address that others connect to. `roomy`: the rank's threads have a core each (base/spin.h).
 * RS_DEVICE when UCX cannot start, RS_NO_MEMORY. */
rs_status ucx_open(bool roomy, ucx_comm **out);

/* The worker's address, to be carried to the others by other means; owned by u. */
const void *ucx_address(const ucx_comm *u, size_t *bytes);

/* Connects to all ranks, once: addresses[p] is the address of rank p (addresses[rank] is ignored), and needed until it
 * returns. Messages of another epoch never match. A first small exchange shows that everybody can be reached within
 * deadline_s, which then bounds every wait. RS_PEER_LOST, RS_PEER_LATE, RS_BAD_FORMAT when the others count other
 * ranks, RS_NO_MEMORY. */
rs_status ucx_connect(ucx_comm *u, uint32_t rank, uint32_t ranks, const comm_part *addresses, uint32_t epoch,
                      double deadline_s);

/* The rank's end; owned by u, used by one thread at a time (abort: by any). Good for exchanges after ucx_connect. */
comm *ucx_comm_of(ucx_comm *u);

/* What UCX itself has resident in a process that is one of so many ranks, about; 0 for a rank alone. Measured with
 * version 1.13 and 2 to 8 ranks (docs/PERFORMANCE.md): shared memory takes the most for a peer. */
size_t ucx_resident(uint32_t ranks);

/* After the rank has left its last exchange. A peer that still waits for this rank then fails with RS_PEER_LOST. May
 * take up to some seconds where peers hang. */
void ucx_close(ucx_comm *u);

#endif
