/* SPDX-License-Identifier: Apache-2.0 */
/* Run calls that multiply: grouped_gemm, experts, layer. */
#include "call_check.h"
#include "calls.h"
#include "status.h"
#include "structs.h"

/* Operands that a call needs to have been bound. */
static int32_t check_bound(const char *op, const char *name, const struct moe_operand *operand,
                           struct moe_error *error)
{
    if (operand->base == NULL && operand->table == NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: the weights were bound without %s", op, name);
    }
    return MOE_STATUS_OK;
}

/* Widths and types of a grouped_gemm by its `which`. */
struct gemm_shape {
    int32_t op; /* MOE_OP_GEMM1 or _GEMM2 */
    int32_t input_width;
    int32_t input_dtype;
    int32_t output_width;
    int32_t output_dtype;
};

static int32_t read_gemm_shape(const struct moe_problem *problem, int32_t which,
                               struct gemm_shape *out, struct moe_error *error)
{
    const int32_t num_matrices = (problem->flags & MOE_PROBLEM_UNGATED) != 0 ? 1 : 2;
    switch (which) {
    case MOE_GEMM_GATE_UP:
        *out = (struct gemm_shape){MOE_OP_GEMM1, problem->hidden, problem->tokens.dtype,
                                   num_matrices * problem->inter, problem->tokens.dtype};
        return MOE_STATUS_OK;
    case MOE_GEMM_GATE_UP_ACT:
        *out = (struct gemm_shape){MOE_OP_GEMM1, problem->hidden, problem->tokens.dtype,
                                   problem->inter, problem->intermediate.dtype};
        return MOE_STATUS_OK;
    case MOE_GEMM_DOWN:
        *out = (struct gemm_shape){MOE_OP_GEMM2, problem->inter, problem->intermediate.dtype,
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
        return;
    }
    gemm->n = problem->inter;
    gemm->k = problem->hidden;
    gemm->num_matrices = ungated ? 1 : 2;
    gemm->weight[0] = ungated ? desc->up : desc->gate;
    gemm->weight[1] = desc->up;
    gemm->bias[0] = ungated ? desc->up_bias : desc->gate_bias;
    gemm->bias[1] = desc->up_bias;
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
    if ((own->seg_indptr != NULL) + gathered != 1) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "grouped_gemm: give either seg_indptr, or sorted_ids with expert_ids "
                             "and num_tokens_post_pad");
    }
    if (!gathered) {
        MOE_TRY(moe_call_check_array(op, "seg_indptr", own->seg_indptr, sizeof(int64_t), 1, error));
        MOE_TRY(moe_call_check_segments(op, plan, own->seg_indptr, error));
        gemm->num_segments = problem->num_experts;
        gemm->seg_indptr = own->seg_indptr;
        gemm->num_rows = own->num_rows;
        gemm->row_ids_div = 1;
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
    MOE_TRY(read_gemm_shape(problem, own.which, &shape, error));
    MOE_TRY(moe_call_begin(plan, shape.op, &own.call, own.call.num_tokens, &run, error));
    MOE_TRY(moe_call_refuse(op, "masked_m or max_masked_rows (masked layout)",
                            own.masked_m != NULL || own.max_masked_rows != 0, error));
    MOE_TRY(moe_call_refuse(op, "input_scales or input_scale_stride",
                            own.input_scales != NULL || own.input_scale_stride != 0, error));
    MOE_TRY(moe_call_check_weights(op, plan, own.weights, error));
    run.weights = own.weights;
    const struct moe_weights_desc *desc = &own.weights->desc;
    MOE_TRY(check_bound(op, own.which == MOE_GEMM_DOWN ? "down" : "gate and up",
                        own.which == MOE_GEMM_DOWN ? &desc->down : &desc->up, error));
    if (own.num_rows < 0 || own.num_rows > plan->max_rows) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "grouped_gemm: num_rows is %lld; the plan takes 0 to %lld",
                             (long long)own.num_rows, (long long)plan->max_rows);
    }
    struct moe_op_gemm gemm = {0};
    fill_gemm_weights(problem, desc, own.which, &gemm);
    MOE_TRY(fill_gemm_segments(plan, &own, &gemm, error));
    MOE_TRY(
        moe_call_resolve_stride(op, "input_stride", &own.input_stride, shape.input_width, error));
    MOE_TRY(moe_call_resolve_stride(op, "output_stride", &own.output_stride, shape.output_width,
                                    error));
    MOE_TRY(moe_call_check_tensor(op, "input", own.input, shape.input_dtype, own.num_rows, error));
    MOE_TRY(
        moe_call_check_tensor(op, "output", own.output, shape.output_dtype, own.num_rows, error));
    MOE_TRY(moe_call_check_array(op, "row_weights", own.row_weights, sizeof(float), 0, error));
    const bool from_tokens = gemm.row_ids != NULL && own.which != MOE_GEMM_DOWN;
    const int64_t num_inputs = from_tokens ? own.call.num_tokens : own.num_rows;
    MOE_TRY(moe_call_check_overlap(op, "output",
                                   moe_call_span(own.output, own.num_rows, shape.output_width,
                                                 own.output_stride, shape.output_dtype),
                                   "input",
                                   moe_call_span(own.input, num_inputs, shape.input_width,
                                                 own.input_stride, shape.input_dtype),
                                   0, error));
    if (own.num_rows == 0) {
        return MOE_STATUS_OK;
    }
    gemm.row_weights = own.row_weights;
    gemm.input = own.input;
    gemm.input_stride = own.input_stride;
    gemm.input_dtype = shape.input_dtype;
    gemm.output = own.output;
    gemm.output_stride = own.output_stride;
    gemm.output_dtype = shape.output_dtype;
    return plan->backend->grouped_gemm(&run, shape.op, &gemm, error);
}

/* `num_tokens`: what the workspace was sized for. */
static int32_t check_experts_overlap(const struct moe_plan *plan,
                                     const struct moe_experts_args *own, int64_t num_tokens,
                                     struct moe_error *error)
{
    const struct moe_problem *problem = &plan->problem;
    const struct moe_call_tensor tensors[] = {
        {"output", moe_call_span(own->output, own->num_rows, problem->hidden, own->output_stride,
                                 problem->output_dtype)},
        moe_call_workspace(plan, MOE_OP_EXPERTS, &own->call, num_tokens),
        {"rows", moe_call_span(own->rows, own->num_rows, problem->hidden, own->row_stride,
                               problem->tokens.dtype)},
        moe_call_array("row_weights", own->row_weights, own->num_rows, sizeof(float)),
        moe_call_array("seg_indptr", own->seg_indptr, (int64_t)problem->num_experts + 1,
                       sizeof(int64_t)),
    };
    return moe_call_check_disjoint("experts", tensors, sizeof(tensors) / sizeof(tensors[0]), 2,
                                   error);
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
    if (own.num_rows < 0 || own.num_rows > plan->max_rows) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "experts: num_rows is %lld; the plan takes 0 to %lld",
                             (long long)own.num_rows, (long long)plan->max_rows);
    }
    const int64_t num_slots = moe_problem_num_slots(problem);
    const int64_t tokens = (own.num_rows + num_slots - 1) / num_slots;
    MOE_TRY(moe_call_begin(plan, MOE_OP_EXPERTS, &own.call, tokens, &run, error));
    MOE_TRY(moe_call_refuse(op, "masked_m or max_masked_rows (masked layout)",
                            own.masked_m != NULL || own.max_masked_rows != 0, error));
    MOE_TRY(moe_call_refuse(op, "input_scales or input_scale_stride",
                            own.input_scales != NULL || own.input_scale_stride != 0, error));
    MOE_TRY(moe_call_check_weights(op, plan, own.weights, error));
    run.weights = own.weights;
    MOE_TRY(check_bound(op, "gate and up", &own.weights->desc.up, error));
    MOE_TRY(check_bound(op, "down", &own.weights->desc.down, error));
    MOE_TRY(moe_call_check_array(op, "seg_indptr", own.seg_indptr, sizeof(int64_t), 1, error));
    MOE_TRY(moe_call_check_segments(op, plan, own.seg_indptr, error));
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
    MOE_TRY(check_experts_overlap(plan, &own, tokens, error));
    if (own.num_rows == 0) {
        return MOE_STATUS_OK;
    }
    struct moe_op_experts experts = {
        .weights = own.weights,
        .rows = own.rows,
        .row_stride = own.row_stride,
        .num_rows = own.num_rows,
        .seg_indptr = own.seg_indptr,
        .row_weights = own.row_weights,
        .output = own.output,
        .output_stride = own.output_stride,
    };
    return plan->backend->experts(&run, &experts, error);
}

/* Routing comes from ids and weights, from logits, or from the bound router. */
static int32_t check_layer_routing(const struct moe_plan *plan, const struct moe_layer_args *own,
                                   struct moe_error *error)
{
    static const char op[] = "layer";
    const struct moe_problem *problem = &plan->problem;
    const int64_t num_tokens = own->call.num_tokens;
    const size_t id_bytes = own->ids_dtype == MOE_IDS_INT64 ? 8 : 4;
    MOE_TRY(moe_call_check_ids(op, own->ids_dtype, error));
    MOE_TRY(moe_call_check_array(op, "topk_ids", own->topk_ids, id_bytes, 0, error));
    MOE_TRY(moe_call_check_array(op, "topk_ids_out", own->topk_ids_out, id_bytes, 0, error));
    MOE_TRY(moe_call_check_array(op, "topk_weights_out", own->topk_weights_out, sizeof(float), 0,
                                 error));
    MOE_TRY(moe_call_check_tensor(op, "logits", own->logits, problem->logits_dtype, 0, error));
    MOE_TRY(
        moe_call_check_tensor(op, "logits_out", own->logits_out, problem->logits_dtype, 0, error));
    if (own->topk_ids != NULL) {
        MOE_TRY(moe_call_check_array(op, "topk_weights", own->topk_weights, sizeof(float),
                                     num_tokens, error));
        if (own->logits != NULL || own->logits_out != NULL || own->topk_ids_out != NULL ||
            own->topk_weights_out != NULL) {
            return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                 "layer: with topk_ids given, logits, logits_out, topk_ids_out and "
                                 "topk_weights_out must be NULL");
        }
        return MOE_STATUS_OK;
    }
    if (own->topk_weights != NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "layer: topk_weights are given without topk_ids");
    }
    if (problem->gating == MOE_GATING_NONE) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "layer: the problem has no gating rule, so topk_ids and topk_weights must be given");
    }
    if ((problem->flags & MOE_PROBLEM_CORRECTION_BIAS) != 0) {
        MOE_TRY(check_bound(op, "correction_bias", &own->weights->desc.correction_bias, error));
    }
    if (own->logits == NULL) {
        return check_bound(op, "router (and neither logits nor topk_ids are given)",
                           &own->weights->desc.router, error);
    }
    if (own->logits_out != NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "layer: logits_out is for the router's logits, but logits are given");
    }
    return MOE_STATUS_OK;
}

/* Only `output` may be an input, tokens or residual, and then the very same rows. */
static int32_t check_layer_overlap(const struct moe_plan *plan, const struct moe_layer_args *own,
                                   struct moe_error *error)
{
    static const char op[] = "layer";
    const struct moe_problem *problem = &plan->problem;
    const int64_t num_tokens = own->call.num_tokens;
    const int64_t num_routes = num_tokens * moe_problem_num_slots(problem);
    const int64_t num_experts = problem->num_experts_global, hidden = problem->hidden;
    const int32_t token_dtype = problem->tokens.dtype, output_dtype = problem->output_dtype;
    const int32_t logits_dtype = problem->logits_dtype;
    const size_t id_bytes = own->ids_dtype == MOE_IDS_INT64 ? 8 : 4;
    const struct moe_span output =
        moe_call_span(own->output, num_tokens, hidden, own->output_stride, output_dtype);
    const struct moe_span tokens =
        moe_call_span(own->tokens, num_tokens, hidden, own->token_stride, token_dtype);
    const struct moe_span residual =
        moe_call_span(own->residual, num_tokens, hidden, own->residual_stride, output_dtype);
    MOE_TRY(moe_call_check_overlap(op, "output", output, "tokens", tokens,
                                   token_dtype == output_dtype, error));
    MOE_TRY(moe_call_check_overlap(op, "output", output, "residual", residual, 1, error));
    const struct moe_call_tensor tensors[] = {
        {"logits_out",
         moe_call_span(own->logits_out, num_tokens, num_experts, num_experts, logits_dtype)},
        moe_call_array("topk_ids_out", own->topk_ids_out, num_routes, id_bytes),
        moe_call_array("topk_weights_out", own->topk_weights_out, num_routes, sizeof(float)),
        moe_call_workspace(plan, MOE_OP_LAYER, &own->call, num_tokens),
        {"tokens", tokens},
        {"residual", residual},
        {"output", output},
        {"logits",
         moe_call_span(own->logits, num_tokens, num_experts, own->logits_stride, logits_dtype)},
        moe_call_array("topk_ids", own->topk_ids, num_routes, id_bytes),
        moe_call_array("topk_weights", own->topk_weights, num_routes, sizeof(float)),
        moe_call_array("filter.expert_map", own->filter.expert_map, moe_problem_num_ids(problem),
                       sizeof(int32_t)),
    };
    enum { num_tensors = sizeof(tensors) / sizeof(tensors[0]), output_idx = 6 };
    MOE_TRY(moe_call_check_disjoint(op, tensors, num_tensors, 4, error));
    return moe_call_check_disjoint(op, tensors + output_idx, num_tensors - output_idx, 1, error);
}

static int32_t check_layer_tensors(const struct moe_plan *plan, struct moe_layer_args *own,
                                   struct moe_error *error)
{
    static const char op[] = "layer";
    const struct moe_problem *problem = &plan->problem;
    const int64_t num_tokens = own->call.num_tokens, hidden = problem->hidden;
    const int32_t token_dtype = problem->tokens.dtype, output_dtype = problem->output_dtype;
    MOE_TRY(moe_call_resolve_stride(op, "token_stride", &own->token_stride, hidden, error));
    MOE_TRY(moe_call_resolve_stride(op, "residual_stride", &own->residual_stride, hidden, error));
    MOE_TRY(moe_call_resolve_stride(op, "output_stride", &own->output_stride, hidden, error));
    MOE_TRY(moe_call_resolve_stride(op, "logits_stride", &own->logits_stride,
                                    problem->num_experts_global, error));
    MOE_TRY(moe_call_check_tensor(op, "tokens", own->tokens, token_dtype, num_tokens, error));
    MOE_TRY(moe_call_check_tensor(op, "output", own->output, output_dtype, num_tokens, error));
    MOE_TRY(moe_call_check_tensor(op, "residual", own->residual, output_dtype, 0, error));
    return check_layer_overlap(plan, own, error);
}

static int32_t check_layer_features(const struct moe_layer_args *own, struct moe_error *error)
{
    static const char op[] = "layer";
    if (own->reserved != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "layer: reserved must be 0");
    }
    if (own->filter.mode != MOE_FILTER_DROP) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "layer: filter.mode must be drop (%d)", MOE_FILTER_DROP);
    }
    MOE_TRY(moe_call_refuse(op, "input_scales or input_scale_stride",
                            own->input_scales != NULL || own->input_scale_stride != 0, error));
    MOE_TRY(moe_call_refuse(op, "num_valid_tokens (padded tokens)", own->num_valid_tokens != NULL,
                            error));
    MOE_TRY(moe_call_refuse(
        op, "physical_ids, num_replicas or max_replicas (logical-to-physical map)",
        own->physical_ids != NULL || own->num_replicas != NULL || own->max_replicas != 0, error));
    return moe_call_refuse(op, "load_counters", own->load_counters != NULL, error);
}

/* `elements` of `bytes` after a pointer; NULL stays NULL. */
static const void *advance(const void *pointer, int64_t elements, int64_t bytes)
{
    return pointer == NULL ? NULL : (const char *)pointer + elements * bytes;
}

static void *advance_output(void *pointer, int64_t elements, int64_t bytes)
{
    return pointer == NULL ? NULL : (char *)pointer + elements * bytes;
}

/* The tokens [first, first + num_tokens) of a call as a call of their own. */
static struct moe_op_layer slice_layer(const struct moe_problem *problem,
                                       const struct moe_layer_args *own,
                                       const struct moe_op_filter *filter, int64_t first,
                                       int64_t num_tokens)
{
    const int64_t token_bytes = moe_dtype_bytes(problem->tokens.dtype);
    const int64_t output_bytes = moe_dtype_bytes(problem->output_dtype);
    const int64_t logit_bytes = moe_dtype_bytes(problem->logits_dtype);
    const int64_t id_bytes = own->ids_dtype == MOE_IDS_INT64 ? 8 : 4;
    const int64_t first_route = first * moe_problem_num_slots(problem);
    struct moe_op_layer slice = {
        .weights = own->weights,
        .num_tokens = num_tokens,
        .tokens = advance(own->tokens, first * own->token_stride, token_bytes),
        .token_stride = own->token_stride,
        .logits = advance(own->logits, first * own->logits_stride, logit_bytes),
        .logits_stride = own->logits_stride,
        .topk_ids = advance(own->topk_ids, first_route, id_bytes),
        .topk_weights = advance(own->topk_weights, first_route, (int64_t)sizeof(float)),
        .ids_dtype = own->ids_dtype,
        .filter = *filter,
        .residual = advance(own->residual, first * own->residual_stride, output_bytes),
        .residual_stride = own->residual_stride,
        .output = advance_output(own->output, first * own->output_stride, output_bytes),
        .output_stride = own->output_stride,
        .logits_out =
            advance_output(own->logits_out, first * problem->num_experts_global, logit_bytes),
        .topk_ids_out = advance_output(own->topk_ids_out, first_route, id_bytes),
        .topk_weights_out =
            advance_output(own->topk_weights_out, first_route, (int64_t)sizeof(float)),
    };
    return slice;
}

int32_t moe_calls_layer(const struct moe_plan *plan, const struct moe_layer_args *args,
                        struct moe_error *error)
{
    static const char op[] = "layer";
    struct moe_layer_args own;
    struct moe_op_filter filter;
    struct moe_run run;
    MOE_TRY(moe_call_check_plan(plan, MOE_OP_LAYER, error));
    MOE_TRY(MOE_STRUCT_READ(&own, args, moe_layer_args, error));
    const struct moe_problem *problem = &plan->problem;
    const int64_t num_tokens = own.call.num_tokens;
    const int64_t chunk = plan->chunk_tokens;
    MOE_TRY(moe_call_begin(plan, MOE_OP_LAYER, &own.call, num_tokens, &run, error));
    MOE_TRY(check_layer_features(&own, error));
    MOE_TRY(moe_call_check_weights(op, plan, own.weights, error));
    run.weights = own.weights;
    MOE_TRY(check_bound(op, "gate and up", &own.weights->desc.up, error));
    MOE_TRY(check_bound(op, "down", &own.weights->desc.down, error));
    if (problem->shared_inter > 0) {
        MOE_TRY(check_bound(op, "the shared expert", &own.weights->desc.shared_up, error));
    }
    MOE_TRY(check_layer_routing(plan, &own, error));
    MOE_TRY(moe_call_read_filter(op, problem, &own.filter, &filter, error));
    MOE_TRY(check_layer_tensors(plan, &own, error));
    for (int64_t first = 0; first < run.num_tokens; first += chunk) {
        const int64_t rest = run.num_tokens - first;
        const struct moe_op_layer slice =
            slice_layer(problem, &own, &filter, first, rest < chunk ? rest : chunk);
        run.bucket = moe_dispatch_find(plan->dispatch, slice.num_tokens);
        MOE_TRY(plan->backend->layer(&run, &slice, error));
    }
    return MOE_STATUS_OK;
}
