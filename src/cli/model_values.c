/* SPDX-License-Identifier: Apache-2.0 */
#include "model_values.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* The item of a list that a digit names, or the member of an object; NULL when there is none. */
static const struct moe_tree_node *find_part(const struct moe_tree_node *node, const char *part)
{
    if (node->kind == MOE_NODE_SEQUENCE && part[0] >= '0' && part[0] <= '9' && part[1] == '\0') {
        const size_t idx = (size_t)(part[0] - '0');
        return idx < node->num_children ? &node->children[idx] : NULL;
    }
    return node->kind == MOE_NODE_MAPPING ? moe_tree_find(node, part) : NULL;
}

const struct moe_tree_node *moe_model_find(const struct moe_tree_node *text, const char *key)
{
    const struct moe_tree_node *node = text;
    for (const char *at = key;;) {
        const size_t length = strcspn(at, ".");
        char part[MOE_MODEL_KEY_BYTES];
        if (node == NULL || length >= sizeof part) {
            return NULL;
        }
        memcpy(part, at, length);
        part[length] = '\0';
        node = find_part(node, part);
        if (at[length] == '\0') {
            return node;
        }
        at += length + 1;
    }
}

const struct moe_tree_node *moe_model_find_key(const struct moe_tree_node *text, const char *keys,
                                               char *name)
{
    for (size_t i = 0; moe_family_pick(keys, i, name, MOE_MODEL_KEY_BYTES); ++i) {
        const struct moe_tree_node *node = moe_model_find(text, name);
        if (node != NULL && !moe_tree_is_null(node)) {
            return node;
        }
    }
    return NULL;
}

void moe_model_explain_missing(const struct moe_model_config *config, const char *keys,
                               struct moe_cli_error *error)
{
    moe_cli_error_set(error, "%s: ", config->path);
    char name[MOE_MODEL_KEY_BYTES];
    for (size_t i = 0; moe_family_pick(keys, i, name, sizeof name); ++i) {
        moe_cli_error_append(error, "%s'%s'", i == 0 ? "" : " or ", name);
    }
    moe_cli_error_append(error, " is missing; a model of type '%s' needs it",
                         config->family->model_type);
}

int moe_model_read_number(const struct moe_model_config *config,
                          const struct moe_family_value *value, double *out,
                          struct moe_cli_error *error)
{
    char name[MOE_MODEL_KEY_BYTES];
    const struct moe_tree_node *node =
        value->keys != NULL ? moe_model_find_key(config->text, value->keys, name) : NULL;
    if (node == NULL) {
        if (value->is_mandatory) {
            moe_model_explain_missing(config, value->keys, error);
            return -1;
        }
        *out = value->value;
        return 0;
    }
    /* Some families write a list with a number per layer; all of them must be the same. */
    const struct moe_tree_node *first =
        node->kind == MOE_NODE_SEQUENCE && node->num_children > 0 ? &node->children[0] : node;
    for (size_t i = 1; first != node && i < node->num_children; ++i) {
        if (!moe_tree_is_text(&node->children[i], first->text != NULL ? first->text : "")) {
            return MOE_CLI_FAIL(error,
                                "%s:%" PRIu32 ":%" PRIu32 ": '%s' differs between layers; only "
                                "models whose layers are alike are read",
                                config->path, node->line, node->column, name);
        }
    }
    if (moe_tree_to_double(first, out) != 0) {
        return MOE_CLI_FAIL(error, "%s:%" PRIu32 ":%" PRIu32 ": '%s' is not a number", config->path,
                            node->line, node->column, name);
    }
    return 0;
}

int moe_model_read_flag(const struct moe_model_config *config, const struct moe_family_value *value,
                        int *out, struct moe_cli_error *error)
{
    char name[MOE_MODEL_KEY_BYTES];
    const struct moe_tree_node *node =
        value->keys != NULL ? moe_model_find_key(config->text, value->keys, name) : NULL;
    if (node == NULL) {
        *out = value->value != 0.0;
        return 0;
    }
    if (moe_tree_to_bool(node, out) != 0) {
        return MOE_CLI_FAIL(error, "%s:%" PRIu32 ":%" PRIu32 ": '%s' is not true or false",
                            config->path, node->line, node->column, name);
    }
    return 0;
}

int moe_model_read_size(const struct moe_model_config *config, const struct moe_family_value *value,
                        int64_t min, int64_t max, int64_t *out, struct moe_cli_error *error)
{
    double number;
    if (moe_model_read_number(config, value, &number, error) != 0) {
        return -1;
    }
    if (!(number >= (double)min && number <= (double)max) || number != floor(number)) {
        char name[MOE_MODEL_KEY_BYTES] = "";
        if (value->keys != NULL) {
            moe_model_find_key(config->text, value->keys, name);
        }
        return MOE_CLI_FAIL(error,
                            "%s: '%s' is %.15g, not a whole number from %" PRId64 " to %" PRId64,
                            config->path, name, number, min, max);
    }
    *out = (int64_t)number;
    return 0;
}

int moe_model_read_size32(const struct moe_model_config *config,
                          const struct moe_family_value *value, int64_t min, int64_t max,
                          int32_t *out, struct moe_cli_error *error)
{
    int64_t wide;
    if (moe_model_read_size(config, value, min, max, &wide, error) != 0) {
        return -1;
    }
    *out = (int32_t)wide;
    return 0;
}

int moe_model_read_float(const struct moe_model_config *config,
                         const struct moe_family_value *value, float *out,
                         struct moe_cli_error *error)
{
    double number;
    if (moe_model_read_number(config, value, &number, error) != 0) {
        return -1;
    }
    *out = (float)number;
    return 0;
}
