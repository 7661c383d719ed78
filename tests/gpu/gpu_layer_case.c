/* SPDX-License-Identifier: Apache-2.0 */
#include "gpu_layer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t dtype_bytes(int32_t dtype)
{
    return dtype == MOE_DTYPE_FP32 ? 4 : 2;
}

static double uniform(uint64_t *seed)
{
    return (double)(gpu_random(seed) >> 11) / 4503599627370496.0 - 1.0; /* [-1, 1) */
}

/* Stored as fp32, bf16 or fp16, rounded towards zero; the stored value is what counts. */
void layer_store(void *elements, int32_t dtype, int64_t index, double value)
{
    float wide = (float)value;
    uint32_t bits;
    memcpy(&bits, &wide, 4);
    if (dtype == MOE_DTYPE_FP32) {
        memcpy((char *)elements + 4 * index, &wide, 4);
    } else if (dtype == MOE_DTYPE_BF16) {
        uint16_t half = (uint16_t)(bits >> 16);
        memcpy((char *)elements + 2 * index, &half, 2);
    } else {
        const int32_t exponent = (int32_t)((bits >> 23) & 0xff) - 127 + 15;
        uint16_t half = (uint16_t)(bits >> 16 & 0x8000);
        if (exponent > 0) {
            half |= (uint16_t)((uint32_t)exponent << 10 | (bits >> 13 & 0x3ff));
        }
        memcpy((char *)elements + 2 * index, &half, 2);
    }
}

static struct layer_tensor make_tensor(size_t bytes)
{
    struct layer_tensor tensor = {malloc(bytes > 0 ? bytes : 1), gpu_alloc(bytes), bytes};
    if (tensor.host == NULL) {
        fprintf(stderr, "no host memory\n");
        exit(2);
    }
    memset(tensor.host, 0, bytes > 0 ? bytes : 1);
    return tensor;
}

static void free_tensor(struct layer_tensor *tensor)
{
    free(tensor->host);
    gpu_free(tensor->device);
}

static void fill_tensor(struct layer_tensor *tensor, int32_t dtype, double scale, uint64_t *seed)
{
    const int64_t count = (int64_t)(tensor->bytes / dtype_bytes(dtype));
    for (int64_t i = 0; i < count; i++) {
        layer_store(tensor->host, dtype, i, scale * uniform(seed));
    }
    gpu_upload(tensor->device, tensor->host, tensor->bytes);
}

/* A tensor of the case with random elements. */
static const struct layer_tensor *add_tensor(struct layer_case *test, int64_t count, int32_t dtype,
                                             double scale, uint64_t *seed)
{
    struct layer_tensor *tensor = &test->tensors[test->num_tensors++];
    *tensor = make_tensor((size_t)count * dtype_bytes(dtype));
    fill_tensor(tensor, dtype, scale, seed);
    return tensor;
}

/* The same operand on both sides, `offset` elements into the tensor. */
static void set_operand(struct layer_case *test, size_t member, const struct layer_tensor *tensor,
                        int64_t offset, int64_t expert_stride, int64_t row_stride,
                        int64_t col_stride, int32_t dtype)
{
    struct moe_operand *host = (struct moe_operand *)(void *)((char *)&test->host_desc + member);
    struct moe_operand *device =
        (struct moe_operand *)(void *)((char *)&test->device_desc + member);
    *host = (struct moe_operand){.expert_stride = expert_stride,
                                 .row_stride = row_stride,
                                 .col_stride = col_stride,
                                 .dtype = dtype};
    *device = *host;
    host->base = (const char *)tensor->host + offset * (int64_t)dtype_bytes(dtype);
    device->base = (const char *)tensor->device + offset * (int64_t)dtype_bytes(dtype);
}

#define DESC(member) offsetof(struct moe_weights_desc, member)

/* Turn an operand with expert strides into tables of pointers. */
static void make_table(struct layer_case *test, size_t member, int slot)
{
    struct moe_operand *operands[2] = {
        (struct moe_operand *)(void *)((char *)&test->host_desc + member),
        (struct moe_operand *)(void *)((char *)&test->device_desc + member)};
    for (int side = 0; side < 2; side++) {
        const void **table = test->tables[side] + slot * test->shape.num_experts;
        for (int32_t e = 0; e < test->shape.num_experts; e++) {
            table[e] = (const char *)operands[side]->base +
                       e * operands[side]->expert_stride * (int64_t)dtype_bytes(test->shape.dtype);
        }
        operands[side]->base = NULL;
        operands[side]->table = table;
        operands[side]->expert_stride = 0;
    }
}

static void make_expert_weights(struct layer_case *test, uint64_t *seed)
{
    const struct layer_shape *shape = &test->shape;
    const int64_t hidden = shape->hidden, inter = shape->inter, experts = shape->num_experts;
    const int32_t dtype = shape->dtype;
    const int ungated = (shape->flags & MOE_PROBLEM_UNGATED) != 0;
    const int64_t rows = ungated ? inter : 2 * inter;
    const struct layer_tensor *first =
        add_tensor(test, experts * rows * hidden, dtype, sqrt(3.0 / (double)hidden), seed);
    const struct layer_tensor *second =
        add_tensor(test, experts * inter * hidden, dtype, sqrt(3.0 / (double)inter), seed);
    const int in_turn = shape->layout == LAYER_INTERLEAVED || shape->layout == LAYER_PAIRED;
    const int transposed = shape->layout == LAYER_TRANSPOSED || shape->layout == LAYER_PAIRED;
    const int64_t step = in_turn && !ungated ? 2 : 1; /* rows between neighbouring channels */
    const int64_t row_stride = transposed ? step : step * hidden;
    const int64_t col_stride = transposed ? rows : 1;
    const int64_t up_row = ungated ? 0 : (step == 2 ? 1 : inter);
    const int64_t up_offset = transposed ? up_row : up_row * hidden;
    if (!ungated) {
        set_operand(test, DESC(gate), first, 0, rows * hidden, row_stride, col_stride, dtype);
    }
    set_operand(test, DESC(up), first, up_offset, rows * hidden, row_stride, col_stride, dtype);
    set_operand(test, DESC(down), second, 0, inter * hidden, transposed ? 1 : inter,
                transposed ? hidden : 1, dtype);
    if (shape->layout == LAYER_TABLE) {
        if (!ungated) {
            make_table(test, DESC(gate), 0);
        }
        make_table(test, DESC(up), 1);
        make_table(test, DESC(down), 2);
    }
    if ((shape->flags & MOE_PROBLEM_GATE_UP_BIAS) != 0) {
        const struct layer_tensor *bias = add_tensor(test, experts * rows, dtype, 0.5, seed);
        if (!ungated) {
            set_operand(test, DESC(gate_bias), bias, 0, rows, step, 0, dtype);
        }
        set_operand(test, DESC(up_bias), bias, up_row, rows, step, 0, dtype);
    }
    if ((shape->flags & MOE_PROBLEM_DOWN_BIAS) != 0) {
        const struct layer_tensor *bias = add_tensor(test, experts * hidden, dtype, 0.5, seed);
        set_operand(test, DESC(down_bias), bias, 0, hidden, 1, 0, dtype);
    }
}

static void make_other_weights(struct layer_case *test, uint64_t *seed)
{
    const struct layer_shape *shape = &test->shape;
    const int64_t hidden = shape->hidden, shared = shape->shared_inter;
    const int32_t dtype = shape->dtype;
    const double scale = sqrt(3.0 / (double)hidden);
    if (shape->has_router) {
        const struct layer_tensor *router =
            add_tensor(test, shape->num_experts * hidden, dtype, 2.0 * scale, seed);
        set_operand(test, DESC(router), router, 0, 0, hidden, 1, dtype);
    }
    if (shared > 0) {
        const struct layer_tensor *up = add_tensor(test, 2 * shared * hidden, dtype, scale, seed);
        const struct layer_tensor *down =
            add_tensor(test, shared * hidden, dtype, sqrt(3.0 / (double)shared), seed);
        if ((shape->flags & MOE_PROBLEM_UNGATED) == 0) {
            set_operand(test, DESC(shared_gate), up, 0, 0, hidden, 1, dtype);
        }
        set_operand(test, DESC(shared_up), up, shared * hidden, 0, hidden, 1, dtype);
        set_operand(test, DESC(shared_down), down, 0, 0, shared, 1, dtype);
    }
    if ((shape->flags & MOE_PROBLEM_SHARED_SIGMOID) != 0) {
        const struct layer_tensor *sigmoid = add_tensor(test, hidden, dtype, scale, seed);
        set_operand(test, DESC(shared_sigmoid), sigmoid, 0, 0, hidden, 1, dtype);
    }
}

static void set_problem(struct layer_case *test)
{
    const struct layer_shape *shape = &test->shape;
    struct moe_problem *problem = &test->problem;
    MOE_INIT(*problem);
    problem->flags = shape->flags;
    problem->num_experts = shape->num_experts;
    problem->top_k = shape->top_k;
    problem->hidden = shape->hidden;
    problem->inter = shape->inter;
    problem->shared_inter = shape->shared_inter;
    problem->activation = shape->activation;
    if (shape->activation == MOE_ACTIVATION_SWIGLU_OAI) {
        problem->act_alpha = 1.702f;
        problem->act_limit = 7.0f;
    }
    problem->gating = shape->gating;
    problem->output_dtype = shape->output_dtype;
    problem->tokens.dtype = shape->dtype;
    problem->gate_up.dtype = shape->dtype;
    problem->down.dtype = shape->dtype;
    problem->max_tokens = test->max_tokens;
    if (shape->scaling != 0.0f) {
        problem->routed_scaling = shape->scaling;
        problem->scaling_on = MOE_SCALING_OUTPUT;
    }
}

static void bind_weights(struct layer_case *test, const struct gpu_host *host)
{
    struct moe_error error;
    struct moe_weights_info info;
    MOE_INIT(error);
    MOE_INIT(info);
    gpu_host_check(host->api->weights_bind(host->cpu, &test->problem, &test->host_desc, NULL, 0,
                                           &test->cpu_weights, &error),
                   &error, "cpu weights");
    gpu_host_check(
        host->api->weights_query(host->cuda, &test->problem, &test->device_desc, &info, &error),
        &error, "weights_query");
    if (info.prepared_bytes > 0) {
        test->prepared = gpu_alloc(info.prepared_bytes);
        gpu_poison(test->prepared, 0xff, info.prepared_bytes);
        gpu_host_check(host->api->weights_prepare(host->cuda, &test->problem, &test->device_desc,
                                                  test->prepared, info.prepared_bytes, host->stream,
                                                  &error),
                       &error, "weights_prepare");
        gpu_synchronize(host->stream);
    }
    gpu_host_check(host->api->weights_bind(host->cuda, &test->problem, &test->device_desc,
                                           test->prepared, info.prepared_bytes, &test->cuda_weights,
                                           &error),
                   &error, "cuda weights");
}

void layer_case_init(struct layer_case *test, const struct gpu_host *host,
                     const struct layer_shape *shape, int64_t max_tokens, uint64_t *seed)
{
    memset(test, 0, sizeof(*test));
    test->shape = *shape;
    test->max_tokens = max_tokens;
    set_problem(test);
    MOE_INIT(test->host_desc);
    MOE_INIT(test->device_desc);
    for (int side = 0; side < 2; side++) {
        test->tables[side] = calloc((size_t)shape->num_experts * 3, sizeof(void *));
    }
    make_expert_weights(test, seed);
    make_other_weights(test, seed);
    bind_weights(test, host);
    const size_t tokens = (size_t)max_tokens;
    const size_t routes = tokens * (size_t)shape->top_k;
    const size_t hidden = (size_t)shape->hidden;
    test->tokens = make_tensor(tokens * hidden * dtype_bytes(shape->dtype));
    test->ids = make_tensor(routes * 4);
    test->weights = make_tensor(routes * 4);
    test->logits = make_tensor(tokens * (size_t)shape->num_experts * 4);
    test->residual = make_tensor(tokens * hidden * dtype_bytes(shape->output_dtype));
}

void layer_case_pack(const struct layer_case *test, const struct gpu_host *host,
                     struct layer_case *packed)
{
    *packed = *test;
    for (int side = 0; side < 2; side++) {
        packed->tables[side] = calloc((size_t)test->shape.num_experts * 3, sizeof(void *));
    }
    if ((test->shape.flags & MOE_PROBLEM_UNGATED) == 0) {
        make_table(packed, DESC(gate), 0);
    }
    make_table(packed, DESC(up), 1);
    make_table(packed, DESC(down), 2);
    bind_weights(packed, host);
}

void layer_case_unpack(struct layer_case *packed, const struct gpu_host *host)
{
    host->api->weights_destroy(packed->cpu_weights);
    host->api->weights_destroy(packed->cuda_weights);
    for (int side = 0; side < 2; side++) {
        free(packed->tables[side]);
    }
    gpu_free(packed->prepared);
}

void layer_case_finish(struct layer_case *test, const struct gpu_host *host)
{
    struct layer_tensor *inputs[] = {&test->tokens, &test->ids, &test->weights, &test->logits,
                                     &test->residual};
    host->api->weights_destroy(test->cpu_weights);
    host->api->weights_destroy(test->cuda_weights);
    for (int i = 0; i < test->num_tensors; i++) {
        free_tensor(&test->tensors[i]);
    }
    for (size_t i = 0; i < sizeof(inputs) / sizeof(inputs[0]); i++) {
        free_tensor(inputs[i]);
    }
    for (int side = 0; side < 2; side++) {
        free(test->tables[side]);
    }
    gpu_free(test->prepared);
}

/* The expert of slot `slot`, other than those of the slots before. */
static int32_t draw_id(const struct layer_case *test, int pattern, const int32_t *before,
                       int32_t slot, uint64_t *seed)
{
    const int32_t experts = test->shape.num_experts;
    const int32_t few = experts < 2 * test->shape.top_k ? experts : 2 * test->shape.top_k;
    if (pattern == LAYER_FILTERED || (pattern == LAYER_SPARSE && gpu_random(seed) % 4 == 0)) {
        return gpu_random(seed) % 2 ? -1 : experts;
    }
    if (pattern == LAYER_HOT && slot == 0) {
        return 0;
    }
    for (;;) {
        const int32_t range = pattern == LAYER_SPARSE ? few : experts;
        const int32_t id = (int32_t)(gpu_random(seed) % (uint64_t)range);
        int32_t i = 0;
        while (i < slot && before[i] != id) {
            i++;
        }
        if (i == slot) {
            return id;
        }
    }
}

/* Logits of a pattern: one expert that all choose, or few that anyone does. */
static void lean_logits(struct layer_case *test, int pattern)
{
    const struct layer_shape *shape = &test->shape;
    float *logits = test->logits.host;
    for (int64_t t = 0; t < test->max_tokens; t++) {
        float *own = logits + t * shape->num_experts;
        own[0] += pattern == LAYER_HOT ? 6.0f : 0.0f;
        for (int32_t e = 2 * shape->top_k; pattern == LAYER_SPARSE && e < shape->num_experts; e++) {
            own[e] -= 12.0f;
        }
    }
    gpu_upload(test->logits.device, logits, test->logits.bytes);
}

void layer_draw_inputs(struct layer_case *test, int pattern, uint64_t *seed)
{
    const struct layer_shape *shape = &test->shape;
    int32_t *ids = test->ids.host;
    fill_tensor(&test->tokens, shape->dtype, 1.7, seed);
    fill_tensor(&test->weights, MOE_DTYPE_FP32, 1.0, seed);
    fill_tensor(&test->logits, MOE_DTYPE_FP32, 3.0, seed);
    fill_tensor(&test->residual, shape->output_dtype, 1.0, seed);
    lean_logits(test, pattern);
    for (int64_t t = 0; t < test->max_tokens; t++) {
        int32_t *own = ids + t * shape->top_k;
        for (int32_t j = 0; j < shape->top_k; j++) {
            own[j] = draw_id(test, pattern, own, j, seed);
        }
    }
    gpu_upload(test->ids.device, test->ids.host, test->ids.bytes);
}

int32_t layer_try_plan(const struct layer_case *test, const struct gpu_host *host,
                       struct moe_context *context, uint64_t workspace_cap, struct moe_plan **plan,
                       struct moe_error *error)
{
    struct moe_plan_options options;
    MOE_INIT(options);
    options.ops = UINT64_C(1) << MOE_OP_LAYER;
    options.workspace_cap = workspace_cap;
    return host->api->plan_create(context, &test->problem, &options, plan, error);
}

struct moe_plan *layer_plan(const struct layer_case *test, const struct gpu_host *host,
                            struct moe_context *context, uint64_t workspace_cap)
{
    struct moe_error error;
    struct moe_plan *plan = NULL;
    MOE_INIT(error);
    gpu_host_check(layer_try_plan(test, host, context, workspace_cap, &plan, &error), &error,
                   test->shape.name);
    return plan;
}

uint64_t layer_workspace_bytes(const struct gpu_host *host, const struct moe_plan *plan)
{
    struct moe_error error;
    struct moe_plan_info info;
    MOE_INIT(error);
    MOE_INIT(info);
    gpu_host_check(host->api->plan_info(plan, &info, &error), &error, "plan_info");
    return info.workspace_bytes;
}

int32_t layer_run(const struct layer_case *test, const struct gpu_host *host,
                  const struct layer_call *call, struct moe_error *error)
{
    const struct layer_shape *shape = &test->shape;
    const int is_cpu = call->is_cpu;
    const int64_t routes = call->first * shape->top_k;
    struct moe_layer_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = call->num_tokens;
    args.call.num_tokens_device = call->num_tokens_device;
    args.call.stream = call->stream;
    args.call.workspace = call->workspace;
    args.call.workspace_bytes = call->workspace_bytes;
    args.weights = is_cpu ? test->cpu_weights : test->cuda_weights;
#define SIDE(tensor) ((char *)(is_cpu ? (tensor).host : (tensor).device))
    args.tokens =
        SIDE(test->tokens) + call->first * shape->hidden * (int64_t)dtype_bytes(shape->dtype);
    if (shape->gating == MOE_GATING_NONE) {
        args.topk_ids = SIDE(test->ids) + 4 * routes;
        args.topk_weights = (const float *)(const void *)(SIDE(test->weights) + 4 * routes);
    } else if (!shape->has_router || call->wants_logits) {
        args.logits = SIDE(test->logits) + 4 * call->first * shape->num_experts;
    }
    if (call->wants_residual) {
        args.residual = SIDE(test->residual) +
                        call->first * shape->hidden * (int64_t)dtype_bytes(shape->output_dtype);
    }
#undef SIDE
    args.topk_ids_out = call->ids_out;
    args.topk_weights_out = call->weights_out;
    args.output = call->output;
    args.output_stride = call->output_stride;
    return host->api->layer(call->plan, &args, error);
}
