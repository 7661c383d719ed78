/* SPDX-License-Identifier: Apache-2.0 */
#include "model_config.h"

#include <inttypes.h>
#include <string.h>

#include "fp8_recipe.h"
#include "model_layers.h"
#include "model_quant.h"
#include "model_values.h"

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
        char name[MOE_MODEL_KEY_BYTES];
        const struct moe_tree_node *node =
            moe_model_find_key(config->text, family->activation_key, name);
        if (node != NULL) {
            problem->activation = read_named(config, node, name, activations,
                                             sizeof activations / sizeof activations[0], error);
        } else if (family->activation == 0) {
            moe_model_explain_missing(config, family->activation_key, error);
        }
        if (problem->activation == 0) {
            return -1;
        }
    }
    if (moe_model_read_float(config, &family->act_alpha, &problem->act_alpha, error) != 0) {
        return -1;
    }
    return moe_model_read_float(config, &family->act_limit, &problem->act_limit, error);
}

/* Are the weights of chosen experts divided by their sum? */
static int read_renormalize(const struct moe_model_config *config, int *out,
                            struct moe_cli_error *error)
{
    const struct moe_family *family = config->family;
    const struct moe_tree_node *norm = family->renormalize_norm != NULL
                                           ? moe_model_find(config->text, family->renormalize_norm)
                                           : NULL;
    if (norm == NULL) {
        return moe_model_read_flag(config, &family->renormalize, out, error);
    }
    double power = 0.0;
    *out = !moe_tree_is_null(norm);
    if (*out && (moe_tree_to_double(norm, &power) != 0 || power != 1.0)) {
        return MOE_CLI_FAIL(error,
                            "%s:%" PRIu32 ":%" PRIu32 ": '%s' is '%s'; weights are divided by "
                            "their sum (1) or not at all (null)",
                            config->path, norm->line, norm->column, family->renormalize_norm,
                            norm->text != NULL ? norm->text : "(a list or object)");
    }
    return 0;
}

static int read_gating(struct moe_model_config *config, struct moe_cli_error *error)
{
    const struct moe_family *family = config->family;
    struct moe_problem *problem = &config->problem;
    int renormalize;
    double scaling;
    if (family->routing_is_given) {
        return 0;
    }
    if (read_renormalize(config, &renormalize, error) != 0 ||
        moe_model_read_number(config, &family->scaling, &scaling, error) != 0 ||
        moe_model_read_size32(config, &family->num_groups, 0, problem->num_experts,
                              &problem->num_groups, error) != 0 ||
        moe_model_read_size32(config, &family->topk_groups, 0, problem->num_experts,
                              &problem->topk_groups, error) != 0) {
        return -1;
    }
    const struct moe_family_expectation *grouped = &family->groups_if;
    if (grouped->key != NULL &&
        !moe_tree_is_text(moe_model_find(config->text, grouped->key), grouped->value)) {
        problem->num_groups = 0;
    }
    int has_bias;
    if (moe_model_read_flag(config, &family->has_correction_bias, &has_bias, error) != 0 ||
        moe_model_read_float(config, &family->router_jitter, &problem->router_jitter, error) != 0) {
        return -1;
    }
    has_bias = has_bias || family->has_correction_bias.keys == NULL;
    problem->gating = family->gating;
    problem->flags |= renormalize ? MOE_PROBLEM_RENORMALIZE : 0u;
    problem->flags |= family->router_weight_is_on_input ? MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT : 0u;
    problem->flags |= family->router.bias != NULL ? MOE_PROBLEM_ROUTER_BIAS : 0u;
    problem->flags |=
        family->correction_bias != NULL && has_bias ? MOE_PROBLEM_CORRECTION_BIAS : 0u;
    if (scaling != 0.0 && scaling != 1.0) {
        problem->routed_scaling = (float)scaling;
        problem->scaling_on =
            family->scaling_is_on_output ? MOE_SCALING_OUTPUT : MOE_SCALING_WEIGHTS;
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
    int32_t num_appended;
    if (moe_model_read_size32(config, &family->num_experts, 1, MOE_MODEL_MAX_EXPERTS,
                              &problem->num_experts, error) != 0 ||
        moe_model_read_size32(config, &family->top_k, 1, problem->num_experts, &problem->top_k,
                              error) != 0 ||
        moe_model_read_size32(config, &family->num_appended, 0, MOE_MODEL_MAX_EXPERTS,
                              &num_appended, error) != 0 ||
        moe_model_read_size32(config, &family->hidden, 1, MOE_MODEL_MAX_SIZE, &problem->hidden,
                              error) != 0 ||
        moe_model_read_size32(config, &family->inter, 1, MOE_MODEL_MAX_SIZE, &problem->inter,
                              error) != 0) {
        return -1;
    }
    config->num_appended = num_appended;
    problem->num_experts += num_appended;
    problem->top_k += num_appended;
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
    int64_t each;
    if (moe_model_read_size(config, &family->shared_inter, 0, MOE_MODEL_MAX_SIZE, &shared_inter,
                            error) != 0 ||
        moe_model_read_size(config, &family->num_shared, 0, MOE_MODEL_MAX_EXPERTS, &num_shared,
                            error) != 0 ||
        moe_model_read_size(config, &family->shared_inter_each, 0, MOE_MODEL_MAX_SIZE, &each,
                            error) != 0) {
        return -1;
    }
    each = each != 0 ? each : problem->inter;
    if (shared_inter == 0) {
        shared_inter = num_shared * each;
    }
    if (shared_inter > MOE_MODEL_MAX_SIZE) {
        return MOE_CLI_FAIL(
            error, "%s: %" PRId64 " shared experts of width %" PRId64 " are wider than %" PRId64,
            config->path, num_shared, each, MOE_MODEL_MAX_SIZE);
    }
    problem->shared_inter = (int32_t)shared_inter;
    if (shared_inter > 0 && family->shared_sigmoid != NULL) {
        problem->flags |= MOE_PROBLEM_SHARED_SIGMOID;
    }
    return 0;
}

/* Does the row list this value of the key? */
static int is_expected(const struct moe_family *family, const char *key,
                       const struct moe_tree_node *node)
{
    for (size_t i = 0; i < MOE_FAMILY_MAX_EXPECTATIONS && family->expect[i].key != NULL; ++i) {
        if (strcmp(family->expect[i].key, key) == 0 &&
            moe_tree_is_text(node, family->expect[i].value)) {
            return 1;
        }
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
        const struct moe_tree_node *node = moe_model_find(config->text, expect->key);
        if (node == NULL || moe_tree_is_null(node) ||
            is_expected(config->family, expect->key, node)) {
            continue;
        }
        moe_cli_error_set(error, "%s:%" PRIu32 ":%" PRIu32 ": '%s' is '%s'; of type '%s' only",
                          config->path, node->line, node->column, expect->key,
                          node->text != NULL ? node->text : "(a list or object)",
                          config->family->model_type);
        const char *separator = " ";
        for (size_t k = i; k < MOE_FAMILY_MAX_EXPECTATIONS; ++k) {
            const struct moe_family_expectation *other = &config->family->expect[k];
            if (other->key != NULL && strcmp(other->key, expect->key) == 0) {
                moe_cli_error_append(error, "%s'%s'", separator, other->value);
                separator = " or ";
            }
        }
        moe_cli_error_append(error, " is known");
        const struct moe_family_expectation *otherwise = &config->family->otherwise;
        if (otherwise->key != NULL && strcmp(otherwise->key, expect->key) == 0) {
            moe_cli_error_append(error, ": otherwise %s", otherwise->value);
        }
        return -1;
    }
    return 0;
}

/* The object in which a model of several parts describes the part that writes text. */
static const struct moe_tree_node *find_text_part(const struct moe_tree_node *node)
{
    static const char *const keys[] = {"text_config", "thinker_config"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; ++i) {
        const struct moe_tree_node *part = moe_tree_find(node, keys[i]);
        if (part != NULL && part->kind == MOE_NODE_MAPPING) {
            return part;
        }
    }
    return NULL;
}

/* The family of the first part, going inward, whose model_type the table has. */
static const struct moe_family *find_in_parts(const struct moe_tree_node *root,
                                              const struct moe_tree_node **text)
{
    struct moe_cli_error why;
    for (*text = find_text_part(root); *text != NULL; *text = find_text_part(*text)) {
        const struct moe_tree_node *type = moe_tree_find(*text, "model_type");
        int is_wrapped = 0;
        const struct moe_family *family = type != NULL && type->text != NULL && type->quoted
                                              ? moe_family_find(type->text, &is_wrapped, &why)
                                              : NULL;
        if (family != NULL && !is_wrapped) {
            return family;
        }
    }
    return NULL;
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
    config->text = root;
    config->family = moe_family_find(type->text, &is_wrapped, &why);
    if (config->family == NULL) {
        config->family = find_in_parts(root, &config->text);
    }
    if (config->family == NULL) {
        return MOE_CLI_FAIL(error, "%s: %s", config->path, why.message);
    }
    if (config->family->refusal != NULL) {
        return MOE_CLI_FAIL(error, "%s: a model of type '%s' cannot be run: %s", config->path,
                            type->text, config->family->refusal);
    }
    if (is_wrapped) {
        config->text = moe_tree_find(root, "text_config");
    }
    if (config->text == NULL || config->text->kind != MOE_NODE_MAPPING) {
        return MOE_CLI_FAIL(error, "%s: 'text_config' is missing; a model of type '%s' needs it",
                            config->path, type->text);
    }
    return 0;
}

/* dtype may stand in the text_config or beside it. */
static int read_dtype(const struct moe_tree_node *root, struct moe_model_config *config,
                      struct moe_cli_error *error)
{
    char name[MOE_MODEL_KEY_BYTES];
    const struct moe_tree_node *node = moe_model_find_key(config->text, "dtype|torch_dtype", name);
    if (node == NULL) {
        node = moe_model_find_key(root, "dtype|torch_dtype", name);
    }
    int32_t dtype = MOE_DTYPE_BF16;
    if (node != NULL) {
        dtype = read_named(config, node, name, dtypes, sizeof dtypes / sizeof dtypes[0], error);
        if (dtype == 0) {
            return -1;
        }
    }
    config->dtype = dtype;
    config->quantization = moe_model_quant_find(root, config->text);
    const int32_t weight_dtype =
        moe_model_quant_is_fp8(config->quantization) ? MOE_DTYPE_FP8_E4M3 : dtype;
    moe_model_config_set_dtypes(config, weight_dtype, weight_dtype, &config->problem);
    return 0;
}

int moe_model_config_read(const struct moe_tree_node *root, const char *path,
                          struct moe_model_config *config, struct moe_cli_error *error)
{
    memset(config, 0, sizeof *config);
    config->path = path;
    MOE_INIT(config->problem);
    if (read_family(root, config, error) != 0 || check_expectations(config, error) != 0 ||
        moe_model_layers_read(config, error) != 0 || read_experts(config, error) != 0 ||
        read_gating(config, error) != 0 || read_activation(config, error) != 0 ||
        read_shared(config, error) != 0) {
        return -1;
    }
    return read_dtype(root, config, error);
}

static struct moe_recipe weights_of(int32_t dtype)
{
    return dtype == MOE_DTYPE_FP8_E4M3 ? moe_fp8_weights() : (struct moe_recipe){.dtype = dtype};
}

void moe_model_config_set_dtypes(const struct moe_model_config *config, int32_t gate_up_dtype,
                                 int32_t down_dtype, struct moe_problem *problem)
{
    const int is_fp8 = gate_up_dtype == MOE_DTYPE_FP8_E4M3;
    const int32_t plain_dtype = is_fp8 ? config->dtype : gate_up_dtype;
    problem->tokens = (struct moe_recipe){.dtype = plain_dtype};
    problem->gate_up = weights_of(gate_up_dtype);
    problem->intermediate =
        is_fp8 && down_dtype == MOE_DTYPE_FP8_E4M3 ? moe_fp8_rows() : (struct moe_recipe){0};
    problem->down = weights_of(down_dtype);
    problem->logits_dtype = config->family->router_is_fp32 ? MOE_DTYPE_FP32 : plain_dtype;
}
