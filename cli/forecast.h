/* forecast.h: how fast plans would be, on this machine or on those of a cluster: the search, its tables and its JSON.
 */
#ifndef RS_CLI_FORECAST_H
#define RS_CLI_FORECAST_H

#include "cli/args.h"
#include "cli/output.h"

typedef struct forecast {
    rs_machines cluster;
    size_t count, others; /* of list; those from `others` on are the choice with other KV formats */
    rs_price list[512];
} forecast;

/* Prices `options` on the cluster, which the caller has filled in. 0, or an exit code after the reason was printed. */
int forecast_make(forecast *f, const rs_model *model, const rs_options *options, const number_list *depths);

/* Who holds what on which machine, and what fits. */
void forecast_print_machines(const forecast *f);

/* The choice in one line. */
void forecast_print_choice(const forecast *f, FILE *file);

/* Tokens/s of the choice over depth, what else was priced and why it was not chosen, and other KV formats. */
void forecast_print_speed(const forecast *f);

/* All of it; NULL without memory. */
json_t *forecast_json(const forecast *f);

/* The machine that has too little memory, as an error; EXIT_REFUSED. */
int forecast_refuse(const forecast *f);

#endif
