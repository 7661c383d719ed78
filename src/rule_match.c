/* SPDX-License-Identifier: Apache-2.0 */
/* Does a rule match a device, a problem and a number of tokens? */
#include "rules.h"

#include <stdio.h>
#include <string.h>

/* What a device or problem says for a key. */
struct subject {
    bool given;
    int64_t numbers[2];
    const char *text; /* to compare (MOE_KIND_TEXT) and to show */
    char shown[32];   /* what `text` points at for integers */
};

static const char *name_of_number(int32_t key, int64_t number)
{
    const char *name;
    for (int32_t i = 0; (name = moe_match_key_name(key, i)) != NULL; i++) {
        if (moe_match_key_find(key, name) == number) {
            return name;
        }
    }
    return "unknown";
}

static void take_integer(struct subject *subject, int64_t number)
{
    subject->given = number != 0;
    subject->numbers[0] = number;
    snprintf(subject->shown, sizeof(subject->shown), "%lld", (long long)number);
    subject->text = subject->shown;
}

static void take_name(struct subject *subject, int32_t key, int64_t number)
{
    subject->given = number != 0;
    subject->numbers[0] = number;
    subject->text = name_of_number(key, number);
}

static void take_text(struct subject *subject, int32_t key, const char *text)
{
    subject->given = text[0] != '\0';
    subject->numbers[0] = key == MOE_MATCH_ISA ? moe_match_key_find(key, text) : 0;
    subject->text = text;
}

static void read_device(struct subject *subject, int32_t key, const struct moe_device *device)
{
    switch (key) {
    case MOE_MATCH_BACKEND:
        take_name(subject, key, device->backend);
        break;
    case MOE_MATCH_ISA:
        take_text(subject, key, device->isa);
        break;
    case MOE_MATCH_SM:
        take_integer(subject, device->sm);
        break;
    case MOE_MATCH_SM_COUNT:
        take_integer(subject, device->num_sms);
        break;
    case MOE_MATCH_SMEM_KIB:
        take_integer(subject, device->smem_bytes / 1024);
        break;
    case MOE_MATCH_DEVICE:
        take_text(subject, key, device->name);
        break;
    default:
        break;
    }
}

static void read_problem(struct subject *subject, int32_t key, const struct moe_problem *problem)
{
    switch (key) {
    case MOE_MATCH_EXPERTS:
        take_integer(subject, problem->num_experts);
        break;
    case MOE_MATCH_TOPK:
        take_integer(subject, problem->top_k);
        break;
    case MOE_MATCH_HIDDEN:
        take_integer(subject, problem->hidden);
        break;
    case MOE_MATCH_INTER:
        take_integer(subject, problem->inter);
        break;
    case MOE_MATCH_ACT_DTYPE:
        take_name(subject, key, problem->tokens.dtype);
        break;
    case MOE_MATCH_WEIGHT:
        take_name(subject, key, problem->gate_up.dtype);
        break;
    case MOE_MATCH_BLOCK_SHAPE:
        subject->given = problem->gate_up.group_rows != 0 && problem->gate_up.group_k != 0;
        subject->numbers[0] = problem->gate_up.group_rows;
        subject->numbers[1] = problem->gate_up.group_k;
        snprintf(subject->shown, sizeof(subject->shown), "[%d, %d]", problem->gate_up.group_rows,
                 problem->gate_up.group_k);
        subject->text = subject->shown;
        break;
    case MOE_MATCH_ACTIVATION:
        take_name(subject, key, problem->activation);
        break;
    default:
        break;
    }
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

/* `*` is any text, `?` any one byte; letters of ASCII without regard to case. */
static bool glob_matches(const char *pattern, const char *text)
{
    const char *after_star = NULL;
    const char *retry = NULL;
    while (*text != '\0') {
        if (*pattern == '*') {
            after_star = ++pattern;
            retry = text;
        } else if (*pattern != '\0' && (*pattern == '?' || lower(*pattern) == lower(*text))) {
            pattern++;
            text++;
        } else if (after_star != NULL) {
            pattern = after_star;
            text = ++retry;
        } else {
            return false;
        }
    }
    while (*pattern == '*') {
        pattern++;
    }
    return *pattern == '\0';
}

static bool item_holds(const struct moe_match_item *item, const struct subject *subject)
{
    return item->text != NULL ? glob_matches(item->text, subject->text)
                              : item->number == subject->numbers[0];
}

static bool value_holds(const struct moe_match_value *value, const struct subject *subject)
{
    switch (value->form) {
    case MOE_FORM_RANGE:
        return value->low <= (double)subject->numbers[0] &&
               (double)subject->numbers[0] <= value->high;
    case MOE_FORM_MULTIPLE:
        return subject->numbers[0] % value->items[0].number == 0;
    case MOE_FORM_PAIR:
        return value->items[0].number == subject->numbers[0] &&
               value->items[1].number == subject->numbers[1];
    default: /* scalar, glob, list */
        for (int32_t i = 0; i < value->num_items; i++) {
            if (item_holds(&value->items[i], subject)) {
                return true;
            }
        }
        return false;
    }
}

bool moe_rule_matches(const struct moe_rule *rule, const struct moe_device *device,
                      const struct moe_problem *problem, struct moe_reason *reason)
{
    for (int32_t key = 0; key < MOE_NUM_MATCH_KEYS; key++) {
        const struct moe_match_value *value = &rule->match[key];
        bool of_device = moe_match_keys[key].of_device;
        if (value->form == 0 || key == MOE_MATCH_DENSITY || (!of_device && problem == NULL)) {
            continue;
        }
        struct subject subject;
        memset(&subject, 0, sizeof(subject));
        if (of_device) {
            read_device(&subject, key, device);
        } else {
            read_problem(&subject, key, problem);
        }
        if (subject.given && value_holds(value, &subject)) {
            continue;
        }
        if (reason != NULL && subject.given) {
            snprintf(reason->text, sizeof(reason->text), "%s is %s, the rule wants %s",
                     moe_match_keys[key].name, subject.text, value->words);
        } else if (reason != NULL) {
            snprintf(reason->text, sizeof(reason->text), "the %s has no %s, the rule wants %s",
                     of_device ? "device" : "problem", moe_match_keys[key].name, value->words);
        }
        return false;
    }
    return true;
}

bool moe_rule_density_holds(const struct moe_rule *rule, const struct moe_problem *problem,
                            int64_t num_tokens, struct moe_reason *reason)
{
    const struct moe_match_value *value = &rule->match[MOE_MATCH_DENSITY];
    if (value->form == 0) {
        return true;
    }
    if (problem->num_experts == 0 || problem->top_k == 0) {
        if (reason != NULL) {
            snprintf(reason->text, sizeof(reason->text),
                     "the problem has no %s, so no density; the rule wants %s",
                     problem->num_experts == 0 ? "experts" : "topk", value->words);
        }
        return false;
    }
    /* Correctly rounded, so it never decreases with the number of tokens. */
    double density = (double)(num_tokens * problem->top_k) / (double)problem->num_experts;
    if (value->low <= density && density <= value->high) {
        return true;
    }
    if (reason != NULL) {
        snprintf(reason->text, sizeof(reason->text),
                 "density is %lld * %d / %d at these tokens, the rule wants %s",
                 (long long)num_tokens, problem->top_k, problem->num_experts, value->words);
    }
    return false;
}

const struct moe_rule_bucket *moe_rule_find_bucket(const struct moe_rule *rule, int64_t num_tokens)
{
    for (int32_t i = 0; i < rule->num_buckets; i++) {
        if (num_tokens <= rule->buckets[i].max_tokens) {
            return &rule->buckets[i];
        }
    }
    return NULL;
}
