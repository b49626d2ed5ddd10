/* output.c: errors, JSON, sizes and tables. */
#include "cli/output.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "cli/interrupt.h"

int output_refuse(const char *format, ...) {
    va_list list;
    fflush(stdout);
    fputs("ringspan: ", stderr);
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
    return EXIT_REFUSED;
}

int output_status(rs_status status) {
    if (status == RS_OK) return 0;
    if (status == RS_CANCELLED) return interrupt_code();
    return output_refuse("%s", rs_last_error());
}

int output_finish(int code) {
    errno = 0;
    bool flushed = fflush(stdout) == 0;
    if (flushed && !ferror(stdout)) return code;
    if (errno == EPIPE || errno == 0) return EXIT_PIPE; /* errno 0: an earlier write met the broken pipe */
    return output_refuse("cannot write to standard output: %s", strerror(errno));
}

json_t *output_string(const char *text, size_t bytes) {
    json_t *string = json_stringn(text, bytes);
    if (string != NULL) return string;
    char *copy = malloc(bytes + 1);
    if (copy == NULL) return NULL;
    for (size_t i = 0; i < bytes; i++) copy[i] = (unsigned char)text[i] < 0x80 ? text[i] : '?';
    string = json_stringn(copy, bytes);
    free(copy);
    return string;
}

int output_json(json_t *value) {
    if (value == NULL) return output_refuse("no memory for the JSON output");
    json_dumpf(value, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    fputc('\n', stdout);
    json_decref(value);
    return output_finish(0);
}

size_text output_bytes(uint64_t bytes) {
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB"};
    size_text out;
    double value = (double)bytes / 1024;
    size_t unit = 0;
    while (value >= 1024 && unit < 3) {
        value /= 1024;
        unit++;
    }
    snprintf(out.text, sizeof out.text, "%.2f %s", value, units[unit]);
    return out;
}

safe_text output_safe(const char *text) {
    safe_text out;
    size_t n = 0;
    for (; text[n] != 0 && n < sizeof out.text - 1; n++) {
        unsigned char c = (unsigned char)text[n];
        out.text[n] = c < 0x20 || c == 0x7F ? '?' : text[n];
    }
    out.text[n] = 0;
    return out;
}

table_text *output_table_new(const char *const *headers, size_t columns) {
    table_text *table = calloc(1, sizeof *table);
    if (table == NULL) return NULL;
    table->columns = columns;
    for (size_t i = 0; i < columns; i++) output_cell(table, "%s", headers[i]);
    return table;
}

void output_cell(table_text *table, const char *format, ...) {
    assert(table->n_cells < TABLE_CELLS_MAX);
    va_list list;
    va_start(list, format);
    vsnprintf(table->cells[table->n_cells++], sizeof table->cells[0], format, list);
    va_end(list);
}

void output_table(const table_text *table, FILE *file) {
    size_t width[TABLE_COLUMNS_MAX] = {0};
    assert(table->columns <= TABLE_COLUMNS_MAX && table->n_cells % table->columns == 0);
    for (size_t i = 0; i < table->n_cells; i++) {
        size_t length = strlen(table->cells[i]);
        size_t *widest = &width[i % table->columns];
        if (length > *widest) *widest = length;
    }
    for (size_t i = 0; i < table->n_cells; i++) {
        size_t column = i % table->columns;
        bool last = column + 1 == table->columns;
        fprintf(file, "%*s%s", (int)width[column], table->cells[i], last ? "\n" : "  ");
    }
}
