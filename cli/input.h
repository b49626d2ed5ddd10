/* input.h: the prompt's text, from flags, a file or standard input. */
#ifndef RS_CLI_INPUT_H
#define RS_CLI_INPUT_H

#include "cli/args.h"

/* The file's or standard input's text, then -p's after an empty line when both are there. *text is NUL-terminated and
 * to be freed; *bytes does not count the NUL. Returns an exit code. */
int input_read(const args *a, char **text, size_t *bytes);

#endif
