/* report.c: plans as JSON and as tables. */
#include "cli/report.h"

#include <stdlib.h>
#include <string.h>

#include "cli/args.h"

json_t *report_model(const char *path, const rs_model_info *info) {
    return json_pack("{so so ss ss sI sI si si si si si si si}", "path", output_string(path, strlen(path)), "name",
                     output_string(info->name, strlen(info->name)), "architecture", info->architecture, "weights",
                     info->weights, "parameters", (json_int_t)info->parameters, "file_bytes",
                     (json_int_t)info->file_bytes, "layers", (int)info->layers, "dim", (int)info->dim, "heads",
                     (int)info->heads, "kv_heads", (int)info->kv_heads, "head_dim", (int)info->head_dim, "vocab",
                     (int)info->vocab, "context_trained", (int)info->context_trained);
}

json_t *report_options(const rs_options *options) {
    json_t *shares = json_array();
    for (uint32_t i = 0; i < options->ranks; i++) json_array_append_new(shares, json_real(options->shares[i]));
    return json_pack("{sI si so ss si ss ss si si sI ss*}", "context", (json_int_t)options->context, "ranks",
                     (int)options->ranks, "shares", shares, "split", args_split_name(options->split), "tpa",
                     (int)options->tpa, "kv_k", args_kv_name(options->kv_k), "kv_v", args_kv_name(options->kv_v),
                     "chunk", (int)options->chunk, "threads", (int)options->threads, "memory_limit",
                     (json_int_t)options->memory_limit, "kernels", options->kernels);
}

static json_t *span(uint32_t begin, uint32_t end) {
    return json_pack("[ii]", (int)begin, (int)end);
}

json_t *report_ranks(const rs_plan *plan, size_t length) {
    rs_plan_info info;
    json_t *ranks = json_array();
    rs_plan_describe(plan, &info);
    for (uint32_t i = 0; i < info.options.ranks; i++) {
        rs_plan_rank r;
        rs_plan_describe_rank(plan, i, &r);
        json_t *rank =
            json_pack("{si sI si sI sI sI sI sI so so so so}", "rank", (int)i, "tokens",
                      (json_int_t)rs_plan_tokens(plan, i, length), "pages", (int)r.pages, "kv_bytes", (json_int_t)r.kv,
                      "weights_bytes", (json_int_t)r.weights, "activations_bytes", (json_int_t)r.activations,
                      "wire_bytes", (json_int_t)r.wire, "slices_bytes", (json_int_t)r.slices, "layers",
                      span(r.layer_begin, r.layer_end), "heads", span(r.head_begin, r.head_end), "ffn",
                      span(r.ffn_begin, r.ffn_end), "vocab", span(r.vocab_begin, r.vocab_end));
        if (rank == NULL || json_array_append_new(ranks, rank) != 0) {
            json_decref(ranks);
            return NULL;
        }
    }
    return ranks;
}

static void cell_mib(table_text *table, uint64_t bytes) {
    output_cell(table, "%.2f", (double)bytes / 1048576);
}

/* The first and last of [begin, end). */
static void cell_span(table_text *table, uint32_t begin, uint32_t end) {
    if (begin >= end) {
        output_cell(table, "-");
    } else if (begin + 1 == end) {
        output_cell(table, "%u", begin);
    } else {
        output_cell(table, "%u-%u", begin, end - 1);
    }
}

void report_kv_table(const rs_plan *plan, size_t length, FILE *file) {
    static const char *const headers[] = {"rank", "tokens held", "pages held", "pages reserved", "KV MiB reserved"};
    rs_plan_info info;
    table_text *table = output_table_new(headers, 5);
    if (table == NULL) return;
    rs_plan_describe(plan, &info);
    for (uint32_t i = 0; i < info.options.ranks; i++) {
        rs_plan_rank r;
        rs_plan_describe_rank(plan, i, &r);
        size_t tokens = rs_plan_tokens(plan, i, length);
        output_cell(table, "%u", i);
        output_cell(table, "%zu", tokens);
        output_cell(table, "%zu", (tokens + info.page_tokens - 1) / info.page_tokens);
        output_cell(table, "%u", r.pages);
        cell_mib(table, r.kv);
    }
    output_table(table, file);
    free(table);
}

void report_plan_table(const rs_plan *plan, FILE *file) {
    static const char *const headers[] = {"rank",  "layers", "heads",   "ffn",     "vocab",
                                          "pages", "KV MiB", "weights", "buffers", "wire"};
    rs_plan_info info;
    table_text *table = output_table_new(headers, 10);
    if (table == NULL) return;
    rs_plan_describe(plan, &info);
    for (uint32_t i = 0; i < info.options.ranks; i++) {
        rs_plan_rank r;
        rs_plan_describe_rank(plan, i, &r);
        output_cell(table, "%u", i);
        cell_span(table, r.layer_begin, r.layer_end);
        cell_span(table, r.head_begin, r.head_end);
        cell_span(table, r.ffn_begin, r.ffn_end);
        cell_span(table, r.vocab_begin, r.vocab_end);
        output_cell(table, "%u", r.pages);
        cell_mib(table, r.kv);
        cell_mib(table, r.weights);
        cell_mib(table, r.activations);
        cell_mib(table, r.wire);
    }
    output_table(table, file);
    free(table);
}
