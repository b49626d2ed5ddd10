/* report.h: what a plan says, as JSON and as tables; shared by the subcommands. */
#ifndef RS_CLI_REPORT_H
#define RS_CLI_REPORT_H

#include "cli/output.h"

/* {"path", "name", "architecture", ...} and {"context", "ranks", "split", ...}; NULL without memory. */
json_t *report_model(const char *path, const rs_model_info *info);
json_t *report_options(const rs_options *options);

/* One object a rank, with its tokens of a context filled with `length`; NULL without memory. */
json_t *report_ranks(const rs_plan *plan, size_t length);

/* What each rank holds of a context filled with `length` tokens, for the summary after a run. */
void report_kv_table(const rs_plan *plan, size_t length, FILE *file);

/* Everything of each rank. */
void report_plan_table(const rs_plan *plan, FILE *file);

#endif
