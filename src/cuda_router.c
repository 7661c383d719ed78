/* SPDX-License-Identifier: Apache-2.0 */
/* Geometry of the router on a GPU, which also makes the factor of a shared expert. */
#include "cuda_args.h"
#include "cuda_ops.h"
#include "plan.h"
#include "status.h"

enum { GRID_Y_LIMIT = 65535 };

/* With one expert and applies_sigmoid: the shared expert's factors. */
static int32_t launch_router(const struct moe_run *run, const struct moe_op_router *op,
                             int32_t applies_sigmoid, struct moe_error *error)
{
    const struct moe_tile *tile = moe_cuda_tile_of(run, MOE_OP_ROUTER);
    const int64_t blocks = (op->num_tokens + tile->block_m - 1) / tile->block_m;
    struct moe_cuda_router args = {.op = *op, .applies_sigmoid = applies_sigmoid};
    if (op->weight.table != NULL) {
        args.op.weight.base = op->weight.table[0];
        args.op.weight.table = NULL;
    }
    if (op->bias.table != NULL) {
        args.op.bias.base = op->bias.table[0];
        args.op.bias.table = NULL;
    }
    struct moe_cuda_launch launch = {
        .tile = tile->id,
        .grid_x = (uint32_t)((op->num_experts + tile->block_n - 1) / tile->block_n),
        .grid_y = (uint32_t)(blocks < GRID_Y_LIMIT ? blocks : GRID_Y_LIMIT),
        .num_threads = MOE_CUDA_ROUTER_WARPS * 32,
        .is_chained = run->is_chained,
        .form = op->token_dtype == MOE_DTYPE_FP32 || op->weight.dtype == MOE_DTYPE_FP32
                    ? MOE_CUDA_ROUTER_WIDE
                    : MOE_CUDA_ROUTER_HALF,
        .args = &args,
    };
    return moe_cuda_state_launch(moe_cuda_state_of(run), run->stream, &launch, error);
}

int32_t moe_cuda_router(const struct moe_run *run, const struct moe_op_router *op,
                        struct moe_error *error)
{
    MOE_TRY(moe_cuda_check_rows("router: tokens", op->tokens, op->token_stride, op->token_dtype,
                                error));
    return launch_router(run, op, 0, error);
}

int32_t moe_cuda_shared_factor(const struct moe_run *run, const struct moe_op_router *op,
                               struct moe_error *error)
{
    return launch_router(run, op, 1, error);
}
