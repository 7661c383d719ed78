/* SPDX-License-Identifier: Apache-2.0 */
/* The run call layer. */
#include "call_scales.h"
#include "calls.h"
#include "routing_check.h"
#include "status.h"
#include "structs.h"

static const char op[] = "layer";

/* Members that only gating uses. */
static int32_t refuse_gating_members(const struct moe_layer_args *own, struct moe_error *error)
{
    if (own->num_valid_tokens == NULL && own->physical_ids == NULL && own->num_replicas == NULL &&
        own->load_counters == NULL && own->max_replicas == 0) {
        return MOE_STATUS_OK;
    }
    return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                         "layer: with topk_ids given nothing is gated: num_valid_tokens, "
                         "physical_ids, num_replicas, max_replicas and load_counters must be zero");
}

static int32_t check_gating_members(const struct moe_layer_args *own, struct moe_error *error)
{
    MOE_TRY(moe_call_check_array(op, "num_valid_tokens", own->num_valid_tokens, sizeof(int32_t), 0,
                                 error));
    MOE_TRY(
        moe_call_check_array(op, "load_counters", own->load_counters, sizeof(int64_t), 0, error));
    return moe_routing_check_replicas(op, own->physical_ids, own->num_replicas, own->max_replicas,
                                      error);
}

/* Routing comes from ids and weights, from logits, or from the bound router. */
static int32_t check_layer_routing(const struct moe_plan *plan, const struct moe_layer_args *own,
                                   struct moe_error *error)
{
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
        return refuse_gating_members(own, error);
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
    MOE_TRY(check_gating_members(own, error));
    if ((problem->flags & MOE_PROBLEM_CORRECTION_BIAS) != 0) {
        MOE_TRY(moe_call_check_bound(op, "correction_bias", &own->weights->desc.correction_bias,
                                     error));
    }
    if (own->logits == NULL && moe_recipe_is_fp8(&problem->tokens)) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "layer: the router reads plain tokens, and problem.tokens is "
                             "fp8_e4m3; give logits, or topk_ids and topk_weights");
    }
    if (own->logits == NULL) {
        return moe_call_check_bound(op, "router (and neither logits nor topk_ids are given)",
                                    &own->weights->desc.router, error);
    }
    if (own->logits_out != NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "layer: logits_out is for the router's logits, but logits are given");
    }
    return MOE_STATUS_OK;
}

static struct moe_call_tensor rows_tensor(const char *name, const void *base, int64_t num_tokens,
                                          int64_t width, int64_t stride, int32_t dtype)
{
    return (struct moe_call_tensor){name, moe_call_span(base, num_tokens, width, stride, dtype)};
}

/* Inputs that no output may overlap, whichever it is. */
static void list_inputs(const struct moe_problem *problem, const struct moe_layer_args *own,
                        const struct moe_call_scales *scales, struct moe_call_tensors *tensors)
{
    const int64_t num_tokens = own->call.num_tokens, num_experts = problem->num_experts_global;
    const int64_t num_routes = num_tokens * moe_problem_num_slots(problem);
    moe_call_add_input(tensors, rows_tensor("logits", own->logits, num_tokens, num_experts,
                                            own->logits_stride, problem->logits_dtype));
    moe_call_add_input(tensors,
                       moe_routing_ids(problem, own->topk_ids, own->ids_dtype, num_tokens));
    moe_call_add_input(
        tensors, moe_call_array("topk_weights", own->topk_weights, num_routes, sizeof(float)));
    moe_call_add_input(tensors, moe_routing_map(problem, &own->filter));
    moe_call_add_input(
        tensors, moe_call_array("num_valid_tokens", own->num_valid_tokens, 1, sizeof(int32_t)));
    moe_call_add_input(tensors, moe_call_array("physical_ids", own->physical_ids,
                                               num_experts * own->max_replicas, sizeof(int32_t)));
    moe_call_add_input(
        tensors, moe_call_array("num_replicas", own->num_replicas, num_experts, sizeof(int32_t)));
    moe_call_add_input(tensors, moe_call_scales_tensor(scales));
}

/* Only `output` may be an input, tokens or residual, and then the very same rows. */
static int32_t check_layer_overlap(const struct moe_plan *plan, const struct moe_layer_args *own,
                                   const struct moe_call_scales *scales, struct moe_error *error)
{
    const struct moe_problem *problem = &plan->problem;
    const int64_t num_tokens = own->call.num_tokens, hidden = problem->hidden;
    const int64_t num_routes = num_tokens * moe_problem_num_slots(problem);
    const int64_t num_experts = problem->num_experts_global;
    const int32_t token_dtype = problem->tokens.dtype, output_dtype = problem->output_dtype;
    const size_t id_bytes = own->ids_dtype == MOE_IDS_INT64 ? 8 : 4;
    const struct moe_call_tensor output =
        rows_tensor("output", own->output, num_tokens, hidden, own->output_stride, output_dtype);
    const struct moe_call_tensor tokens =
        rows_tensor("tokens", own->tokens, num_tokens, hidden, own->token_stride, token_dtype);
    const struct moe_call_tensor residual = rows_tensor("residual", own->residual, num_tokens,
                                                        hidden, own->residual_stride, output_dtype);
    MOE_TRY(moe_call_check_overlap(op, "output", output.span, "tokens", tokens.span,
                                   token_dtype == output_dtype, error));
    MOE_TRY(moe_call_check_overlap(op, "output", output.span, "residual", residual.span, 1, error));
    struct moe_call_tensors others = {.num_outputs = 0}, own_output = {.num_outputs = 0};
    moe_call_add_output(&others, rows_tensor("logits_out", own->logits_out, num_tokens, num_experts,
                                             num_experts, problem->logits_dtype));
    moe_call_add_output(&others,
                        moe_call_array("topk_ids_out", own->topk_ids_out, num_routes, id_bytes));
    moe_call_add_output(&others, moe_call_array("topk_weights_out", own->topk_weights_out,
                                                num_routes, sizeof(float)));
    moe_call_add_output(
        &others, moe_call_array("load_counters", own->load_counters, num_experts, sizeof(int64_t)));
    moe_call_add_common(&others, plan, MOE_OP_LAYER, &own->call);
    list_inputs(problem, own, scales, &others);
    moe_call_add_input(&others, tokens);
    moe_call_add_input(&others, residual);
    moe_call_add_input(&others, output);
    MOE_TRY(moe_call_check_tensors(op, &others, error));
    moe_call_add_output(&own_output, output);
    list_inputs(problem, own, scales, &own_output);
    moe_call_add_input(&own_output, moe_call_array("num_tokens_device", own->call.num_tokens_device,
                                                   1, sizeof(int32_t)));
    return moe_call_check_tensors(op, &own_output, error);
}

static int32_t check_layer_tensors(const struct moe_plan *plan, struct moe_layer_args *own,
                                   struct moe_call_scales *scales, struct moe_op_scales *op_scales,
                                   struct moe_error *error)
{
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
    *scales = (struct moe_call_scales){.rows_name = "tokens",
                                       .recipe = &problem->tokens,
                                       .base = own->input_scales,
                                       .stride = own->input_scale_stride,
                                       .num_rows = num_tokens,
                                       .width = hidden};
    MOE_TRY(moe_call_read_scales(op, scales, op_scales, error));
    return check_layer_overlap(plan, own, scales, error);
}

static int32_t check_layer_features(const struct moe_layer_args *own, struct moe_error *error)
{
    if (own->reserved != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "layer: reserved must be 0");
    }
    if (own->filter.mode != MOE_FILTER_DROP) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "layer: filter.mode must be drop (%d)", MOE_FILTER_DROP);
    }
    return MOE_STATUS_OK;
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
                                       const struct moe_op_filter *filter,
                                       const struct moe_op_scales *scales, int64_t first,
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
        .first_token = first,
        .tokens = advance(own->tokens, first * own->token_stride, token_bytes),
        .token_stride = own->token_stride,
        .input_scales = *scales,
        .num_valid_tokens = own->num_valid_tokens,
        .physical_ids = own->physical_ids,
        .num_replicas = own->num_replicas,
        .max_replicas = (int32_t)own->max_replicas,
        .load_counters = own->load_counters,
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
    if (scales->base != NULL) {
        slice.input_scales.base = (const char *)scales->base +
                                  moe_recipe_scale_offset(&problem->tokens, first, scales->stride);
    }
    return slice;
}

int32_t moe_calls_layer(const struct moe_plan *plan, const struct moe_layer_args *args,
                        struct moe_error *error)
{
    struct moe_layer_args own;
    struct moe_op_filter filter;
    struct moe_call_scales scales;
    struct moe_op_scales op_scales;
    struct moe_run run;
    MOE_TRY(moe_call_check_plan(plan, MOE_OP_LAYER, error));
    MOE_TRY(MOE_STRUCT_READ(&own, args, moe_layer_args, error));
    const struct moe_problem *problem = &plan->problem;
    MOE_TRY(moe_call_begin(plan, MOE_OP_LAYER, &own.call, own.call.num_tokens, &run, error));
    MOE_TRY(check_layer_features(&own, error));
    MOE_TRY(moe_call_check_weights(op, plan, own.weights, error));
    MOE_TRY(moe_call_check_bound(op, "gate and up", &own.weights->desc.up, error));
    MOE_TRY(moe_call_check_bound(op, "down", &own.weights->desc.down, error));
    if (problem->shared_inter > 0) {
        MOE_TRY(moe_call_check_bound(op, "the shared expert", &own.weights->desc.shared_up, error));
    }
    MOE_TRY(check_layer_routing(plan, &own, error));
    MOE_TRY(moe_call_read_filter(op, problem, &own.filter, &filter, error));
    MOE_TRY(check_layer_tensors(plan, &own, &scales, &op_scales, error));
    if (run.num_tokens_device != NULL && run.num_tokens > plan->chunk_tokens) {
        return moe_error_set(
            error, MOE_STATUS_UNSUPPORTED,
            "layer: num_tokens_device is given, but the plan's workspace cap makes "
            "it run %lld of %lld tokens at a time",
            (long long)plan->chunk_tokens, (long long)run.num_tokens);
    }
    run.weights = own.weights;
    for (int64_t first = 0; first < run.num_tokens; first += plan->chunk_tokens) {
        const int64_t rest = run.num_tokens - first;
        struct moe_op_layer slice =
            slice_layer(problem, &own, &filter, &op_scales, first,
                        rest < plan->chunk_tokens ? rest : plan->chunk_tokens);
        slice.num_tokens_device = run.num_tokens_device;
        run.bucket = moe_dispatch_find(plan->dispatch, slice.num_tokens);
        MOE_TRY(plan->backend->layer(&run, &slice, error));
    }
    return MOE_STATUS_OK;
}
