/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE

/* moectl conform: the rules of docs/abi.md that bind plugins, checked one by one. */
#include "args.h"
#include "cli_file.h"
#include "cli_json.h"
#include "command.h"
#include "conform_rules.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char details[] =
    "A line per rule, numbered as in docs/abi.md: passed, failed or skipped, and why. Each rule "
    "is\n"
    "checked in a process of its own, on the CPU; one that crashes or hangs fails that rule only.\n"
    "Members of the table that are optional and NULL are not called.\n"
    "\n"
    "Exit status: 0 no rule failed; 1 a rule failed; 2 the file or a rule's number is wrong.";

struct rule {
    int number;
    const char *text;
    moe_conform_check_fn *check;
};

#define RULE_(number, name, text) {number, text, moe_conform_check_##name},
static const struct rule rules[] = {MOE_CONFORM_RULE_LIST(RULE_)};
enum { NUM_RULES = sizeof rules / sizeof rules[0], RULE_SECONDS = 120 };

static const char *const outcome_names[] = {
    [MOE_CONFORM_PASSED] = "passed",
    [MOE_CONFORM_FAILED] = "failed",
    [MOE_CONFORM_SKIPPED] = "skipped",
};

/* Marks the rules of "P6,P7". Returns 0, or -1 after a sentence on stderr. */
static int choose_rules(const char *list, int *is_chosen)
{
    for (int i = 0; i < NUM_RULES; ++i) {
        is_chosen[i] = list == NULL;
    }
    const char *word = list;
    while (word != NULL) {
        char *end = NULL;
        const long number = (*word == 'P' || *word == 'p') && word[1] >= '1' && word[1] <= '9'
                                ? strtol(word + 1, &end, 10)
                                : 0;
        int is_found = 0;
        for (int i = 0; i < NUM_RULES && end != NULL && (*end == ',' || *end == '\0'); ++i) {
            is_found |= rules[i].number == number;
            is_chosen[i] |= rules[i].number == number;
        }
        if (!is_found) {
            fprintf(stderr, "moectl conform: --rule: '%.*s' is no rule; there are P1 to P%d\n",
                    (int)strcspn(word, ","), word, rules[NUM_RULES - 1].number);
            return -1;
        }
        word = *end == ',' ? end + 1 : NULL;
    }
    return 0;
}

static void print_verdict(struct moe_cli_json *json, int wants_json, const struct rule *rule,
                          const struct moe_conform_verdict *verdict)
{
    char name[16];
    snprintf(name, sizeof name, "P%d", rule->number);
    if (!wants_json) {
        printf("%-4s %-7s  %s%s%s\n", name, outcome_names[verdict->outcome], rule->text,
               verdict->reason[0] != '\0' ? ": " : "", verdict->reason);
        return;
    }
    moe_cli_json_begin_object(json, NULL);
    moe_cli_json_put_text(json, "rule", name);
    moe_cli_json_put_text(json, "text", rule->text);
    moe_cli_json_put_text(json, "result", outcome_names[verdict->outcome]);
    moe_cli_json_put_text(json, "reason", verdict->reason[0] != '\0' ? verdict->reason : NULL);
    moe_cli_json_end_object(json);
}

static int check_plugin(const char *path, const int *is_chosen, int wants_json)
{
    struct moe_cli_json json;
    int counts[] = {[MOE_CONFORM_PASSED] = 0, [MOE_CONFORM_FAILED] = 0, [MOE_CONFORM_SKIPPED] = 0};
    moe_cli_json_init(&json, stdout);
    if (wants_json) {
        moe_cli_json_begin_object(&json, NULL);
        moe_cli_json_put_text(&json, "plugin", path);
        moe_cli_json_begin_array(&json, "rules");
    }
    for (int i = 0; i < NUM_RULES; ++i) {
        struct moe_conform_verdict verdict;
        if (!is_chosen[i]) {
            continue;
        }
        moe_conform_session_run(path, rules[i].check, RULE_SECONDS, &verdict);
        counts[verdict.outcome] += 1;
        print_verdict(&json, wants_json, &rules[i], &verdict);
    }
    const int status = counts[MOE_CONFORM_FAILED] > 0 ? MOE_EXIT_FINDINGS : MOE_EXIT_OK;
    if (!wants_json) {
        printf("%d passed, %d failed, %d skipped\n", counts[MOE_CONFORM_PASSED],
               counts[MOE_CONFORM_FAILED], counts[MOE_CONFORM_SKIPPED]);
        return status;
    }
    moe_cli_json_end_array(&json);
    moe_cli_json_put_int(&json, "num_passed", counts[MOE_CONFORM_PASSED]);
    moe_cli_json_put_int(&json, "num_failed", counts[MOE_CONFORM_FAILED]);
    moe_cli_json_put_int(&json, "num_skipped", counts[MOE_CONFORM_SKIPPED]);
    moe_cli_json_end_object(&json);
    return moe_cli_json_finish(&json) == 0 ? status : MOE_EXIT_USAGE;
}

static int conform_main(int argc, char **argv)
{
    const char *list = NULL;
    struct moe_args_result args;
    const struct moe_args_option rows[] = {
        {.name = "rule", .value_name = "P6,...", .text = &list, .help = "check these rules only"},
    };
    const struct moe_args_command command = {.name = moe_command_conform.name,
                                             .summary = moe_command_conform.summary,
                                             .operands = "PLUGIN.so",
                                             .min_operands = 1,
                                             .max_operands = 1,
                                             .details = details,
                                             .options = rows,
                                             .num_options = sizeof rows / sizeof rows[0]};
    const enum moe_args_outcome outcome =
        moe_args_parse(&command, argc, argv, &args, stdout, stderr);
    if (outcome != MOE_ARGS_RUN) {
        return outcome == MOE_ARGS_HELP ? MOE_EXIT_OK : MOE_EXIT_USAGE;
    }
    int is_chosen[NUM_RULES];
    if (choose_rules(list, is_chosen) != 0) {
        return MOE_EXIT_USAGE;
    }
    char *path = realpath(args.operands[0], NULL); /* with a slash: dlopen does not search */
    if (path == NULL || !moe_cli_file_exists(path)) {
        fprintf(stderr, "moectl conform: there is no file %s\n", args.operands[0]);
        free(path);
        return MOE_EXIT_USAGE;
    }
    const int status = check_plugin(path, is_chosen, args.wants_json);
    free(path);
    return status;
}

const struct moe_command moe_command_conform = {
    .name = "conform",
    .summary = "Check a plugin against every rule of the ABI.",
    .main = conform_main,
};
