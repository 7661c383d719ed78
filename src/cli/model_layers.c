/* SPDX-License-Identifier: Apache-2.0 */
#include "model_layers.h"

#include <inttypes.h>
#include <string.h>

#include "model_values.h"

/* Item `idx` of a list of layer numbers, which may be one text with commas between them. Returns 1,
 * 0 past the end, or -1 when it is no layer number. */
static int get_layer(const struct moe_tree_node *list, size_t idx, int64_t *layer_idx)
{
    if (list->kind == MOE_NODE_SEQUENCE) {
        if (idx >= list->num_children) {
            return 0;
        }
        return moe_tree_to_int64(&list->children[idx], 0, MOE_MODEL_MAX_LAYERS, layer_idx) == 0
                   ? 1
                   : -1;
    }
    const char *at = list->text;
    for (size_t i = 0; i < idx; ++i) {
        at += strcspn(at, ",");
        if (*at == '\0') {
            return 0;
        }
        at += 1;
    }
    *layer_idx = 0;
    size_t num_digits = 0;
    for (; at[num_digits] >= '0' && at[num_digits] <= '9'; ++num_digits) {
        *layer_idx = *layer_idx * 10 + (at[num_digits] - '0');
        if (*layer_idx > MOE_MODEL_MAX_LAYERS) {
            return -1;
        }
    }
    return num_digits > 0 && (at[num_digits] == ',' || at[num_digits] == '\0') ? 1 : -1;
}

/* A list of layer numbers; absent or null is NULL. */
static int read_layer_list(const struct moe_model_config *config, const char *key,
                           const struct moe_tree_node **out, struct moe_cli_error *error)
{
    char name[MOE_MODEL_KEY_BYTES];
    *out = key != NULL ? moe_model_find_key(config->text, key, name) : NULL;
    if (*out == NULL) {
        return 0;
    }
    int64_t layer_idx;
    int found = (*out)->kind == MOE_NODE_SEQUENCE || (*out)->quoted ? 1 : -1;
    for (size_t i = 0; found > 0; ++i) {
        found = get_layer(*out, i, &layer_idx);
    }
    if (found < 0) {
        return MOE_CLI_FAIL(error,
                            "%s:%" PRIu32 ":%" PRIu32
                            ": '%s' is not a list of layer numbers; valid: a list, or a text such "
                            "as \"3,4,5\", of numbers from 0 to %d",
                            config->path, (*out)->line, (*out)->column, name,
                            (int)MOE_MODEL_MAX_LAYERS);
    }
    return 0;
}

/* A list of texts, or one text with a letter per layer; absent or null is NULL. */
static int read_layer_kinds(struct moe_model_config *config, struct moe_cli_error *error)
{
    const char *keys = config->family->layer_kinds;
    char name[MOE_MODEL_KEY_BYTES];
    const struct moe_tree_node *node =
        keys != NULL ? moe_model_find_key(config->text, keys, name) : NULL;
    config->layer_kinds = node;
    if (node == NULL) {
        return 0;
    }
    int is_known = node->kind == MOE_NODE_SEQUENCE;
    size_t num_kinds = node->num_children;
    if (node->kind == MOE_NODE_SCALAR && config->family->moe_letter != 0) {
        is_known = 1;
        num_kinds = node->text_bytes;
    }
    for (size_t i = 0; node->kind == MOE_NODE_SEQUENCE && i < node->num_children; ++i) {
        is_known = is_known && node->children[i].kind == MOE_NODE_SCALAR;
    }
    if (config->num_layers == 0) {
        config->num_layers = (int64_t)num_kinds;
    }
    if (!is_known || num_kinds == 0 || num_kinds < (size_t)config->num_layers) {
        return MOE_CLI_FAIL(error,
                            "%s:%" PRIu32 ":%" PRIu32 ": '%s' does not name a kind for each of "
                            "the %" PRId64 " layers",
                            config->path, node->line, node->column, name, config->num_layers);
    }
    return 0;
}

int moe_model_layers_read(struct moe_model_config *config, struct moe_cli_error *error)
{
    const struct moe_family *family = config->family;
    const int64_t least_layers = family->num_layers.is_mandatory ? 1 : 0;
    if (moe_model_read_size(config, &family->num_layers, least_layers, MOE_MODEL_MAX_LAYERS,
                            &config->num_layers, error) != 0 ||
        moe_model_read_size(config, &family->first_moe_layer, 0, MOE_MODEL_MAX_LAYERS,
                            &config->first_moe_layer, error) != 0 ||
        moe_model_read_size(config, &family->last_moe_layer, -1, MOE_MODEL_MAX_LAYERS,
                            &config->last_moe_layer, error) != 0 ||
        read_layer_kinds(config, error) != 0 ||
        moe_model_read_size(config, &family->moe_every, 0, MOE_MODEL_MAX_LAYERS, &config->moe_every,
                            error) != 0 ||
        moe_model_read_size(config, &family->moe_phase, -1, MOE_MODEL_MAX_LAYERS,
                            &config->moe_phase, error) != 0 ||
        read_layer_list(config, family->moe_layers, &config->moe_layers, error) != 0 ||
        read_layer_list(config, family->dense_layers, &config->dense_layers, error) != 0) {
        return -1;
    }
    if (config->moe_every == 0) {
        config->moe_every = 1;
    }
    if (family->last_moe_layer.keys == NULL || config->last_moe_layer < 0) {
        config->last_moe_layer = config->num_layers - 1;
    }
    return 0;
}

static int list_has(const struct moe_tree_node *list, int64_t layer_idx)
{
    int64_t item;
    for (size_t i = 0; get_layer(list, i, &item) > 0; ++i) {
        if (item == layer_idx) {
            return 1;
        }
    }
    return 0;
}

int moe_model_config_is_moe_layer(const struct moe_model_config *config, int64_t layer_idx)
{
    if (config->moe_layers != NULL) {
        return list_has(config->moe_layers, layer_idx);
    }
    const struct moe_tree_node *kinds = config->layer_kinds;
    if (kinds != NULL && kinds->kind == MOE_NODE_SCALAR) {
        return kinds->text[layer_idx] == config->family->moe_letter;
    }
    if (kinds != NULL) {
        return moe_tree_is_text(&kinds->children[layer_idx], config->family->moe_kind);
    }
    if (layer_idx < config->first_moe_layer || layer_idx > config->last_moe_layer ||
        (layer_idx - config->moe_phase) % config->moe_every != 0) {
        return 0;
    }
    return config->dense_layers == NULL || !list_has(config->dense_layers, layer_idx);
}

int64_t moe_model_config_first_moe_layer(const struct moe_model_config *config)
{
    for (int64_t i = 0; i < config->num_layers; ++i) {
        if (moe_model_config_is_moe_layer(config, i)) {
            return i;
        }
    }
    return -1;
}

int moe_model_layers_check_limits(const struct moe_model_config *config, int64_t layer_idx,
                                  struct moe_cli_error *error)
{
    const char *keys = config->family->layer_limits;
    char name[MOE_MODEL_KEY_BYTES];
    for (size_t i = 0; keys != NULL && moe_family_pick(keys, i, name, sizeof name); ++i) {
        const struct moe_tree_node *list = moe_model_find(config->text, name);
        if (list == NULL || moe_tree_is_null(list)) {
            continue;
        }
        if (list->kind != MOE_NODE_SEQUENCE || list->num_children < (size_t)config->num_layers) {
            return MOE_CLI_FAIL(error,
                                "%s:%" PRIu32 ":%" PRIu32 ": '%s' does not have a number for each "
                                "of the %" PRId64 " layers",
                                config->path, list->line, list->column, name, config->num_layers);
        }
        const struct moe_tree_node *limit = &list->children[layer_idx];
        double number = 0.0;
        if (!moe_tree_is_null(limit) &&
            (moe_tree_to_double(limit, &number) != 0 || number != 0.0)) {
            return MOE_CLI_FAIL(error,
                                "%s:%" PRIu32 ":%" PRIu32 ": layer %" PRId64
                                " clamps gate and up around its activation ('%s' is '%s' there), "
                                "which is not implemented; layers with null or 0 can be run",
                                config->path, limit->line, limit->column, layer_idx, name,
                                limit->text != NULL ? limit->text : "(a list or object)");
        }
    }
    return 0;
}
