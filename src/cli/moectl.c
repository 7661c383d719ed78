/* SPDX-License-Identifier: Apache-2.0 */
/* moectl: looks at a plugin from outside, and runs it. A host like any other. */
#include "args.h"
#include "cli_error.h"
#include "command.h"
#include "moe_build_info.h"

#include <stdio.h>
#include <string.h>

static const struct moe_command *const commands[] = {
    &moe_command_run,  &moe_command_validate, &moe_command_explain, &moe_command_list,
    &moe_command_info, &moe_command_bench,    &moe_command_conform, &moe_command_swap_demo,
};
enum { num_commands = sizeof commands / sizeof commands[0] };

static void print_help(FILE *out)
{
    fputs("usage: moectl COMMAND [options]\n\n"
          "Loads a Mixture-of-Experts plugin as an inference server would, and runs or examines "
          "it.\n\n"
          "commands:\n",
          out);
    for (size_t i = 0; i < num_commands; ++i) {
        fprintf(out, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    }
    fputs("\n`moectl COMMAND --help` describes the options of a command.\n"
          "Exit status: 0 done and right; 1 done, and something is wrong; 2 could not be done.\n",
          out);
}

static void print_man_page(FILE *out)
{
    fputs(
        ".TH MOECTL 1 \"\" \"moe\\-plugin " MOE_BUILD_VERSION "\"\n"
        ".SH NAME\nmoectl \\- run and examine a Mixture\\-of\\-Experts plugin\n"
        ".SH SYNOPSIS\n\\fBmoectl\\fR \\fICOMMAND\\fR [options]\n"
        ".SH DESCRIPTION\nLoads a Mixture\\-of\\-Experts plugin as an inference server would, and "
        "runs or examines it. Each command has a page of its own.\n.SH COMMANDS\n",
        out);
    for (size_t i = 0; i < num_commands; ++i) {
        fprintf(out, ".TP\n\\fBmoectl\\-%s\\fR(1)\n%s\n", commands[i]->name, commands[i]->summary);
    }
    fputs(".SH EXIT STATUS\n0: done and right; 1: done, and something is wrong; 2: could not be "
          "done.\n",
          out);
}

/* For a shell that completes words: the commands, one a line. */
static void print_words(FILE *out)
{
    for (size_t i = 0; i < num_commands; ++i) {
        fprintf(out, "%s\n", commands[i]->name);
    }
}

static int refuse_unknown(const char *word)
{
    const char *names[num_commands];
    for (size_t i = 0; i < num_commands; ++i) {
        names[i] = commands[i]->name;
    }
    const char *nearest = moe_cli_suggest(word, names, num_commands);
    fprintf(stderr, "moectl: there is no command '%s'", word);
    if (nearest != NULL) {
        fprintf(stderr, " (did you mean %s?)", nearest);
    }
    for (size_t i = 0; i < num_commands; ++i) {
        fprintf(stderr, "%s%s", i == 0 ? "; there are " : ", ", names[i]);
    }
    fputs("\nType 'moectl --help' for what they do.\n", stderr);
    return MOE_EXIT_USAGE;
}

/* A result that could not be written (a full disk) is no success. */
static int close_output(int status)
{
    if (fflush(stdout) != 0 || ferror(stdout)) {
        perror("moectl: the result cannot be written");
        return MOE_EXIT_USAGE;
    }
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return MOE_EXIT_USAGE;
    }
    const char *word = argv[1];
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0) {
        print_help(stdout);
        return MOE_EXIT_OK;
    }
    if (strcmp(word, "--help=man") == 0) {
        print_man_page(stdout);
        return close_output(MOE_EXIT_OK);
    }
    if (strcmp(word, "--help=words") == 0) {
        print_words(stdout);
        return close_output(MOE_EXIT_OK);
    }
    if (strcmp(word, "--version") == 0) {
        puts("moectl " MOE_BUILD_VERSION);
        return MOE_EXIT_OK;
    }
    for (size_t i = 0; i < num_commands; ++i) {
        if (strcmp(commands[i]->name, word) == 0) {
            return close_output(commands[i]->main(argc - 1, argv + 1));
        }
    }
    return refuse_unknown(word);
}
