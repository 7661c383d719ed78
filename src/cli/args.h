/* SPDX-License-Identifier: Apache-2.0 */
/* Command lines of moectl: a subcommand describes its options in a table, and parsing, --help,
 * checks of numbers and choices, and did-you-mean follow from it. Every subcommand has --help and
 * --json. */
#ifndef MOE_ARGS_H
#define MOE_ARGS_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "cli_error.h"

/* Exit status of every subcommand. */
enum moe_exit {
    MOE_EXIT_OK = 0,
    MOE_EXIT_FINDINGS = 1, /* it ran, and what it looked at is wrong */
    MOE_EXIT_USAGE = 2     /* it could not run: command line, missing file, unreadable input */
};

enum { MOE_ARGS_MAX_OPTIONS = 32, MOE_ARGS_MAX_LIST = 64, MOE_ARGS_MAX_TEXTS = 32 };

struct moe_args_list {
    size_t num_values;
    int64_t values[MOE_ARGS_MAX_LIST];
};

struct moe_args_texts {
    size_t num_texts;
    const char *texts[MOE_ARGS_MAX_TEXTS]; /* point into argv */
};

/* One row per option. Exactly one of flag, text, texts, number, list is set; it says what kind of
 * option this is and where the value goes. What the caller stored there before is the default. */
struct moe_args_option {
    const char *name;             /* without the dashes */
    char letter;                  /* also as -X; 0 for none */
    const char *value_name;       /* shown in --help: "DIR", "N"; with `choices` it may be NULL */
    const char *help;             /* one sentence, lower case, no period */
    int *flag;                    /* set to 1 */
    const char **text;            /* points into argv */
    struct moe_args_texts *texts; /* may be given more than once: each use adds one */
    int64_t *number;              /* decimal, min_value..max_value */
    struct moe_args_list *list;   /* comma-separated numbers, each min_value..max_value */
    const char *choices;          /* for text: "auto|cpu|cuda"; NULL allows anything */
    int64_t min_value;
    int64_t max_value;
    int is_mandatory;
};

struct moe_args_command {
    const char *name;     /* "run" */
    const char *summary;  /* one line for `moectl --help` */
    const char *operands; /* shown after the options: "FILE..."; NULL when none are taken */
    int min_operands;
    int max_operands;
    const char *details; /* paragraphs below the options in --help, or NULL */
    const struct moe_args_option *options;
    size_t num_options;
};

struct moe_args_result {
    int wants_json;
    int num_operands;
    char **operands; /* points into argv */
};

enum moe_args_outcome {
    MOE_ARGS_RUN,  /* go on with *result */
    MOE_ARGS_HELP, /* --help was printed to `out`: exit with MOE_EXIT_OK */
    MOE_ARGS_WRONG /* a sentence and a hint were printed to `err`: exit with MOE_EXIT_USAGE */
};

/* Reads argv[1..argc-1] (argv[0] is the subcommand) and stores values through the table. Operands
 * may stand between options; "--" ends options. Reorders argv. Not thread-safe (getopt keeps global
 * state). */
enum moe_args_outcome moe_args_parse(const struct moe_args_command *command, int argc, char **argv,
                                     struct moe_args_result *result, FILE *out, FILE *err);

/* Prints the help of one subcommand; args_pages.h has its other forms. */
void moe_args_print_help(const struct moe_args_command *command, FILE *out);

/* Parses a whole decimal integer. Returns 0, or -1 when `text` is not one or is outside of
 * min..max. */
int moe_args_parse_int64(const char *text, int64_t min_value, int64_t max_value, int64_t *value);

/* Parses comma-separated integers. Returns 0, or -1 (also when there are more than
 * MOE_ARGS_MAX_LIST). */
int moe_args_parse_list(const char *text, int64_t min_value, int64_t max_value,
                        struct moe_args_list *list);

#endif
