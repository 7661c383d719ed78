/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "args.h"
#include "args_pages.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* getopt_long reports these, and first_option + row for the rows of the table: none is a character.
 */
enum { code_help = 256, code_json, first_option };

/* Rows of the table, --help, --json, and the terminating zero row. */
enum { max_long_options = MOE_ARGS_MAX_OPTIONS + 3 };

int moe_args_parse_int64(const char *text, int64_t min_value, int64_t max_value, int64_t *value)
{
    const char *digits = text[0] == '-' ? text + 1 : text;
    if (digits[0] == '\0' || digits[strspn(digits, "0123456789")] != '\0') {
        return -1;
    }
    errno = 0;
    const long long parsed = strtoll(text, NULL, 10);
    if (errno != 0 || parsed < min_value || parsed > max_value) {
        return -1;
    }
    *value = parsed;
    return 0;
}

int moe_args_parse_list(const char *text, int64_t min_value, int64_t max_value,
                        struct moe_args_list *list)
{
    struct moe_args_list parsed = {.num_values = 0};
    const char *at = text;
    for (;;) {
        const size_t length = strcspn(at, ",");
        char item[32];
        if (length >= sizeof item || parsed.num_values == MOE_ARGS_MAX_LIST) {
            return -1;
        }
        memcpy(item, at, length);
        item[length] = '\0';
        int64_t *value = &parsed.values[parsed.num_values];
        if (moe_args_parse_int64(item, min_value, max_value, value) != 0) {
            return -1;
        }
        parsed.num_values += 1;
        if (at[length] == '\0') {
            break;
        }
        at += length + 1;
    }
    *list = parsed;
    return 0;
}

static int is_choice(const char *choices, const char *text)
{
    const size_t length = strlen(text);
    const char *at = choices;
    for (;;) {
        const size_t choice_length = strcspn(at, "|");
        if (choice_length == length && memcmp(at, text, length) == 0) {
            return 1;
        }
        if (at[choice_length] == '\0') {
            return 0;
        }
        at += choice_length + 1;
    }
}

static void describe_range(const struct moe_args_option *option, char *text, size_t text_bytes)
{
    if (option->max_value == INT64_MAX) {
        snprintf(text, text_bytes, "of at least %" PRId64, option->min_value);
    } else {
        snprintf(text, text_bytes, "from %" PRId64 " to %" PRId64, option->min_value,
                 option->max_value);
    }
}

/* Stores one option's value. Returns 0, or -1 with a sentence. */
static int store_value(const struct moe_args_option *option, const char *value,
                       struct moe_cli_error *error)
{
    if (option->flag != NULL) {
        *option->flag = 1;
        return 0;
    }
    if (option->text != NULL) {
        if (option->choices != NULL && !is_choice(option->choices, value)) {
            return MOE_CLI_FAIL(error, "--%s: '%s' is not one of %s", option->name, value,
                                option->choices);
        }
        *option->text = value;
        return 0;
    }
    if (option->texts != NULL) {
        if (option->texts->num_texts == MOE_ARGS_MAX_TEXTS) {
            return MOE_CLI_FAIL(error, "--%s is given more than %d times", option->name,
                                MOE_ARGS_MAX_TEXTS);
        }
        option->texts->texts[option->texts->num_texts++] = value;
        return 0;
    }
    char range[80];
    describe_range(option, range, sizeof range);
    if (option->number != NULL) {
        if (moe_args_parse_int64(value, option->min_value, option->max_value, option->number) !=
            0) {
            return MOE_CLI_FAIL(error, "--%s: '%s' is not a whole number %s", option->name, value,
                                range);
        }
        return 0;
    }
    if (moe_args_parse_list(value, option->min_value, option->max_value, option->list) != 0) {
        return MOE_CLI_FAIL(
            error, "--%s: '%s' is not a list of at most %d whole numbers %s, separated by commas",
            option->name, value, MOE_ARGS_MAX_LIST, range);
    }
    return 0;
}

/* Fills what getopt_long wants to know. */
static void describe_options(const struct moe_args_command *command, struct option *long_options,
                             char *letters)
{
    size_t num_letters = 0;
    letters[num_letters++] = ':'; /* a missing value is reported as ':' rather than '?' */
    letters[num_letters++] = 'h';
    for (size_t i = 0; i < command->num_options; ++i) {
        const struct moe_args_option *option = &command->options[i];
        const int has_arg = moe_args_takes_value(option) ? required_argument : no_argument;
        long_options[i] = (struct option){option->name, has_arg, NULL, first_option + (int)i};
        if (option->letter != '\0') {
            letters[num_letters++] = option->letter;
            if (moe_args_takes_value(option)) {
                letters[num_letters++] = ':';
            }
        }
    }
    letters[num_letters] = '\0';
    long_options[command->num_options] =
        (struct option){"help", optional_argument, NULL, code_help};
    long_options[command->num_options + 1] = (struct option){"json", no_argument, NULL, code_json};
    long_options[command->num_options + 2] = (struct option){NULL, 0, NULL, 0};
}

static int refuse_unknown_option(const struct option *long_options, int letter, const char *word,
                                 struct moe_cli_error *error)
{
    if (letter > 0 && letter < code_help) {
        return MOE_CLI_FAIL(error, "unknown option -%c", letter);
    }
    if (letter >= code_help) {
        return MOE_CLI_FAIL(error, "option '%s' takes no value", word);
    }
    char name[64];
    const char *start = word + strspn(word, "-");
    snprintf(name, sizeof name, "%.*s", (int)strcspn(start, "="), start);
    const char *names[max_long_options];
    size_t num_names = 0;
    size_t num_beginnings = 0;
    while (long_options[num_names].name != NULL) {
        names[num_names] = long_options[num_names].name;
        num_beginnings += strncmp(names[num_names], name, strlen(name)) == 0 ? 1 : 0;
        num_names += 1;
    }
    if (num_beginnings > 1) {
        return MOE_CLI_FAIL(error, "option '--%s' is the beginning of several options", name);
    }
    const char *nearest = moe_cli_suggest(name, names, num_names);
    moe_cli_error_set(error, "unknown option '--%s'", name);
    if (nearest != NULL) {
        moe_cli_error_append(error, " (did you mean --%s?)", nearest);
    }
    return -1;
}

static const struct moe_args_option *find_option(const struct moe_args_command *command, int code,
                                                 size_t *option_idx)
{
    for (size_t i = 0; i < command->num_options; ++i) {
        if (code == first_option + (int)i || code == command->options[i].letter) {
            *option_idx = i;
            return &command->options[i];
        }
    }
    return NULL;
}

/* The getopt loop. Returns MOE_ARGS_WRONG with a sentence in *error, MOE_ARGS_HELP with the page
 * that is asked for. */
static enum moe_args_outcome read_options(const struct moe_args_command *command, int argc,
                                          char **argv, struct moe_args_result *result,
                                          unsigned char *is_given, moe_args_page **page,
                                          struct moe_cli_error *error)
{
    struct option long_options[max_long_options];
    char letters[2 * MOE_ARGS_MAX_OPTIONS + 3];
    describe_options(command, long_options, letters);
    opterr = 0;
    optind = 0; /* glibc: forget an earlier parse */
    for (;;) {
        const int code = getopt_long(argc, argv, letters, long_options, NULL);
        if (code == -1) {
            return MOE_ARGS_RUN;
        }
        if (code == 'h' || (code == code_help && optarg == NULL)) {
            *page = moe_args_print_help;
            return MOE_ARGS_HELP;
        }
        if (code == code_help) {
            *page = moe_args_find_page(optarg, error);
            return *page != NULL ? MOE_ARGS_HELP : MOE_ARGS_WRONG;
        }
        if (code == code_json) {
            result->wants_json = 1;
            continue;
        }
        if (code == ':') {
            moe_cli_error_set(error, "option '%s' needs a value", argv[optind - 1]);
            return MOE_ARGS_WRONG;
        }
        size_t option_idx = 0;
        const struct moe_args_option *option = find_option(command, code, &option_idx);
        if (option == NULL) {
            refuse_unknown_option(long_options, optopt, argv[optind - 1], error);
            return MOE_ARGS_WRONG;
        }
        if (is_given[option_idx] && moe_args_takes_value(option) && option->texts == NULL) {
            moe_cli_error_set(error, "--%s is given twice", option->name);
            return MOE_ARGS_WRONG;
        }
        is_given[option_idx] = 1;
        if (store_value(option, optarg, error) != 0) {
            return MOE_ARGS_WRONG;
        }
    }
}

static enum moe_args_outcome check_given(const struct moe_args_command *command,
                                         const struct moe_args_result *result,
                                         const unsigned char *is_given, struct moe_cli_error *error)
{
    for (size_t i = 0; i < command->num_options; ++i) {
        const struct moe_args_option *option = &command->options[i];
        if (option->is_mandatory && !is_given[i]) {
            moe_cli_error_set(error, "--%s %s is missing: %s", option->name,
                              moe_args_value_name(option), option->help);
            return MOE_ARGS_WRONG;
        }
    }
    if (result->num_operands < command->min_operands) {
        moe_cli_error_set(error, "%s is missing", command->operands);
        return MOE_ARGS_WRONG;
    }
    if (result->num_operands > command->max_operands) {
        moe_cli_error_set(error, "unexpected argument '%s'",
                          result->operands[command->max_operands]);
        return MOE_ARGS_WRONG;
    }
    return MOE_ARGS_RUN;
}

enum moe_args_outcome moe_args_parse(const struct moe_args_command *command, int argc, char **argv,
                                     struct moe_args_result *result, FILE *out, FILE *err)
{
    memset(result, 0, sizeof *result);
    struct moe_cli_error error = {.message = ""};
    unsigned char is_given[MOE_ARGS_MAX_OPTIONS] = {0};
    moe_args_page *page = NULL;
    enum moe_args_outcome outcome =
        read_options(command, argc, argv, result, is_given, &page, &error);
    if (outcome == MOE_ARGS_RUN) {
        result->operands = argv + optind;
        result->num_operands = argc - optind;
        outcome = check_given(command, result, is_given, &error);
    }
    if (outcome == MOE_ARGS_HELP) {
        page(command, out);
    } else if (outcome == MOE_ARGS_WRONG) {
        fprintf(err, "moectl %s: %s\n", command->name, error.message);
        fprintf(err, "Type 'moectl %s --help' for its options.\n", command->name);
    }
    return outcome;
}
