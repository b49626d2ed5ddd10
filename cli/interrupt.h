/* interrupt.h: Ctrl-C (SIGINT) and SIGTERM ask to stop; a second one of the kind ends the process at once. */
#ifndef RS_CLI_INTERRUPT_H
#define RS_CLI_INTERRUPT_H

#include <stdbool.h>

/* From here on the first is only noted. */
void interrupt_watch(void);
bool interrupt_seen(void);

/* The exit code of a command that was asked to stop: 128 + the signal, as a shell reports it. */
int interrupt_code(void);

#endif
