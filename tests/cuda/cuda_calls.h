/* SPDX-License-Identifier: Apache-2.0 */
/* Calls of the operations that have CUDA kernels, with addresses that no host memory has. */
#ifndef MOE_TESTS_CUDA_CALLS_H
#define MOE_TESTS_CUDA_CALLS_H

#include "cuda_fixture.h"

enum { QUANT_COLUMNS = 128 }; /* that share a scale */

/* One size of a call; sorts need no hidden. */
struct shape {
    int64_t num_tokens;
    int32_t num_experts;
    int32_t top_k;
    int32_t hidden;
    int32_t dtype;
};

/* What run_router is called with. A plan of the router has them; one at a time. */
static struct moe_weights *router_weights;

static inline void bind_router(struct moe_context *context, const struct moe_problem *problem)
{
    struct moe_weights_desc desc;
    struct moe_error error;
    MOE_INIT(desc);
    MOE_INIT(error);
    desc.router.base = ON_DEVICE(10);
    desc.router.row_stride = problem->hidden;
    desc.router.col_stride = 1;
    desc.router.dtype = problem->tokens.dtype;
    if (api->weights_bind(context, problem, &desc, NULL, 0, &router_weights, &error) !=
        MOE_STATUS_OK) {
        fail_msg("%s", error.message);
    }
}

/* Columns of the operation's rows: the router's are whole vectors. */
static inline int32_t columns_of(const struct shape *shape, int32_t op)
{
    return op == MOE_OP_ROUTER ? (shape->hidden + 7) / 8 * 8 : shape->hidden;
}

static inline int32_t try_plan(struct moe_context *context, const struct shape *shape, int32_t op,
                               struct moe_plan **plan, struct moe_error *error)
{
    struct moe_problem problem;
    struct moe_plan_options options;
    MOE_INIT(problem);
    MOE_INIT(options);
    problem.num_experts = shape->num_experts;
    problem.top_k = shape->top_k;
    problem.hidden = columns_of(shape, op);
    problem.inter = op == MOE_OP_ACTIVATION ? shape->hidden : 0;
    problem.activation = op == MOE_OP_ACTIVATION ? MOE_ACTIVATION_SILU : 0;
    problem.tokens.dtype = shape->dtype;
    problem.max_tokens = shape->num_tokens;
    problem.gate_up.dtype = op == MOE_OP_ROUTER ? shape->dtype : 0;
    if (op == MOE_OP_GATING || op == MOE_OP_ROUTE) {
        problem.gating = MOE_GATING_SOFTMAX;
    }
    options.ops = UINT64_C(1) << op;
    const int32_t status = api->plan_create(context, &problem, &options, plan, error);
    if (status == MOE_STATUS_OK && op == MOE_OP_ROUTER) {
        bind_router(context, &problem);
    }
    return status;
}

static inline struct moe_plan *create_plan(struct moe_context *context, const struct shape *shape,
                                           int32_t op)
{
    struct moe_plan *plan = NULL;
    struct moe_error error;
    MOE_INIT(error);
    if (try_plan(context, shape, op, &plan, &error) != MOE_STATUS_OK) {
        fail_msg("%s", error.message);
    }
    return plan;
}

static inline void destroy_plan(struct moe_plan *plan)
{
    api->plan_destroy(plan);
    if (router_weights != NULL) {
        api->weights_destroy(router_weights);
        router_weights = NULL;
    }
}

static inline void set_call(const struct moe_plan *plan, const struct shape *shape, void *stream,
                            struct moe_call *call)
{
    struct moe_plan_info info;
    MOE_INIT(info);
    assert_int_equal(api->plan_info(plan, &info, NULL), MOE_STATUS_OK);
    call->num_tokens = shape->num_tokens;
    call->stream = stream;
    call->workspace = info.workspace_bytes > 0 ? ON_DEVICE(8) : NULL;
    call->workspace_bytes = info.workspace_bytes;
}

static inline int32_t run_router(const struct moe_plan *plan, const struct shape *shape,
                                 void *stream, struct moe_error *error)
{
    struct moe_router_args args;
    MOE_INIT_CALL(args);
    set_call(plan, shape, stream, &args.call);
    args.weights = router_weights;
    args.tokens = ON_DEVICE(0);
    args.logits = ON_DEVICE(1);
    return api->router(plan, &args, error);
}

static inline int32_t run_gating(const struct moe_plan *plan, const struct shape *shape,
                                 void *stream, struct moe_error *error)
{
    struct moe_gating_args args;
    MOE_INIT_CALL(args);
    set_call(plan, shape, stream, &args.call);
    args.logits = ON_DEVICE(0);
    args.topk_ids = ON_DEVICE(1);
    args.topk_weights = ON_DEVICE(2);
    return api->gating(plan, &args, error);
}

static inline int32_t run_route(const struct moe_plan *plan, const struct shape *shape,
                                void *stream, struct moe_error *error)
{
    struct moe_route_args args;
    MOE_INIT_CALL(args);
    set_call(plan, shape, stream, &args.call);
    args.logits = ON_DEVICE(0);
    args.topk_ids = ON_DEVICE(1);
    args.topk_weights = ON_DEVICE(2);
    args.seg_indptr = ON_DEVICE(3);
    args.src2dst = ON_DEVICE(4);
    return api->route(plan, &args, error);
}

static inline int32_t run_align(const struct moe_plan *plan, const struct shape *shape,
                                void *stream, struct moe_error *error)
{
    struct moe_align_args args;
    MOE_INIT_CALL(args);
    set_call(plan, shape, stream, &args.call);
    args.topk_ids = ON_DEVICE(0);
    args.block_size = 128;
    args.sorted_ids = ON_DEVICE(1);
    args.expert_ids = ON_DEVICE(2);
    args.num_tokens_post_pad = ON_DEVICE(3);
    assert_int_equal(api->align_capacity(shape->num_tokens * shape->top_k, shape->num_experts,
                                         args.block_size, 0, &args.sorted_capacity,
                                         &args.expert_capacity, NULL),
                     MOE_STATUS_OK);
    return api->align_block_size(plan, &args, error);
}

static inline int32_t run_ep_preprocess(const struct moe_plan *plan, const struct shape *shape,
                                        void *stream, struct moe_error *error)
{
    struct moe_ep_preprocess_args args;
    MOE_INIT_CALL(args);
    set_call(plan, shape, stream, &args.call);
    args.topk_ids = ON_DEVICE(0);
    args.seg_indptr = ON_DEVICE(1);
    args.src2dst = ON_DEVICE(2);
    return api->ep_preprocess(plan, &args, error);
}

static inline int32_t run_pre_reorder(const struct moe_plan *plan, const struct shape *shape,
                                      void *stream, struct moe_error *error)
{
    struct moe_pre_reorder_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = shape->num_tokens;
    args.call.stream = stream;
    args.tokens = ON_DEVICE(0);
    args.src2dst = ON_DEVICE(1);
    args.rows = ON_DEVICE(2);
    args.num_rows = shape->num_tokens * shape->top_k;
    return api->pre_reorder(plan, &args, error);
}

static inline int32_t run_post_reorder(const struct moe_plan *plan, const struct shape *shape,
                                       void *stream, struct moe_error *error)
{
    struct moe_post_reorder_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = shape->num_tokens;
    args.call.stream = stream;
    args.rows = ON_DEVICE(0);
    args.num_rows = shape->num_tokens * shape->top_k;
    args.src2dst = ON_DEVICE(1);
    args.topk_weights = ON_DEVICE(2);
    args.output = ON_DEVICE(3);
    return api->post_reorder(plan, &args, error);
}

/* fp8 in groups of QUANT_COLUMNS, scales from the data and in rows. */
static inline void set_dynamic_fp8(struct moe_recipe *recipe)
{
    recipe->dtype = MOE_DTYPE_FP8_E4M3;
    recipe->scale_dtype = MOE_DTYPE_FP32;
    recipe->scale_layout = MOE_SCALE_ROW_MAJOR;
    recipe->group_rows = 1;
    recipe->group_k = QUANT_COLUMNS;
    recipe->dynamic = 1;
}

static inline int32_t run_quantize(const struct moe_plan *plan, const struct shape *shape,
                                   void *stream, struct moe_error *error)
{
    struct moe_quantize_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = shape->num_tokens;
    args.call.stream = stream;
    args.tokens = ON_DEVICE(0);
    args.output = ON_DEVICE(1);
    args.output_scales = ON_DEVICE(2);
    set_dynamic_fp8(&args.quantization);
    return api->quantize(plan, &args, error);
}

static inline int32_t run_activation(const struct moe_plan *plan, const struct shape *shape,
                                     void *stream, struct moe_error *error)
{
    struct moe_activation_args args;
    MOE_INIT_CALL(args);
    args.call.stream = stream;
    args.input = ON_DEVICE(0);
    args.num_rows = shape->num_tokens * shape->top_k;
    args.output = ON_DEVICE(1);
    return api->activation(plan, &args, error);
}

static inline int32_t run_sum_reduce(const struct moe_plan *plan, const struct shape *shape,
                                     void *stream, struct moe_error *error)
{
    struct moe_sum_reduce_args args;
    MOE_INIT_CALL(args);
    args.call.num_tokens = shape->num_tokens;
    args.call.stream = stream;
    args.input = ON_DEVICE(0);
    args.output = ON_DEVICE(1);
    return api->sum_reduce(plan, &args, error);
}

typedef int32_t run_fn(const struct moe_plan *plan, const struct shape *shape, void *stream,
                       struct moe_error *error);

/* The operations that have CUDA kernels. */
static const struct {
    int32_t op;
    const char *name; /* in configurations */
    run_fn *run;
} ops[] = {
    {MOE_OP_ROUTER, "router", run_router},
    {MOE_OP_GATING, "gating", run_gating},
    {MOE_OP_ROUTE, "route", run_route},
    {MOE_OP_ALIGN_BLOCK_SIZE, "align_block_size", run_align},
    {MOE_OP_EP_PREPROCESS, "ep_preprocess", run_ep_preprocess},
    {MOE_OP_PRE_REORDER, "pre_reorder", run_pre_reorder},
    {MOE_OP_QUANTIZE, "quantize", run_quantize},
    {MOE_OP_ACTIVATION, "activation", run_activation},
    {MOE_OP_POST_REORDER, "post_reorder", run_post_reorder},
    {MOE_OP_SUM_REDUCE, "sum_reduce", run_sum_reduce},
};
enum { NUM_OPS = sizeof(ops) / sizeof(ops[0]) };

#endif
