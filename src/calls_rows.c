/* SPDX-License-Identifier: Apache-2.0 */
/* Run calls that move or transform rows: pre_reorder, quantize, activation, post_reorder,
 * sum_reduce. */
#include "call_check.h"
#include "calls.h"
#include "status.h"
#include "structs.h"

#include <stdbool.h>
#include <stddef.h>

/* Does any byte of a frozen struct ask for something? */
static bool is_set(const void *object, size_t object_bytes)
{
    const unsigned char *bytes = object;
    for (size_t i = 0; i < object_bytes; i++) {
        if (bytes[i] != 0) {
            return true;
        }
    }
    return false;
}

/* Every destination lies in the rows, or is negative: a CPU can look, so a wrong one is refused
 * before anything is written. */
static int32_t check_destinations(const char *op, const int32_t *src2dst, int64_t num_routes,
                                  int64_t num_rows, struct moe_error *error)
{
    for (int64_t route = 0; route < num_routes; route++) {
        if (src2dst[route] >= num_rows) {
            return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                 "%s: src2dst[%lld] is %d, but there are %lld rows", op,
                                 (long long)route, src2dst[route], (long long)num_rows);
        }
    }
    return MOE_STATUS_OK;
}

int32_t moe_calls_pre_reorder(const struct moe_plan *plan, const struct moe_pre_reorder_args *args,
                              struct moe_error *error)
{
    static const char op[] = "pre_reorder";
    struct moe_pre_reorder_args own;
    struct moe_run run;
    MOE_TRY(moe_call_check_plan(plan, MOE_OP_PRE_REORDER, error));
    MOE_TRY(MOE_STRUCT_READ(&own, args, moe_pre_reorder_args, error));
    MOE_TRY(moe_call_begin(plan, MOE_OP_PRE_REORDER, &own.call, own.call.num_tokens, &run, error));
    const struct moe_problem *problem = &plan->problem;
    const int64_t num_tokens = own.call.num_tokens;
    const int64_t num_routes = num_tokens * moe_problem_num_slots(problem);
    MOE_TRY(moe_call_refuse(op, "quantization", is_set(&own.quantization, sizeof(own.quantization)),
                            error));
    MOE_TRY(moe_call_refuse(op, "input_scales", own.input_scales != NULL, error));
    MOE_TRY(moe_call_refuse(op, "output_scales or output_scale_stride",
                            own.output_scales != NULL || own.output_scale_stride != 0, error));
    MOE_TRY(moe_call_refuse(op, "an output_dtype other than the tokens'",
                            own.output_dtype != 0 && own.output_dtype != problem->tokens.dtype,
                            error));
    MOE_TRY(moe_call_check_ids(op, own.ids_dtype, error));
    MOE_TRY(moe_call_refuse(op, "topk_ids or filter (per-expert scales)",
                            own.topk_ids != NULL || is_set(&own.filter, sizeof(own.filter)),
                            error));
    MOE_TRY(moe_call_resolve_stride(op, "token_stride", &own.token_stride, problem->hidden, error));
    MOE_TRY(moe_call_resolve_stride(op, "row_stride", &own.row_stride, problem->hidden, error));
    if (own.num_rows < 0 || own.num_rows > plan->max_rows) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "pre_reorder: num_rows is %lld; the plan takes 0 to %lld",
                             (long long)own.num_rows, (long long)plan->max_rows);
    }
    MOE_TRY(
        moe_call_check_tensor(op, "tokens", own.tokens, problem->tokens.dtype, num_tokens, error));
    MOE_TRY(
        moe_call_check_tensor(op, "rows", own.rows, problem->tokens.dtype, own.num_rows, error));
    MOE_TRY(moe_call_check_array(op, "src2dst", own.src2dst, sizeof(int32_t), num_routes, error));
    MOE_TRY(moe_call_check_overlap(op, "rows",
                                   moe_call_span(own.rows, own.num_rows, problem->hidden,
                                                 own.row_stride, problem->tokens.dtype),
                                   "tokens",
                                   moe_call_span(own.tokens, num_tokens, problem->hidden,
                                                 own.token_stride, problem->tokens.dtype),
                                   0, error));
    if (plan->backend->id == MOE_BACKEND_CPU) {
        MOE_TRY(check_destinations(op, own.src2dst, run.num_tokens * moe_problem_num_slots(problem),
                                   own.num_rows, error));
    }
    if (run.num_tokens == 0) {
        return MOE_STATUS_OK;
    }
    struct moe_op_pre_reorder reorder = {
        .num_tokens = run.num_tokens,
        .num_tokens_device = run.num_tokens_device,
        .top_k = moe_problem_num_slots(problem),
        .hidden = problem->hidden,
        .dtype = problem->tokens.dtype,
        .tokens = own.tokens,
        .token_stride = own.token_stride,
        .src2dst = own.src2dst,
        .rows = own.rows,
        .row_stride = own.row_stride,
        .num_rows = own.num_rows,
    };
    return plan->backend->pre_reorder(&run, &reorder, error);
}

int32_t moe_calls_quantize(const struct moe_plan *plan, const struct moe_quantize_args *args,
                           struct moe_error *error)
{
    struct moe_quantize_args own;
    MOE_TRY(moe_call_check_plan(plan, MOE_OP_QUANTIZE, error));
    MOE_TRY(MOE_STRUCT_READ(&own, args, moe_quantize_args, error));
    return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                         "quantize: the %s backend of this version has no quantized types",
                         plan->backend->name);
}

static int32_t resolve_activation_strides(const struct moe_problem *problem,
                                          struct moe_activation_args *own, struct moe_error *error)
{
    static const char op[] = "activation";
    const bool ungated = (problem->flags & MOE_PROBLEM_UNGATED) != 0;
    const int64_t inter = problem->inter;
    if (ungated && own->up_offset != 0) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "activation: up_offset is %lld, but ungated experts have one operand at `input`",
            (long long)own->up_offset);
    }
    if (own->col_stride < 0 || own->up_offset < 0 || own->col_stride > INT32_MAX ||
        own->up_offset > INT32_MAX) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "activation: col_stride %lld and up_offset %lld must be 0 to 2^31-1",
                             (long long)own->col_stride, (long long)own->up_offset);
    }
    own->col_stride = own->col_stride == 0 ? 1 : own->col_stride;
    own->up_offset = !ungated && own->up_offset == 0 ? inter : own->up_offset;
    int64_t row_elements = (inter - 1) * own->col_stride + own->up_offset + 1;
    if (own->row_stride == 0) {
        own->row_stride = ungated ? inter : 2 * inter;
    }
    MOE_TRY(moe_call_resolve_stride(op, "row_stride", &own->row_stride, row_elements, error));
    return moe_call_resolve_stride(op, "output_stride", &own->output_stride, inter, error);
}

/* In place is legal for equal row strides and types; the rows then begin at the same address. */
static int32_t check_activation_overlap(const struct moe_problem *problem,
                                        const struct moe_activation_args *own,
                                        struct moe_error *error)
{
    const int32_t input_dtype = problem->tokens.dtype, output_dtype = problem->intermediate.dtype;
    if (own->output == own->input && own->output_stride == own->row_stride &&
        input_dtype == output_dtype) {
        return MOE_STATUS_OK;
    }
    int64_t row_elements = (problem->inter - 1) * own->col_stride + own->up_offset + 1;
    return moe_call_check_overlap(
        "activation", "output",
        moe_call_span(own->output, own->num_rows, problem->inter, own->output_stride, output_dtype),
        "input",
        moe_call_span(own->input, own->num_rows, row_elements, own->row_stride, input_dtype), 0,
        error);
}

int32_t moe_calls_activation(const struct moe_plan *plan, const struct moe_activation_args *args,
                             struct moe_error *error)
{
    static const char op[] = "activation";
    struct moe_activation_args own;
    struct moe_run run;
    MOE_TRY(moe_call_check_plan(plan, MOE_OP_ACTIVATION, error));
    MOE_TRY(MOE_STRUCT_READ(&own, args, moe_activation_args, error));
    const struct moe_problem *problem = &plan->problem;
    if (own.num_rows < 0 || own.num_rows > plan->max_rows) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "activation: num_rows is %lld; the plan takes 0 to %lld",
                             (long long)own.num_rows, (long long)plan->max_rows);
    }
    const int64_t num_slots = moe_problem_num_slots(problem);
    const int64_t tokens = (own.num_rows + num_slots - 1) / num_slots;
    MOE_TRY(moe_call_begin(plan, MOE_OP_ACTIVATION, &own.call,
                           tokens < problem->max_tokens ? tokens : problem->max_tokens, &run,
                           error));
    MOE_TRY(moe_call_refuse(op, "masked_m or max_masked_rows (masked layout)",
                            own.masked_m != NULL || own.max_masked_rows != 0, error));
    MOE_TRY(moe_call_refuse(op, "quantization", is_set(&own.quantization, sizeof(own.quantization)),
                            error));
    MOE_TRY(moe_call_refuse(op, "input_scales", own.input_scales != NULL, error));
    MOE_TRY(moe_call_refuse(op, "output_scales or output_scale_stride",
                            own.output_scales != NULL || own.output_scale_stride != 0, error));
    MOE_TRY(resolve_activation_strides(problem, &own, error));
    MOE_TRY(
        moe_call_check_tensor(op, "input", own.input, problem->tokens.dtype, own.num_rows, error));
    MOE_TRY(moe_call_check_tensor(op, "output", own.output, problem->intermediate.dtype,
                                  own.num_rows, error));
    MOE_TRY(check_activation_overlap(problem, &own, error));
    if (own.num_rows == 0) {
        return MOE_STATUS_OK;
    }
    struct moe_op_activation activation = {
        .num_rows = own.num_rows,
        .inter = problem->inter,
        .input_dtype = problem->tokens.dtype,
        .output_dtype = problem->intermediate.dtype,
        .act = {problem->activation, (problem->flags & MOE_PROBLEM_UNGATED) != 0,
                problem->act_alpha, problem->act_limit},
        .input = own.input,
        .row_stride = own.row_stride,
        .col_stride = own.col_stride,
        .up_offset = own.up_offset,
        .output = own.output,
        .output_stride = own.output_stride,
    };
    return plan->backend->activation(&run, &activation, error);
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
    if (own.num_rows < 0 || own.num_rows > plan->max_rows) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "post_reorder: num_rows is %lld; the plan takes 0 to %lld",
                             (long long)own.num_rows, (long long)plan->max_rows);
    }
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
    struct moe_span output =
        moe_call_span(own.output, num_tokens, hidden, own.output_stride, dtype);
    MOE_TRY(moe_call_check_overlap(
        op, "output", output, "rows",
        moe_call_span(own.rows, own.num_rows, hidden, own.row_stride, dtype), 0, error));
    MOE_TRY(moe_call_check_overlap(
        op, "output", output, "shared",
        moe_call_span(own.shared, num_tokens, hidden, own.shared_stride, dtype), 1, error));
    MOE_TRY(moe_call_check_overlap(
        op, "output", output, "residual",
        moe_call_span(own.residual, num_tokens, hidden, own.residual_stride, dtype), 1, error));
    if (plan->backend->id == MOE_BACKEND_CPU) {
        MOE_TRY(check_destinations(op, own.src2dst, run.num_tokens * moe_problem_num_slots(problem),
                                   own.num_rows, error));
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
