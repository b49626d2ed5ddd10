/* hosts.h: clusters on the command line: the secret, and what happens while others join. */
#ifndef RS_CLI_HOSTS_H
#define RS_CLI_HOSTS_H

#include "cli/args.h"

enum { SECRET_MAX = 4096 };

/* The secret of --secret-file (without a line end) or of RINGSPAN_SECRET into `secret` [SECRET_MAX], and the rest of
 * the options from the flags. News go to standard error unless --quiet; Ctrl-C ends it. Returns an exit code, 0 for
 * success. */
int cluster_options(const args *a, char *secret, rs_cluster_options *out);

/* With --hosts waits until all machines have joined, and sets *out and options->cluster; else does nothing. */
int cluster_open(const args *a, const rs_model *model, rs_options *options, rs_cluster **out);

#endif
