/* dry_comm.h: the network that only adds up what messages would take. It hands on times and no bytes. */
#ifndef RS_COMM_DRY_COMM_H
#define RS_COMM_DRY_COMM_H

#include "base/virtual_clock.h"
#include "comm/comm.h"

typedef struct dry_group dry_group;

/* Ranks that are threads of this process. A message from `from` to `to` arrives after links[from * ranks + to]'s
 * latency and what its bytes take; each rank's link carries one message's bytes at a time in each direction, and an
 * exchange in the background shares it. What is received is left as it is. `links` must outlive the group.
 * RS_NO_MEMORY. */
rs_status dry_group_open(uint32_t ranks, const rs_link *links, dry_group **out);
void dry_group_close(dry_group *group);

/* The rank's end, whose exchanges pass time on `clock`; owned by the group, used by one thread at a time. */
comm *dry_group_comm(dry_group *group, uint32_t rank, virtual_clock *clock);

/* Lets the rank's links rest, as before the first message: for a clock that begins again. */
void dry_group_rest(dry_group *group, uint32_t rank);

#endif
