/* SPDX-License-Identifier: Apache-2.0 */
/* Run calls on rows that are with their experts: grouped_gemm, experts. */
#include "call_scales.h"
#include "calls.h"
#include "status.h"
#include "structs.h"

/* Widths and types of a grouped_gemm by its `which`. */
struct gemm_shape {
    int32_t op; /* MOE_OP_GEMM1 or _GEMM2 */
    int32_t input_width;
    const struct moe_recipe *input;
    int32_t output_width;
    int32_t output_dtype;
};

/* What GEMM1 alone cannot do: there are no arguments for the scales that it would make. */
static int32_t check_gemm1(const struct moe_problem *problem, int32_t which,
                           struct moe_error *error)
{
    if (moe_recipe_quantizes_tokens(problem)) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "grouped_gemm: problem.tokens is %s, but GEMM1 of this problem takes "
                             "fp8_e4m3 rows; quantize them, and use a plan whose tokens have that "
                             "recipe (experts and layer quantize tokens themselves)",
                             moe_dtype_name(problem->tokens.dtype));
    }
    if (which == MOE_GEMM_GATE_UP_ACT && moe_recipe_is_fp8(&problem->intermediate)) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "grouped_gemm: with activation its output would be fp8_e4m3, and "
                             "there is no argument for its scales; use gate_up (%d), then "
                             "activation with quantization",
                             MOE_GEMM_GATE_UP);
    }
    return MOE_STATUS_OK;
}

static int32_t read_gemm_shape(const struct moe_problem *problem, int32_t which,
                               struct gemm_shape *out, struct moe_error *error)
{
    const int32_t num_matrices = (problem->flags & MOE_PROBLEM_UNGATED) != 0 ? 1 : 2;
    switch (which) {
    case MOE_GEMM_GATE_UP:
        *out = (struct gemm_shape){
            MOE_OP_GEMM1, problem->hidden, &problem->tokens, num_matrices * problem->inter,
            moe_recipe_is_fp8(&problem->tokens) ? problem->output_dtype : problem->tokens.dtype};
        return check_gemm1(problem, which, error);
    case MOE_GEMM_GATE_UP_ACT:
        *out = (struct gemm_shape){MOE_OP_GEMM1, problem->hidden, &problem->tokens, problem->inter,
                                   problem->intermediate.dtype};
        return check_gemm1(problem, which, error);
    case MOE_GEMM_DOWN:
        *out = (struct gemm_shape){MOE_OP_GEMM2, problem->inter, &problem->intermediate,
                                   problem->hidden, problem->output_dtype};
        return MOE_STATUS_OK;
    default:
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "grouped_gemm: which is %d; it must be gate_up (%d), gate_up with "
                             "activation (%d) or down (%d)",
                             which, MOE_GEMM_GATE_UP, MOE_GEMM_GATE_UP_ACT, MOE_GEMM_DOWN);
    }
}

static void fill_gemm_weights(const struct moe_problem *problem,
                              const struct moe_weights_desc *desc, int32_t which,
                              struct moe_op_gemm *gemm)
{
    const bool ungated = (problem->flags & MOE_PROBLEM_UNGATED) != 0;
    gemm->num_experts = problem->num_experts;
    if (which == MOE_GEMM_DOWN) {
        gemm->n = problem->hidden;
        gemm->k = problem->inter;
        gemm->num_matrices = 1;
        gemm->weight[0] = desc->down;
        gemm->bias[0] = desc->down_bias;
        gemm->weight_scale[0] = desc->down_scale;
        moe_recipe_weight_groups(&problem->down, gemm);
        return;
    }
    gemm->n = problem->inter;
    gemm->k = problem->hidden;
    gemm->num_matrices = ungated ? 1 : 2;
    gemm->weight[0] = ungated ? desc->up : desc->gate;
    gemm->weight[1] = desc->up;
    gemm->bias[0] = ungated ? desc->up_bias : desc->gate_bias;
    gemm->bias[1] = desc->up_bias;
    gemm->weight_scale[0] = ungated ? desc->up_scale : desc->gate_scale;
    gemm->weight_scale[1] = desc->up_scale;
    moe_recipe_weight_groups(&problem->gate_up, gemm);
    gemm->has_activation = which == MOE_GEMM_GATE_UP_ACT;
    gemm->act =
        (struct moe_op_act){problem->activation, ungated, problem->act_alpha, problem->act_limit};
}

/* Where the experts of the rows come from. */
static int32_t fill_gemm_segments(const struct moe_plan *plan,
                                  const struct moe_grouped_gemm_args *own, struct moe_op_gemm *gemm,
                                  struct moe_error *error)
{
    static const char op[] = "grouped_gemm";
    const struct moe_problem *problem = &plan->problem;
    const bool gathered =
        own->sorted_ids != NULL || own->expert_ids != NULL || own->num_tokens_post_pad != NULL;
    if ((own->seg_indptr != NULL) + gathered + (own->masked_m != NULL) != 1) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "grouped_gemm: give exactly one of seg_indptr, masked_m, and "
                             "sorted_ids with expert_ids and num_tokens_post_pad");
    }
    gemm->num_rows = own->num_rows;
    gemm->row_ids_div = 1;
    if (own->masked_m != NULL) {
        gemm->num_segments = problem->num_experts;
        gemm->masked_m = own->masked_m;
        gemm->max_masked_rows = own->max_masked_rows;
        return moe_call_check_masked(op, problem, own->masked_m, own->max_masked_rows,
                                     own->num_rows, error);
    }
    MOE_TRY(moe_call_check_masked(op, problem, NULL, own->max_masked_rows, own->num_rows, error));
    if (!gathered) {
        MOE_TRY(moe_call_check_array(op, "seg_indptr", own->seg_indptr, sizeof(int64_t), 1, error));
        MOE_TRY(moe_call_check_segments(op, plan, own->seg_indptr, error));
        gemm->num_segments = problem->num_experts;
        gemm->seg_indptr = own->seg_indptr;
        return MOE_STATUS_OK;
    }
    const int64_t num_routes = own->call.num_tokens * moe_problem_num_slots(problem);
    int64_t sorted_capacity = 0, num_blocks = 0;
    MOE_TRY(moe_call_check_array(op, "sorted_ids", own->sorted_ids, sizeof(int32_t), 1, error));
    MOE_TRY(moe_call_check_array(op, "expert_ids", own->expert_ids, sizeof(int32_t), 1, error));
    MOE_TRY(moe_call_check_array(op, "num_tokens_post_pad", own->num_tokens_post_pad,
                                 sizeof(int32_t), 1, error));
    if (own->num_rows < num_routes) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "grouped_gemm: num_rows is %lld, but outputs are written at %lld route indices",
            (long long)own->num_rows, (long long)num_routes);
    }
    MOE_TRY(moe_calls_align_capacity(num_routes, problem->num_experts, own->block_size,
                                     MOE_FILTER_KEEP, &sorted_capacity, &num_blocks, error));
    gemm->num_segments = num_blocks;
    gemm->expert_ids = own->expert_ids;
    gemm->num_tokens_post_pad = own->num_tokens_post_pad;
    gemm->block_size = own->block_size;
    gemm->num_rows = sorted_capacity;
    gemm->row_ids = own->sorted_ids;
    gemm->num_row_ids = num_routes;
    gemm->row_ids_div = own->which == MOE_GEMM_DOWN ? 1 : moe_problem_num_slots(problem);
    gemm->scatter = 1;
    return MOE_STATUS_OK;
}

int32_t moe_calls_grouped_gemm(const struct moe_plan *plan,
                               const struct moe_grouped_gemm_args *args, struct moe_error *error)
{
    static const char op[] = "grouped_gemm";
    struct moe_grouped_gemm_args own;
    struct moe_run run;
    struct gemm_shape shape = {0};
    MOE_TRY(moe_call_check_plan(plan, MOE_OP_GEMM1, error));
    MOE_TRY(MOE_STRUCT_READ(&own, args, moe_grouped_gemm_args, error));
    const struct moe_problem *problem = &plan->problem;
    shape.input = &problem->tokens;
    MOE_TRY(read_gemm_shape(problem, own.which, &shape, error));
    MOE_TRY(moe_call_begin(plan, shape.op, &own.call, own.call.num_tokens, &run, error));
    MOE_TRY(moe_call_check_weights(op, plan, own.weights, error));
    run.weights = own.weights;
    const struct moe_weights_desc *desc = &own.weights->desc;
    MOE_TRY(moe_call_check_bound(op, own.which == MOE_GEMM_DOWN ? "down" : "gate and up",
                                 own.which == MOE_GEMM_DOWN ? &desc->down : &desc->up, error));
    MOE_TRY(moe_call_check_num_rows(op, plan, own.num_rows, error));
    struct moe_op_gemm gemm = {0};
    fill_gemm_weights(problem, desc, own.which, &gemm);
    MOE_TRY(fill_gemm_segments(plan, &own, &gemm, error));
    MOE_TRY(
        moe_call_resolve_stride(op, "input_stride", &own.input_stride, shape.input_width, error));
    MOE_TRY(moe_call_resolve_stride(op, "output_stride", &own.output_stride, shape.output_width,
                                    error));
    MOE_TRY(moe_call_check_tensor(op, "input", own.input, shape.input->dtype, own.num_rows, error));
    MOE_TRY(
        moe_call_check_tensor(op, "output", own.output, shape.output_dtype, own.num_rows, error));
    MOE_TRY(moe_call_check_array(op, "row_weights", own.row_weights, sizeof(float), 0, error));
    const bool from_tokens = gemm.row_ids != NULL && own.which != MOE_GEMM_DOWN;
    const int64_t num_inputs = from_tokens ? own.call.num_tokens : own.num_rows;
    struct moe_call_scales scales = {.rows_name = "input",
                                     .recipe = shape.input,
                                     .base = own.input_scales,
                                     .stride = own.input_scale_stride,
                                     .num_rows = num_inputs,
                                     .width = shape.input_width};
    MOE_TRY(moe_call_read_scales(op, &scales, &gemm.input_scales, error));
    const struct moe_call_tensor tensors[] = {
        {"output", moe_call_span(own.output, own.num_rows, shape.output_width, own.output_stride,
                                 shape.output_dtype)},
        moe_call_workspace(plan, shape.op, &own.call, own.call.num_tokens),
        {"input", moe_call_span(own.input, num_inputs, shape.input_width, own.input_stride,
                                shape.input->dtype)},
        moe_call_scales_tensor(&scales),
        moe_call_array("row_weights", own.row_weights,
                       gemm.row_ids != NULL ? gemm.num_row_ids : own.num_rows, sizeof(float)),
        moe_call_array("seg_indptr", own.seg_indptr, (int64_t)problem->num_experts + 1,
                       sizeof(int64_t)),
        moe_call_array("masked_m", own.masked_m, problem->num_experts, sizeof(int32_t)),
    };
    MOE_TRY(moe_call_check_disjoint(op, tensors, sizeof(tensors) / sizeof(tensors[0]), 2, error));
    if (own.num_rows == 0) {
        return MOE_STATUS_OK;
    }
    run.weights = own.weights;
    gemm.row_weights = own.row_weights;
    gemm.input = own.input;
    gemm.input_stride = own.input_stride;
    gemm.input_dtype = shape.input->dtype;
    gemm.output = own.output;
    gemm.output_stride = own.output_stride;
    gemm.output_dtype = shape.output_dtype;
    return plan->backend->grouped_gemm(&run, shape.op, &gemm, error);
}

/* `num_tokens`: what the workspace was sized for. */
static int32_t check_experts_overlap(const struct moe_plan *plan,
                                     const struct moe_experts_args *own,
                                     const struct moe_call_scales *scales, int64_t num_tokens,
                                     struct moe_error *error)
{
    const struct moe_problem *problem = &plan->problem;
    const struct moe_call_tensor tensors[] = {
        {"output", moe_call_span(own->output, own->num_rows, problem->hidden, own->output_stride,
                                 problem->output_dtype)},
        moe_call_workspace(plan, MOE_OP_EXPERTS, &own->call, num_tokens),
        {"rows", moe_call_span(own->rows, own->num_rows, problem->hidden, own->row_stride,
                               problem->tokens.dtype)},
        moe_call_scales_tensor(scales),
        moe_call_array("row_weights", own->row_weights, own->num_rows, sizeof(float)),
        moe_call_array("masked_m", own->masked_m, problem->num_experts, sizeof(int32_t)),
        moe_call_array("seg_indptr", own->seg_indptr, (int64_t)problem->num_experts + 1,
                       sizeof(int64_t)),
    };
    return moe_call_check_disjoint("experts", tensors, sizeof(tensors) / sizeof(tensors[0]), 2,
                                   error);
}

static int32_t check_experts_segments(const struct moe_plan *plan,
                                      const struct moe_experts_args *own, struct moe_error *error)
{
    static const char op[] = "experts";
    if ((own->seg_indptr != NULL) == (own->masked_m != NULL)) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "experts: %s; give one of the two",
                             own->seg_indptr != NULL ? "both seg_indptr and masked_m are set"
                                                     : "seg_indptr and masked_m are NULL");
    }
    MOE_TRY(moe_call_check_masked(op, &plan->problem, own->masked_m, own->max_masked_rows,
                                  own->num_rows, error));
    if (own->masked_m != NULL) {
        return MOE_STATUS_OK;
    }
    MOE_TRY(moe_call_check_array(op, "seg_indptr", own->seg_indptr, sizeof(int64_t), 1, error));
    return moe_call_check_segments(op, plan, own->seg_indptr, error);
}

int32_t moe_calls_experts(const struct moe_plan *plan, const struct moe_experts_args *args,
                          struct moe_error *error)
{
    static const char op[] = "experts";
    struct moe_experts_args own;
    struct moe_run run;
    MOE_TRY(moe_call_check_plan(plan, MOE_OP_EXPERTS, error));
    MOE_TRY(MOE_STRUCT_READ(&own, args, moe_experts_args, error));
    const struct moe_problem *problem = &plan->problem;
    MOE_TRY(moe_call_check_num_rows(op, plan, own.num_rows, error));
    const int64_t num_slots = moe_problem_num_slots(problem);
    const int64_t tokens = (own.num_rows + num_slots - 1) / num_slots;
    MOE_TRY(moe_call_begin(plan, MOE_OP_EXPERTS, &own.call, tokens, &run, error));
    MOE_TRY(moe_call_check_weights(op, plan, own.weights, error));
    run.weights = own.weights;
    MOE_TRY(moe_call_check_bound(op, "gate and up", &own.weights->desc.up, error));
    MOE_TRY(moe_call_check_bound(op, "down", &own.weights->desc.down, error));
    MOE_TRY(check_experts_segments(plan, &own, error));
    MOE_TRY(moe_call_resolve_stride(op, "row_stride", &own.row_stride, problem->hidden, error));
    MOE_TRY(
        moe_call_resolve_stride(op, "output_stride", &own.output_stride, problem->hidden, error));
    MOE_TRY(
        moe_call_check_tensor(op, "rows", own.rows, problem->tokens.dtype, own.num_rows, error));
    MOE_TRY(moe_call_check_tensor(op, "output", own.output, problem->output_dtype, own.num_rows,
                                  error));
    const bool on_input = (problem->flags & MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT) != 0;
    MOE_TRY(moe_call_check_array(op, "row_weights", own.row_weights, sizeof(float),
                                 on_input ? own.num_rows : 0, error));
    if (own.row_weights != NULL && !on_input) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "experts: row_weights are given, but the problem lacks "
                             "MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT");
    }
    struct moe_op_experts experts = {.weights = own.weights};
    struct moe_call_scales scales = {.rows_name = "rows",
                                     .recipe = &problem->tokens,
                                     .base = own.input_scales,
                                     .stride = own.input_scale_stride,
                                     .num_rows = own.num_rows,
                                     .width = problem->hidden};
    MOE_TRY(moe_call_read_scales(op, &scales, &experts.input_scales, error));
    MOE_TRY(check_experts_overlap(plan, &own, &scales, tokens, error));
    if (own.num_rows == 0) {
        return MOE_STATUS_OK;
    }
    run.weights = own.weights;
    experts.rows = own.rows;
    experts.row_stride = own.row_stride;
    experts.num_rows = own.num_rows;
    experts.seg_indptr = own.seg_indptr;
    experts.masked_m = own.masked_m;
    experts.max_masked_rows = own.max_masked_rows;
    experts.row_weights = own.row_weights;
    experts.output = own.output;
    experts.output_stride = own.output_stride;
    return plan->backend->experts(&run, &experts, error);
}
