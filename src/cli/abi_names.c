/* SPDX-License-Identifier: Apache-2.0 */
#include "abi_names.h"

#include "moe_plugin.h"

#include <stddef.h>
#include <string.h>

struct name {
    int32_t id;
    const char *text;
};
#define NAME(constant, value, text) {value, text},
#define COUNT(names)                (sizeof(names) / sizeof((names)[0]))

static const struct name dtypes[] = {MOE_DTYPE_LIST(NAME)};
static const struct name activations[] = {MOE_ACTIVATION_LIST(NAME)};
static const struct name gatings[] = {MOE_GATING_LIST(NAME)};
static const struct name group_scores[] = {MOE_GROUP_SCORE_LIST(NAME)};
static const struct name scalings[] = {MOE_SCALING_LIST(NAME)};
static const struct name backends[] = {MOE_BACKEND_LIST(NAME)};
static const struct name ops[] = {MOE_OP_LIST(NAME)};
static const struct name levels[] = {MOE_LEVEL_LIST(NAME)};

static const char *find_text(const struct name *names, size_t num_names, int32_t id)
{
    for (size_t i = 0; i < num_names; ++i) {
        if (names[i].id == id) {
            return names[i].text;
        }
    }
    return "?";
}

static int32_t find_id(const struct name *names, size_t num_names, const char *text)
{
    for (size_t i = 0; i < num_names; ++i) {
        if (strcmp(names[i].text, text) == 0) {
            return names[i].id;
        }
    }
    return -1;
}

const char *moe_abi_dtype_name(int32_t dtype)
{
    return find_text(dtypes, COUNT(dtypes), dtype);
}

const char *moe_abi_activation_name(int32_t activation)
{
    return find_text(activations, COUNT(activations), activation);
}

const char *moe_abi_gating_name(int32_t gating)
{
    return find_text(gatings, COUNT(gatings), gating);
}

const char *moe_abi_group_score_name(int32_t group_score)
{
    return find_text(group_scores, COUNT(group_scores), group_score);
}

const char *moe_abi_scaling_name(int32_t scaling)
{
    return find_text(scalings, COUNT(scalings), scaling);
}

const char *moe_abi_backend_name(int32_t backend)
{
    return find_text(backends, COUNT(backends), backend);
}

const char *moe_abi_op_name(int32_t op)
{
    return find_text(ops, COUNT(ops), op);
}

const char *moe_abi_level_name(int32_t level)
{
    return find_text(levels, COUNT(levels), level);
}

/* The leading bar is left out where a list of choices is given out. */
#define CHOICE(constant, value, text) "|" text

const char *moe_abi_backend_choices(void)
{
    static const char choices[] = MOE_BACKEND_LIST(CHOICE);
    return choices + 1;
}

const char *moe_abi_dtype_choices(void)
{
    static const char choices[] = MOE_DTYPE_LIST(CHOICE);
    return choices + 1;
}

int32_t moe_abi_find_backend(const char *name)
{
    return find_id(backends, COUNT(backends), name);
}

int32_t moe_abi_find_dtype(const char *name)
{
    return find_id(dtypes, COUNT(dtypes), name);
}
