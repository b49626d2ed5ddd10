/* main.c: the program `ringspan`: picks the subcommand. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/output.h"

static const struct {
    const char *name;
    command which;
    int (*execute)(const args *a);
    const char *about;
} commands[] = {
    {"run", COMMAND_RUN, run_command, "answer a prompt, or a question about a long text"},
    {"plan", COMMAND_PLAN, plan_command, "show what each rank would hold and what fits"},
    {"bench", COMMAND_BENCH, bench_command, "measure tokens/s of prompt and generation at depth"},
    {"probe", COMMAND_PROBE, probe_command, "measure this machine's bandwidth and arithmetic, for the planner"},
    {"join", COMMAND_JOIN, join_command, "add this machine to a cluster, as one rank"},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void print_usage(FILE *file) {
    fputs("ringspan: long-context LLM inference whose KV cache is split over ranks\n\n"
          "Usage: ringspan COMMAND [flags]\n\nCommands:\n",
          file);
    for (size_t i = 0; i < N_COMMANDS; i++) fprintf(file, "  %-8s %s\n", commands[i].name, commands[i].about);
    fputs("\n'ringspan COMMAND --help' lists the flags; 'ringspan --version' prints the version.\n", file);
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is an error of the write, so that ranks and helpers end in order */
    if (argc < 2) {
        print_usage(stderr);
        return EXIT_REFUSED;
    }
    const char *word = argv[1];
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0) {
        print_usage(stdout);
        return output_finish(0);
    }
    if (strcmp(word, "--version") == 0) {
        printf("ringspan %s\n", RS_VERSION);
        return output_finish(0);
    }
    for (size_t i = 0; i < N_COMMANDS; i++) {
        if (strcmp(word, commands[i].name) != 0) continue;
        args a;
        int exit_code;
        if (!args_parse(commands[i].which, argc - 1, argv + 1, &a, &exit_code)) return exit_code;
        return commands[i].execute(&a);
    }
    return output_refuse("unknown %s '%s'; see 'ringspan --help'", word[0] == '-' ? "flag" : "command", word);
}
