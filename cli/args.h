/* args.h: the flags of all commands, in one table that parsing and --help share. */
#ifndef RS_CLI_ARGS_H
#define RS_CLI_ARGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ringspan.h"

typedef enum command {
    COMMAND_RUN = 1,
    COMMAND_PLAN = 2,
    COMMAND_BENCH = 4,
    COMMAND_PROBE = 8,
    COMMAND_JOIN = 16
} command;

enum { LIST_MAX = 32 };
#define PREDICT_ALL UINT32_MAX /* until an end token or a full context */

typedef struct number_list {
    size_t count;
    uint32_t items[LIST_MAX];
} number_list;

typedef struct args {
    const char *model;
    rs_options engine; /* context 0, ranks 1 and so on where the flag is absent */
    bool json, quiet, help;
    uint32_t n_shares, n_weight_shares; /* given; 0 when absent */
    /* run */
    const char *prompt, *file, *system; /* NULL when absent */
    bool raw, ignore_eos, seed_given;
    uint32_t predict, logprobs;
    rs_sampling sampling;
    /* plan */
    const char *cluster; /* NULL when absent */
    /* bench; depths of plan, too */
    number_list prompts, predicts, depths;
    uint32_t repetitions;
    /* probe */
    const char *output; /* NULL when absent */
    /* clusters */
    uint32_t hosts;                    /* 0: ranks are threads of this process */
    const char *address, *secret_file; /* of the head; where it listens, or where join looks */
    uint32_t wait_s;
    bool discover;
} args;

/* Parses argv[1..argc), the words after the command's name. False when the program is to end with *exit_code: --help
 * was printed (0) or a flag was refused (EXIT_REFUSED). Strings in `out` point into argv. */
bool args_parse(command which, int argc, char **argv, args *out, int *exit_code);

/* "12GiB", "1.5G", "800MB" or plain bytes; K, M, G, T and KiB.. are powers of 1024, KB.. of 1000. */
bool args_size(const char *text, uint64_t *bytes);

const char *args_split_name(rs_split split);

/* A split with what it is cut further into: "r4", or "r4 tpa2". */
typedef struct split_text {
    char text[32];
} split_text;
split_text args_split_text(const rs_options *options);
const char *args_kv_name(rs_kv_format format);
extern const char *const args_kv_names[RS_KV_FORMATS];

#endif
