/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA backend: probing, support rules, workspace, and the table of its operations. */
#include "backend.h"
#include "cuda_chain.h"
#include "cuda_ops.h"
#include "cuda_routing.h"
#include "cuda_state.h"
#include "cuda_weights.h"
#include "plan.h"
#include "status.h"
#include "tiles.h"
#include "weights.h"

#include <string.h>

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

static int32_t check_dtype(const char *name, const struct moe_recipe *recipe,
                           struct moe_error *error)
{
    struct moe_recipe plain;
    memset(&plain, 0, sizeof(plain));
    plain.dtype = recipe->dtype;
    bool known = recipe->dtype == 0 || recipe->dtype == MOE_DTYPE_FP32 ||
                 recipe->dtype == MOE_DTYPE_FP16 || recipe->dtype == MOE_DTYPE_BF16;
    if (!known || memcmp(&plain, recipe, sizeof(plain)) != 0) {
        return moe_error_set(
            error, MOE_STATUS_UNSUPPORTED,
            "problem.%s: the cuda backend of this version implements plain fp32, fp16 and bf16",
            name);
    }
    return MOE_STATUS_OK;
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
    struct moe_recipe output = {.dtype = problem->output_dtype};
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
    MOE_TRY(check_dtype("tokens", &problem->tokens, error));
    if ((ops & MOE_OP_BIT(MOE_OP_ACTIVATION)) != 0) {
        MOE_TRY(check_dtype("intermediate", &problem->intermediate, error));
    }
    MOE_TRY(check_dtype("output_dtype", &output, error));
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

/* supports refuses plans with the operations that are NULL here. */
const struct moe_backend moe_backend_cuda = {
    .id = MOE_BACKEND_CUDA,
    .name = "cuda",
    .min_driver = MOE_CUDA_MIN_DRIVER,
    .workspace_alignment = MOE_CUDA_WORKSPACE_ALIGNMENT,
    .probe = cuda_probe,
    .state_create = cuda_state_create,
    .state_destroy = cuda_state_destroy,
    .supports = cuda_supports,
    .op_workspace = cuda_op_workspace,
    .runs_layer = moe_cuda_runs_layer,
    .weights_prepared_bytes = moe_cuda_weights_prepared_bytes,
    .weights_prepare = moe_cuda_weights_prepare,
    .weights_bind = moe_cuda_weights_bind,
    .weights_unbind = moe_cuda_weights_unbind,
    .layer = moe_cuda_layer,
    .experts = moe_cuda_experts,
    .router = moe_cuda_router,
    .gating = moe_cuda_gating,
    .align = moe_cuda_align,
    .ep_preprocess = moe_cuda_ep_preprocess,
    .route = moe_cuda_route,
    .pre_reorder = moe_cuda_pre_reorder,
    .quantize = moe_cuda_quantize,
    .activation = moe_cuda_activation,
    .grouped_gemm = moe_cuda_grouped_gemm,
    .post_reorder = moe_cuda_post_reorder,
};
