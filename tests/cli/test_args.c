/* SPDX-License-Identifier: Apache-2.0 */
/* Command lines: values, defaults, sentences about mistakes, help. */
#define _GNU_SOURCE
#include "cli_fixture.h"

#include "args.h"

struct values {
    int is_fast;
    const char *model;
    const char *backend;
    int64_t num_tokens;
    struct moe_args_list sizes;
    struct moe_args_texts configs;
};

struct outcome {
    enum moe_args_outcome outcome;
    struct moe_args_result result;
    struct values values;
    char out[4096];
    char err[4096];
};

enum { max_words = 2 * (MOE_ARGS_MAX_TEXTS + 4), words_bytes = 1024 };

/* Parses `line`, words separated by blanks, as `moectl try <line>`. `words` holds them. */
static void parse(const char *line, int max_operands, char *words, struct outcome *outcome)
{
    memset(outcome, 0, sizeof *outcome);
    struct values *values = &outcome->values;
    values->backend = "auto";
    values->num_tokens = 64;
    const struct moe_args_option options[] = {
        {.name = "model",
         .value_name = "DIR",
         .help = "checkpoint folder",
         .text = &values->model,
         .is_mandatory = 1},
        {.name = "backend",
         .choices = "auto|cpu|cuda",
         .help = "where to run",
         .text = &values->backend},
        {.name = "tokens",
         .value_name = "N",
         .help = "how many",
         .number = &values->num_tokens,
         .min_value = 0,
         .max_value = 1000},
        {.name = "sizes",
         .letter = 'M',
         .value_name = "N,...",
         .help = "sizes",
         .list = &values->sizes,
         .min_value = 1,
         .max_value = INT64_MAX},
        {.name = "config", .value_name = "FILE", .help = "files", .texts = &values->configs},
        {.name = "fast", .letter = 'f', .help = "hurry", .flag = &values->is_fast},
    };
    const struct moe_args_command command = {.name = "try",
                                             .summary = "Tries things.",
                                             .operands = max_operands > 0 ? "FILE..." : NULL,
                                             .min_operands = max_operands > 0 ? 1 : 0,
                                             .max_operands = max_operands,
                                             .details = "More about it.",
                                             .options = options,
                                             .num_options = sizeof options / sizeof options[0]};
    char name[] = "try";
    char *argv[max_words + 1] = {name};
    int argc = 1;
    snprintf(words, words_bytes, "%s", line);
    for (char *word = strtok(words, " "); word != NULL; word = strtok(NULL, " ")) {
        assert_in_range(argc, 0, max_words - 1);
        argv[argc++] = word;
    }
    FILE *out = fmemopen(outcome->out, sizeof outcome->out - 1, "w");
    FILE *err = fmemopen(outcome->err, sizeof outcome->err - 1, "w");
    assert_true(out != NULL && err != NULL);
    outcome->outcome = moe_args_parse(&command, argc, argv, &outcome->result, out, err);
    outcome->result.operands = NULL; /* argv ends here */
    fclose(out);
    fclose(err);
}

static void values_and_defaults_are_stored(void **state)
{
    (void)state;
    char words[words_bytes];
    struct outcome o;
    parse("--model a/b", 0, words, &o);
    assert_int_equal(o.outcome, MOE_ARGS_RUN);
    assert_string_equal(o.values.model, "a/b");
    assert_string_equal(o.values.backend, "auto");
    assert_int_equal(o.values.num_tokens, 64);
    assert_int_equal(o.values.sizes.num_values, 0);
    assert_int_equal(o.values.is_fast, 0);
    assert_int_equal(o.result.wants_json, 0);
    assert_string_equal(o.out, "");
    assert_string_equal(o.err, "");

    parse("-f --json --tokens=0 -M1,64,4096 --backend cpu --model=", 0, words, &o);
    assert_int_equal(o.outcome, MOE_ARGS_RUN);
    assert_string_equal(o.values.model, "");
    assert_string_equal(o.values.backend, "cpu");
    assert_int_equal(o.values.num_tokens, 0);
    assert_int_equal(o.values.is_fast, 1);
    assert_int_equal(o.result.wants_json, 1);
    assert_int_equal(o.values.sizes.num_values, 3);
    assert_int_equal(o.values.sizes.values[0], 1);
    assert_int_equal(o.values.sizes.values[2], 4096);

    parse("one --model m two --fast -- --three", 3, words, &o);
    assert_int_equal(o.outcome, MOE_ARGS_RUN);
    assert_int_equal(o.result.num_operands, 3);
    assert_int_equal(o.values.is_fast, 1);
}

static void texts_add_up(void **state)
{
    (void)state;
    char words[words_bytes];
    struct outcome o;
    parse("--config a --model m --config=b --config a", 0, words, &o);
    assert_int_equal(o.outcome, MOE_ARGS_RUN);
    assert_int_equal(o.values.configs.num_texts, 3);
    assert_string_equal(o.values.configs.texts[0], "a");
    assert_string_equal(o.values.configs.texts[1], "b");
    assert_string_equal(o.values.configs.texts[2], "a");

    char line[words_bytes] = "--model m";
    for (int i = 0; i < MOE_ARGS_MAX_TEXTS; ++i) {
        strcat(line, " --config c");
    }
    parse(line, 0, words, &o);
    assert_int_equal(o.outcome, MOE_ARGS_RUN);
    assert_int_equal(o.values.configs.num_texts, MOE_ARGS_MAX_TEXTS);
    strcat(line, " --config c");
    parse(line, 0, words, &o);
    assert_int_equal(o.outcome, MOE_ARGS_WRONG);
    fixture_assert_contains(o.err, "--config is given more than 32 times");
}

static void mistakes_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *line;
        const char *part;
    } mistakes[] = {
        {"", "--model DIR is missing: checkpoint folder"},
        {"--model m --tokns 3", "unknown option '--tokns' (did you mean --tokens?)"},
        {"--model m --xyzzy", "unknown option '--xyzzy'\n"},
        {"--model m --xyzzy=4", "unknown option '--xyzzy'\n"},
        {"--model m -z", "unknown option -z"},
        {"--model m -fz", "unknown option -z"},
        {"--model", "option '--model' needs a value"},
        {"--model m --fast=2", "option '--fast=2' takes no value"},
        {"--model m --json=2", "option '--json=2' takes no value"},
        {"--model m --model n", "--model is given twice"},
        {"--model m --tokens x", "--tokens: 'x' is not a whole number from 0 to 1000"},
        {"--model m --tokens 1001", "--tokens: '1001' is not a whole number from 0 to 1000"},
        {"--model m --tokens -1", "--tokens: '-1' is not a whole number"},
        {"--model m --tokens 1e2", "--tokens: '1e2' is not a whole number"},
        {"--model m --tokens 99999999999999999999", "is not a whole number"},
        {"--model m --tokens 0x10", "is not a whole number"},
        {"--model m --tokens +3", "is not a whole number"},
        {"--model m -M 1,,2",
         "--sizes: '1,,2' is not a list of at most 64 whole numbers of at least 1"},
        {"--model m -M 1,2,", "is not a list"},
        {"--model m -M 0", "is not a list"},
        {"--model m --backend gpu", "--backend: 'gpu' is not one of auto|cpu|cuda"},
        {"--model m --backend aut", "--backend: 'aut' is not one of"},
        {"--model m --backend cpu|cuda", "is not one of"},
        {"--model m stray", "unexpected argument 'stray'"},
    };
    for (size_t i = 0; i < sizeof mistakes / sizeof mistakes[0]; ++i) {
        char words[words_bytes];
        struct outcome o;
        parse(mistakes[i].line, 0, words, &o);
        assert_int_equal(o.outcome, MOE_ARGS_WRONG);
        fixture_assert_contains(o.err, "moectl try: ");
        fixture_assert_contains(o.err, mistakes[i].part);
        fixture_assert_contains(o.err, "moectl try --help");
        assert_string_equal(o.out, "");
    }
    char words[words_bytes];
    struct outcome o;
    parse("--model m", 2, words, &o);
    assert_int_equal(o.outcome, MOE_ARGS_WRONG);
    fixture_assert_contains(o.err, "FILE... is missing");
    parse("--model m 1 2 3", 2, words, &o);
    fixture_assert_contains(o.err, "unexpected argument '3'");
}

static void a_list_has_a_limit(void **state)
{
    (void)state;
    char text[2 * (MOE_ARGS_MAX_LIST + 1)];
    for (size_t i = 0; i <= MOE_ARGS_MAX_LIST; ++i) {
        text[2 * i] = '1';
        text[2 * i + 1] = ',';
    }
    text[2 * MOE_ARGS_MAX_LIST - 1] = '\0';
    struct moe_args_list list = {.num_values = 0};
    assert_int_equal(moe_args_parse_list(text, 1, 1, &list), 0);
    assert_int_equal(list.num_values, MOE_ARGS_MAX_LIST);
    text[2 * MOE_ARGS_MAX_LIST - 1] = ',';
    text[2 * MOE_ARGS_MAX_LIST + 1] = '\0';
    list.num_values = 7;
    assert_int_equal(moe_args_parse_list(text, 1, 1, &list), -1);
    assert_int_equal(list.num_values, 7);
    int64_t value = 0;
    assert_int_equal(moe_args_parse_int64("-9223372036854775808", INT64_MIN, INT64_MAX, &value), 0);
    assert_true(value == INT64_MIN);
    assert_int_equal(moe_args_parse_int64("9223372036854775808", INT64_MIN, INT64_MAX, &value), -1);
    assert_int_equal(moe_args_parse_int64("", INT64_MIN, INT64_MAX, &value), -1);
    assert_int_equal(moe_args_parse_int64("-", INT64_MIN, INT64_MAX, &value), -1);
    assert_int_equal(moe_args_parse_int64(" 1", INT64_MIN, INT64_MAX, &value), -1);
}

static void help_lists_every_option(void **state)
{
    (void)state;
    static const char *const lines[] = {"--help", "-h", "--model m -h --tokens 3"};
    static const char *const parts[] = {"usage: moectl try [options] FILE...\n",
                                        "Tries things.",
                                        "--model DIR",
                                        "--backend auto|cpu|cuda",
                                        "--tokens N",
                                        "-M, --sizes N,...",
                                        "-f, --fast ",
                                        "--json",
                                        "-h, --help",
                                        "More about it."};
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; ++i) {
        char words[words_bytes];
        struct outcome o;
        parse(lines[i], 1, words, &o);
        assert_int_equal(o.outcome, MOE_ARGS_HELP);
        assert_string_equal(o.err, "");
        for (size_t j = 0; j < sizeof parts / sizeof parts[0]; ++j) {
            fixture_assert_contains(o.out, parts[j]);
        }
    }
}

static void slips_are_suggested(void **state)
{
    (void)state;
    static const char *const choices[] = {"tokens", "backend", "tp", "check"};
    static const struct {
        const char *word;
        const char *choice;
    } slips[] = {
        {"tokens", "tokens"},   {"token", "tokens"}, {"tokesn", "tokens"}, {"toke", "tokens"},
        {"bakcned", "backend"}, {"checks", "check"}, {"xx", NULL},         {"", NULL},
        {"entirely", NULL},     {"tq", NULL}};
    for (size_t i = 0; i < sizeof slips / sizeof slips[0]; ++i) {
        const char *choice = moe_cli_suggest(slips[i].word, choices, 4);
        if (slips[i].choice == NULL) {
            assert_null(choice);
        } else {
            assert_non_null(choice);
            assert_string_equal(choice, slips[i].choice);
        }
    }
    char longest[200];
    memset(longest, 'a', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    const char *const long_choices[] = {longest};
    assert_null(moe_cli_suggest(longest, choices, 4));
    assert_null(moe_cli_suggest("aaaa", long_choices, 1));
}

static void a_long_sentence_is_cut(void **state)
{
    (void)state;
    struct moe_cli_error error;
    moe_cli_error_set(&error, "%s", "start");
    for (int i = 0; i < 1000; ++i) {
        moe_cli_error_append(&error, ", item %d", i);
    }
    assert_int_equal(strlen(error.message), MOE_CLI_ERROR_BYTES - 1);
    assert_string_equal(error.message + MOE_CLI_ERROR_BYTES - 4, "...");
    assert_memory_equal(error.message, "start, item 0", 13);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_and_defaults_are_stored),
        cmocka_unit_test(texts_add_up),
        cmocka_unit_test(mistakes_are_named),
        cmocka_unit_test(a_list_has_a_limit),
        cmocka_unit_test(help_lists_every_option),
        cmocka_unit_test(slips_are_suggested),
        cmocka_unit_test(a_long_sentence_is_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
