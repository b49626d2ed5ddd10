/* status.h: how a failure is recorded. The function that decides which error it is calls status_fail once; everyone
 * above forwards the status. */
#ifndef RS_BASE_STATUS_H
#define RS_BASE_STATUS_H

#include <stdarg.h>

#include "ringspan.h"

enum { STATUS_TEXT_MAX = 512 };

/* Stores one sentence (cause, numbers, way out; no trailing newline) as this thread's latest error and returns status.
 * An argument may be rs_last_error() itself, to say more of a failure. */
rs_status status_fail(rs_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* vsnprintf, with '?' for control characters: some of it may come from a file or a stranger, and nothing in it may
 * steer the user's terminal. */
void status_format(char *out, size_t bytes, const char *format, va_list args) __attribute__((format(printf, 3, 0)));

/* Forwards a failure when `call` is not RS_OK. */
#define RS_TRY(call)                                                                                                   \
    do {                                                                                                               \
        rs_status try_status = (call);                                                                                 \
        if (try_status != RS_OK) return try_status;                                                                    \
    } while (0)

#endif
