/* plan_cmd.c: `ringspan plan`: who would hold what, in bytes, and whether it fits. */
#include <stdlib.h>

#include "cli/commands.h"
#include "cli/report.h"

static bool fits(const rs_plan_info *info) {
    return info->total <= info->limit;
}

static int print_json(const args *a, const rs_model_info *model, const rs_plan *plan, const rs_plan_info *info) {
    return output_json(json_pack(
        "{so so so s{sI sI sI sI sI sI} sI si sb}", "model", report_model(a->model, model), "options",
        report_options(&info->options), "ranks", report_ranks(plan, info->options.context), "bytes", "weights_file",
        (json_int_t)info->weights, "program", (json_int_t)info->program, "tables", (json_int_t)info->tables, "ranks",
        (json_int_t)info->ranks, "total", (json_int_t)info->total, "limit", (json_int_t)info->limit, "context_max",
        (json_int_t)info->context_max, "page_tokens", (int)info->page_tokens, "fits", fits(info)));
}

static int print_text(const rs_model_info *model, const rs_plan *plan, const rs_plan_info *info) {
    const rs_options *o = &info->options;
    printf("%s (%s, %s, %.1f M parameters)\n", output_safe(model->name[0] != 0 ? model->name : "unnamed").text,
           model->architecture, model->weights, (double)model->parameters / 1e6);
    printf("context %u tokens in pages of %u, %u rank%s, split %s, K %s, V %s, chunk %u, %u threads\n\n", o->context,
           info->page_tokens, o->ranks, o->ranks == 1 ? "" : "s", args_split_name(o->split), args_kv_name(o->kv_k),
           args_kv_name(o->kv_v), o->chunk, o->threads);
    report_plan_table(plan, stdout);
    printf("\nKV, weights read for a token, working and wire buffers in MiB.\n");
    printf("\nmodel file (shared by all ranks)  %14s\n", output_bytes(info->weights).text);
    printf("KV, activations, wire of all      %14s\n", output_bytes(info->ranks).text);
    printf("page table and token timeline     %14s\n", output_bytes(info->tables).text);
    printf("program, tokenizer, libraries     %14s\n", output_bytes(info->program).text);
    printf("total                             %14s\n", output_bytes(info->total).text);
    printf("limit                             %14s\n", output_bytes(info->limit).text);
    if (info->context_max > 0) printf("largest context that fits         %7u tokens\n", info->context_max);
    return output_finish(0);
}

static int refuse_size(const rs_plan_info *info) {
    size_text total = output_bytes(info->total), limit = output_bytes(info->limit);
    if (info->context_max == 0) {
        return output_refuse("%s are needed and %s allowed; no context fits, so raise --memory-limit or use a smaller "
                             "model",
                             total.text, limit.text);
    }
    return output_refuse("%s are needed and %s allowed; the largest context that fits is --ctx %u", total.text,
                         limit.text, info->context_max);
}

int plan_command(const args *a) {
    rs_model *model = NULL;
    rs_plan *plan = NULL;
    rs_model_info model_info;
    rs_plan_info info;
    int code = output_status(rs_model_open(a->model, &model));
    if (code != 0) return code;
    rs_model_describe(model, &model_info);
    code = output_status(rs_plan_make(model, &a->engine, &plan));
    if (code != 0) goto close_model;
    rs_plan_describe(plan, &info);
    code = a->json ? print_json(a, &model_info, plan, &info) : print_text(&model_info, plan, &info);
    if (code == 0 && !fits(&info)) code = refuse_size(&info);
    rs_plan_free(plan);
close_model:
    rs_model_close(model);
    return code;
}
