/* hosts.h: clusters on the command line: the secret, and what happens while others join. */
#ifndef RS_CLI_HOSTS_H
#define RS_CLI_HOSTS_H

#include "cli/args.h"

/* Waits until all machines have joined. News go to standard error unless --quiet; Ctrl-C ends it. This and all below
 * return an exit code, 0 for success. */
int hosts_open(const args *a, const rs_model *model, rs_cluster **out);

/* With --hosts opens the cluster and sets options->cluster, and, where every machine has been probed and the flags
 * leave it open, the split, shares and chunk that are fastest there; else does nothing. */
int hosts_lead(const args *a, const rs_model *model, rs_options *options, rs_cluster **out);

/* The machines of the cluster and their links, all of which must have been probed. */
int hosts_measure(rs_cluster *cluster, rs_machines *out);

#endif
