/* SPDX-License-Identifier: Apache-2.0 */
#include "model_config.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* Sizes that a config.json may ask for: their products stay far inside of 64 bits. */
static const int64_t max_size = INT32_MAX;
static const int64_t max_experts = 1 << 20;
static const int64_t max_layers = 1 << 20;

enum { max_key_bytes = 128 };

/* The first of the keys "a|b" that is there and not null; its name goes to `name`. */
static const struct moe_tree_node *find_key(const struct moe_tree_node *text, const char *keys,
                                            char *name)
{
    for (size_t i = 0; moe_family_pick(keys, i, name, max_key_bytes); ++i) {
        const struct moe_tree_node *node = moe_tree_find(text, name);
        if (node != NULL && !moe_tree_is_null(node)) {
            return node;
        }
    }
    return NULL;
}

static void explain_missing(const struct moe_model_config *config, const char *keys,
                            struct moe_cli_error *error)
{
    moe_cli_error_set(error, "%s: ", config->path);
    char name[max_key_bytes];
    for (size_t i = 0; moe_family_pick(keys, i, name, sizeof name); ++i) {
        moe_cli_error_append(error, "%s'%s'", i == 0 ? "" : " or ", name);
    }
    moe_cli_error_append(error, " is missing; a model of type '%s' needs it",
                         config->family->model_type);
}

static int read_number(const struct moe_model_config *config, const struct moe_family_value *value,
                       double *out, struct moe_cli_error *error)
{
    char name[max_key_bytes];
    const struct moe_tree_node *node =
        value->keys != NULL ? find_key(config->text, value->keys, name) : NULL;
    if (node == NULL) {
        if (value->is_mandatory) {
            explain_missing(config, value->keys, error);
            return -1;
        }
        *out = value->value;
        return 0;
    }
    if (moe_tree_to_double(node, out) != 0) {
        return MOE_CLI_FAIL(error, "%s:%" PRIu32 ":%" PRIu32 ": '%s' is not a number", config->path,
                            node->line, node->column, name);
    }
    return 0;
}

static int read_flag(const struct moe_model_config *config, const struct moe_family_value *value,
                     int *out, struct moe_cli_error *error)
{
    char name[max_key_bytes];
    const struct moe_tree_node *node =
        value->keys != NULL ? find_key(config->text, value->keys, name) : NULL;
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

static int read_size(const struct moe_model_config *config, const struct moe_family_value *value,
                     int64_t min, int64_t max, int64_t *out, struct moe_cli_error *error)
{
    double number;
    if (read_number(config, value, &number, error) != 0) {
        return -1;
    }
    if (!(number >= (double)min && number <= (double)max) || number != floor(number)) {
        char name[max_key_bytes] = "";
        if (value->keys != NULL) {
            find_key(config->text, value->keys, name);
        }
        return MOE_CLI_FAIL(error,
                            "%s: '%s' is %.15g, not a whole number from %" PRId64 " to %" PRId64,
                            config->path, name, number, min, max);
    }
    *out = (int64_t)number;
    return 0;
}

static int read_size32(const struct moe_model_config *config, const struct moe_family_value *value,
                       int64_t min, int64_t max, int32_t *out, struct moe_cli_error *error)
{
    int64_t wide;
    if (read_size(config, value, min, max, &wide, error) != 0) {
        return -1;
    }
    *out = (int32_t)wide;
    return 0;
}

static int read_float(const struct moe_model_config *config, const struct moe_family_value *value,
                      float *out, struct moe_cli_error *error)
{
    double number;
    if (read_number(config, value, &number, error) != 0) {
        return -1;
    }
    *out = (float)number;
    return 0;
}

struct named_id {
    const char *name;
    int32_t id;
};

/* Names of activations and types as the transformers library writes them. */
static const struct named_id activations[] = {
    {"silu", MOE_ACTIVATION_SILU},
    {"swish", MOE_ACTIVATION_SILU},
    {"gelu", MOE_ACTIVATION_GELU},
    {"gelu_new", MOE_ACTIVATION_GELU_TANH},
    {"gelu_pytorch_tanh", MOE_ACTIVATION_GELU_TANH},
    {"relu2", MOE_ACTIVATION_RELU2},
};
static const struct named_id dtypes[] = {
    {"bfloat16", MOE_DTYPE_BF16},
    {"float16", MOE_DTYPE_FP16},
    {"float32", MOE_DTYPE_FP32},
};

/* The id of the text at `node`, or 0 and a sentence that lists the names. */
static int32_t read_named(const struct moe_model_config *config, const struct moe_tree_node *node,
                          const char *key, const struct named_id *names, size_t num_names,
                          struct moe_cli_error *error)
{
    for (size_t i = 0; i < num_names; ++i) {
        if (moe_tree_is_text(node, names[i].name)) {
            return names[i].id;
        }
    }
    moe_cli_error_set(error, "%s:%" PRIu32 ":%" PRIu32 ": %s '%s' is not one of ", config->path,
                      node->line, node->column, key, node->text != NULL ? node->text : "");
    for (size_t i = 0; i < num_names; ++i) {
        moe_cli_error_append(error, "%s%s", i == 0 ? "" : ", ", names[i].name);
    }
    return 0;
}

static int read_activation(struct moe_model_config *config, struct moe_cli_error *error)
{
    const struct moe_family *family = config->family;
    struct moe_problem *problem = &config->problem;
    problem->activation = family->activation;
    if (family->activation_key != NULL) {
        char name[max_key_bytes];
        const struct moe_tree_node *node = find_key(config->text, family->activation_key, name);
        if (node == NULL) {
            explain_missing(config, family->activation_key, error);
            return -1;
        }
        problem->activation = read_named(config, node, name, activations,
                                         sizeof activations / sizeof activations[0], error);
        if (problem->activation == 0) {
            return -1;
        }
    }
    if (read_float(config, &family->act_alpha, &problem->act_alpha, error) != 0) {
        return -1;
    }
    return read_float(config, &family->act_limit, &problem->act_limit, error);
}

static int read_gating(struct moe_model_config *config, struct moe_cli_error *error)
{
    const struct moe_family *family = config->family;
    struct moe_problem *problem = &config->problem;
    int renormalize;
    double scaling;
    if (read_flag(config, &family->renormalize, &renormalize, error) != 0 ||
        read_number(config, &family->scaling, &scaling, error) != 0 ||
        read_size32(config, &family->num_groups, 0, problem->num_experts, &problem->num_groups,
                    error) != 0 ||
        read_size32(config, &family->topk_groups, 0, problem->num_experts, &problem->topk_groups,
                    error) != 0) {
        return -1;
    }
    problem->gating = family->gating;
    problem->flags |= renormalize ? MOE_PROBLEM_RENORMALIZE : 0u;
    problem->flags |= family->router_weight_is_on_input ? MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT : 0u;
    problem->flags |= family->router.bias != NULL ? MOE_PROBLEM_ROUTER_BIAS : 0u;
    problem->flags |= family->correction_bias != NULL ? MOE_PROBLEM_CORRECTION_BIAS : 0u;
    if (scaling != 0.0 && scaling != 1.0) {
        problem->routed_scaling = (float)scaling;
        problem->scaling_on = MOE_SCALING_WEIGHTS;
    }
    if (problem->num_groups > 1) {
        problem->group_score = family->group_score;
    } else {
        problem->num_groups = 0;
        problem->topk_groups = 0;
    }
    return 0;
}

static int read_experts(struct moe_model_config *config, struct moe_cli_error *error)
{
    const struct moe_family *family = config->family;
    struct moe_problem *problem = &config->problem;
    if (read_size32(config, &family->num_experts, 1, max_experts, &problem->num_experts, error) !=
            0 ||
        read_size32(config, &family->top_k, 1, problem->num_experts, &problem->top_k, error) != 0 ||
        read_size32(config, &family->hidden, 1, max_size, &problem->hidden, error) != 0 ||
        read_size32(config, &family->inter, 1, max_size, &problem->inter, error) != 0) {
        return -1;
    }
    problem->num_experts_global = problem->num_experts;
    const int has_gate_up_bias = family->gate_up.bias != NULL || family->gate.bias != NULL;
    const int is_ungated = family->gate_up.weight == NULL && family->gate.weight == NULL;
    problem->flags |= has_gate_up_bias ? MOE_PROBLEM_GATE_UP_BIAS : 0u;
    problem->flags |= family->down.bias != NULL ? MOE_PROBLEM_DOWN_BIAS : 0u;
    problem->flags |= is_ungated ? MOE_PROBLEM_UNGATED : 0u;
    return 0;
}

static int read_shared(struct moe_model_config *config, struct moe_cli_error *error)
{
    const struct moe_family *family = config->family;
    struct moe_problem *problem = &config->problem;
    int64_t shared_inter;
    int64_t num_shared;
    if (read_size(config, &family->shared_inter, 0, max_size, &shared_inter, error) != 0 ||
        read_size(config, &family->num_shared, 0, max_experts, &num_shared, error) != 0) {
        return -1;
    }
    if (shared_inter == 0) {
        shared_inter = num_shared * problem->inter;
    }
    if (shared_inter > max_size) {
        return MOE_CLI_FAIL(
            error, "%s: %" PRId64 " shared experts of width %" PRId32 " are wider than %" PRId64,
            config->path, num_shared, problem->inter, max_size);
    }
    problem->shared_inter = (int32_t)shared_inter;
    if (shared_inter > 0 && family->shared_sigmoid != NULL) {
        problem->flags |= MOE_PROBLEM_SHARED_SIGMOID;
    }
    return 0;
}

/* A list of layer numbers; absent or null is NULL. */
static int read_layer_list(const struct moe_model_config *config, const char *key,
                           const struct moe_tree_node **out, struct moe_cli_error *error)
{
    char name[max_key_bytes];
    *out = key != NULL ? find_key(config->text, key, name) : NULL;
    if (*out == NULL) {
        return 0;
    }
    int is_list = (*out)->kind == MOE_NODE_SEQUENCE;
    for (size_t i = 0; is_list && i < (*out)->num_children; ++i) {
        int64_t layer_idx;
        is_list = moe_tree_to_int64(&(*out)->children[i], 0, max_layers, &layer_idx) == 0;
    }
    if (!is_list) {
        return MOE_CLI_FAIL(error,
                            "%s:%" PRIu32 ":%" PRIu32 ": '%s' is not a list of layer numbers",
                            config->path, (*out)->line, (*out)->column, name);
    }
    return 0;
}

static int read_layers(struct moe_model_config *config, struct moe_cli_error *error)
{
    const struct moe_family *family = config->family;
    if (read_size(config, &family->num_layers, 1, max_layers, &config->num_layers, error) != 0 ||
        read_size(config, &family->first_moe_layer, 0, max_layers, &config->first_moe_layer,
                  error) != 0 ||
        read_size(config, &family->moe_every, 0, max_layers, &config->moe_every, error) != 0 ||
        read_size(config, &family->moe_phase, -1, max_layers, &config->moe_phase, error) != 0 ||
        read_layer_list(config, family->moe_layers, &config->moe_layers, error) != 0 ||
        read_layer_list(config, family->dense_layers, &config->dense_layers, error) != 0) {
        return -1;
    }
    if (config->moe_every == 0) {
        config->moe_every = 1;
    }
    return 0;
}

static int check_expectations(const struct moe_model_config *config, struct moe_cli_error *error)
{
    for (size_t i = 0; i < MOE_FAMILY_MAX_EXPECTATIONS; ++i) {
        const struct moe_family_expectation *expect = &config->family->expect[i];
        if (expect->key == NULL) {
            break;
        }
        const struct moe_tree_node *node = moe_tree_find(config->text, expect->key);
        if (node == NULL || moe_tree_is_null(node) || moe_tree_is_text(node, expect->value)) {
            continue;
        }
        return MOE_CLI_FAIL(
            error, "%s:%" PRIu32 ":%" PRIu32 ": '%s' is '%s'; of type '%s' only '%s' is known",
            config->path, node->line, node->column, expect->key,
            node->text != NULL ? node->text : "(a list or object)", config->family->model_type,
            expect->value);
    }
    return 0;
}

/* Finds the family and the object that holds its keys. */
static int read_family(const struct moe_tree_node *root, struct moe_model_config *config,
                       struct moe_cli_error *error)
{
    const struct moe_tree_node *type = moe_tree_find(root, "model_type");
    if (type == NULL || type->text == NULL || !type->quoted) {
        return MOE_CLI_FAIL(error, "%s: 'model_type' is missing or no string", config->path);
    }
    int is_wrapped = 0;
    struct moe_cli_error why;
    config->family = moe_family_find(type->text, &is_wrapped, &why);
    if (config->family == NULL) {
        return MOE_CLI_FAIL(error, "%s: %s", config->path, why.message);
    }
    config->text = is_wrapped ? moe_tree_find(root, "text_config") : root;
    if (config->text == NULL || config->text->kind != MOE_NODE_MAPPING) {
        return MOE_CLI_FAIL(error, "%s: 'text_config' is missing; a model of type '%s' needs it",
                            config->path, type->text);
    }
    return 0;
}

/* dtype and quant_method may stand in the text_config or beside it. */
static int read_dtype(const struct moe_tree_node *root, struct moe_model_config *config,
                      struct moe_cli_error *error)
{
    char name[max_key_bytes];
    const struct moe_tree_node *node = find_key(config->text, "dtype|torch_dtype", name);
    if (node == NULL) {
        node = find_key(root, "dtype|torch_dtype", name);
    }
    int32_t dtype = MOE_DTYPE_BF16;
    if (node != NULL) {
        dtype = read_named(config, node, name, dtypes, sizeof dtypes / sizeof dtypes[0], error);
        if (dtype == 0) {
            return -1;
        }
    }
    moe_model_config_set_dtypes(config, dtype, dtype, &config->problem);
    const struct moe_tree_node *quantization = moe_tree_find(config->text, "quantization_config");
    if (quantization == NULL) {
        quantization = moe_tree_find(root, "quantization_config");
    }
    const struct moe_tree_node *method = moe_tree_find(quantization, "quant_method");
    config->quant_method = method != NULL ? method->text : NULL;
    return 0;
}

int moe_model_config_read(const struct moe_tree_node *root, const char *path,
                          struct moe_model_config *config, struct moe_cli_error *error)
{
    memset(config, 0, sizeof *config);
    config->path = path;
    MOE_INIT(config->problem);
    if (read_family(root, config, error) != 0 || check_expectations(config, error) != 0 ||
        read_layers(config, error) != 0 || read_experts(config, error) != 0 ||
        read_gating(config, error) != 0 || read_activation(config, error) != 0 ||
        read_shared(config, error) != 0) {
        return -1;
    }
    return read_dtype(root, config, error);
}

static int list_has(const struct moe_tree_node *list, int64_t layer_idx)
{
    for (size_t i = 0; i < list->num_children; ++i) {
        int64_t item;
        if (moe_tree_to_int64(&list->children[i], 0, max_layers, &item) == 0 && item == layer_idx) {
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
    if (layer_idx < config->first_moe_layer ||
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

void moe_model_config_set_dtypes(const struct moe_model_config *config, int32_t gate_up_dtype,
                                 int32_t down_dtype, struct moe_problem *problem)
{
    problem->tokens.dtype = gate_up_dtype;
    problem->gate_up.dtype = gate_up_dtype;
    problem->down.dtype = down_dtype;
    problem->logits_dtype = config->family->router_is_fp32 ? MOE_DTYPE_FP32 : gate_up_dtype;
}
