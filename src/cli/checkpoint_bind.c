/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint_bind.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "abi_names.h"
#include "element.h"
#include "fp8_recipe.h"

int moe_binding_fill_in(const char *pattern, const char *mark, int64_t number, char *text,
                        size_t text_bytes)
{
    const char *at = strstr(pattern, mark);
    const int length = at == NULL
                           ? snprintf(text, text_bytes, "%s", pattern)
                           : snprintf(text, text_bytes, "%.*s%" PRId64 "%s", (int)(at - pattern),
                                      pattern, number, at + strlen(mark));
    return length >= 0 && (size_t)length < text_bytes ? 0 : -1;
}

int moe_binding_name(const struct moe_binding *binding, const char *name, int64_t expert,
                     char *text)
{
    char tail[MOE_BINDING_NAME_BYTES];
    int length = -1;
    if (moe_binding_fill_in(name, "{expert}", expert, tail, sizeof tail) == 0) {
        length = snprintf(text, MOE_BINDING_NAME_BYTES, "%s%s", binding->prefix, tail);
    }
    if (length < 0 || length >= MOE_BINDING_NAME_BYTES) {
        return MOE_CLI_FAIL(binding->error, "the name of tensor '%s' is too long", name);
    }
    return 0;
}

int moe_binding_refuse_missing(const struct moe_binding *binding, const char *name)
{
    moe_cli_error_set(binding->error,
                      "%s: there is no tensor '%s'; layer %" PRId64
                      " of a model of type '%s' needs it",
                      moe_checkpoint_folder(binding->checkpoint), name, binding->layer->layer_idx,
                      binding->config->family->model_type);
    return -1;
}

/* Rows of one expert in the tensor, those of all parts. */
static int64_t count_stored_rows(const struct moe_wanted *want)
{
    return want->num_rows * want->num_parts;
}

/* The shape that the tensor must have. Returns its rank. */
static int expect_shape(const struct moe_wanted *want, int is_stacked, int64_t *shape)
{
    const int64_t stored_rows = count_stored_rows(want);
    int rank = 0;
    if (is_stacked && !want->is_one_matrix) {
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
    if (is_stacked && want->is_one_matrix) {
        shape[0] *= want->num_experts;
    }
    return rank;
}

/* fp8 needs scales, which only some tensors can have, and which config.json tells of. */
static int check_type(const struct moe_binding *binding, const struct moe_wanted *want,
                      const struct moe_safetensors_tensor *tensor, const char *path)
{
    const int is_fp8 = tensor->moe_dtype == MOE_DTYPE_FP8_E4M3;
    const int may_be_fp8 = want->may_be_fp8 && binding->config->quantization != NULL;
    if (moe_element_bytes(tensor->moe_dtype) > 0 && (!is_fp8 || may_be_fp8)) {
        return 0;
    }
    return MOE_CLI_FAIL(binding->error,
                        "%s: tensor '%s' is of type %s; read are F32, F16 and BF16%s", path,
                        tensor->name, tensor->dtype_name,
                        may_be_fp8 ? ", and F8_E4M3 with scales"
                        : is_fp8 && want->may_be_fp8
                            ? ", and F8_E4M3 only where config.json has a quantization_config"
                            : "");
}

static int check_tensor(const struct moe_binding *binding, const struct moe_wanted *want,
                        const struct moe_safetensors_tensor *tensor, const char *path,
                        const int64_t *shape, int rank)
{
    const int is_row = want->num_vectors > 0 && rank == 1 && tensor->rank == 2 &&
                       tensor->shape[0] == want->num_vectors && tensor->shape[1] == shape[0];
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
    if (check_type(binding, want, tensor, path) != 0) {
        return -1;
    }
    const size_t element_bytes = moe_element_bytes(tensor->moe_dtype);
    if ((uintptr_t)tensor->data % element_bytes != 0) {
        return MOE_CLI_FAIL(binding->error,
                            "%s: the data of tensor '%s' is not aligned to its elements of "
                            "%zu bytes; write the file again with an aligned header",
                            path, tensor->name, element_bytes);
    }
    return 0;
}

/* Finds and checks the tensor of one expert (or of all, when they are stacked). */
static int find_tensor(const struct moe_binding *binding, const struct moe_wanted *want,
                       int64_t expert, int is_stacked, const struct moe_safetensors_tensor **tensor)
{
    char name[MOE_BINDING_NAME_BYTES];
    const char *path;
    if (moe_binding_name(binding, want->name, expert, name) != 0) {
        return -1;
    }
    const int found = moe_checkpoint_find(binding->checkpoint, name, tensor, &path, binding->error);
    if (found <= 0) {
        return found == 0 ? moe_binding_refuse_missing(binding, name) : -1;
    }
    int64_t shape[3];
    const int rank = expect_shape(want, is_stacked, shape);
    return check_tensor(binding, want, *tensor, path, shape, rank);
}

/* Strides of the wanted part inside of the stored tensor, and the place of its first element. */
static int64_t set_strides(const struct moe_wanted *want, struct moe_operand *operand)
{
    const int64_t stored_rows = count_stored_rows(want);
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
static void count_bytes(const struct moe_binding *binding, const struct moe_wanted *want,
                        const struct moe_safetensors_tensor *tensor)
{
    binding->layer->weight_bytes += tensor->data_bytes / (uint64_t)want->num_parts;
}

static int bind_table(const struct moe_binding *binding, const struct moe_wanted *want,
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

int moe_binding_operand(const struct moe_binding *binding, const struct moe_wanted *want,
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

static const void *element_at(const struct moe_operand *operand, int64_t expert, int64_t row,
                              int64_t col)
{
    const unsigned char *first = operand->table != NULL ? operand->table[expert] : operand->base;
    const int64_t idx = (operand->table != NULL ? 0 : expert * operand->expert_stride) +
                        row * operand->row_stride + col * operand->col_stride;
    return first + (size_t)idx * moe_element_bytes(operand->dtype);
}

int moe_binding_append(const struct moe_binding *binding, int64_t num_experts,
                       const struct moe_wanted *want, const struct moe_operand *more,
                       struct moe_operand *operand)
{
    if (more->dtype != operand->dtype) {
        return MOE_CLI_FAIL(binding->error,
                            "%s: tensor '%s%s' is %s, the matrices of the other experts are %s; "
                            "valid: one type for all",
                            moe_checkpoint_folder(binding->checkpoint), binding->prefix, want->name,
                            moe_abi_dtype_name(more->dtype), moe_abi_dtype_name(operand->dtype));
    }
    struct moe_checkpoint_layer_memory *memory = binding->layer->memory;
    const void **table = calloc((size_t)(num_experts + want->num_experts), sizeof *table);
    if (table == NULL) {
        return moe_cli_fail_memory(binding->error, "listing the experts of a layer");
    }
    memory->tables[memory->num_tables++] = table;
    for (int64_t i = 0; i < num_experts; ++i) {
        table[i] = element_at(operand, i, 0, 0);
    }
    for (int64_t i = 0; i < want->num_experts; ++i) {
        table[num_experts + i] = element_at(more, i, 0, 0);
    }
    operand->base = NULL;
    operand->table = table;
    operand->expert_stride = 0;
    return 0;
}

int moe_binding_widen(const struct moe_binding *binding, const struct moe_wanted *want,
                      struct moe_operand *operand)
{
    if (operand->dtype == MOE_DTYPE_FP32) {
        return 0;
    }
    const int64_t num_experts = want->num_experts > 0 ? want->num_experts : 1;
    const int64_t num_cols = want->num_cols > 0 ? want->num_cols : 1;
    const int64_t num_elements = num_experts * want->num_rows * num_cols;
    float *copy = calloc((size_t)num_elements, sizeof *copy);
    if (copy == NULL) {
        return moe_cli_fail_memory(binding->error, "widening a tensor to fp32");
    }
    struct moe_checkpoint_layer_memory *memory = binding->layer->memory;
    memory->copies[memory->num_copies++] = copy;
    for (int64_t i = 0; i < num_elements; ++i) {
        const int64_t row = i / num_cols;
        copy[i] = moe_element_load(
            element_at(operand, row / want->num_rows, row % want->num_rows, i % num_cols),
            operand->dtype, 0);
    }
    *operand = (struct moe_operand){.base = copy,
                                    .expert_stride = want->num_rows * num_cols,
                                    .row_stride = num_cols,
                                    .col_stride = 1,
                                    .dtype = MOE_DTYPE_FP32};
    return 0;
}

int moe_binding_scale(const struct moe_binding *binding, const struct moe_wanted *want,
                      struct moe_operand *scale)
{
    char name[MOE_BINDING_NAME_BYTES];
    const int length = snprintf(name, sizeof name, "%s_scale_inv", want->name);
    if (length < 0 || length >= (int)sizeof name) {
        return MOE_CLI_FAIL(binding->error, "the name of tensor '%s' is too long", want->name);
    }
    if (want->num_parts > 1 && (want->is_interleaved || want->num_rows % MOE_FP8_BLOCK != 0)) {
        return MOE_CLI_FAIL(
            binding->error,
            "%s: '%s%s' holds gate and up of %" PRId64
            " channels each, %s, in fp8: blocks of %d channels that have a scale "
            "would belong to both, which cannot be run",
            moe_checkpoint_folder(binding->checkpoint), binding->prefix, want->name, want->num_rows,
            want->is_interleaved ? "row by row" : "one after the other", MOE_FP8_BLOCK);
    }
    const int64_t expert_height = want->is_transposed ? want->num_cols : count_stored_rows(want);
    if (want->is_one_matrix && expert_height % MOE_FP8_BLOCK != 0) {
        return MOE_CLI_FAIL(
            binding->error,
            "%s: '%s%s' holds the %" PRId64
            " rows of each expert one below the other, in fp8: blocks of %d rows that have a scale "
            "would belong to two experts, which cannot be run",
            moe_checkpoint_folder(binding->checkpoint), binding->prefix, want->name, expert_height,
            MOE_FP8_BLOCK);
    }
    struct moe_wanted blocks = *want;
    blocks.name = name;
    blocks.num_rows = moe_fp8_num_blocks(want->num_rows);
    blocks.num_cols = moe_fp8_num_blocks(want->num_cols);
    blocks.may_be_fp8 = 0;
    return moe_binding_operand(binding, &blocks, scale) != 0
               ? -1
               : moe_binding_widen(binding, &blocks, scale);
}
