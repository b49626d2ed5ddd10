/* local.h: ranks that are threads of one process. */
#ifndef RS_COMM_LOCAL_H
#define RS_COMM_LOCAL_H

#include "comm/comm.h"

typedef struct local_group local_group;

/* A group of 1 to RS_RANKS_MAX ranks; `deadline_s` bounds every wait. `roomy`: every thread of every rank has a core,
 * so that ranks may wait for each other awake for a moment before they sleep. RS_NO_MEMORY. */
rs_status local_group_open(uint32_t ranks, double deadline_s, bool roomy, local_group **out);

/* After every rank has left its last exchange. */
void local_group_close(local_group *group);

/* The rank's end; owned by the group, used by one thread at a time. */
comm *local_group_comm(local_group *group, uint32_t rank);

#endif
