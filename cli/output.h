/* output.h: how the program speaks: errors, exit codes, JSON on standard output, sizes and tables for people. */
#ifndef RS_CLI_OUTPUT_H
#define RS_CLI_OUTPUT_H

#include <jansson.h>
#include <stdio.h>

#include "ringspan.h"

/* What the process returns besides 0 and interrupt_code(). */
enum {
    EXIT_REFUSED = 2, /* any error */
    EXIT_PIPE = 141,  /* the reader of standard output went away: 128 + SIGPIPE */
};

/* Prints "ringspan: <cause>" on standard error; returns EXIT_REFUSED. */
int output_refuse(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* 0 for RS_OK; otherwise prints rs_last_error() and returns EXIT_REFUSED, or says nothing and returns interrupt_code()
 * for RS_CANCELLED. */
int output_status(rs_status status);

/* Flushes standard output; returns `code`, or, when writing has failed, EXIT_PIPE or EXIT_REFUSED with the reason. */
int output_finish(int code);

/* Text as a JSON string; bytes that are no UTF-8 become '?'. NULL without memory. */
json_t *output_string(const char *text, size_t bytes);

/* Prints and frees `value` (NULL: memory ran out while it was built); returns an exit code. */
int output_json(json_t *value);

typedef struct size_text {
    char text[32];
} size_text;

/* "12.34 GiB". */
size_text output_bytes(uint64_t bytes);

/* Text from a model file on its way to a terminal: control characters become '?'. */
typedef struct safe_text {
    char text[96];
} safe_text;
safe_text output_safe(const char *text);

/* A table whose columns are as wide as their widest cell; numbers to the right. */
enum { TABLE_CELLS_MAX = 1024, TABLE_COLUMNS_MAX = 12 };
typedef struct table_text {
    size_t columns, n_cells;
    char cells[TABLE_CELLS_MAX][24];
} table_text;

/* A table with its header [columns]; NULL without memory. Freed with free. */
table_text *output_table_new(const char *const *headers, size_t columns);

/* Appends the next cell, row by row; the first row is the header. */
void output_cell(table_text *table, const char *format, ...) __attribute__((format(printf, 2, 3)));
void output_table(const table_text *table, FILE *file);

#endif
