/* SPDX-License-Identifier: Apache-2.0 */
#include "swap_layers.h"

#include "element.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Calls of about 10 to 300 us: the 10 ms around a promote hold many. */
static const struct {
    int32_t dtype, num_experts, top_k, hidden, inter, gating;
    int64_t max_tokens;
} shapes[MOE_SWAP_NUM_LAYERS] = {
    {MOE_DTYPE_FP32, 8, 2, 128, 64, MOE_GATING_SOFTMAX, 16},
    {MOE_DTYPE_BF16, 16, 4, 128, 48, MOE_GATING_TOPK_SOFTMAX, 12},
    {MOE_DTYPE_FP16, 32, 8, 96, 32, MOE_GATING_SIGMOID, 8},
};

/* Random elements with standard deviation `deviation`, or NULL. */
static void *make_elements(int32_t dtype, int64_t num_elements, double deviation, uint64_t seed)
{
    void *elements = calloc((size_t)num_elements, moe_element_bytes(dtype));
    if (elements == NULL) {
        return NULL;
    }
    moe_element_fill_normal(elements, dtype, num_elements, seed);
    for (int64_t i = 0; i < num_elements; ++i) {
        const double value = moe_element_load(elements, dtype, i);
        moe_element_store(elements, dtype, i, (float)(value * deviation));
    }
    return elements;
}

static struct moe_operand matrices(const void *base, int64_t num_rows, int64_t num_columns)
{
    return (struct moe_operand){.base = base,
                                .expert_stride = num_rows * num_columns,
                                .row_stride = num_columns,
                                .col_stride = 1};
}

static int init_weights(struct moe_swap_layer *layer, uint64_t seed)
{
    const int64_t num_experts = layer->problem.num_experts;
    const int64_t hidden = layer->problem.hidden, inter = layer->problem.inter;
    const struct {
        struct moe_operand *operand;
        int64_t num_matrices, num_rows, num_columns;
    } parts[] = {
        {&layer->weights.gate, num_experts, inter, hidden},
        {&layer->weights.up, num_experts, inter, hidden},
        {&layer->weights.down, num_experts, hidden, inter},
        {&layer->weights.router, 1, num_experts, hidden},
    };
    _Static_assert(sizeof parts / sizeof parts[0] ==
                       sizeof layer->elements / sizeof layer->elements[0],
                   "one block of elements per part");
    MOE_INIT(layer->weights);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; ++i) {
        const int64_t num_elements =
            parts[i].num_matrices * parts[i].num_rows * parts[i].num_columns;
        layer->elements[i] =
            make_elements(layer->problem.tokens.dtype, num_elements,
                          1.0 / sqrt((double)parts[i].num_columns), seed + (uint64_t)i);
        if (layer->elements[i] == NULL) {
            return -1;
        }
        *parts[i].operand = matrices(layer->elements[i], parts[i].num_rows, parts[i].num_columns);
    }
    return 0;
}

static int init_layer(struct moe_swap_layer *layer, size_t idx)
{
    const int32_t dtype = shapes[idx].dtype;
    struct moe_problem *problem = &layer->problem;
    MOE_INIT(*problem);
    problem->num_experts = shapes[idx].num_experts;
    problem->top_k = shapes[idx].top_k;
    problem->hidden = shapes[idx].hidden;
    problem->inter = shapes[idx].inter;
    problem->gating = shapes[idx].gating;
    problem->activation = MOE_ACTIVATION_SILU;
    problem->max_tokens = shapes[idx].max_tokens;
    problem->tokens.dtype = dtype;
    problem->gate_up.dtype = dtype;
    problem->down.dtype = dtype;
    const uint64_t seed = 1000 * (uint64_t)idx;
    const size_t num_elements = (size_t)MOE_SWAP_NUM_TOKENS * (size_t)problem->hidden;
    layer->row_bytes = (size_t)problem->hidden * moe_element_bytes(dtype);
    layer->tokens = make_elements(dtype, (int64_t)num_elements, 1.0, seed + 100);
    for (int plugin = 0; plugin < MOE_SWAP_NUM_PLUGINS; ++plugin) {
        layer->answers[plugin] = calloc(MOE_SWAP_NUM_TOKENS, layer->row_bytes);
        if (layer->answers[plugin] == NULL) {
            return -1;
        }
    }
    return layer->tokens != NULL ? init_weights(layer, seed) : -1;
}

int moe_swap_layers_init(struct moe_swap_layer layers[MOE_SWAP_NUM_LAYERS],
                         struct moe_cli_error *error)
{
    memset(layers, 0, MOE_SWAP_NUM_LAYERS * sizeof *layers);
    for (size_t i = 0; i < MOE_SWAP_NUM_LAYERS; ++i) {
        if (init_layer(&layers[i], i) != 0) {
            return moe_cli_fail_memory(error, "making layers to serve");
        }
    }
    return 0;
}

void moe_swap_layers_finish(struct moe_swap_layer layers[MOE_SWAP_NUM_LAYERS])
{
    for (size_t i = 0; i < MOE_SWAP_NUM_LAYERS; ++i) {
        free(layers[i].tokens);
        for (size_t plugin = 0; plugin < MOE_SWAP_NUM_PLUGINS; ++plugin) {
            free(layers[i].answers[plugin]);
        }
        for (size_t j = 0; j < sizeof layers[i].elements / sizeof layers[i].elements[0]; ++j) {
            free(layers[i].elements[j]);
        }
    }
    memset(layers, 0, MOE_SWAP_NUM_LAYERS * sizeof *layers);
}

size_t moe_swap_layers_output_bytes(const struct moe_swap_layer layers[MOE_SWAP_NUM_LAYERS])
{
    size_t most = 0;
    for (size_t i = 0; i < MOE_SWAP_NUM_LAYERS; ++i) {
        const size_t bytes = layers[i].row_bytes * (size_t)layers[i].problem.max_tokens;
        most = bytes > most ? bytes : most;
    }
    return most;
}

int moe_swap_layer_is_answer(const struct moe_swap_layer *layer, int plugin, int64_t first_token,
                             int64_t num_tokens, const void *output)
{
    const unsigned char *answer = layer->answers[plugin] + (size_t)first_token * layer->row_bytes;
    return memcmp(output, answer, (size_t)num_tokens * layer->row_bytes) == 0;
}
