/* input.c: reads the prompt. */
#include "cli/input.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/output.h"

enum { BYTES_FIRST = 1 << 16, BYTES_MAX = 1 << 30 /* beyond the longest contexts, some 200 million tokens */ };

/* Reads to the end of `file`, called `name`, leaving room for `extra` bytes and a NUL. */
static int read_all(FILE *file, const char *name, size_t extra, char **text, size_t *bytes) {
    char *buffer = NULL;
    size_t used = 0, size = BYTES_FIRST;
    for (;;) {
        char *larger = realloc(buffer, size + extra + 1);
        if (larger == NULL) {
            free(buffer);
            return output_refuse("no memory for the %zu bytes of %s", size, name);
        }
        buffer = larger;
        used += fread(buffer + used, 1, size - used, file);
        if (used < size) break;
        if (size == BYTES_MAX) {
            free(buffer);
            return output_refuse("%s is longer than %d bytes", name, BYTES_MAX);
        }
        size *= 2;
    }
    if (ferror(file)) {
        free(buffer);
        return output_refuse("cannot read %s: %s", name, strerror(errno));
    }
    buffer[used] = 0;
    *text = buffer;
    *bytes = used;
    return 0;
}

static int read_file(const char *path, size_t extra, char **text, size_t *bytes) {
    if (strcmp(path, "-") == 0) return read_all(stdin, "standard input", extra, text, bytes);
    FILE *file = fopen(path, "rb");
    if (file == NULL) return output_refuse("cannot open %s: %s", path, strerror(errno));
    int code = read_all(file, path, extra, text, bytes);
    fclose(file);
    return code;
}

int input_read(const args *a, char **text, size_t *bytes) {
    static const char gap[] = "\n\n";
    if (a->file == NULL && a->prompt != NULL) {
        *text = strdup(a->prompt);
        *bytes = strlen(a->prompt);
        return *text != NULL ? 0 : output_refuse("no memory for the prompt");
    }
    if (a->file == NULL && isatty(STDIN_FILENO)) {
        return output_refuse("no prompt: give -p TEXT, -f FILE or text on standard input");
    }
    size_t extra = a->prompt != NULL ? strlen(gap) + strlen(a->prompt) : 0;
    int code = read_file(a->file != NULL ? a->file : "-", extra, text, bytes);
    if (code != 0 || a->prompt == NULL) return code;
    *bytes += (size_t)snprintf(*text + *bytes, extra + 1, "%s%s", gap, a->prompt);
    return 0;
}
