/* machines.h: machines and clusters as JSON files: what `ringspan probe` measured here, what share/ringspan/profiles
 * says of machines that are elsewhere, and what a user writes. */
#ifndef RS_CLI_MACHINES_H
#define RS_CLI_MACHINES_H

#include "cli/output.h"

/* A machine as JSON; NULL without memory. */
json_t *machine_json(const rs_machine *machine);

/* Reads a machine; `file` and `where` name it in the reason, which is printed. False when it breaks a rule. */
bool machine_read(const json_t *object, const char *file, const char *where, rs_machine *out);

/* A cluster as JSON that machines_load reads; NULL without memory. */
json_t *machines_json(const rs_machines *machines);

/* Reads a cluster: a file, or the name of one of the profiles that came with the program; of a machine alone, too. 0,
 * or an exit code after the reason was printed. */
int machines_load(const char *name, rs_machines *out);

#endif
