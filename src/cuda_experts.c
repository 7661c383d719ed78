/* SPDX-License-Identifier: Apache-2.0 */
/*
 * experts on a GPU: GEMM1 and GEMM2 on rows that are dispatched already. Rows run in passes when
 * their intermediate does not fit the workspace: a window of contiguous rows, the masked rows of
 * some experts, or a part of one expert's. A helper clips the segments to each pass.
 */
#include "cuda_args.h"
#include "cuda_chain.h"
#include "cuda_ops.h"
#include "cuda_weights.h"
#include "plan.h"
#include "problem.h"
#include "status.h"

/* Workspace of one pass. */
struct experts_layout {
    uint64_t segments; /* int64 [E + 1], or int32 [E] of masked rows */
    uint64_t inter;    /* [rows, I] */
    uint64_t total;
};

static void lay_out_experts(const struct moe_problem *problem, int64_t num_rows,
                            struct experts_layout *out)
{
    const uint64_t row_bytes =
        (uint64_t)problem->inter * (uint64_t)moe_dtype_bytes(problem->intermediate.dtype);
    uint64_t total = 0;
    out->segments = moe_cuda_append(&total, ((uint64_t)problem->num_experts + 1) * sizeof(int64_t));
    out->inter = moe_cuda_append(&total, (uint64_t)num_rows * row_bytes);
    out->total = total;
}

/* Rows that one pass takes with the workspace of `num_tokens` tokens. */
static int64_t pass_rows(const struct moe_plan *plan, int64_t num_tokens)
{
    return (num_tokens > 0 ? num_tokens : 1) * moe_problem_num_slots(&plan->problem);
}

uint64_t moe_cuda_experts_workspace(const struct moe_plan *plan, int64_t num_tokens)
{
    struct experts_layout layout;
    lay_out_experts(&plan->problem, pass_rows(plan, num_tokens), &layout);
    return layout.total;
}

/* An experts call in progress. */
struct experts_run {
    struct moe_run run; /* is_chained from the second launch on */
    const struct moe_op_experts *op;
    struct experts_layout layout;
    struct moe_op_gemm gemm1, gemm2;
};

/* All rows at once, as the host describes them. */
static void fill_whole(struct experts_run *experts)
{
    const struct moe_op_experts *op = experts->op;
    struct moe_op_gemm *gemms[] = {&experts->gemm1, &experts->gemm2};
    for (int i = 0; i < 2; i++) {
        gemms[i]->seg_indptr = op->seg_indptr;
        gemms[i]->masked_m = op->masked_m;
        gemms[i]->max_masked_rows = op->max_masked_rows;
        gemms[i]->num_rows = op->num_rows;
    }
    experts->gemm1.input = op->rows;
    experts->gemm1.row_weights = op->row_weights;
    experts->gemm2.output = op->output;
}

/* The launch before a pass's GEMMs. */
static int32_t run_helper(struct experts_run *experts, int32_t helper, const void *args,
                          struct moe_error *error)
{
    const struct moe_cuda_launch launch = {
        .tile = helper,
        .grid_x = 1,
        .grid_y = 1,
        .num_threads = MOE_CUDA_HELPER_THREADS,
        .is_chained = experts->run.is_chained,
        .args = args,
    };
    MOE_TRY(moe_cuda_state_launch(moe_cuda_state_of(&experts->run), experts->run.stream, &launch,
                                  error));
    experts->run.is_chained = 1;
    return MOE_STATUS_OK;
}

/* The window [first, last) of contiguous rows. */
static int32_t fill_window(struct experts_run *experts, int64_t first, int64_t last,
                           struct moe_error *error)
{
    const struct moe_op_experts *op = experts->op;
    const struct moe_problem *problem = &experts->run.plan->problem;
    const int64_t token_bytes = moe_dtype_bytes(problem->tokens.dtype);
    const int64_t output_bytes = moe_dtype_bytes(problem->output_dtype);
    char *workspace = experts->run.workspace;
    const struct moe_cuda_clip_segments args = {
        .seg_indptr = op->seg_indptr,
        .out = (int64_t *)(void *)(workspace + experts->layout.segments),
        .first = first,
        .last = last,
        .num_segments = problem->num_experts,
    };
    MOE_TRY(run_helper(experts, MOE_CUDA_CLIP_SEGMENTS, &args, error));
    experts->gemm1.seg_indptr = args.out;
    experts->gemm1.num_rows = last - first;
    experts->gemm1.input = (const char *)op->rows + first * op->row_stride * token_bytes;
    experts->gemm1.row_weights = op->row_weights != NULL ? op->row_weights + first : NULL;
    experts->gemm2.seg_indptr = args.out;
    experts->gemm2.num_rows = last - first;
    experts->gemm2.output = (char *)op->output + first * op->output_stride * output_bytes;
    return MOE_STATUS_OK;
}

/*
 * Rows [first_row, first_row + num_rows) of the experts [first, last), whose rows lie one after the
 * other: of all their rows, or of one expert. The kernels address row i of expert e as
 * e * max_masked_rows + i, so what is a part only is moved back by what is left out of it.
 */
static int32_t fill_masked_window(struct experts_run *experts, int32_t first, int32_t last,
                                  int64_t first_row, int64_t num_rows, struct moe_error *error)
{
    const struct moe_op_experts *op = experts->op;
    const struct moe_problem *problem = &experts->run.plan->problem;
    const int64_t token_bytes = moe_dtype_bytes(problem->tokens.dtype);
    const int64_t output_bytes = moe_dtype_bytes(problem->output_dtype);
    const int64_t inter_bytes =
        (int64_t)problem->inter * moe_dtype_bytes(problem->intermediate.dtype);
    char *workspace = experts->run.workspace;
    const struct moe_cuda_clip_masked args = {
        .masked_m = op->masked_m,
        .out = (int32_t *)(void *)(workspace + experts->layout.segments),
        .first_row = first_row,
        .num_rows = num_rows,
        .first_expert = first,
        .last_expert = last,
        .num_experts = problem->num_experts,
    };
    /* Rows that the kernels may address, from where a window's operands begin. */
    const int64_t addressed = (last - 1) * op->max_masked_rows + num_rows;
    const uintptr_t inter = (uintptr_t)workspace + experts->layout.inter -
                            (uintptr_t)(first * op->max_masked_rows * inter_bytes);
    MOE_TRY(run_helper(experts, MOE_CUDA_CLIP_MASKED, &args, error));
    experts->gemm1.masked_m = args.out;
    experts->gemm1.max_masked_rows = op->max_masked_rows;
    experts->gemm1.num_rows = addressed;
    experts->gemm1.input = (const char *)op->rows + first_row * op->row_stride * token_bytes;
    experts->gemm1.row_weights = op->row_weights != NULL ? op->row_weights + first_row : NULL;
    experts->gemm1.output = (void *)inter;
    experts->gemm2.masked_m = args.out;
    experts->gemm2.max_masked_rows = op->max_masked_rows;
    experts->gemm2.num_rows = addressed;
    experts->gemm2.input = experts->gemm1.output;
    experts->gemm2.output = (char *)op->output + first_row * op->output_stride * output_bytes;
    return MOE_STATUS_OK;
}

static int32_t run_gemms(struct experts_run *experts, struct moe_error *error)
{
    MOE_TRY(moe_cuda_run_gemm(&experts->run, MOE_OP_GEMM1, &experts->gemm1, MOE_CUDA_GATE, 0, NULL,
                              error));
    return moe_cuda_run_gemm(&experts->run, MOE_OP_GEMM2, &experts->gemm2, MOE_CUDA_DOWN, 1, NULL,
                             error);
}

static int32_t run_windows(struct experts_run *experts, int64_t rows_per_pass,
                           struct moe_error *error)
{
    const int64_t num_rows = experts->op->num_rows;
    for (int64_t first = 0; first < num_rows; first += rows_per_pass) {
        const int64_t last = num_rows - first < rows_per_pass ? num_rows : first + rows_per_pass;
        MOE_TRY(fill_window(experts, first, last, error));
        MOE_TRY(run_gemms(experts, error));
    }
    return MOE_STATUS_OK;
}

/* As many experts as fit a pass, or parts of one. */
static int32_t run_masked_windows(struct experts_run *experts, int64_t rows_per_pass,
                                  struct moe_error *error)
{
    const int32_t num_experts = experts->run.plan->problem.num_experts;
    const int64_t num_rows = experts->op->max_masked_rows;
    const int64_t fit = rows_per_pass / num_rows;
    const int32_t num_together = (int32_t)(fit > 1 ? fit : 1); /* below num_experts */
    for (int32_t first = 0; first < num_experts; first += num_together) {
        const int32_t last =
            num_experts - first < num_together ? num_experts : first + num_together;
        const int64_t step = fit > 0 ? num_rows : rows_per_pass;
        for (int64_t row = 0; row < num_rows; row += step) {
            const int64_t left = num_rows - row;
            MOE_TRY(
                fill_masked_window(experts, first, last, row, left < step ? left : step, error));
            MOE_TRY(run_gemms(experts, error));
        }
    }
    return MOE_STATUS_OK;
}

int32_t moe_cuda_experts(const struct moe_run *run, const struct moe_op_experts *op,
                         struct moe_error *error)
{
    const struct moe_plan *plan = run->plan;
    const struct moe_problem *problem = &plan->problem;
    const int64_t rows_per_pass = pass_rows(plan, plan->chunk_tokens);
    struct experts_run experts = {.run = *run,
                                  .op = op,
                                  .gemm1 = moe_cuda_make_gemm1(problem, problem->inter),
                                  .gemm2 = moe_cuda_make_gemm2(problem, problem->inter)};
    MOE_TRY(moe_cuda_check_rows("experts: rows", op->rows, op->row_stride, problem->tokens.dtype,
                                error));
    experts.run.weights = op->weights;
    lay_out_experts(problem, op->num_rows < rows_per_pass ? op->num_rows : rows_per_pass,
                    &experts.layout);
    experts.gemm1.num_segments = problem->num_experts;
    experts.gemm1.num_experts = problem->num_experts;
    experts.gemm1.input_stride = op->row_stride;
    experts.gemm1.output = (char *)run->workspace + experts.layout.inter;
    experts.gemm2.num_segments = problem->num_experts;
    experts.gemm2.num_experts = problem->num_experts;
    experts.gemm2.input = experts.gemm1.output;
    experts.gemm2.output_stride = op->output_stride;
    if (op->num_rows <= rows_per_pass) {
        fill_whole(&experts);
        return run_gemms(&experts, error);
    }
    return op->masked_m != NULL ? run_masked_windows(&experts, rows_per_pass, error)
                                : run_windows(&experts, rows_per_pass, error);
}
