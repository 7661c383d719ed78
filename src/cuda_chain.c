/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_chain.h"

#include "cuda_ops.h"
#include "problem.h"
#include "status.h"

struct moe_op_gemm moe_cuda_make_gemm1(const struct moe_problem *problem, int32_t inter)
{
    const bool ungated = (problem->flags & MOE_PROBLEM_UNGATED) != 0;
    struct moe_op_gemm gemm = {
        .row_ids_div = 1,
        .input_dtype = problem->tokens.dtype,
        .output_dtype = problem->intermediate.dtype,
        .output_stride = inter,
        .n = inter,
        .k = problem->hidden,
        .num_matrices = ungated ? 1 : 2,
        .has_activation = 1,
        .act = {problem->activation, ungated, problem->act_alpha, problem->act_limit},
    };
    return gemm;
}

struct moe_op_gemm moe_cuda_make_gemm2(const struct moe_problem *problem, int32_t inter)
{
    struct moe_op_gemm gemm = {
        .row_ids_div = 1,
        .input_dtype = problem->intermediate.dtype,
        .output_dtype = problem->output_dtype,
        .input_stride = inter,
        .output_stride = problem->hidden,
        .n = problem->hidden,
        .k = inter,
        .num_matrices = 1,
    };
    return gemm;
}

int32_t moe_cuda_run_gemm(struct moe_run *run, int32_t op_id, const struct moe_op_gemm *gemm,
                          int32_t first_matrix, int32_t is_early,
                          const struct moe_cuda_gemm_routes *routes, struct moe_error *error)
{
    MOE_TRY(moe_cuda_gemm(run, op_id, gemm, first_matrix, is_early, routes, error));
    run->is_chained = 1;
    return MOE_STATUS_OK;
}
