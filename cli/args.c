/* args.c: parses flags with getopt_long and prints help, both from one table. */
#include "cli/args.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/output.h"

typedef enum kind {
    KIND_BOOL,
    KIND_TEXT,
    KIND_U32,
    KIND_SEED,
    KIND_FLOAT,
    KIND_SIZE,
    KIND_LIST,
    KIND_SHARES,
    KIND_WEIGHT_SHARES, /* of which some may be 0 */
    KIND_SPLIT,
    KIND_KV, /* K or V */
    KIND_KV_BOTH,
} kind;

typedef struct flag {
    const char *name;
    char letter; /* 0: none */
    kind kind;
    unsigned commands;
    size_t offset;     /* of the field in args */
    double min, max;   /* of numbers */
    const char *value; /* how help calls it */
    const char *help;
    bool shows_default; /* help prints the field's initial value */
} flag;

static const char *const split_names[RS_SPLITS] = {
    [RS_SPLIT_AUTO] = "auto", [RS_SPLIT_R1] = "r1", [RS_SPLIT_R2] = "r2", [RS_SPLIT_R3] = "r3",
    [RS_SPLIT_R4] = "r4",     [RS_SPLIT_TP] = "tp", [RS_SPLIT_PP] = "pp",
};
const char *const args_kv_names[RS_KV_FORMATS] = {[RS_KV_F16] = "f16", [RS_KV_Q8_0] = "q8_0", [RS_KV_Q4_0] = "q4_0"};

#define RUN COMMAND_RUN
#define BENCH COMMAND_BENCH
#define PROBE COMMAND_PROBE
#define JOIN COMMAND_JOIN
#define PLAN COMMAND_PLAN
#define ALL (COMMAND_RUN | COMMAND_PLAN | COMMAND_BENCH) /* that take a model */
#define HEAD (ALL | COMMAND_PROBE)                       /* that may lead a cluster */
#define FIELD(name) offsetof(args, name)
#define U32_LARGEST 4294967294.0

/* An entry without a name is a heading. clang-format would spread every entry over five lines. */
/* clang-format off */
static const flag flags[] = {
    {NULL, .commands = ALL | PROBE | JOIN, .help = "Input and output"},
    {"model", 'm', KIND_TEXT, ALL, FIELD(model), 0, 0, "FILE", "the model, a GGUF file (required)"},
    {"model", 'm', KIND_TEXT, JOIN, FIELD(model), 0, 0, "FILE",
     "the head's model, if this machine has its file (else the head sends this rank's part)"},
    {"prompt", 'p', KIND_TEXT, RUN, FIELD(prompt), 0, 0, "TEXT",
     "the prompt; with -f the question after the file's text"},
    {"file", 'f', KIND_TEXT, RUN, FIELD(file), 0, 0, "FILE",
     "read the prompt, or the long text before it, from FILE; - is standard input"},
    {"system", 0, KIND_TEXT, RUN, FIELD(system), 0, 0, "TEXT", "system message of the chat"},
    {"raw", 0, KIND_BOOL, RUN, FIELD(raw), 0, 0, NULL,
     "continue the prompt as it is, without the model's chat template"},
    {"predict", 'n', KIND_U32, RUN, FIELD(predict), 0, U32_LARGEST, "N",
     "tokens to generate (default: until an end token or a full context)"},
    {"ignore-eos", 0, KIND_BOOL, RUN, FIELD(ignore_eos), 0, 0, NULL, "generate past end tokens"},
    {"logprobs", 0, KIND_U32, RUN, FIELD(logprobs), 0, 100, "K",
     "with --json: log-probabilities of each token and of the K most probable", true},
    {"output", 'o', KIND_TEXT, PROBE, FIELD(output), 0, 0, "FILE",
     "store the profile there, not where 'ringspan plan' looks for it; with --hosts the cluster, for plan --cluster"},
    {"json", 0, KIND_BOOL, ALL | PROBE, FIELD(json), 0, 0, NULL, "print JSON instead of text"},
    {"quiet", 'q', KIND_BOOL, RUN | BENCH | PROBE | JOIN, FIELD(quiet), 0, 0, NULL,
     "no progress and no summary on standard error"},
    {"help", 'h', KIND_BOOL, ALL | PROBE | JOIN, FIELD(help), 0, 0, NULL, "print this and exit"},

    {"cluster", 0, KIND_TEXT, PLAN, FIELD(cluster), 0, 0, "FILE",
     "plan for these machines, a file or the name of an installed one, not for this"},
    {"depths", 0, KIND_LIST, PLAN, FIELD(depths), 0, 1e9, "N,..", "price a token behind so many", true},

    {NULL, .commands = BENCH, .help = "Measurements (every length of the lists at every depth; 0 leaves a test out)"},
    {"n-prompt", 'p', KIND_LIST, BENCH, FIELD(prompts), 0, 1e9, "N,..", "prompt tokens to evaluate", true},
    {"n-gen", 'n', KIND_LIST, BENCH, FIELD(predicts), 0, 1e9, "N,..", "tokens to generate", true},
    {"n-depth", 'd', KIND_LIST, BENCH, FIELD(depths), 0, 1e9, "N,..", "tokens in the cache beforehand", true},
    {"repetitions", 'r', KIND_U32, BENCH, FIELD(repetitions), 1, 1000, "N",
     "measurements of each test, after a short one to warm up", true},

    {NULL, .commands = RUN, .help = "Sampling"},
    {"temp", 0, KIND_FLOAT, RUN, FIELD(sampling.temperature), 0, 100, "X",
     "temperature; 0 takes the most probable token", true},
    {"top-k", 0, KIND_U32, RUN, FIELD(sampling.top_k), 0, U32_LARGEST, "N",
     "keep the N most probable tokens; 0: all", true},
    {"top-p", 0, KIND_FLOAT, RUN, FIELD(sampling.top_p), 0, 1, "X",
     "keep the most probable tokens of total probability X; 1: all", true},
    {"min-p", 0, KIND_FLOAT, RUN, FIELD(sampling.min_p), 0, 1, "X",
     "keep tokens at least X times as probable as the best; 0: all", true},
    {"repeat-penalty", 0, KIND_FLOAT, RUN, FIELD(sampling.repeat_penalty), 0.01, 100, "X",
     "penalty on tokens seen lately; 1: none", true},
    {"presence-penalty", 0, KIND_FLOAT, RUN, FIELD(sampling.presence_penalty), -100, 100, "X",
     "subtracted once from tokens seen lately", true},
    {"frequency-penalty", 0, KIND_FLOAT, RUN, FIELD(sampling.frequency_penalty), -100, 100, "X",
     "subtracted for each time a token was seen lately", true},
    {"repeat-last-n", 0, KIND_U32, RUN, FIELD(sampling.penalty_last), 0, U32_LARGEST, "N",
     "how many tokens are 'lately'", true},
    {"seed", 's', KIND_SEED, RUN, FIELD(sampling.seed), 0, 0, "N",
     "seed of the random choice, below 2^63 (default: another one each time)"},

    {NULL, .commands = HEAD | JOIN, .help = "Cluster (its secret: --secret-file, or RINGSPAN_SECRET)"},
    {"hosts", 0, KIND_U32, HEAD, FIELD(hosts), 1, RS_RANKS_MAX, "N",
     "lead a cluster of N machines, this one included; the others run 'ringspan join'"},
    {"listen", 0, KIND_TEXT, HEAD, FIELD(address), 0, 0, "ADDR",
     "where they find this one: PORT, or HOST:PORT of one network (default 7777)"},
    {"discover", 0, KIND_BOOL, HEAD, FIELD(discover), 0, 0, NULL,
     "let 'ringspan join --discover' find this one on the local network (multicast DNS)"},
    {"discover", 0, KIND_BOOL, JOIN, FIELD(discover), 0, 0, NULL,
     "find a head that has --discover, too, in place of HEAD:PORT"},
    {"secret-file", 0, KIND_TEXT, HEAD | JOIN, FIELD(secret_file), 0, 0, "FILE", "what all machines know and prove"},
    {"wait", 0, KIND_U32, HEAD | JOIN, FIELD(wait_s), 0, 1e6, "SECONDS",
     "how long to wait for the others, or for the head (default: for ever, or 60)"},

    {NULL, .commands = ALL | PROBE | JOIN, .help = "Engine"},
    {"ctx", 'c', KIND_U32, ALL, FIELD(engine.context), 1, U32_LARGEST, "N",
     "context in tokens (default: what is needed; plan: what the model was trained for)"},
    {"ranks", 0, KIND_U32, ALL, FIELD(engine.ranks), 1, RS_RANKS_MAX, "N",
     "ranks that share the context and the weights", true},
    {"shares", 0, KIND_SHARES, ALL, FIELD(engine.shares), 0, 0, "X,..", "relative share of each rank (default: equal)"},
    {"weight-shares", 0, KIND_WEIGHT_SHARES, ALL, FIELD(engine.weight_shares), 0, 0, "X,..",
     "of the weights alone; 0: a rank that keeps KV only (r4)"},
    {"split", 0, KIND_SPLIT, ALL, FIELD(engine.split), 0, 0, "NAME",
     "who holds what: auto, r1, r2, r3, r4, tp, pp", true},
    {"tpa", 0, KIND_U32, ALL, FIELD(engine.tpa), 1, RS_RANKS_MAX, "N",
     "parts to cut the KV heads into; ranks / N share the context (r3, r4; default 1)"},
    {"kv", 0, KIND_KV_BOTH, ALL, 0, 0, 0, "FMT", "format of K and V: f16, q8_0, q4_0"},
    {"kv-k", 0, KIND_KV, ALL, FIELD(engine.kv_k), 0, 0, "FMT", "format of K", true},
    {"kv-v", 0, KIND_KV, ALL, FIELD(engine.kv_v), 0, 0, "FMT", "format of V", true},
    {"chunk", 0, KIND_U32, ALL, FIELD(engine.chunk), 1, 65536, "N",
     "prompt tokens evaluated at once (default 512, or 128 a rank if that is more)"},
    {"threads", 't', KIND_U32, ALL | PROBE | JOIN, FIELD(engine.threads), 1, 1024, "N",
     "threads of all ranks together (default: the cores it may use)"},
    {"memory-limit", 0, KIND_SIZE, ALL | PROBE | JOIN, FIELD(engine.memory_limit), 0, 0, "SIZE",
     "memory the program may take, such as 12GiB (default: what is free)"},
    {"kernels", 0, KIND_TEXT, ALL | PROBE | JOIN, FIELD(engine.kernels), 0, 0, "NAME",
     "ref, portable, avx2, avx_vnni, avx512, amx, neon, neon_dot, neon_i8mm (default: the best but amx)"},
};
/* clang-format on */
enum { N_FLAGS = sizeof flags / sizeof *flags, FLAG_FIRST = 256 /* getopt's value of flags[0], beyond all letters */ };

static const char *command_name(command which) {
    switch (which) {
    case COMMAND_RUN:
        return "run";
    case COMMAND_PLAN:
        return "plan";
    case COMMAND_BENCH:
        return "bench";
    case COMMAND_PROBE:
        return "probe";
    case COMMAND_JOIN:
        return "join";
    }
    return "unknown";
}

const char *args_split_name(rs_split split) {
    return (unsigned)split < RS_SPLITS ? split_names[split] : "unknown";
}

split_text args_split_text(const rs_options *o) {
    split_text out;
    snprintf(out.text, sizeof out.text, o->tpa > 1 ? "%s tpa%u" : "%s", args_split_name(o->split), o->tpa);
    return out;
}

const char *args_kv_name(rs_kv_format format) {
    return (unsigned)format < RS_KV_FORMATS ? args_kv_names[format] : "unknown";
}

/* ---- Values ---- */

static bool parse_u64(const char *text, const char **end, uint64_t *value) {
    char *rest;
    if (*text < '0' || *text > '9') return false; /* strtoull takes signs and spaces */
    errno = 0;
    *value = strtoull(text, &rest, 10);
    *end = rest;
    return errno == 0;
}

static bool parse_double(const char *text, const char **end, double *value) {
    char *rest;
    *value = strtod(text, &rest);
    *end = rest;
    return rest != text && isfinite(*value);
}

bool args_size(const char *text, uint64_t *bytes) {
    static const char letters[] = "KMGT";
    const char *end;
    double value, factor = 1;
    if (*text < '0' || *text > '9' || !parse_double(text, &end, &value)) return false;
    const char *letter = *end != 0 ? strchr(letters, *end >= 'a' ? *end - 'a' + 'A' : *end) : NULL;
    if (letter != NULL) {
        end++;
        double step = *end == 'B' ? 1000 : 1024;
        if (*end == 'i') end++;
        for (const char *l = letters; l <= letter; l++) factor *= step;
    }
    if (*end == 'B') end++;
    if (*end != 0 || value * factor < 1 || value * factor >= 0x1p63) return false;
    *bytes = (uint64_t)(value * factor);
    return true;
}

/* Index of `text` among names; `count` when it is none. */
static int find_name(const char *text, const char *const *names, int count) {
    int i = 0;
    while (i < count && strcmp(text, names[i]) != 0) i++;
    return i;
}

static bool in_range(const flag *f, double value) {
    return value >= f->min && value <= f->max;
}

static bool set_list(const flag *f, const char *text, number_list *list) {
    uint64_t value;
    list->count = 0;
    for (;; text++) {
        if (list->count == LIST_MAX || !parse_u64(text, &text, &value) || !in_range(f, (double)value)) return false;
        list->items[list->count++] = (uint32_t)value;
        if (*text == 0) return true;
        if (*text != ',') return false;
    }
}

/* At least one share of all is more than 0. */
static bool set_shares(const char *text, bool some_zero, double *shares, uint32_t *count) {
    double sum = 0;
    memset(shares, 0, RS_RANKS_MAX * sizeof *shares);
    for (uint32_t n = 0;; text++) {
        double value;
        if (n == RS_RANKS_MAX || !parse_double(text, &text, &value)) return false;
        if (value < 0 || (value == 0 && !some_zero)) return false;
        shares[n++] = value;
        sum += value;
        *count = n;
        if (*text == 0) return sum > 0;
        if (*text != ',') return false;
    }
}

/* False when `text` is no such value. */
static bool set_value(const flag *f, const char *text, args *out) {
    void *field = (char *)out + f->offset;
    uint64_t number;
    double real;
    const char *end = "";
    int name;
    switch (f->kind) {
    case KIND_BOOL:
        *(bool *)field = true;
        return true;
    case KIND_TEXT:
        *(const char **)field = text;
        return true;
    case KIND_U32:
        if (!parse_u64(text, &end, &number) || *end != 0 || !in_range(f, (double)number)) return false;
        *(uint32_t *)field = (uint32_t)number;
        return true;
    case KIND_SEED:
        out->seed_given = true;
        if (!parse_u64(text, &end, &number) || *end != 0 || number > INT64_MAX) return false;
        *(uint64_t *)field = number;
        return true;
    case KIND_FLOAT:
        if (!parse_double(text, &end, &real) || *end != 0 || !in_range(f, real)) return false;
        *(float *)field = (float)real;
        return true;
    case KIND_SIZE:
        return args_size(text, field);
    case KIND_LIST:
        return set_list(f, text, field);
    case KIND_SHARES:
        return set_shares(text, false, field, &out->n_shares);
    case KIND_WEIGHT_SHARES:
        return set_shares(text, true, field, &out->n_weight_shares);
    case KIND_SPLIT:
        name = find_name(text, split_names, RS_SPLITS);
        *(rs_split *)field = (rs_split)name;
        return name < RS_SPLITS;
    case KIND_KV:
        name = find_name(text, args_kv_names, RS_KV_FORMATS);
        *(rs_kv_format *)field = (rs_kv_format)name;
        return name < RS_KV_FORMATS;
    case KIND_KV_BOTH:
        name = find_name(text, args_kv_names, RS_KV_FORMATS);
        out->engine.kv_k = out->engine.kv_v = (rs_kv_format)name;
        return name < RS_KV_FORMATS;
    }
    return false;
}

/* ---- Help ---- */

static void print_default(const flag *f, const args *initial) {
    const void *field = (const char *)initial + f->offset;
    const number_list *list = field;
    switch (f->kind) {
    case KIND_U32:
        printf(" (default %u)", *(const uint32_t *)field);
        break;
    case KIND_FLOAT:
        printf(" (default %g)", (double)*(const float *)field);
        break;
    case KIND_SPLIT:
        printf(" (default %s)", args_split_name(*(const rs_split *)field));
        break;
    case KIND_KV:
        printf(" (default %s)", args_kv_name(*(const rs_kv_format *)field));
        break;
    case KIND_LIST:
        printf(" (default ");
        for (size_t i = 0; i < list->count; i++) printf("%s%u", i > 0 ? "," : "", list->items[i]);
        printf(")");
        break;
    default:
        break;
    }
}

static void print_help(command which, const args *initial) {
    static const char *const about[] = {
        [COMMAND_RUN] = "run -m MODEL [-p PROMPT | -f FILE] [flags]\n\n"
                        "Answers a prompt, or a question about a long text: the answer goes to standard output as it\n"
                        "is generated. Without -p and -f the prompt is read from standard input.",
        [COMMAND_PLAN] = "plan -m MODEL [flags]\n\n"
                         "Shows what each rank would hold, in bytes, and the largest context that fits. Exit status 2\n"
                         "when the context asked for does not fit.",
        [COMMAND_BENCH] = "bench -m MODEL [flags]\n\n"
                          "Measures tokens/s of prompt evaluation (pp) and generation (tg) at given depths.",
        [COMMAND_PROBE] =
            "probe [flags]\n\n"
            "Measures what this machine does at best, read and copy bandwidth, FP32 and INT8 arithmetic,\n"
            "and stores it for 'ringspan plan' in $XDG_CACHE_HOME/ringspan/machine.json, or in ~/.cache.",
        [COMMAND_JOIN] =
            "join HEAD:PORT | --discover [flags]\n\n"
            "Adds this machine to the cluster of a head (run, bench, plan or probe with --hosts) as one rank, and\n"
            "serves it until it leaves. Without -m the head sends what this rank needs of the model.",
    };
    printf("Usage: ringspan %s\n", about[which]);
    for (size_t i = 0; i < N_FLAGS; i++) {
        const flag *f = &flags[i];
        if ((f->commands & which) == 0) continue;
        if (f->name == NULL) {
            printf("\n%s:\n", f->help);
            continue;
        }
        char name[40];
        snprintf(name, sizeof name, "--%s%s%s", f->name, f->value != NULL ? " " : "", f->value != NULL ? f->value : "");
        if (f->letter != 0) {
            printf("  -%c, %-24s ", f->letter, name);
        } else {
            printf("      %-24s ", name);
        }
        fputs(f->help, stdout);
        if (f->shows_default) print_default(f, initial);
        putchar('\n');
    }
}

/* ---- Parsing ---- */

static void set_defaults(command which, args *out) {
    *out = (args){.predict = PREDICT_ALL, .repetitions = 5};
    rs_options_init(&out->engine);
    rs_sampling_init(&out->sampling);
    out->prompts = (number_list){1, {512}};
    out->predicts = (number_list){1, {128}};
    out->depths = (number_list){1, {0}};
    if (which == COMMAND_PLAN) out->depths = (number_list){5, {0, 32768, 102400, 200000, 1000000}};
}

/* Fills getopt's tables with the flags of one command. */
static void list_flags(command which, struct option *options, char *letters) {
    *letters++ = ':'; /* a missing value is told apart from an unknown flag */
    for (int i = 0; i < N_FLAGS; i++) {
        const flag *f = &flags[i];
        if (f->name == NULL || (f->commands & which) == 0) continue;
        int has_value = f->kind == KIND_BOOL ? no_argument : required_argument;
        *options++ = (struct option){f->name, has_value, NULL, FLAG_FIRST + i};
        if (f->letter == 0) continue;
        *letters++ = f->letter;
        if (has_value == required_argument) *letters++ = ':';
    }
    *options = (struct option){0};
    *letters = 0;
}

static const flag *find_flag(command which, int value) {
    if (value >= FLAG_FIRST) return &flags[value - FLAG_FIRST];
    for (int i = 0; i < N_FLAGS; i++) {
        if (flags[i].name != NULL && (flags[i].commands & which) != 0 && flags[i].letter == value) return &flags[i];
    }
    return NULL;
}

static int refuse_name(const flag *f, const char *text, const char *const *names, int count) {
    char list[128] = "";
    for (int i = 0, n = 0; i < count; i++) {
        n += snprintf(list + n, sizeof list - (size_t)n, "%s%s", i > 0 ? ", " : "", names[i]);
    }
    return output_refuse("--%s: '%s' is none of %s", f->name, text, list);
}

static int refuse_value(command which, const flag *f, const char *text) {
    if (f->kind == KIND_U32 || f->kind == KIND_FLOAT || f->kind == KIND_LIST) {
        return output_refuse("--%s: '%s' is not %s from %.10g to %.10g; see 'ringspan %s --help'", f->name, text,
                             f->kind == KIND_LIST ? "a list of numbers" : "a number", f->min, f->max,
                             command_name(which));
    }
    if (f->kind == KIND_SEED) {
        return output_refuse("--%s: '%s' is not a number from 0 to %" PRId64, f->name, text, INT64_MAX); /* JSON's */
    }
    if (f->kind == KIND_SPLIT) return refuse_name(f, text, split_names, RS_SPLITS);
    if (f->kind == KIND_KV || f->kind == KIND_KV_BOTH) return refuse_name(f, text, args_kv_names, RS_KV_FORMATS);
    return output_refuse("--%s: '%s' is no %s; see 'ringspan %s --help'", f->name, text, f->value, command_name(which));
}

/* What getopt could not make sense of: `found` is '?' or ':', `word` the argument looked at. */
static int refuse_flag(command which, int found, const char *word) {
    const char *name = command_name(which);
    if (found == ':') return output_refuse("flag '%s' needs a value; see 'ringspan %s --help'", word, name);
    if (optopt >= FLAG_FIRST) return output_refuse("flag '%s' takes no value; see 'ringspan %s --help'", word, name);
    if (optopt != 0) return output_refuse("unknown flag '-%c'; see 'ringspan %s --help'", optopt, name);
    return output_refuse("unknown flag '%s'; see 'ringspan %s --help'", word, name);
}

/* What only all flags together tell; 0 when they agree. */
static int check_together(command which, args *a, bool ranks_given) {
    const struct {
        const char *name;
        uint32_t count;
    } lists[] = {{"shares", a->n_shares}, {"weight-shares", a->n_weight_shares}};
    if ((a->cluster != NULL || a->hosts > 0) && !ranks_given) a->engine.ranks = 0; /* any */
    for (int i = 0; i < 2; i++) {
        if (lists[i].count == 0) continue;
        if (!ranks_given) a->engine.ranks = lists[i].count;
        ranks_given = true;
        if (lists[i].count == a->engine.ranks) continue;
        return output_refuse("--%s names %u ranks and --ranks %u; give one share for each rank", lists[i].name,
                             lists[i].count, a->engine.ranks);
    }
    if (a->depths.count > RS_DEPTHS_MAX && which == COMMAND_PLAN) {
        return output_refuse("--depths: at most %d are possible", RS_DEPTHS_MAX);
    }
    if (a->hosts > 0 && a->engine.ranks > a->hosts) {
        return output_refuse("--hosts names %u machines and --ranks or --shares %u ranks; a machine is one rank",
                             a->hosts, a->engine.ranks);
    }
    if (which == COMMAND_JOIN && a->address == NULL && !a->discover) {
        return output_refuse("no head: give its HOST:PORT, or --discover to find it; see 'ringspan join --help'");
    }
    if (which == COMMAND_JOIN && a->address != NULL && a->discover) {
        return output_refuse("--discover finds the head, and '%s' names it; leave out either", a->address);
    }
    if (which != COMMAND_JOIN && a->discover && a->hosts == 0) {
        return output_refuse("--discover lets other machines find this one; give their number, too: --hosts N");
    }
    if (a->model == NULL && which != COMMAND_PROBE && which != COMMAND_JOIN) {
        return output_refuse("no model: give -m MODEL.gguf; see 'ringspan %s --help'", command_name(which));
    }
    if (a->logprobs > 0 && !a->json) return output_refuse("--logprobs needs --json");
    if (a->raw && a->system != NULL) return output_refuse("--system belongs to a chat; leave out --raw");
    return 0;
}

bool args_parse(command which, int argc, char **argv, args *out, int *exit_code) {
    struct option options[N_FLAGS + 1];
    char letters[2 * N_FLAGS + 2];
    args initial;
    bool ranks_given = false;
    int found;
    set_defaults(which, &initial);
    *out = initial;
    list_flags(which, options, letters);
    opterr = 0;
    while ((found = getopt_long(argc, argv, letters, options, NULL)) != -1) {
        const flag *f = found == '?' || found == ':' ? NULL : find_flag(which, found);
        if (f == NULL) {
            *exit_code = refuse_flag(which, found, argv[optind - 1]);
            return false;
        }
        if (!set_value(f, optarg, out)) {
            *exit_code = refuse_value(which, f, optarg);
            return false;
        }
        ranks_given = ranks_given || strcmp(f->name, "ranks") == 0;
    }
    if (out->help) {
        print_help(which, &initial);
        *exit_code = output_finish(0);
        return false;
    }
    if (which == COMMAND_JOIN && optind < argc) out->address = argv[optind++];
    if (optind < argc) {
        *exit_code =
            output_refuse("unexpected argument '%s'; see 'ringspan %s --help'", argv[optind], command_name(which));
        return false;
    }
    *exit_code = check_together(which, out, ranks_given);
    return *exit_code == 0;
}
