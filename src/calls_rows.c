/* SPDX-License-Identifier: Apache-2.0 */
/* Run calls that move or transform rows: pre_reorder, quantize, activation. */
#include "call_check.h"
#include "call_quant.h"
#include "calls.h"
#include "recipe.h"
#include "status.h"
#include "structs.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* A recipe with dtype 0 asks for nothing. */
static int32_t check_no_recipe(const char *op, const struct moe_recipe *recipe,
                               struct moe_error *error)
{
    const struct moe_recipe none = {0};
    if (memcmp(recipe, &none, sizeof(none)) == 0) {
        return MOE_STATUS_OK;
    }
    return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                         "%s: quantization has dtype 0, so its other members must be 0 too", op);
}

/* Rows that are quantized begin as plain elements. */
static int32_t check_plain_tokens(const char *op, const struct moe_problem *problem,
                                  struct moe_error *error)
{
    if (problem->tokens.dtype != MOE_DTYPE_FP8_E4M3) {
        return MOE_STATUS_OK;
    }
    return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                         "%s: problem.tokens.dtype is fp8_e4m3, so tokens are quantized already; "
                         "make the plan with fp32, fp16 or bf16 tokens",
                         op);
}

/* ---------------------------------------------------------------- pre_reorder */

/* Routes' local experts choose the scale: ids and filter. */
static int32_t read_scale_experts(const struct moe_problem *problem,
                                  const struct moe_pre_reorder_args *own,
                                  struct moe_op_pre_reorder *reorder, struct moe_error *error)
{
    static const char op[] = "pre_reorder";
    const struct moe_route_filter none = {0};
    MOE_TRY(moe_call_check_ids(op, own->ids_dtype, error));
    if (own->topk_ids == NULL) {
        if (memcmp(&own->filter, &none, sizeof(none)) != 0) {
            return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                 "pre_reorder: filter is set without topk_ids; it belongs to "
                                 "scales per expert");
        }
        return MOE_STATUS_OK;
    }
    if (own->quantization.dtype == 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "pre_reorder: topk_ids are given, but nothing is quantized; they "
                             "belong to static scales per expert");
    }
    MOE_TRY(moe_call_check_array(
        op, "topk_ids", own->topk_ids,
        own->ids_dtype == MOE_IDS_INT64 ? sizeof(int64_t) : sizeof(int32_t), 1, error));
    reorder->topk_ids = own->topk_ids;
    reorder->ids_dtype = own->ids_dtype;
    return moe_call_read_filter(op, problem, &own->filter, &reorder->filter, error);
}

/* Whether and how rows are quantized, and their type. */
static int32_t read_quantization(const struct moe_plan *plan,
                                 const struct moe_pre_reorder_args *own,
                                 const struct moe_call_quant *quant,
                                 struct moe_op_pre_reorder *reorder, int32_t *row_dtype,
                                 struct moe_error *error)
{
    static const char op[] = "pre_reorder";
    const int32_t token_dtype = plan->problem.tokens.dtype;
    *row_dtype = quant->recipe.dtype == 0 ? token_dtype : quant->recipe.dtype;
    if (own->output_dtype != 0 && own->output_dtype != *row_dtype) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "pre_reorder: output_dtype is %s, but rows are written as %s; leave "
                             "it 0, or give a quantization",
                             moe_dtype_name(own->output_dtype), moe_dtype_name(*row_dtype));
    }
    MOE_TRY(read_scale_experts(&plan->problem, own, reorder, error));
    if (quant->recipe.dtype == 0) {
        MOE_TRY(check_no_recipe(op, &quant->recipe, error));
        return moe_call_refuse_scales(op, quant, error);
    }
    MOE_TRY(check_plain_tokens(op, &plan->problem, error));
    return moe_call_resolve_quant(op, plan, quant, &reorder->quant, error);
}

/* Pointers, and that rows and scales overlap nothing. */
static int32_t check_reorder_tensors(const struct moe_plan *plan,
                                     const struct moe_pre_reorder_args *own,
                                     const struct moe_call_quant *quant,
                                     const struct moe_op_pre_reorder *reorder, int32_t row_dtype,
                                     struct moe_error *error)
{
    static const char op[] = "pre_reorder";
    const struct moe_problem *problem = &plan->problem;
    const int64_t num_tokens = own->call.num_tokens;
    const int64_t num_routes = num_tokens * moe_problem_num_slots(problem);
    const size_t id_bytes = own->ids_dtype == MOE_IDS_INT64 ? sizeof(int64_t) : sizeof(int32_t);
    const int32_t token_dtype = problem->tokens.dtype;
    MOE_TRY(moe_call_check_tensor(op, "tokens", own->tokens, token_dtype, num_tokens, error));
    MOE_TRY(moe_call_check_tensor(op, "rows", own->rows, row_dtype, own->num_rows, error));
    MOE_TRY(moe_call_check_array(op, "src2dst", own->src2dst, sizeof(int32_t), num_routes, error));
    struct moe_call_tensors tensors = {.num_outputs = 0};
    moe_call_add_common(&tensors, plan, MOE_OP_PRE_REORDER, &own->call);
    moe_call_add_output(
        &tensors,
        (struct moe_call_tensor){"rows", moe_call_span(own->rows, own->num_rows, problem->hidden,
                                                       own->row_stride, row_dtype)});
    moe_call_add_input(
        &tensors,
        (struct moe_call_tensor){"tokens", moe_call_span(own->tokens, num_tokens, problem->hidden,
                                                         own->token_stride, token_dtype)});
    moe_call_add_input(&tensors,
                       moe_call_array("src2dst", own->src2dst, num_routes, sizeof(int32_t)));
    moe_call_add_input(&tensors, moe_call_array("topk_ids", own->topk_ids, num_routes, id_bytes));
    moe_call_add_input(&tensors, moe_call_array("filter.expert_map", own->filter.expert_map,
                                                moe_problem_num_ids(problem), sizeof(int32_t)));
    moe_call_add_scales(quant, &reorder->quant, &tensors);
    return moe_call_check_tensors(op, &tensors, error);
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
    const struct moe_call_quant quant = {
        .recipe_name = "quantization",
        .recipe = own.quantization,
        .width = problem->hidden,
        .num_rows = own.num_rows,
        .input_scales = own.input_scales,
        .num_static_rows = own.call.num_tokens,
        .num_experts = own.topk_ids != NULL ? problem->num_experts : 0,
        .output_scales = own.output_scales,
        .output_scale_stride = own.output_scale_stride,
    };
    struct moe_op_pre_reorder reorder = {.num_tokens = run.num_tokens};
    int32_t row_dtype = 0;
    MOE_TRY(moe_call_resolve_stride(op, "token_stride", &own.token_stride, problem->hidden, error));
    MOE_TRY(moe_call_resolve_stride(op, "row_stride", &own.row_stride, problem->hidden, error));
    MOE_TRY(moe_call_check_num_rows(op, plan, own.num_rows, error));
    MOE_TRY(read_quantization(plan, &own, &quant, &reorder, &row_dtype, error));
    MOE_TRY(check_reorder_tensors(plan, &own, &quant, &reorder, row_dtype, error));
    if (plan->backend->id == MOE_BACKEND_CPU) {
        MOE_TRY(moe_call_check_destinations(
            op, own.src2dst, run.num_tokens * moe_problem_num_slots(problem), own.num_rows, error));
    }
    if (run.num_tokens == 0) {
        return MOE_STATUS_OK;
    }
    reorder.num_tokens_device = run.num_tokens_device;
    reorder.top_k = moe_problem_num_slots(problem);
    reorder.hidden = problem->hidden;
    reorder.dtype = problem->tokens.dtype;
    reorder.tokens = own.tokens;
    reorder.token_stride = own.token_stride;
    reorder.src2dst = own.src2dst;
    reorder.rows = own.rows;
    reorder.row_stride = own.row_stride;
    reorder.num_rows = own.num_rows;
    return plan->backend->pre_reorder(&run, &reorder, error);
}

/* ---------------------------------------------------------------- quantize */

int32_t moe_calls_quantize(const struct moe_plan *plan, const struct moe_quantize_args *args,
                           struct moe_error *error)
{
    static const char op[] = "quantize";
    struct moe_quantize_args own;
    struct moe_run run;
    MOE_TRY(moe_call_check_plan(plan, MOE_OP_QUANTIZE, error));
    MOE_TRY(MOE_STRUCT_READ(&own, args, moe_quantize_args, error));
    MOE_TRY(moe_call_begin(plan, MOE_OP_QUANTIZE, &own.call, own.call.num_tokens, &run, error));
    const struct moe_problem *problem = &plan->problem;
    const int64_t num_tokens = own.call.num_tokens, hidden = problem->hidden;
    const int32_t dtype = problem->tokens.dtype;
    const struct moe_call_quant quant = {
        .recipe_name = "quantization",
        .recipe = own.quantization,
        .width = hidden,
        .num_rows = num_tokens,
        .input_scales = own.input_scales,
        .num_static_rows = num_tokens,
        .output_scales = own.output_scales,
        .output_scale_stride = own.output_scale_stride,
    };
    struct moe_op_quantize quantize = {.num_tokens = run.num_tokens};
    MOE_TRY(check_plain_tokens(op, problem, error));
    MOE_TRY(moe_call_resolve_quant(op, plan, &quant, &quantize.quant, error));
    MOE_TRY(moe_call_resolve_stride(op, "token_stride", &own.token_stride, hidden, error));
    MOE_TRY(moe_call_resolve_stride(op, "output_stride", &own.output_stride, hidden, error));
    MOE_TRY(moe_call_check_tensor(op, "tokens", own.tokens, dtype, num_tokens, error));
    MOE_TRY(
        moe_call_check_tensor(op, "output", own.output, own.quantization.dtype, num_tokens, error));
    struct moe_call_tensors tensors = {.num_outputs = 0};
    moe_call_add_common(&tensors, plan, MOE_OP_QUANTIZE, &own.call);
    moe_call_add_output(&tensors,
                        (struct moe_call_tensor){"output", moe_call_span(own.output, num_tokens,
                                                                         hidden, own.output_stride,
                                                                         own.quantization.dtype)});
    moe_call_add_input(
        &tensors, (struct moe_call_tensor){"tokens", moe_call_span(own.tokens, num_tokens, hidden,
                                                                   own.token_stride, dtype)});
    moe_call_add_scales(&quant, &quantize.quant, &tensors);
    MOE_TRY(moe_call_check_tensors(op, &tensors, error));
    if (run.num_tokens == 0) {
        return MOE_STATUS_OK;
    }
    quantize.num_tokens_device = run.num_tokens_device;
    quantize.hidden = problem->hidden;
    quantize.dtype = dtype;
    quantize.tokens = own.tokens;
    quantize.token_stride = own.token_stride;
    quantize.output = own.output;
    quantize.output_stride = own.output_stride;
    return plan->backend->quantize(&run, &quantize, error);
}

/* ---------------------------------------------------------------- activation */

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

/* Rows of GEMM1 without activation: of the tokens' type, or the output's where tokens are fp8. */
static int32_t find_input_dtype(const struct moe_problem *problem)
{
    return moe_recipe_is_fp8(&problem->tokens) ? problem->output_dtype : problem->tokens.dtype;
}

/* Plain or quantized output: the call's recipe, or the intermediate's. */
static int32_t read_activation_output(const struct moe_plan *plan, struct moe_call_quant *quant,
                                      struct moe_op_activation *activation, struct moe_error *error)
{
    static const char op[] = "activation";
    if (quant->recipe.dtype == 0) {
        MOE_TRY(check_no_recipe(op, &quant->recipe, error));
        quant->recipe_name = "problem.intermediate";
        quant->recipe = plan->problem.intermediate;
    }
    activation->output_dtype = quant->recipe.dtype;
    if (moe_recipe_is_plain(&quant->recipe)) {
        return moe_call_refuse_scales(op, quant, error);
    }
    return moe_call_resolve_quant(op, plan, quant, &activation->quant, error);
}

/* Pointers, and overlaps. In place is legal for equal row strides and types; the rows then begin at
 * the same address. */
static int32_t check_activation_tensors(const struct moe_plan *plan,
                                        const struct moe_activation_args *own,
                                        const struct moe_call_quant *quant,
                                        const struct moe_op_activation *activation,
                                        struct moe_error *error)
{
    static const char op[] = "activation";
    const struct moe_problem *problem = &plan->problem;
    const int32_t input_dtype = activation->input_dtype, output_dtype = activation->output_dtype;
    const int64_t row_elements = (problem->inter - 1) * own->col_stride + own->up_offset + 1;
    const bool in_place = own->output == own->input && own->output_stride == own->row_stride &&
                          input_dtype == output_dtype;
    MOE_TRY(moe_call_check_tensor(op, "input", own->input, input_dtype, own->num_rows, error));
    MOE_TRY(moe_call_check_tensor(op, "output", own->output, output_dtype, own->num_rows, error));
    struct moe_call_tensors tensors = {.num_outputs = 0};
    moe_call_add_common(&tensors, plan, MOE_OP_ACTIVATION, &own->call);
    moe_call_add_output(
        &tensors,
        (struct moe_call_tensor){"output", moe_call_span(own->output, own->num_rows, problem->inter,
                                                         own->output_stride, output_dtype)});
    if (!in_place) {
        moe_call_add_input(
            &tensors,
            (struct moe_call_tensor){"input", moe_call_span(own->input, own->num_rows, row_elements,
                                                            own->row_stride, input_dtype)});
    }
    moe_call_add_input(
        &tensors, moe_call_array("masked_m", own->masked_m, problem->num_experts, sizeof(int32_t)));
    moe_call_add_scales(quant, &activation->quant, &tensors);
    return moe_call_check_tensors(op, &tensors, error);
}

/* The number of tokens that as many rows stand for. */
static int64_t count_tokens(const struct moe_problem *problem, int64_t num_rows)
{
    const int64_t num_slots = moe_problem_num_slots(problem);
    const int64_t tokens = (num_rows + num_slots - 1) / num_slots;
    return tokens < problem->max_tokens ? tokens : problem->max_tokens;
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
    MOE_TRY(moe_call_check_num_rows(op, plan, own.num_rows, error));
    MOE_TRY(moe_call_begin(plan, MOE_OP_ACTIVATION, &own.call, count_tokens(problem, own.num_rows),
                           &run, error));
    struct moe_call_quant quant = {
        .recipe_name = "quantization",
        .recipe = own.quantization,
        .width = problem->inter,
        .num_rows = own.num_rows,
        .input_scales = own.input_scales,
        .num_static_rows = own.num_rows,
        .output_scales = own.output_scales,
        .output_scale_stride = own.output_scale_stride,
    };
    struct moe_op_activation activation = {.num_rows = own.num_rows};
    activation.input_dtype = find_input_dtype(problem);
    MOE_TRY(
        moe_call_check_masked(op, problem, own.masked_m, own.max_masked_rows, own.num_rows, error));
    MOE_TRY(read_activation_output(plan, &quant, &activation, error));
    MOE_TRY(resolve_activation_strides(problem, &own, error));
    MOE_TRY(check_activation_tensors(plan, &own, &quant, &activation, error));
    if (own.num_rows == 0) {
        return MOE_STATUS_OK;
    }
    activation.inter = problem->inter;
    activation.act =
        (struct moe_op_act){problem->activation, (problem->flags & MOE_PROBLEM_UNGATED) != 0,
                            problem->act_alpha, problem->act_limit};
    activation.input = own.input;
    activation.row_stride = own.row_stride;
    activation.col_stride = own.col_stride;
    activation.up_offset = own.up_offset;
    activation.output = own.output;
    activation.output_stride = own.output_stride;
    activation.masked_m = own.masked_m;
    activation.max_masked_rows = own.max_masked_rows;
    activation.num_experts = problem->num_experts;
    return plan->backend->activation(&run, &activation, error);
}
