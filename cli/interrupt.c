/* interrupt.c: notes SIGINT and SIGTERM. */
#include "cli/interrupt.h"

#include <signal.h>
#include <stddef.h>

static volatile sig_atomic_t seen;

static void note(int signal_number) {
    seen = signal_number;
}

void interrupt_watch(void) {
    /* Reset after the first: the default action of the second kills a program that is stuck. */
    struct sigaction action = {.sa_handler = note, .sa_flags = (int)SA_RESETHAND | SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool interrupt_seen(void) {
    return seen != 0;
}

int interrupt_code(void) {
    return 128 + (seen != 0 ? seen : SIGINT);
}
