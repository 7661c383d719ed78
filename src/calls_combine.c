/* SPDX-License-Identifier: Apache-2.0 */
/* Run calls that combine the rows of a token: post_reorder, sum_reduce. */
#include "call_check.h"
#include "calls.h"
#include "status.h"
#include "structs.h"

#include <stddef.h>

/* `output` may be residual or shared itself, and nothing else. */
static int32_t check_reorder_overlap(const struct moe_plan *plan,
                                     const struct moe_post_reorder_args *own,
                                     struct moe_error *error)
{
    static const char op[] = "post_reorder";
    const struct moe_problem *problem = &plan->problem;
    const int64_t num_tokens = own->call.num_tokens, hidden = problem->hidden;
    const int64_t num_routes = num_tokens * moe_problem_num_slots(problem);
    const int32_t dtype = problem->output_dtype;
    const struct moe_span output =
        moe_call_span(own->output, num_tokens, hidden, own->output_stride, dtype);
    struct moe_call_tensors tensors = {.num_outputs = 0};
    moe_call_add_output(&tensors, (struct moe_call_tensor){"output", output});
    moe_call_add_input(
        &tensors, (struct moe_call_tensor){"rows", moe_call_span(own->rows, own->num_rows, hidden,
                                                                 own->row_stride, dtype)});
    moe_call_add_input(&tensors,
                       moe_call_array("src2dst", own->src2dst, num_routes, sizeof(int32_t)));
    moe_call_add_input(
        &tensors, moe_call_array("topk_weights", own->topk_weights, num_routes, sizeof(float)));
    moe_call_add_input(
        &tensors, moe_call_array("shared_factor", own->shared_factor, num_tokens, sizeof(float)));
    moe_call_add_common(&tensors, plan, MOE_OP_POST_REORDER, &own->call);
    MOE_TRY(moe_call_check_tensors(op, &tensors, error));
    MOE_TRY(moe_call_check_overlap(
        op, "output", output, "shared",
        moe_call_span(own->shared, num_tokens, hidden, own->shared_stride, dtype), 1, error));
    return moe_call_check_overlap(
        op, "output", output, "residual",
        moe_call_span(own->residual, num_tokens, hidden, own->residual_stride, dtype), 1, error);
}

int32_t moe_calls_post_reorder(const struct moe_plan *plan,
                               const struct moe_post_reorder_args *args, struct moe_error *error)
{
    static const char op[] = "post_reorder";
    struct moe_post_reorder_args own;
    struct moe_run run;
    MOE_TRY(moe_call_check_plan(plan, MOE_OP_POST_REORDER, error));
    MOE_TRY(MOE_STRUCT_READ(&own, args, moe_post_reorder_args, error));
    MOE_TRY(moe_call_begin(plan, MOE_OP_POST_REORDER, &own.call, own.call.num_tokens, &run, error));
    const struct moe_problem *problem = &plan->problem;
    const int64_t num_tokens = own.call.num_tokens, hidden = problem->hidden;
    const int32_t dtype = problem->output_dtype;
    MOE_TRY(moe_call_check_num_rows(op, plan, own.num_rows, error));
    if (own.topk_weights != NULL && (problem->flags & MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT) != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "post_reorder: topk_weights are given, but the problem applies the "
                             "routing weight on the input");
    }
    if (own.shared_factor != NULL && own.shared == NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "post_reorder: shared_factor is given without shared");
    }
    MOE_TRY(moe_call_resolve_stride(op, "row_stride", &own.row_stride, hidden, error));
    MOE_TRY(moe_call_resolve_stride(op, "shared_stride", &own.shared_stride, hidden, error));
    MOE_TRY(moe_call_resolve_stride(op, "residual_stride", &own.residual_stride, hidden, error));
    MOE_TRY(moe_call_resolve_stride(op, "output_stride", &own.output_stride, hidden, error));
    MOE_TRY(moe_call_check_tensor(op, "rows", own.rows, dtype, own.num_rows, error));
    MOE_TRY(moe_call_check_tensor(op, "output", own.output, dtype, num_tokens, error));
    MOE_TRY(moe_call_check_tensor(op, "shared", own.shared, dtype, 0, error));
    MOE_TRY(moe_call_check_tensor(op, "residual", own.residual, dtype, 0, error));
    MOE_TRY(moe_call_check_array(op, "src2dst", own.src2dst, sizeof(int32_t), num_tokens, error));
    MOE_TRY(moe_call_check_array(op, "topk_weights", own.topk_weights, sizeof(float), 0, error));
    MOE_TRY(moe_call_check_array(op, "shared_factor", own.shared_factor, sizeof(float), 0, error));
    MOE_TRY(check_reorder_overlap(plan, &own, error));
    if (plan->backend->id == MOE_BACKEND_CPU) {
        MOE_TRY(moe_call_check_destinations(
            op, own.src2dst, run.num_tokens * moe_problem_num_slots(problem), own.num_rows, error));
    }
    if (run.num_tokens == 0) {
        return MOE_STATUS_OK;
    }
    struct moe_op_post_reorder reorder = {
        .num_tokens = run.num_tokens,
        .num_tokens_device = run.num_tokens_device,
        .top_k = moe_problem_num_slots(problem),
        .hidden = problem->hidden,
        .dtype = dtype,
        .scaling = problem->scaling_on == MOE_SCALING_OUTPUT ? problem->routed_scaling : 1.0f,
        .rows = own.rows,
        .row_stride = own.row_stride,
        .num_rows = own.num_rows,
        .src2dst = own.src2dst,
        .topk_weights = own.topk_weights,
        .shared = own.shared,
        .shared_stride = own.shared_stride,
        .shared_factor = own.shared_factor,
        .residual = own.residual,
        .residual_stride = own.residual_stride,
        .output = own.output,
        .output_stride = own.output_stride,
    };
    return plan->backend->post_reorder(&run, MOE_OP_POST_REORDER, &reorder, error);
}

int32_t moe_calls_sum_reduce(const struct moe_plan *plan, const struct moe_sum_reduce_args *args,
                             struct moe_error *error)
{
    static const char op[] = "sum_reduce";
    struct moe_sum_reduce_args own;
    struct moe_run run;
    MOE_TRY(moe_call_check_plan(plan, MOE_OP_SUM_REDUCE, error));
    MOE_TRY(MOE_STRUCT_READ(&own, args, moe_sum_reduce_args, error));
    MOE_TRY(moe_call_begin(plan, MOE_OP_SUM_REDUCE, &own.call, own.call.num_tokens, &run, error));
    const struct moe_problem *problem = &plan->problem;
    const int64_t num_tokens = own.call.num_tokens, hidden = problem->hidden;
    const int64_t packed = moe_problem_num_slots(problem) * hidden;
    const int32_t dtype = problem->output_dtype;
    MOE_TRY(moe_call_resolve_stride(op, "token_stride", &own.token_stride, packed, error));
    MOE_TRY(moe_call_resolve_stride(op, "output_stride", &own.output_stride, hidden, error));
    MOE_TRY(moe_call_check_tensor(op, "input", own.input, dtype, num_tokens, error));
    MOE_TRY(moe_call_check_tensor(op, "output", own.output, dtype, num_tokens, error));
    MOE_TRY(moe_call_check_overlap(
        op, "output", moe_call_span(own.output, num_tokens, hidden, own.output_stride, dtype),
        "input", moe_call_span(own.input, num_tokens, packed, own.token_stride, dtype), 0, error));
    if (run.num_tokens == 0) {
        return MOE_STATUS_OK;
    }
    struct moe_op_post_reorder reduce = {
        .num_tokens = run.num_tokens,
        .num_tokens_device = run.num_tokens_device,
        .top_k = moe_problem_num_slots(problem),
        .hidden = problem->hidden,
        .dtype = dtype,
        .scaling = problem->scaling_on == MOE_SCALING_OUTPUT ? problem->routed_scaling : 1.0f,
        .rows = own.input,
        .row_stride = hidden,
        .token_stride = own.token_stride,
        .output = own.output,
        .output_stride = own.output_stride,
    };
    return plan->backend->post_reorder(&run, MOE_OP_SUM_REDUCE, &reduce, error);
}
