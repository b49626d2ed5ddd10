/* remote.h: commands between the processes of a cluster, through the ranks' own communicator, since they are part of
 * every token's time. */
#ifndef RS_ENGINE_REMOTE_H
#define RS_ENGINE_REMOTE_H

#include "engine/engine.h"

/* Does a command on the one rank of a process of a cluster. The head's rank passes it on first. Commands that may fail
 * for reasons of one machine end with everybody's outcome at the head, which returns the first failure. */
rs_status remote_obey(rank *r, const command *c);

/* Receives commands and does them until QUIT. Waits for the next one as long as the cluster stands: its watch
 * (engine/cluster.h) aborts the communicator of a head that is gone. */
rs_status remote_follow(rank *r);

/* Rank 0 sends the slices of ranks whose machines have no model file; those receive theirs; others do nothing. */
rs_status remote_slices(rank *r);

#endif
