/* interrupt.h: Ctrl-C asks to stop; a second one ends the process at once. */
#ifndef RS_CLI_INTERRUPT_H
#define RS_CLI_INTERRUPT_H

#include <stdbool.h>

/* From here on the first Ctrl-C is only noted. */
void interrupt_watch(void);
bool interrupt_seen(void);

#endif
