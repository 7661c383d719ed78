/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint_layer.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint_bind.h"
#include "model_layers.h"
#include "model_quant.h"

/* A matrix, and its scales where it is fp8. */
static int bind_matrix(const struct moe_binding *binding, const struct moe_wanted *want,
                       struct moe_operand *weight, struct moe_operand *scale)
{
    if (moe_binding_operand(binding, want, weight) != 0) {
        return -1;
    }
    return weight->dtype == MOE_DTYPE_FP8_E4M3 ? moe_binding_scale(binding, want, scale) : 0;
}

/* The matrices of appended experts, which lie in a tensor of their own, after those of `weight`. */
static int append_experts(const struct moe_binding *binding, const struct moe_family_linear *linear,
                          struct moe_wanted want, int64_t num_appended, struct moe_operand *weight)
{
    struct moe_operand more = {.base = NULL};
    const int64_t num_experts = want.num_experts;
    want.name = linear->appended;
    want.num_experts = num_appended;
    want.may_be_fp8 = 0;
    return moe_binding_operand(binding, &want, &more) != 0
               ? -1
               : moe_binding_append(binding, num_experts, &want, &more, weight);
}

/* A matrix and its bias, if the family has them. */
static int bind_linear(const struct moe_binding *binding, const struct moe_family_linear *linear,
                       struct moe_wanted want, struct moe_operand *weight,
                       struct moe_operand *scale, struct moe_operand *bias)
{
    if (linear->weight == NULL) {
        return 0;
    }
    want.name = linear->weight;
    want.is_transposed = linear->is_transposed;
    const int64_t num_appended = want.num_experts > 0 ? binding->config->num_appended : 0;
    want.num_experts -= num_appended;
    if (bind_matrix(binding, &want, weight, scale) != 0 ||
        (num_appended > 0 && append_experts(binding, linear, want, num_appended, weight) != 0)) {
        return -1;
    }
    if (linear->bias == NULL) {
        return 0;
    }
    if (num_appended > 0) {
        return MOE_CLI_FAIL(binding->error,
                            "%s: model type '%s' has biases ('%s') and appended experts, whose own "
                            "biases are not known",
                            moe_checkpoint_folder(binding->checkpoint),
                            binding->config->family->model_type, linear->bias);
    }
    want.name = linear->bias;
    want.num_cols = 0;
    want.num_experts = linear->has_one_bias ? 0 : want.num_experts;
    want.is_transposed = 0; /* a vector has one layout */
    want.may_be_fp8 = 0;
    return moe_binding_operand(binding, &want, bias);
}

static int bind_experts(const struct moe_binding *binding)
{
    const struct moe_family *family = binding->config->family;
    const struct moe_problem *problem = &binding->layer->problem;
    struct moe_weights_desc *weights = &binding->layer->weights;
    const int is_fused = family->gate_up.weight != NULL;
    struct moe_wanted want = {.num_experts = problem->num_experts,
                              .num_rows = problem->inter,
                              .num_cols = problem->hidden,
                              .num_parts = is_fused ? 2 : 1,
                              .is_interleaved = is_fused && family->is_interleaved,
                              .is_one_matrix = family->is_one_matrix,
                              .may_be_fp8 = 1};
    if (bind_linear(binding, is_fused ? &family->gate_up : &family->gate, want, &weights->gate,
                    &weights->gate_scale, &weights->gate_bias) != 0) {
        return -1;
    }
    want.part_idx = is_fused ? 1 : 0;
    if (bind_linear(binding, is_fused ? &family->gate_up : &family->up, want, &weights->up,
                    &weights->up_scale, &weights->up_bias) != 0) {
        return -1;
    }
    const struct moe_wanted down = {.num_experts = problem->num_experts,
                                    .num_rows = problem->hidden,
                                    .num_cols = problem->inter,
                                    .num_parts = 1,
                                    .is_one_matrix = family->is_one_matrix,
                                    .may_be_fp8 = 1};
    return bind_linear(binding, &family->down, down, &weights->down, &weights->down_scale,
                       &weights->down_bias);
}

static int bind_router(const struct moe_binding *binding)
{
    const struct moe_family *family = binding->config->family;
    const struct moe_problem *problem = &binding->layer->problem;
    struct moe_weights_desc *weights = &binding->layer->weights;
    if (family->routing_is_given) {
        return 0;
    }
    struct moe_wanted want = {
        .num_rows = problem->num_experts, .num_cols = problem->hidden, .num_parts = 1};
    if (bind_linear(binding, &family->router, want, &weights->router, NULL,
                    &weights->router_bias) != 0) {
        return -1;
    }
    if ((problem->flags & MOE_PROBLEM_CORRECTION_BIAS) == 0) {
        return 0;
    }
    want.name = family->correction_bias;
    want.num_cols = 0;
    want.num_vectors = family->num_correction_rows > 0 ? family->num_correction_rows : 1;
    if (moe_binding_operand(binding, &want, &weights->correction_bias) != 0) {
        return -1;
    }
    /* Gating reads fp32; some checkpoints keep the bias in the type of the experts. */
    return moe_binding_widen(binding, &want, &weights->correction_bias);
}

static int bind_shared(const struct moe_binding *binding)
{
    const struct moe_family *family = binding->config->family;
    const struct moe_problem *problem = &binding->layer->problem;
    struct moe_weights_desc *weights = &binding->layer->weights;
    if (problem->shared_inter == 0) {
        return 0;
    }
    const struct {
        const char *name;
        int64_t num_rows;
        int64_t num_cols;
        int num_parts;
        int part_idx;
        struct moe_operand *operand;
        struct moe_operand *scale; /* NULL: never fp8 */
    } parts[] = {
        {family->shared_gate_up, problem->shared_inter, problem->hidden, 2, 0,
         &weights->shared_gate, &weights->shared_gate_scale},
        {family->shared_gate_up, problem->shared_inter, problem->hidden, 2, 1, &weights->shared_up,
         &weights->shared_up_scale},
        {family->shared_gate, problem->shared_inter, problem->hidden, 1, 0, &weights->shared_gate,
         &weights->shared_gate_scale},
        {family->shared_up, problem->shared_inter, problem->hidden, 1, 0, &weights->shared_up,
         &weights->shared_up_scale},
        {family->shared_down, problem->hidden, problem->shared_inter, 1, 0, &weights->shared_down,
         &weights->shared_down_scale},
        {family->shared_sigmoid, 1, problem->hidden, 1, 0, &weights->shared_sigmoid, NULL},
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; ++i) {
        const struct moe_wanted want = {.name = parts[i].name,
                                        .num_rows = parts[i].num_rows,
                                        .num_cols = parts[i].num_cols,
                                        .num_parts = parts[i].num_parts,
                                        .part_idx = parts[i].part_idx,
                                        .may_be_fp8 = parts[i].scale != NULL};
        if (want.name != NULL &&
            bind_matrix(binding, &want, parts[i].operand, parts[i].scale) != 0) {
            return -1;
        }
    }
    return 0;
}

/* Takes the first of the family's prefixes under which the layer has a router, or experts where the
 * router is none of ours. */
static int find_prefix(struct moe_binding *binding)
{
    const struct moe_family *family = binding->config->family;
    const char *wanted = family->routing_is_given ? family->down.weight : family->router.weight;
    const char *prefixes = family->layer != NULL ? family->layer : moe_family_usual_layers;
    char pattern[MOE_BINDING_NAME_BYTES];
    char name[MOE_BINDING_NAME_BYTES];
    for (size_t i = 0; moe_family_pick(prefixes, i, pattern, sizeof pattern); ++i) {
        const struct moe_safetensors_tensor *tensor;
        const char *path;
        if (moe_binding_fill_in(pattern, "{layer}", binding->layer->layer_idx, binding->prefix,
                                sizeof binding->prefix) != 0 ||
            moe_binding_name(binding, wanted, 0, name) != 0) {
            return MOE_CLI_FAIL(binding->error, "the prefix '%s' is too long", pattern);
        }
        const int found =
            moe_checkpoint_find(binding->checkpoint, name, &tensor, &path, binding->error);
        if (found != 0) {
            return found > 0 ? 0 : -1;
        }
    }
    /* The message names the tensor under the first prefix, the usual one. */
    moe_family_pick(prefixes, 0, pattern, sizeof pattern);
    moe_binding_fill_in(pattern, "{layer}", binding->layer->layer_idx, binding->prefix,
                        sizeof binding->prefix);
    moe_binding_name(binding, wanted, 0, name);
    moe_binding_refuse_missing(binding, name);
    moe_cli_error_append(binding->error, "; prefixes tried: %s", prefixes);
    return -1;
}

/* The numbers of the layer from config.json. */
static int describe(struct moe_checkpoint *checkpoint, int64_t layer_idx,
                    struct moe_model_config *config, struct moe_checkpoint_layer *layer,
                    struct moe_cli_error *error)
{
    const char *path = moe_checkpoint_config_path(checkpoint);
    if (moe_model_config_read(moe_checkpoint_config(checkpoint), path, config, error) != 0) {
        return -1;
    }
    const int64_t first = moe_model_config_first_moe_layer(config);
    if (first < 0) {
        return MOE_CLI_FAIL(error, "%s: none of its %" PRId64 " layers is a MoE layer", path,
                            config->num_layers);
    }
    if (layer_idx < -1 || layer_idx >= config->num_layers) {
        return MOE_CLI_FAIL(error, "%s: there is no layer %" PRId64 "; the model has 0 to %" PRId64,
                            path, layer_idx, config->num_layers - 1);
    }
    if (layer_idx >= 0 && !moe_model_config_is_moe_layer(config, layer_idx)) {
        return MOE_CLI_FAIL(
            error, "%s: layer %" PRId64 " is dense; the first MoE layer of this model is %" PRId64,
            path, layer_idx, first);
    }
    layer->model_type = config->family->model_type;
    layer->layer_idx = layer_idx >= 0 ? layer_idx : first;
    if (moe_model_layers_check_limits(config, layer->layer_idx, error) != 0) {
        return -1;
    }
    layer->num_layers = config->num_layers;
    layer->problem = config->problem;
    return 0;
}

/* Gate and up run as one GEMM, and the tokens come in the type of its weights. */
static int settle_dtypes(const struct moe_binding *binding)
{
    struct moe_checkpoint_layer *layer = binding->layer;
    const struct moe_weights_desc *weights = &layer->weights;
    const int has_gate = weights->gate.base != NULL || weights->gate.table != NULL;
    if (has_gate && weights->gate.dtype != weights->up.dtype) {
        return MOE_CLI_FAIL(binding->error,
                            "%s: gate and up of layer %" PRId64 " are of different types",
                            moe_checkpoint_folder(binding->checkpoint), layer->layer_idx);
    }
    if (layer->problem.shared_inter > 0 && ((weights->shared_up.dtype == MOE_DTYPE_FP8_E4M3) !=
                                                (weights->up.dtype == MOE_DTYPE_FP8_E4M3) ||
                                            (weights->shared_down.dtype == MOE_DTYPE_FP8_E4M3) !=
                                                (weights->down.dtype == MOE_DTYPE_FP8_E4M3))) {
        return MOE_CLI_FAIL(binding->error,
                            "%s: of the experts and the shared experts of layer %" PRId64
                            " only one kind is fp8; both have to be, or none",
                            moe_checkpoint_folder(binding->checkpoint), layer->layer_idx);
    }
    moe_model_config_set_dtypes(binding->config, weights->up.dtype, weights->down.dtype,
                                &layer->problem);
    return 0;
}

int moe_checkpoint_layer_open(const char *folder, int64_t layer_idx,
                              struct moe_checkpoint_layer *layer, struct moe_cli_error *error)
{
    memset(layer, 0, sizeof *layer);
    layer->memory = calloc(1, sizeof *layer->memory);
    if (layer->memory == NULL) {
        return moe_cli_fail_memory(error, "opening a checkpoint");
    }
    struct moe_model_config config;
    struct moe_binding binding = {.layer = layer, .config = &config, .error = error};
    MOE_INIT(layer->weights);
    if (moe_checkpoint_open(folder, &layer->memory->checkpoint, error) != 0) {
        goto fail;
    }
    binding.checkpoint = layer->memory->checkpoint;
    if (describe(binding.checkpoint, layer_idx, &config, layer, error) != 0 ||
        moe_model_quant_check(config.quantization, config.path, error) != 0 ||
        find_prefix(&binding) != 0 || bind_experts(&binding) != 0 || bind_router(&binding) != 0 ||
        bind_shared(&binding) != 0 || settle_dtypes(&binding) != 0) {
        goto fail;
    }
    return 0;
fail:
    moe_checkpoint_layer_close(layer);
    return -1;
}

void moe_checkpoint_layer_close(struct moe_checkpoint_layer *layer)
{
    struct moe_checkpoint_layer_memory *memory = layer->memory;
    if (memory != NULL) {
        for (size_t i = 0; i < memory->num_tables; ++i) {
            free(memory->tables[i]);
        }
        for (size_t i = 0; i < memory->num_copies; ++i) {
            free(memory->copies[i]);
        }
        moe_checkpoint_close(memory->checkpoint);
        free(memory);
    }
    memset(layer, 0, sizeof *layer);
}

int moe_checkpoint_layer_describe(const char *folder, int64_t layer_idx,
                                  struct moe_checkpoint_layer *layer, struct moe_cli_error *error)
{
    memset(layer, 0, sizeof *layer);
    MOE_INIT(layer->weights);
    struct moe_checkpoint *checkpoint;
    if (moe_checkpoint_open(folder, &checkpoint, error) != 0) {
        return -1;
    }
    struct moe_model_config config;
    const int status = describe(checkpoint, layer_idx, &config, layer, error);
    moe_checkpoint_close(checkpoint);
    return status;
}
