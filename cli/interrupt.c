/* interrupt.c: notes SIGINT. */
#include "cli/interrupt.h"

#include <signal.h>
#include <stddef.h>

static volatile sig_atomic_t seen;

static void note(int signal_number) {
    (void)signal_number;
    seen = 1;
}

void interrupt_watch(void) {
    /* Reset after the first: the default action of the second kills a program that is stuck. */
    struct sigaction action = {.sa_handler = note, .sa_flags = (int)SA_RESETHAND | SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

bool interrupt_seen(void) {
    return seen != 0;
}
