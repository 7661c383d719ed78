/* SPDX-License-Identifier: Apache-2.0 */
/* P21 to P23 and P25: configuration, dispatch, the self-test. */
#include "conform_calls.h"
#include "conform_rules.h"

#include <stdio.h>
#include <string.h>

static struct moe_config_source source_of(const char *text)
{
    struct moe_config_source source;
    MOE_INIT(source);
    source.path = "conform.yaml";
    source.text = text;
    source.text_bytes = strlen(text);
    return source;
}

/* ---------------------------------------------------------------- P21 */

struct findings {
    int num_errors;
    int num_incomplete; /* without file, line, column, code or message */
    int lines[2];       /* of the first two */
};

static void take_finding(void *self, const struct moe_diagnostic *diagnostic)
{
    struct findings *findings = self;
    if (diagnostic->level != MOE_LEVEL_ERROR) {
        return;
    }
    if (findings->num_errors < 2) {
        findings->lines[findings->num_errors] = diagnostic->line;
    }
    findings->num_errors += 1;
    findings->num_incomplete += diagnostic->line < 1 || diagnostic->column < 1 ||
                                diagnostic->code == NULL || diagnostic->code[0] == '\0' ||
                                diagnostic->message == NULL || diagnostic->message[0] == '\0' ||
                                diagnostic->file == NULL ||
                                strcmp(diagnostic->file, "conform.yaml") != 0;
}

void moe_conform_check_diagnostics(struct moe_conform *conform)
{
    static const char text[] =
        "schema: moe-dispatch/1\nno_such_key: 1\nneither_this: 2\nrules: []\n";
    struct moe_config_source source = source_of(text);
    struct moe_config_info before;
    struct moe_config_info after;
    struct moe_error error;
    struct findings findings = {.num_errors = 0};
    moe_conform_open(conform, 1);
    const struct moe_plugin_api *api = conform->api;
    MOE_INIT(error);
    int32_t status = api->config_validate(NULL, &source, 1, NULL, take_finding, &findings, &error);
    if (status != MOE_STATUS_CONFIG) {
        moe_conform_fail(conform, "config_validate of a text with two errors: status %d", status);
    }
    if (findings.num_errors != 2 || findings.lines[0] != 2 || findings.lines[1] != 3) {
        moe_conform_fail(
            conform,
            "two unknown keys, on lines 2 and 3: %d findings, the first on lines %d and %d",
            findings.num_errors, findings.lines[0], findings.lines[1]);
    }
    if (findings.num_incomplete != 0) {
        moe_conform_fail(conform, "a finding has no file, line, column, code or message");
    }
    MOE_INIT(before);
    MOE_INIT(after);
    moe_conform_require(conform, api->config_info(conform->context, &before, &error), &error,
                        "config_info");
    status = api->config_reload(conform->context, &source, 1, NULL, NULL, &error);
    if (status != MOE_STATUS_CONFIG) {
        moe_conform_fail(conform, "config_reload of a text with two errors: status %d", status);
    }
    moe_conform_require(conform, api->config_info(conform->context, &after, &error), &error,
                        "config_info");
    if (before.fingerprint != after.fingerprint || before.generation != after.generation ||
        before.num_rules != after.num_rules) {
        moe_conform_fail(conform, "a reload with errors changed the configuration");
    }
}

/* ---------------------------------------------------------------- P22 */

struct chosen {
    int is_known[MOE_NUM_OPS];
    struct moe_choice choices[MOE_NUM_OPS];
    char tiles[MOE_NUM_OPS][128];
    char rules[MOE_NUM_OPS][128];
    int num_rules;
    int num_without_reason;
};

static void take_rule(void *self, const struct moe_explain_rule *rule)
{
    struct chosen *chosen = self;
    chosen->num_rules += 1;
    chosen->num_without_reason += rule->reason == NULL || rule->reason[0] == '\0';
}

static void take_choice(void *self, const struct moe_choice *choice)
{
    struct chosen *chosen = self;
    if (choice->op < 0 || choice->op >= MOE_NUM_OPS) {
        return;
    }
    chosen->is_known[choice->op] = 1;
    chosen->choices[choice->op] = *choice;
    snprintf(chosen->tiles[choice->op], sizeof chosen->tiles[0], "%s", choice->tile_name);
    snprintf(chosen->rules[choice->op], sizeof chosen->rules[0], "%s", choice->rule);
}

static void check_explained(struct moe_conform *conform, int64_t num_tokens)
{
    static struct chosen chosen;
    struct moe_explain_sink sink;
    struct moe_error error;
    int num_compared = 0;
    memset(&chosen, 0, sizeof chosen);
    MOE_INIT(sink);
    MOE_INIT(error);
    sink.self = &chosen;
    sink.rule = take_rule;
    sink.choice = take_choice;
    moe_conform_require(
        conform,
        conform->api->explain(conform->context, NULL, &conform->problem, num_tokens, &sink, &error),
        &error, "explain");
    if (chosen.num_without_reason != 0) {
        moe_conform_fail(conform, "explain gives %d of %d rules without a reason",
                         chosen.num_without_reason, chosen.num_rules);
    }
    for (int32_t op = 0; op < MOE_NUM_OPS; ++op) {
        struct moe_choice choice;
        MOE_INIT(choice);
        if (!chosen.is_known[op] || conform->api->plan_op_info(conform->plan, op, num_tokens,
                                                               &choice, NULL) != MOE_STATUS_OK) {
            continue;
        }
        ++num_compared;
        if (choice.tile != chosen.choices[op].tile || choice.source != chosen.choices[op].source ||
            strcmp(choice.tile_name, chosen.tiles[op]) != 0 ||
            strcmp(choice.rule, chosen.rules[op]) != 0) {
            moe_conform_fail(
                conform,
                "operation %d at %lld tokens: the plan has %s by %s, explain says %s by %s", op,
                (long long)num_tokens, choice.tile_name, choice.rule, chosen.tiles[op],
                chosen.rules[op]);
        }
    }
    if (num_compared == 0) {
        moe_conform_fail(conform, "explain names no operation of the plan at %lld tokens",
                         (long long)num_tokens);
    }
}

void moe_conform_check_explained(struct moe_conform *conform)
{
    moe_conform_open(conform, 1);
    for (int64_t num_tokens = 0; num_tokens <= MOE_CONFORM_MAX_TOKENS; ++num_tokens) {
        check_explained(conform, num_tokens);
    }
}

/* ---------------------------------------------------------------- P23 */

void moe_conform_check_snapshots(struct moe_conform *conform)
{
    static const char text[] = "schema: moe-dispatch/1\nrules: []\n";
    struct moe_config_source source = source_of(text);
    struct moe_choice before;
    struct moe_choice after;
    struct moe_plan_info info;
    struct moe_plan *later = NULL;
    struct moe_error error;
    moe_conform_open(conform, 1);
    const struct moe_plugin_api *api = conform->api;
    MOE_INIT(before);
    MOE_INIT(after);
    MOE_INIT(info);
    MOE_INIT(error);
    source.flags = MOE_CONFIG_REPLACE;
    moe_conform_require(conform, api->plan_op_info(conform->plan, MOE_OP_GEMM1, 1, &before, &error),
                        &error, "plan_op_info");
    moe_conform_require(conform,
                        api->config_reload(conform->context, &source, 1, NULL, NULL, &error),
                        &error, "config_reload");
    moe_conform_require(conform, api->plan_op_info(conform->plan, MOE_OP_GEMM1, 1, &after, &error),
                        &error, "plan_op_info after a reload");
    if (before.tile != after.tile || before.source != after.source ||
        strcmp(before.rule, after.rule) != 0) {
        moe_conform_fail(conform, "a reload changed the choice of a plan made before it");
    }
    moe_conform_require(conform, api->plan_info(conform->plan, &info, &error), &error, "plan_info");
    if (info.config_generation != conform->info.config_generation) {
        moe_conform_fail(conform, "a reload changed the generation of a plan made before it");
    }
    moe_conform_call_run(moe_conform_call_find("layer of ids"), conform);
    moe_conform_require(conform,
                        api->plan_create(conform->context, &conform->problem, NULL, &later, &error),
                        &error, "plan_create after a reload");
    moe_conform_require(conform, api->plan_info(later, &info, &error), &error, "plan_info");
    api->plan_destroy(later);
    if (info.config_generation != conform->info.config_generation + 1) {
        moe_conform_fail(conform, "a plan made after a reload is of generation %llu, not %llu",
                         (unsigned long long)info.config_generation,
                         (unsigned long long)conform->info.config_generation + 1);
    }
}

/* ---------------------------------------------------------------- P25 */

void moe_conform_check_known_answers(struct moe_conform *conform)
{
    struct moe_error error;
    moe_conform_open_context(conform, 2);
    for (int round = 0; round < 2; ++round) {
        MOE_INIT(error);
        const int32_t status = conform->api->self_test(conform->context, &error);
        if (status != MOE_STATUS_OK) {
            moe_conform_fail(conform, "self_test: status %d: %s", status, error.message);
        }
    }
}
