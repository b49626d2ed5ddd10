/* forecast.c: prices of plans as tables and as JSON. */
#include "cli/forecast.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/report.h"

enum { ALTERNATIVES_SHOWN = 12 };

int forecast_make(forecast *f, const rs_model *model, const rs_options *options, const number_list *depths) {
    return output_status(rs_plan_search(model, options, &f->cluster, depths->items, depths->count, f->list,
                                        sizeof f->list / sizeof *f->list, &f->count, &f->others));
}

static double sum(const rs_parts *p) {
    return p->weights + p->kv + p->network + p->rest;
}

static double part_of(const double *shares, uint32_t ranks, uint32_t rank) {
    double all = 0;
    for (uint32_t i = 0; i < ranks; i++) all += shares[i];
    return all > 0 ? shares[rank] / all : 1.0 / ranks;
}

static void print_table(table_text *table) {
    if (table != NULL) output_table(table, stdout);
    free(table);
}

static const char *machine_name(const forecast *f, const rs_price *c, uint32_t rank) {
    return f->cluster.machine[c->machine[rank]].name;
}

static void cell_ms(table_text *table, double seconds) {
    output_cell(table, "%.2f", 1000 * seconds);
}

void forecast_print_machines(const forecast *f) {
    static const char *const headers[] = {"rank",   "machine",     "KV",       "weights",
                                          "KV GiB", "weights GiB", "held GiB", "of GiB"};
    const rs_price *c = &f->list[0];
    const rs_options *o = &c->options;
    table_text *table = output_table_new(headers, 8);
    double kv = 0;
    for (uint32_t r = 0; r < o->ranks; r++) kv += (double)c->kv[r];
    for (uint32_t r = 0; table != NULL && r < o->ranks; r++) {
        output_cell(table, "%u", r);
        output_cell(table, "%.20s", output_safe(machine_name(f, c, r)).text);
        output_cell(table, "%.1f %%", 100 * (double)c->kv[r] / kv);
        output_cell(table, "%.1f %%", 100 * part_of(o->weight_shares, o->ranks, r));
        output_cell(table, "%.2f", (double)c->kv[r] / 0x1p30);
        output_cell(table, "%.2f", (double)c->weights[r] / 0x1p30);
        output_cell(table, "%.2f", (double)c->held[r] / 0x1p30);
        output_cell(table, "%.2f", (double)f->cluster.machine[c->machine[r]].memory_bytes / 0x1p30);
    }
    print_table(table);
    if (c->context_max > 0) printf("\nlargest context that fits         %7u tokens\n", c->context_max);
}

void forecast_print_choice(const forecast *f, FILE *file) {
    const rs_price *c = &f->list[0];
    fprintf(file, "ringspan: split %s on %u of %u machines, chunk %u: %.2f ms a token at depth 0, %.2f ms at %u\n",
            args_split_text(&c->options).text, c->options.ranks, f->cluster.count, c->options.chunk,
            1000 * sum(&c->token[0]), 1000 * sum(&c->token_at_end), c->options.context - 1);
}

static void print_ranks(const forecast *f) {
    static const char *const headers[] = {"rank", "machine", "weights ms", "KV ms", "rest ms", "waits ms"};
    const rs_price *c = &f->list[0];
    if (c->options.ranks == 1) return;
    table_text *table = output_table_new(headers, 6);
    for (uint32_t r = 0; table != NULL && r < c->options.ranks; r++) {
        output_cell(table, "%u", r);
        output_cell(table, "%.20s", output_safe(machine_name(f, c, r)).text);
        cell_ms(table, c->rank[r].weights);
        cell_ms(table, c->rank[r].kv);
        cell_ms(table, c->rank[r].rest);
        cell_ms(table, c->rank[r].network);
    }
    printf("\nwhat each rank does for the last token of the context:\n");
    print_table(table);
    printf("%u exchanges a token; a rank sends %u messages of %.1f KiB in all\n", c->rounds, c->messages,
           (double)c->wire / 1024);
}

static void add_depth(table_text *table, uint32_t depth, const rs_parts *token) {
    output_cell(table, "%u", depth);
    output_cell(table, "%.1f", 1 / sum(token));
    cell_ms(table, sum(token));
    cell_ms(table, token->weights);
    cell_ms(table, token->kv);
    cell_ms(table, token->network);
    cell_ms(table, token->rest);
}

static void print_depths(const forecast *f) {
    static const char *const headers[] = {"depth", "tokens/s", "ms", "weights ms", "KV ms", "network ms", "rest ms"};
    const rs_price *c = &f->list[0];
    table_text *table = output_table_new(headers, 7);
    for (size_t i = 0; table != NULL && i < RS_DEPTHS_MAX; i++) {
        bool again = c->depth[i] + 1 == c->options.context;
        if (sum(&c->token[i]) > 0 && !again) add_depth(table, c->depth[i], &c->token[i]);
    }
    if (table != NULL) add_depth(table, c->options.context - 1, &c->token_at_end);
    print_table(table);
    double prompt_s = sum(&c->prefill);
    printf("\na prompt of %u tokens takes %.2f s, %.1f tokens/s\n", c->options.context, prompt_s,
           c->options.context / prompt_s);
}

/* Why a candidate is not the choice. */
static void cell_reason(table_text *table, const forecast *f, const rs_price *c) {
    double ours = sum(&f->list[0].token_at_end), theirs = sum(&c->token_at_end);
    if (c->fits && fabs(theirs / ours - 1) < 0.0005) {
        output_cell(table, "as fast");
    } else if (c->fits && theirs > ours) {
        output_cell(table, "%.1f %% slower", 100 * (theirs / ours - 1));
    } else if (c->fits) {
        output_cell(table, "%.1f %% faster", 100 * (ours / theirs - 1));
    } else if (f->cluster.local) {
        output_cell(table, "does not fit");
    } else {
        output_cell(table, "rank %u lacks %.1f GiB", c->lacks,
                    ((double)c->held[c->lacks] - (double)f->cluster.machine[c->machine[c->lacks]].memory_bytes) /
                        0x1p30);
    }
}

static void add_alternative(table_text *table, const forecast *f, const rs_price *c) {
    const rs_options *o = &c->options;
    output_cell(table, "%u", o->ranks);
    output_cell(table, "%s", args_split_text(o).text);
    output_cell(table, o->kv_k == o->kv_v ? "%s" : "%s/%s", args_kv_name(o->kv_k), args_kv_name(o->kv_v));
    output_cell(table, "%.1f", 1 / sum(&c->token[0]));
    output_cell(table, "%.1f", 1 / sum(&c->token_at_end));
    cell_reason(table, f, c);
}

static void print_alternatives(const forecast *f, size_t from, size_t to, const char *title) {
    char first[24];
    snprintf(first, sizeof first, "tokens/s at %u", f->list[0].depth[0]);
    const char *const headers[] = {"ranks", "split", "KV", first, "at the end", ""};
    if (from >= to) return;
    table_text *table = output_table_new(headers, 6);
    for (size_t i = from; table != NULL && i < to && i < from + ALTERNATIVES_SHOWN; i++) {
        add_alternative(table, f, &f->list[i]);
    }
    printf("\n%s:\n", title);
    print_table(table);
    if (to - from > ALTERNATIVES_SHOWN) printf("and %zu more (--json lists all)\n", to - from - ALTERNATIVES_SHOWN);
}

void forecast_print_speed(const forecast *f) {
    printf("\n");
    print_depths(f);
    print_ranks(f);
    print_alternatives(f, 1, f->others, "not chosen");
    print_alternatives(f, f->others, f->count, "the same with K and V in other formats");
}

int forecast_refuse(const forecast *f) {
    const rs_price *c = &f->list[0];
    size_text held = output_bytes(c->held[c->lacks]);
    size_text has = output_bytes(f->cluster.machine[c->machine[c->lacks]].memory_bytes);
    if (c->context_max == 0) {
        return output_refuse("rank %u would take %s of %s's %s; no context fits this cluster", c->lacks, held.text,
                             output_safe(machine_name(f, c, c->lacks)).text, has.text);
    }
    return output_refuse("rank %u would take %s of %s's %s; the largest context that fits is --ctx %u", c->lacks,
                         held.text, output_safe(machine_name(f, c, c->lacks)).text, has.text, c->context_max);
}

/* ---- JSON ---- */

static json_t *parts_json(const rs_parts *p) {
    return json_pack("{sf sf sf sf sf}", "seconds", sum(p), "weights", p->weights, "kv", p->kv, "network", p->network,
                     "rest", p->rest);
}

static json_t *ranks_json(const forecast *f, const rs_price *c) {
    json_t *ranks = json_array();
    for (uint32_t r = 0; r < c->options.ranks; r++) {
        const char *name = machine_name(f, c, r);
        json_array_append_new(ranks, json_pack("{so si sI sI sI so}", "machine", output_string(name, strlen(name)),
                                               "machine_index", (int)c->machine[r], "held_bytes",
                                               (json_int_t)c->held[r], "weights_bytes", (json_int_t)c->weights[r],
                                               "kv_bytes", (json_int_t)c->kv[r], "token", parts_json(&c->rank[r])));
    }
    return ranks;
}

static json_t *price_json(const forecast *f, const rs_price *c) {
    json_t *depths = json_array();
    for (size_t i = 0; i < RS_DEPTHS_MAX; i++) {
        if (sum(&c->token[i]) == 0) continue;
        json_array_append_new(
            depths, json_pack("{sI so}", "depth", (json_int_t)c->depth[i], "token", parts_json(&c->token[i])));
    }
    json_t *out =
        json_pack("{so so sb so so si si sI}", "options", report_options(&c->options), "ranks", ranks_json(f, c),
                  "fits", c->fits, "depths", depths, "token_at_end", parts_json(&c->token_at_end), "exchanges",
                  (int)c->rounds, "messages", (int)c->messages, "sent_bytes", (json_int_t)c->wire);
    if (!c->fits && !f->cluster.local) json_object_set_new(out, "lacking_rank", json_integer(c->lacks));
    return out;
}

static json_t *list_json(const forecast *f, size_t from, size_t to) {
    json_t *list = json_array();
    for (size_t i = from; i < to; i++) json_array_append_new(list, price_json(f, &f->list[i]));
    return list;
}

json_t *forecast_json(const forecast *f) {
    json_t *choice = price_json(f, &f->list[0]);
    json_object_set_new(choice, "prefill", parts_json(&f->list[0].prefill));
    json_object_set_new(choice, "context_max", json_integer(f->list[0].context_max));
    return json_pack("{so so so}", "choice", choice, "rejected", list_json(f, 1, f->others), "other_kv",
                     list_json(f, f->others, f->count));
}
