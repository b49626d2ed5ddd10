/* status.c: names of statuses and the per-thread text of the latest failure. */
#include "base/status.h"

#include <stdio.h>
#include <string.h>

static _Thread_local char latest[STATUS_TEXT_MAX];

rs_status status_fail(rs_status status, const char *format, ...) {
    char text[STATUS_TEXT_MAX]; /* an argument may be the latest text */
    va_list args;
    va_start(args, format);
    status_format(text, sizeof text, format, args);
    va_end(args);
    memcpy(latest, text, strlen(text) + 1);
    return status;
}

void status_format(char *out, size_t bytes, const char *format, va_list args) {
    vsnprintf(out, bytes, format, args);
    for (char *c = out; *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7F) *c = '?';
    }
}

const char *rs_last_error(void) {
    return latest;
}

const char *rs_status_name(rs_status status) {
    static const char *const names[] = {
        [RS_OK] = "ok",
        [RS_BAD_ARGUMENT] = "bad argument",
        [RS_BAD_FORMAT] = "bad format",
        [RS_UNSUPPORTED] = "unsupported",
        [RS_LIMIT] = "limit",
        [RS_CANCELLED] = "cancelled",
        [RS_PEER_LOST] = "peer lost",
        [RS_PEER_LATE] = "peer late",
        [RS_NO_MEMORY] = "out of memory",
        [RS_IO] = "input/output error",
        [RS_DEVICE] = "device error",
    };
    size_t index = (size_t)status;
    return index < sizeof names / sizeof *names ? names[index] : "unknown status";
}
