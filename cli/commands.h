/* commands.h: one function a subcommand; each takes its own flags and returns the exit code of the process. */
#ifndef RS_CLI_COMMANDS_H
#define RS_CLI_COMMANDS_H

#include "cli/args.h"

int run_command(const args *a);
int plan_command(const args *a);
int bench_command(const args *a);
int probe_command(const args *a);
int join_command(const args *a);

#endif
