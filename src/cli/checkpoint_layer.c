/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint_layer.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint.h"
#include "element.h"
#include "model_config.h"

enum {
    max_name_bytes = 256,
    max_tables = 6 /* gate, up, down and their biases can be a tensor per expert */
};

struct moe_checkpoint_layer_memory {
    struct moe_checkpoint *checkpoint;
    const void **tables[max_tables];
    size_t num_tables;
    float *correction_bias; /* when the file has it in another type than fp32 */
};

/* What the functions below work on. */
struct binding {
    struct moe_checkpoint_layer *layer;
    struct moe_checkpoint *checkpoint;
    const struct moe_model_config *config;
    struct moe_cli_error *error;
    char prefix[max_name_bytes]; /* of the layer's tensors */
};

/*
 * A tensor that is looked for: a matrix of num_rows x num_cols (output channels x k) or, with
 * num_cols 0, a vector of num_rows; per expert when num_experts > 0. It can be one of two halves of
 * a fused tensor.
 */
struct wanted {
    const char *name; /* below the prefix */
    int64_t num_experts;
    int64_t num_rows;
    int64_t num_cols;
    int num_parts;      /* 1, or 2: gate and up in one tensor */
    int part_idx;       /* 0 gate, 1 up */
    int is_interleaved; /* rows of the parts alternate */
    int is_transposed;  /* stored as [num_cols, rows] */
    int may_be_row;     /* a vector that may also be stored as a matrix of one row */
};

/* Replaces the first `mark` of `pattern` by a number. Returns 0, or -1 when it does not fit. */
static int fill_in(const char *pattern, const char *mark, int64_t number, char *text,
                   size_t text_bytes)
{
    const char *at = strstr(pattern, mark);
    const int length = at == NULL
                           ? snprintf(text, text_bytes, "%s", pattern)
                           : snprintf(text, text_bytes, "%.*s%" PRId64 "%s", (int)(at - pattern),
                                      pattern, number, at + strlen(mark));
    return length >= 0 && (size_t)length < text_bytes ? 0 : -1;
}

static int name_tensor(const struct binding *binding, const char *name, int64_t expert, char *text)
{
    char tail[max_name_bytes];
    int length = -1;
    if (fill_in(name, "{expert}", expert, tail, sizeof tail) == 0) {
        length = snprintf(text, max_name_bytes, "%s%s", binding->prefix, tail);
    }
    if (length < 0 || length >= max_name_bytes) {
        return MOE_CLI_FAIL(binding->error, "the name of tensor '%s' is too long", name);
    }
    return 0;
}

static int refuse_missing(const struct binding *binding, const char *name)
{
    moe_cli_error_set(binding->error,
                      "%s: there is no tensor '%s'; layer %" PRId64
                      " of a model of type '%s' needs it",
                      moe_checkpoint_folder(binding->checkpoint), name, binding->layer->layer_idx,
                      binding->config->family->model_type);
    if (binding->config->quant_method != NULL) {
        moe_cli_error_append(binding->error,
                             " (config.json says that the weights are quantized by '%s'; "
                             "unquantized weights are read)",
                             binding->config->quant_method);
    }
    return -1;
}

/* The shape that the tensor must have. Returns its rank. */
static int expect_shape(const struct wanted *want, int is_stacked, int64_t *shape)
{
    const int64_t stored_rows = want->num_rows * want->num_parts;
    int rank = 0;
    if (is_stacked) {
        shape[rank++] = want->num_experts;
    }
    if (want->num_cols == 0) {
        shape[rank++] = stored_rows;
    } else if (want->is_transposed) {
        shape[rank++] = want->num_cols;
        shape[rank++] = stored_rows;
    } else {
        shape[rank++] = stored_rows;
        shape[rank++] = want->num_cols;
    }
    return rank;
}

static int check_tensor(const struct binding *binding, const struct moe_safetensors_tensor *tensor,
                        const char *path, const int64_t *shape, int rank, int may_be_row)
{
    const int is_row = may_be_row && rank == 1 && tensor->rank == 2 && tensor->shape[0] == 1 &&
                       tensor->shape[1] == shape[0];
    if (!is_row &&
        (tensor->rank != rank || memcmp(tensor->shape, shape, (size_t)rank * sizeof *shape) != 0)) {
        char has[MOE_SAFETENSORS_SHAPE_BYTES];
        char needs[MOE_SAFETENSORS_SHAPE_BYTES];
        return MOE_CLI_FAIL(
            binding->error, "%s: tensor '%s' has shape %s; by %s it has to be %s", path,
            tensor->name,
            moe_safetensors_format_shape(tensor->shape, tensor->rank, has, sizeof has),
            binding->config->path, moe_safetensors_format_shape(shape, rank, needs, sizeof needs));
    }
    const size_t element_bytes = moe_element_bytes(tensor->moe_dtype);
    if (element_bytes == 0) {
        return MOE_CLI_FAIL(binding->error,
                            "%s: tensor '%s' is of type %s; read are F32, F16 and BF16", path,
                            tensor->name, tensor->dtype_name);
    }
    if ((uintptr_t)tensor->data % element_bytes != 0) {
        return MOE_CLI_FAIL(binding->error,
                            "%s: the data of tensor '%s' is not aligned to its elements of "
                            "%zu bytes; write the file again with an aligned header",
                            path, tensor->name, element_bytes);
    }
    return 0;
}

/* Finds and checks the tensor of one expert (or of all, when they are stacked). */
static int find_tensor(const struct binding *binding, const struct wanted *want, int64_t expert,
                       int is_stacked, const struct moe_safetensors_tensor **tensor)
{
    char name[max_name_bytes];
    const char *path;
    if (name_tensor(binding, want->name, expert, name) != 0) {
        return -1;
    }
    const int found = moe_checkpoint_find(binding->checkpoint, name, tensor, &path, binding->error);
    if (found <= 0) {
        return found == 0 ? refuse_missing(binding, name) : -1;
    }
    int64_t shape[3];
    const int rank = expect_shape(want, is_stacked, shape);
    return check_tensor(binding, *tensor, path, shape, rank, want->may_be_row);
}

/* Strides of the wanted part inside of the stored tensor, and the place of its first element. */
static int64_t set_strides(const struct wanted *want, struct moe_operand *operand)
{
    const int64_t stored_rows = want->num_rows * want->num_parts;
    const int64_t num_cols = want->num_cols > 0 ? want->num_cols : 1;
    const int64_t row_stride = want->is_transposed ? 1 : num_cols;
    const int64_t step = want->is_interleaved ? want->num_parts : 1;
    const int64_t first_row = want->part_idx * (want->is_interleaved ? 1 : want->num_rows);
    operand->expert_stride = want->num_experts > 0 ? stored_rows * num_cols : 0;
    operand->row_stride = row_stride * step;
    operand->col_stride = want->is_transposed ? stored_rows : 1;
    return first_row * row_stride;
}

static const void *advance(const struct moe_safetensors_tensor *tensor, int64_t num_elements)
{
    const size_t element_bytes = moe_element_bytes(tensor->moe_dtype);
    return (const unsigned char *)tensor->data + (size_t)num_elements * element_bytes;
}

/* A part of a fused tensor counts its share of the bytes, so that all parts together count them
 * once. */
static void count_bytes(const struct binding *binding, const struct wanted *want,
                        const struct moe_safetensors_tensor *tensor)
{
    binding->layer->weight_bytes += tensor->data_bytes / (uint64_t)want->num_parts;
}

static int bind_table(const struct binding *binding, const struct wanted *want,
                      struct moe_operand *operand)
{
    struct moe_checkpoint_layer_memory *memory = binding->layer->memory;
    const void **table = calloc((size_t)want->num_experts, sizeof *table);
    if (table == NULL) {
        return moe_cli_fail_memory(binding->error, "listing the experts of a layer");
    }
    memory->tables[memory->num_tables++] = table;
    const int64_t first = set_strides(want, operand);
    const struct moe_safetensors_tensor *tensor_0 = NULL;
    for (int64_t expert = 0; expert < want->num_experts; ++expert) {
        const struct moe_safetensors_tensor *tensor;
        if (find_tensor(binding, want, expert, 0, &tensor) != 0) {
            return -1;
        }
        if (expert == 0) {
            tensor_0 = tensor;
        } else if (tensor->dtype != tensor_0->dtype) {
            return MOE_CLI_FAIL(binding->error,
                                "%s: tensor '%s' is of type %s, but '%s' is of type %s",
                                moe_checkpoint_folder(binding->checkpoint), tensor->name,
                                tensor->dtype_name, tensor_0->name, tensor_0->dtype_name);
        }
        table[expert] = advance(tensor, first);
        count_bytes(binding, want, tensor);
    }
    operand->table = table;
    operand->expert_stride = 0;
    operand->dtype = tensor_0->moe_dtype;
    return 0;
}

static int bind_operand(const struct binding *binding, const struct wanted *want,
                        struct moe_operand *operand)
{
    if (want->num_experts > 0 && strstr(want->name, "{expert}") != NULL) {
        return bind_table(binding, want, operand);
    }
    const struct moe_safetensors_tensor *tensor;
    if (find_tensor(binding, want, 0, want->num_experts > 0, &tensor) != 0) {
        return -1;
    }
    operand->base = advance(tensor, set_strides(want, operand));
    operand->dtype = tensor->moe_dtype;
    count_bytes(binding, want, tensor);
    return 0;
}

/* A matrix and its bias, if the family has them. */
static int bind_linear(const struct binding *binding, const struct moe_family_linear *linear,
                       struct wanted want, struct moe_operand *weight, struct moe_operand *bias)
{
    if (linear->weight == NULL) {
        return 0;
    }
    want.name = linear->weight;
    if (bind_operand(binding, &want, weight) != 0) {
        return -1;
    }
    if (linear->bias == NULL) {
        return 0;
    }
    want.name = linear->bias;
    want.num_cols = 0;
    want.is_transposed = 0; /* a vector has one layout */
    return bind_operand(binding, &want, bias);
}

static int bind_experts(const struct binding *binding)
{
    const struct moe_family *family = binding->config->family;
    const struct moe_problem *problem = &binding->layer->problem;
    struct moe_weights_desc *weights = &binding->layer->weights;
    const int is_fused = family->gate_up.weight != NULL;
    struct wanted want = {.num_experts = problem->num_experts,
                          .num_rows = problem->inter,
                          .num_cols = problem->hidden,
                          .num_parts = is_fused ? 2 : 1,
                          .is_interleaved = is_fused && family->is_interleaved,
                          .is_transposed = family->is_transposed};
    if (bind_linear(binding, is_fused ? &family->gate_up : &family->gate, want, &weights->gate,
                    &weights->gate_bias) != 0) {
        return -1;
    }
    want.part_idx = is_fused ? 1 : 0;
    if (bind_linear(binding, is_fused ? &family->gate_up : &family->up, want, &weights->up,
                    &weights->up_bias) != 0) {
        return -1;
    }
    const struct wanted down = {.num_experts = problem->num_experts,
                                .num_rows = problem->hidden,
                                .num_cols = problem->inter,
                                .num_parts = 1,
                                .is_transposed = family->is_transposed};
    return bind_linear(binding, &family->down, down, &weights->down, &weights->down_bias);
}

/* Gating reads fp32; some checkpoints keep the bias in the type of the experts. */
static int widen_correction_bias(const struct binding *binding, struct moe_operand *bias)
{
    const int32_t num_experts = binding->layer->problem.num_experts;
    if (bias->dtype == MOE_DTYPE_FP32) {
        return 0;
    }
    float *widened = calloc((size_t)num_experts, sizeof *widened);
    if (widened == NULL) {
        return moe_cli_fail_memory(binding->error, "widening a correction bias");
    }
    for (int32_t e = 0; e < num_experts; ++e) {
        widened[e] = moe_element_load(bias->base, bias->dtype, e);
    }
    binding->layer->memory->correction_bias = widened;
    bias->base = widened;
    bias->dtype = MOE_DTYPE_FP32;
    return 0;
}

static int bind_router(const struct binding *binding)
{
    const struct moe_family *family = binding->config->family;
    const struct moe_problem *problem = &binding->layer->problem;
    struct moe_weights_desc *weights = &binding->layer->weights;
    struct wanted want = {
        .num_rows = problem->num_experts, .num_cols = problem->hidden, .num_parts = 1};
    if (bind_linear(binding, &family->router, want, &weights->router, &weights->router_bias) != 0) {
        return -1;
    }
    if ((problem->flags & MOE_PROBLEM_CORRECTION_BIAS) == 0) {
        return 0;
    }
    want.name = family->correction_bias;
    want.num_cols = 0;
    want.may_be_row = 1;
    if (bind_operand(binding, &want, &weights->correction_bias) != 0) {
        return -1;
    }
    return widen_correction_bias(binding, &weights->correction_bias);
}

static int bind_shared(const struct binding *binding)
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
    } parts[] = {
        {family->shared_gate_up, problem->shared_inter, problem->hidden, 2, 0,
         &weights->shared_gate},
        {family->shared_gate_up, problem->shared_inter, problem->hidden, 2, 1, &weights->shared_up},
        {family->shared_gate, problem->shared_inter, problem->hidden, 1, 0, &weights->shared_gate},
        {family->shared_up, problem->shared_inter, problem->hidden, 1, 0, &weights->shared_up},
        {family->shared_down, problem->hidden, problem->shared_inter, 1, 0, &weights->shared_down},
        {family->shared_sigmoid, 1, problem->hidden, 1, 0, &weights->shared_sigmoid},
    };
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; ++i) {
        const struct wanted want = {.name = parts[i].name,
                                    .num_rows = parts[i].num_rows,
                                    .num_cols = parts[i].num_cols,
                                    .num_parts = parts[i].num_parts,
                                    .part_idx = parts[i].part_idx};
        if (want.name != NULL && bind_operand(binding, &want, parts[i].operand) != 0) {
            return -1;
        }
    }
    return 0;
}

/* Takes the first of the family's prefixes under which the layer has a router. */
static int find_prefix(struct binding *binding)
{
    const struct moe_family *family = binding->config->family;
    const char *prefixes = family->layer != NULL ? family->layer : moe_family_usual_layers;
    char pattern[max_name_bytes];
    char name[max_name_bytes];
    for (size_t i = 0; moe_family_pick(prefixes, i, pattern, sizeof pattern); ++i) {
        const struct moe_safetensors_tensor *tensor;
        const char *path;
        if (fill_in(pattern, "{layer}", binding->layer->layer_idx, binding->prefix,
                    sizeof binding->prefix) != 0 ||
            name_tensor(binding, family->router.weight, 0, name) != 0) {
            return MOE_CLI_FAIL(binding->error, "the prefix '%s' is too long", pattern);
        }
        const int found =
            moe_checkpoint_find(binding->checkpoint, name, &tensor, &path, binding->error);
        if (found != 0) {
            return found > 0 ? 0 : -1;
        }
    }
    /* The message names the router under the first prefix, the usual one. */
    moe_family_pick(prefixes, 0, pattern, sizeof pattern);
    fill_in(pattern, "{layer}", binding->layer->layer_idx, binding->prefix, sizeof binding->prefix);
    name_tensor(binding, family->router.weight, 0, name);
    refuse_missing(binding, name);
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
    layer->num_layers = config->num_layers;
    layer->problem = config->problem;
    return 0;
}

/* Gate and up run as one GEMM, and the tokens come in the type of its weights. */
static int settle_dtypes(const struct binding *binding)
{
    struct moe_checkpoint_layer *layer = binding->layer;
    const struct moe_weights_desc *weights = &layer->weights;
    const int has_gate = weights->gate.base != NULL || weights->gate.table != NULL;
    if (has_gate && weights->gate.dtype != weights->up.dtype) {
        return MOE_CLI_FAIL(binding->error,
                            "%s: gate and up of layer %" PRId64 " are of different types",
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
    struct binding binding = {.layer = layer, .config = &config, .error = error};
    MOE_INIT(layer->weights);
    if (moe_checkpoint_open(folder, &layer->memory->checkpoint, error) != 0) {
        goto fail;
    }
    binding.checkpoint = layer->memory->checkpoint;
    if (describe(binding.checkpoint, layer_idx, &config, layer, error) != 0 ||
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
        free(memory->correction_bias);
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
