/* SPDX-License-Identifier: Apache-2.0 */
/*
 * router: logits[t, e] = tokens[t] . weight[e] (+ bias[e]), rounded to the logits' type.
 *
 * It is the grouped GEMM with one segment that holds all tokens, one matrix, and experts as output
 * channels: bytes, FLOPs, bounds and arithmetic are those of gemm.h.
 */
#include "gemm.h"

/* `segment` (two numbers) must outlive the result. */
static struct moe_op_gemm gemm_of(const struct moe_op_router *router, int64_t segment[2])
{
    segment[0] = 0;
    segment[1] = router->num_tokens;
    struct moe_op_gemm gemm = {
        .num_segments = 1,
        .seg_indptr = segment,
        .num_experts = 1,
        .num_rows = router->num_tokens,
        .row_ids_div = 1,
        .input = router->tokens,
        .input_stride = router->token_stride,
        .output = router->logits,
        .output_stride = router->logits_stride,
        .input_dtype = router->token_dtype,
        .output_dtype = router->logits_dtype,
        .n = router->num_experts,
        .k = router->hidden,
        .num_matrices = 1,
        .weight = {router->weight},
        .bias = {router->bias},
    };
    return gemm;
}

int64_t MOE_CPU_NAME(moe_cpu_router_num_tasks)(const void *op, const struct moe_tile *tile)
{
    int64_t segment[2];
    const struct moe_op_gemm gemm = gemm_of(op, segment);
    return MOE_CPU_NAME(moe_cpu_gemm_num_tasks)(&gemm, tile);
}

uint64_t MOE_CPU_NAME(moe_cpu_router_scratch_bytes)(const void *op, const struct moe_tile *tile)
{
    int64_t segment[2];
    const struct moe_op_gemm gemm = gemm_of(op, segment);
    return MOE_CPU_NAME(moe_cpu_gemm_scratch_bytes)(&gemm, tile);
}

void MOE_CPU_NAME(moe_cpu_router_run)(const void *op, const struct moe_tile *tile, int64_t task,
                                      void *scratch)
{
    int64_t segment[2];
    const struct moe_op_gemm gemm = gemm_of(op, segment);
    MOE_CPU_NAME(moe_cpu_gemm_run)(&gemm, tile, task, scratch);
}
