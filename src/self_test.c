/* SPDX-License-Identifier: Apache-2.0 */
#include "self_test.h"

#include "calls.h"
#include "problem.h"
#include "status.h"
#include "weights.h"

#include <string.h>

/*
 * Weights and tokens are -1, 0 or 1, the activation is relu2 without a gate (an integer stays an
 * integer), routing weights are 1 and 2. With these dimensions every value stays below 256, which
 * bf16 holds exactly, so the answer is one and the same for all types and orders of summation, and
 * plain integer loops give it.
 */
enum { NUM_TOKENS = 7, NUM_EXPERTS = 5, TOP_K = 2, HIDDEN = 24, INTER = 9 };

struct self_test_data {
    float tokens[NUM_TOKENS * HIDDEN];
    float up[NUM_EXPERTS * INTER * HIDDEN];
    float down[NUM_EXPERTS * HIDDEN * INTER];
    int32_t topk_ids[NUM_TOKENS * TOP_K];
    float topk_weights[NUM_TOKENS * TOP_K];
    int32_t expected[NUM_TOKENS * HIDDEN];
    /* The same in the type under test, four bytes an element at most. */
    uint32_t typed_tokens[NUM_TOKENS * HIDDEN];
    uint32_t typed_up[NUM_EXPERTS * INTER * HIDDEN];
    uint32_t typed_down[NUM_EXPERTS * HIDDEN * INTER];
    uint32_t typed_output[NUM_TOKENS * HIDDEN];
};

/* -1, 0 or 1, mostly 0, by a fixed rule. */
static float small_integer(uint32_t *state, uint32_t sparsity)
{
    *state = *state * 1664525u + 1013904223u;
    uint32_t draw = (*state >> 16) % sparsity;
    return draw == 0 ? 1.0f : draw == 1 ? -1.0f : 0.0f;
}

static int32_t expected_output(const struct self_test_data *data, int32_t token, int32_t channel)
{
    int32_t sum = 0;
    for (int32_t slot = 0; slot < TOP_K; slot++) {
        int32_t expert = data->topk_ids[token * TOP_K + slot];
        int32_t row = 0;
        for (int32_t i = 0; i < INTER; i++) {
            int32_t up = 0;
            for (int32_t h = 0; h < HIDDEN; h++) {
                up += (int32_t)data->up[(expert * INTER + i) * HIDDEN + h] *
                      (int32_t)data->tokens[token * HIDDEN + h];
            }
            int32_t activated = up > 0 ? up * up : 0;
            row += (int32_t)data->down[(expert * HIDDEN + channel) * INTER + i] * activated;
        }
        sum += (int32_t)data->topk_weights[token * TOP_K + slot] * row;
    }
    return sum;
}

static void make_data(struct self_test_data *data)
{
    uint32_t state = 20261123u;
    for (int32_t i = 0; i < NUM_TOKENS * HIDDEN; i++) {
        data->tokens[i] = small_integer(&state, 3);
    }
    for (int32_t i = 0; i < NUM_EXPERTS * INTER * HIDDEN; i++) {
        data->up[i] = small_integer(&state, 9);
    }
    for (int32_t i = 0; i < NUM_EXPERTS * HIDDEN * INTER; i++) {
        data->down[i] = small_integer(&state, 9);
    }
    for (int32_t route = 0; route < NUM_TOKENS * TOP_K; route++) {
        data->topk_ids[route] = (route * 3 + route / TOP_K) % NUM_EXPERTS;
        data->topk_weights[route] = (float)(route % 2 + 1);
    }
    for (int32_t i = 0; i < NUM_TOKENS * HIDDEN; i++) {
        data->expected[i] = expected_output(data, i / HIDDEN, i % HIDDEN);
    }
}

/* Small integers are exact in all three types: bf16 is the upper half of fp32, fp16 rebuilds the
 * exponent. */
static void store_exact(int32_t dtype, const float *values, int64_t num_values, void *out)
{
    for (int64_t i = 0; i < num_values; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof(bits));
        uint16_t half = (uint16_t)(bits >> 16);
        if (dtype == MOE_DTYPE_FP32) {
            memcpy((char *)out + i * 4, &bits, 4);
            continue;
        }
        if (dtype == MOE_DTYPE_FP16 && values[i] != 0.0f) {
            uint32_t exponent = ((bits >> 23) & 0xffu) - 127u + 15u;
            half = (uint16_t)((bits >> 16 & 0x8000u) | exponent << 10 | (bits >> 13 & 0x3ffu));
        }
        memcpy((char *)out + i * 2, &half, 2);
    }
}

static int32_t check_output(const struct self_test_data *data, int32_t dtype,
                            struct moe_error *error)
{
    const int64_t element_bytes = moe_dtype_bytes(dtype);
    for (int32_t i = 0; i < NUM_TOKENS * HIDDEN; i++) {
        float value = (float)data->expected[i];
        uint32_t wanted = 0, got = 0;
        store_exact(dtype, &value, 1, &wanted);
        memcpy(&got, (const char *)data->typed_output + i * element_bytes, (size_t)element_bytes);
        uint32_t sign = element_bytes == 4 ? 0x80000000u : 0x8000u;
        bool both_zero = (got & ~sign) == 0 && (wanted & ~sign) == 0;
        if (got != wanted && !both_zero) {
            return moe_error_set(
                error, MOE_STATUS_SELF_TEST,
                "self-test: layer in %s, token %d, channel %d: bits 0x%x instead of 0x%x",
                moe_dtype_name(dtype), i / HIDDEN, i % HIDDEN, got, wanted);
        }
    }
    return MOE_STATUS_OK;
}

static void describe(int32_t dtype, const struct self_test_data *data, struct moe_problem *problem,
                     struct moe_weights_desc *desc)
{
    MOE_INIT(*problem);
    MOE_INIT(*desc);
    problem->flags = MOE_PROBLEM_UNGATED;
    problem->num_experts = NUM_EXPERTS;
    problem->top_k = TOP_K;
    problem->hidden = HIDDEN;
    problem->inter = INTER;
    problem->activation = MOE_ACTIVATION_RELU2;
    problem->max_tokens = NUM_TOKENS;
    problem->tokens.dtype = dtype;
    problem->gate_up.dtype = dtype;
    problem->down.dtype = dtype;
    desc->up.base = data->typed_up;
    desc->up.expert_stride = INTER * HIDDEN;
    desc->up.row_stride = HIDDEN;
    desc->up.col_stride = 1;
    desc->down.base = data->typed_down;
    desc->down.expert_stride = HIDDEN * INTER;
    desc->down.row_stride = INTER;
    desc->down.col_stride = 1;
}

static int32_t run_layer(struct moe_context *context, int32_t dtype, struct self_test_data *data,
                         struct moe_error *error)
{
    struct moe_problem problem;
    struct moe_weights_desc desc;
    struct moe_plan *plan = NULL;
    struct moe_weights *weights = NULL;
    void *workspace = NULL;
    uint64_t workspace_bytes = 0;
    int32_t status = MOE_STATUS_OK;
    store_exact(dtype, data->tokens, NUM_TOKENS * HIDDEN, data->typed_tokens);
    store_exact(dtype, data->up, NUM_EXPERTS * INTER * HIDDEN, data->typed_up);
    store_exact(dtype, data->down, NUM_EXPERTS * HIDDEN * INTER, data->typed_down);
    memset(data->typed_output, 0xff, sizeof(data->typed_output));
    describe(dtype, data, &problem, &desc);
    MOE_TRY_GOTO(moe_plan_create(context, &problem, NULL, &plan, error));
    MOE_TRY_GOTO(moe_weights_bind(context, &problem, &desc, NULL, 0, &weights, error));
    workspace_bytes = plan->workspace_bytes;
    workspace = moe_memory_alloc(&context->memory, (size_t)workspace_bytes);
    if (workspace == NULL) {
        status = moe_error_set(error, MOE_STATUS_OUT_OF_MEMORY,
                               "self-test: no host memory for %llu bytes",
                               (unsigned long long)workspace_bytes);
        goto fail;
    }
    struct moe_layer_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = NUM_TOKENS;
    args.call.workspace = workspace;
    args.call.workspace_bytes = workspace_bytes;
    args.weights = weights;
    args.tokens = data->typed_tokens;
    args.topk_ids = data->topk_ids;
    args.topk_weights = data->topk_weights;
    args.output = data->typed_output;
    MOE_TRY_GOTO(moe_calls_layer(plan, &args, error));
    status = check_output(data, dtype, error);

fail:
    moe_memory_free(&context->memory, workspace, (size_t)workspace_bytes);
    moe_weights_destroy(weights);
    moe_plan_destroy(plan);
    return status;
}

int32_t moe_self_test(struct moe_context *context, struct moe_error *error)
{
    static const int32_t dtypes[] = {MOE_DTYPE_FP32, MOE_DTYPE_FP16, MOE_DTYPE_BF16};
    if (context == NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "context is NULL");
    }
    struct self_test_data *data = moe_memory_alloc(&context->memory, sizeof(*data));
    if (data == NULL) {
        return moe_error_set(error, MOE_STATUS_OUT_OF_MEMORY,
                             "self-test: no host memory for %zu bytes", sizeof(*data));
    }
    make_data(data);
    int32_t status = MOE_STATUS_OK;
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]) && status == MOE_STATUS_OK; i++) {
        status = run_layer(context, dtypes[i], data, error);
    }
    moe_memory_free(&context->memory, data, sizeof(*data));
    return status == MOE_STATUS_OK ? moe_self_test_ops(context, error) : status;
}
