/* SPDX-License-Identifier: Apache-2.0 */
/* Why a tile was chosen, in sentences. */
#include "config_report.h"
#include "dispatch.h"
#include "rules.h"
#include "status.h"

#include <stdio.h>
#include <string.h>

/* The question, and the rule that decides as far as it is known. */
struct asking {
    const struct moe_device *device;
    const struct moe_problem *problem;
    int64_t num_tokens;
    const struct moe_rule *decided;
    const struct moe_rule_bucket *decided_bucket;
};

static void add_bucket(struct moe_words *words, const struct moe_rule_bucket *bucket)
{
    if (bucket->max_tokens == MOE_TOKENS_INF) {
        moe_words_add(words, "its bucket without end (line %u)", bucket->line);
    } else {
        moe_words_add(words, "its bucket up to %lld token%s (line %u)",
                      (long long)bucket->max_tokens, bucket->max_tokens == 1 ? "" : "s",
                      bucket->line);
    }
}

static void add_named_ops(struct moe_words *words, const struct moe_rule_bucket *bucket)
{
    int32_t num_named = 0;
    for (int32_t op = 0; op < MOE_NUM_OPS; op++) {
        if (bucket->ops[op].named) {
            moe_words_add(words, "%s%s", num_named == 0 ? ": it names " : ", ",
                          moe_tiles_op_name(op));
            num_named++;
        }
    }
    moe_words_add(words, "%s",
                  num_named == 0 ? "; it names no operation, so the heuristic chooses"
                                 : "; the heuristic chooses the rest");
}

/* What the rule says to the question; true if it decides. */
static bool judge(struct asking *asking, const struct moe_rule *rule, struct moe_words *words)
{
    struct moe_reason reason;
    if (!moe_rule_matches(rule, asking->device, asking->problem, &reason) ||
        !moe_rule_density_holds(rule, asking->problem, asking->num_tokens, &reason)) {
        moe_words_add(words, "%s", reason.text);
        return false;
    }
    const struct moe_rule_bucket *bucket = moe_rule_find_bucket(rule, asking->num_tokens);
    if (bucket == NULL) {
        moe_words_add(words, "matches, but its buckets end at %lld tokens",
                      (long long)rule->buckets[rule->num_buckets - 1].max_tokens);
        return false;
    }
    if (asking->decided != NULL) {
        moe_words_add(words, "matches, but rule \"%s\" above (%s:%u) already covers %lld tokens",
                      asking->decided->name, asking->decided->file, asking->decided->line,
                      (long long)asking->num_tokens);
        return false;
    }
    const struct moe_rule_op *culprit;
    bool fits = moe_rule_bucket_fits(bucket, asking->device, &reason, &culprit);
    moe_words_add(words, "matches; ");
    add_bucket(words, bucket);
    if (!fits && rule->skip_unavailable) {
        moe_words_add(words, " is skipped: %s", reason.text);
        return false;
    }
    moe_words_add(words, " decides");
    if (fits) {
        add_named_ops(words, bucket);
    } else {
        moe_words_add(words, ", and a plan is refused: %s", reason.text);
    }
    asking->decided = rule;
    asking->decided_bucket = bucket;
    return true;
}

static void tell_rules(struct asking *asking, const struct moe_config *config,
                       const struct moe_explain_sink *sink)
{
    for (int32_t i = 0; i < config->num_rules; i++) {
        const struct moe_rule *rule = config->rules[i];
        struct moe_words words = {0, ""};
        struct moe_explain_rule line;
        memset(&line, 0, sizeof(line));
        line.struct_size = (uint32_t)sizeof(line);
        line.chosen = judge(asking, rule, &words) ? 1 : 0;
        line.line = (int32_t)rule->line;
        line.precedence = i + 1;
        line.rule = rule->name;
        line.file = rule->file;
        line.reason = words.text;
        if (sink->rule != NULL) {
            sink->rule(sink->self, &line);
        }
    }
}

/* Why `op` has no tile: what the deciding bucket names cannot run here, or nothing can. */
static void add_why_none(struct moe_words *words, const struct asking *asking, int32_t op)
{
    struct moe_reason reason;
    const struct moe_rule_op *culprit;
    const struct moe_rule_bucket *bucket = asking->decided_bucket;
    if (bucket != NULL && bucket->ops[op].named &&
        !moe_rule_bucket_fits(bucket, asking->device, &reason, &culprit)) {
        moe_words_add(words, "none: %s", reason.text);
        return;
    }
    char device[48];
    moe_dispatch_describe_device(asking->device, device, sizeof(device));
    moe_words_add(words, "none: no kernel of this build runs on %s", device);
}

static void tell_choice(const struct asking *asking, const struct moe_dispatch_bucket *bucket,
                        int32_t op, const struct moe_explain_sink *sink)
{
    const struct moe_dispatch_choice *chosen = &bucket->choices[op];
    struct moe_words none = {0, ""};
    struct moe_choice choice;
    memset(&choice, 0, sizeof(choice));
    choice.struct_size = (uint32_t)sizeof(choice);
    choice.op = op;
    choice.min_tokens = bucket->min_tokens;
    choice.max_tokens = bucket->max_tokens;
    choice.source = chosen->source;
    choice.line = chosen->line;
    choice.tile = chosen->tile;
    choice.rule = chosen->rule;
    choice.file = chosen->file;
    if (chosen->tile >= 0) {
        choice.tile_name = moe_tiles[chosen->tile].name;
    } else {
        add_why_none(&none, asking, op);
        choice.tile_name = none.text;
    }
    sink->choice(sink->self, &choice);
}

int32_t moe_explain(const struct moe_memory *memory, struct moe_config *config,
                    const struct moe_device *device, const struct moe_problem *problem,
                    uint64_t ops, int64_t num_tokens, const struct moe_explain_sink *sink,
                    struct moe_error *error)
{
    if (num_tokens < 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "%lld tokens; valid: 0 to %d",
                             (long long)num_tokens, INT32_MAX);
    }
    struct moe_problem asked = *problem;
    if (asked.max_tokens < num_tokens) {
        asked.max_tokens = num_tokens;
    }
    struct moe_dispatch *dispatch;
    MOE_TRY(moe_dispatch_create_partial(memory, config, device, &asked, ops, &dispatch, error));
    struct asking asking = {device, &asked, num_tokens, NULL, NULL};
    tell_rules(&asking, config, sink);
    const struct moe_dispatch_bucket *bucket = moe_dispatch_find(dispatch, num_tokens);
    for (int32_t op = 0; op < MOE_NUM_OPS && sink->choice != NULL; op++) {
        if ((ops >> op & 1u) != 0) {
            tell_choice(&asking, bucket, op, sink);
        }
    }
    moe_dispatch_destroy(dispatch);
    return MOE_STATUS_OK;
}
