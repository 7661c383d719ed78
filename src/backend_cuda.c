/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA backend: probing, support rules, workspace, and the table of its operations. */
#include "backend.h"
#include "cuda_chain.h"
#include "cuda_ops.h"
#include "cuda_routing.h"
#include "cuda_state.h"
#include "cuda_weights.h"
#include "plan.h"
#include "recipe.h"
#include "status.h"
#include "tiles.h"
#include "weights.h"

static int32_t cuda_probe(int32_t ordinal, struct moe_device *out, struct moe_error *error)
{
    struct moe_cuda_driver driver;
    MOE_TRY(moe_cuda_driver_open(&driver, error));
    int32_t status = moe_cuda_state_describe(&driver, ordinal, out, error);
    moe_cuda_driver_close(&driver);
    return status;
}

static int32_t cuda_state_create(const struct moe_memory *memory,
                                 const struct moe_context_options *options,
                                 struct moe_device *device, void **out, struct moe_error *error)
{
    struct moe_cuda_state *state = NULL;
    if (options->num_threads != 0) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "context options: num_threads is %d, but the cuda backend has no threads",
            options->num_threads);
    }
    MOE_TRY(moe_cuda_state_create(memory, options->ordinal, device, &state, error));
    *out = state;
    return MOE_STATUS_OK;
}

static void cuda_state_destroy(const struct moe_memory *memory, void *state)
{
    moe_cuda_state_destroy(memory, state);
}

/* Rows that are moved, quantized or activated. problem.c has checked fp8 recipes. */
static int32_t check_rows(const char *name, const struct moe_recipe *recipe,
                          struct moe_error *error)
{
    if (moe_recipe_is_plain(recipe) || moe_recipe_is_fp8(recipe)) {
        return MOE_STATUS_OK;
    }
    return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                         "problem.%s is %s%s; the cuda backend of this version implements plain "
                         "fp32, fp16 and bf16, and fp8_e4m3",
                         name, moe_dtype_name(recipe->dtype),
                         moe_recipe_is_plain(&(struct moe_recipe){.dtype = recipe->dtype})
                             ? " with scales, groups or a packing"
                             : "");
}

/* Each operation asks for what it reads and writes, and for nothing else: sorts have no rows. */
static int32_t check_row_types(const struct moe_problem *problem, uint64_t ops,
                               struct moe_error *error)
{
    const uint64_t activation = MOE_OP_BIT(MOE_OP_ACTIVATION);
    const uint64_t tokens =
        MOE_OP_BIT(MOE_OP_PRE_REORDER) | MOE_OP_BIT(MOE_OP_QUANTIZE) | activation;
    const uint64_t outputs = MOE_OP_BIT(MOE_OP_POST_REORDER) | MOE_OP_BIT(MOE_OP_SUM_REDUCE);
    const struct moe_recipe output = {.dtype = problem->output_dtype};
    if ((ops & tokens) != 0) {
        MOE_TRY(check_rows("tokens", &problem->tokens, error));
    }
    if ((ops & activation) != 0) {
        MOE_TRY(check_rows("intermediate", &problem->intermediate, error));
    }
    return (ops & outputs) != 0 ? check_rows("output_dtype", &output, error) : MOE_STATUS_OK;
}

static int32_t cuda_supports(const struct moe_device *device, const struct moe_problem *problem,
                             uint64_t ops, struct moe_error *error)
{
    const uint64_t known = MOE_OP_BIT(MOE_OP_ALIGN_BLOCK_SIZE) | MOE_OP_BIT(MOE_OP_EP_PREPROCESS) |
                           MOE_OP_BIT(MOE_OP_PRE_REORDER) | MOE_OP_BIT(MOE_OP_QUANTIZE) |
                           MOE_OP_BIT(MOE_OP_ACTIVATION) | MOE_OP_BIT(MOE_OP_POST_REORDER) |
                           MOE_OP_BIT(MOE_OP_SUM_REDUCE) | MOE_OP_BIT(MOE_OP_ROUTER) |
                           MOE_OP_BIT(MOE_OP_GEMM1) | MOE_OP_BIT(MOE_OP_GEMM2) |
                           MOE_OP_BIT(MOE_OP_EXPERTS) | MOE_OP_BIT(MOE_OP_LAYER) |
                           MOE_OP_BIT(MOE_OP_GATING) | MOE_OP_BIT(MOE_OP_ROUTE);
    if ((ops & ~known) != 0) {
        int32_t op = 0;
        while ((ops & ~known & MOE_OP_BIT(op)) == 0) {
            op++;
        }
        return moe_error_set(
            error, MOE_STATUS_UNSUPPORTED,
            "%s has no cuda kernel in this version; take it out of moe_plan_options.ops",
            moe_tiles_op_name(op));
    }
    MOE_TRY(moe_cuda_supports_routing(device, problem, ops, error));
    MOE_TRY(check_row_types(problem, ops, error));
    return moe_cuda_supports_gemms(device, problem, ops, error);
}

static uint64_t cuda_op_workspace(const struct moe_plan *plan,
                                  const struct moe_dispatch_bucket *bucket, int32_t op,
                                  int64_t num_tokens)
{
    switch (op) {
    case MOE_OP_ALIGN_BLOCK_SIZE:
    case MOE_OP_EP_PREPROCESS:
    case MOE_OP_ROUTE:
        return moe_cuda_sort_workspace(&plan->problem, &moe_tiles[bucket->choices[op].tile],
                                       num_tokens);
    case MOE_OP_LAYER:
        return moe_cuda_layer_workspace(plan, bucket, num_tokens);
    case MOE_OP_EXPERTS:
        return moe_cuda_experts_workspace(plan, num_tokens);
    default:
        return 0;
    }
}

/* Run calls, with the context current while they launch. A parameter list in each, since the table
 * has two kinds of functions. */
#define RUN_IN_CONTEXT(name, call, ...)                               \
    static int32_t run_##name(const struct moe_run *run, __VA_ARGS__) \
    {                                                                 \
        const struct moe_cuda_state *state = moe_cuda_state_of(run);  \
        MOE_TRY(moe_cuda_state_enter(state, error));                  \
        const int32_t status = (call);                                \
        moe_cuda_state_leave(state);                                  \
        return status;                                                \
    }
#define RUN_OP(name, type)                                                       \
    RUN_IN_CONTEXT(name, moe_cuda_##name(run, op, error), const struct type *op, \
                   struct moe_error *error)
#define RUN_OP_ID(name, type)                                                   \
    RUN_IN_CONTEXT(name, moe_cuda_##name(run, op_id, op, error), int32_t op_id, \
                   const struct type *op, struct moe_error *error)

RUN_OP(layer, moe_op_layer)
RUN_OP(experts, moe_op_experts)
RUN_OP(router, moe_op_router)
RUN_OP(gating, moe_op_gating)
RUN_OP(align, moe_op_align)
RUN_OP(ep_preprocess, moe_op_ep_preprocess)
RUN_OP(route, moe_op_route)
RUN_OP(pre_reorder, moe_op_pre_reorder)
RUN_OP(quantize, moe_op_quantize)
RUN_OP(activation, moe_op_activation)
RUN_OP_ID(grouped_gemm, moe_op_gemm)
RUN_OP_ID(post_reorder, moe_op_post_reorder)

static int32_t cuda_weights_prepare(const struct moe_context *context,
                                    const struct moe_problem *problem,
                                    const struct moe_weights_desc *desc, void *prepared,
                                    void *stream, struct moe_error *error)
{
    const struct moe_cuda_state *state = context->state;
    MOE_TRY(moe_cuda_state_enter(state, error));
    const int32_t status =
        moe_cuda_weights_prepare(context, problem, desc, prepared, stream, error);
    moe_cuda_state_leave(state);
    return status;
}

/* supports refuses plans with the operations that are NULL here. */
const struct moe_backend moe_backend_cuda = {
    .id = MOE_BACKEND_CUDA,
    .name = "cuda",
    .min_driver = MOE_CUDA_MIN_DRIVER,
    .workspace_alignment = MOE_CUDA_WORKSPACE_ALIGNMENT,
    .layer_ops = MOE_OP_BIT(MOE_OP_PRE_REORDER), /* for a GEMM1 that reads rows in order */
    .probe = cuda_probe,
    .state_create = cuda_state_create,
    .state_destroy = cuda_state_destroy,
    .supports = cuda_supports,
    .op_workspace = cuda_op_workspace,
    .runs_layer = moe_cuda_runs_layer,
    .weights_prepared_bytes = moe_cuda_weights_prepared_bytes,
    .weights_prepare = cuda_weights_prepare,
    .weights_bind = moe_cuda_weights_bind,
    .weights_unbind = moe_cuda_weights_unbind,
    .layer = run_layer,
    .experts = run_experts,
    .router = run_router,
    .gating = run_gating,
    .align = run_align,
    .ep_preprocess = run_ep_preprocess,
    .route = run_route,
    .pre_reorder = run_pre_reorder,
    .quantize = run_quantize,
    .activation = run_activation,
    .grouped_gemm = run_grouped_gemm,
    .post_reorder = run_post_reorder,
};
