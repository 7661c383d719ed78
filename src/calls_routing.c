/* SPDX-License-Identifier: Apache-2.0 */
/* Run calls around routing: router, gating, align_block_size, ep_preprocess. */
#include "call_check.h"
#include "calls.h"
#include "op_fill.h"
#include "routing_check.h"
#include "status.h"
#include "structs.h"

int32_t moe_calls_router(const struct moe_plan *plan, const struct moe_router_args *args,
                         struct moe_error *error)
{
    static const char op[] = "router";
    struct moe_router_args own;
    struct moe_run run;
    MOE_TRY(moe_call_check_plan(plan, MOE_OP_ROUTER, error));
    MOE_TRY(MOE_STRUCT_READ(&own, args, moe_router_args, error));
    MOE_TRY(moe_call_begin(plan, MOE_OP_ROUTER, &own.call, own.call.num_tokens, &run, error));
    MOE_TRY(moe_call_check_weights(op, plan, own.weights, error));
    const struct moe_problem *problem = &plan->problem;
    const int64_t num_tokens = own.call.num_tokens;
    const struct moe_operand *weight = &own.weights->desc.router;
    if (weight->base == NULL && weight->table == NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "router: the weights were bound without a router");
    }
    MOE_TRY(moe_call_resolve_stride(op, "token_stride", &own.token_stride, problem->hidden, error));
    MOE_TRY(moe_call_resolve_stride(op, "logits_stride", &own.logits_stride,
                                    problem->num_experts_global, error));
    MOE_TRY(
        moe_call_check_tensor(op, "tokens", own.tokens, problem->tokens.dtype, num_tokens, error));
    MOE_TRY(
        moe_call_check_tensor(op, "logits", own.logits, problem->logits_dtype, num_tokens, error));
    struct moe_call_tensors tensors = {.num_outputs = 0};
    moe_call_add_output(
        &tensors, (struct moe_call_tensor){
                      "logits", moe_call_span(own.logits, num_tokens, problem->num_experts_global,
                                              own.logits_stride, problem->logits_dtype)});
    moe_call_add_input(
        &tensors,
        (struct moe_call_tensor){"tokens", moe_call_span(own.tokens, num_tokens, problem->hidden,
                                                         own.token_stride, problem->tokens.dtype)});
    moe_call_add_common(&tensors, plan, MOE_OP_ROUTER, &own.call);
    MOE_TRY(moe_call_check_tensors(op, &tensors, error));
    if (run.num_tokens == 0) {
        return MOE_STATUS_OK;
    }
    struct moe_op_router router;
    moe_op_fill_router(problem, &router);
    router.num_tokens = run.num_tokens;
    router.num_tokens_device = run.num_tokens_device;
    router.tokens = own.tokens;
    router.token_stride = own.token_stride;
    router.weight = *weight;
    router.bias = own.weights->desc.router_bias;
    router.logits = own.logits;
    router.logits_stride = own.logits_stride;
    return plan->backend->router(&run, &router, error);
}

int32_t moe_calls_gating(const struct moe_plan *plan, const struct moe_gating_args *args,
                         struct moe_error *error)
{
    static const char op[] = "gating";
    struct moe_gating_args own;
    struct moe_op_gating gating;
    struct moe_call_tensors tensors = {.num_outputs = 0};
    struct moe_run run;
    MOE_TRY(moe_call_check_plan(plan, MOE_OP_GATING, error));
    MOE_TRY(MOE_STRUCT_READ(&own, args, moe_gating_args, error));
    MOE_TRY(moe_call_begin(plan, MOE_OP_GATING, &own.call, own.call.num_tokens, &run, error));
    MOE_TRY(moe_routing_read_gating(op, &run, &own, &gating, error));
    moe_call_add_output(&tensors, moe_routing_ids(&plan->problem, own.topk_ids, own.ids_dtype,
                                                  own.call.num_tokens));
    moe_routing_list_gating(&plan->problem, &own, &tensors);
    moe_call_add_common(&tensors, plan, MOE_OP_GATING, &own.call);
    MOE_TRY(moe_call_check_tensors(op, &tensors, error));
    return run.num_tokens == 0 ? MOE_STATUS_OK : plan->backend->gating(&run, &gating, error);
}

int32_t moe_calls_align_capacity(int64_t num_routes, int32_t num_experts, int32_t block_size,
                                 int32_t filter_mode, int64_t *sorted_capacity,
                                 int64_t *expert_capacity, struct moe_error *error)
{
    if (sorted_capacity == NULL || expert_capacity == NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "align_capacity: an output is NULL");
    }
    if (num_routes < 0 || num_routes > INT32_MAX || num_experts < 1 || block_size < 1) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "align_capacity: num_routes %lld must be 0 to 2^31-1, num_experts %d "
                             "and block_size %d at least 1",
                             (long long)num_routes, num_experts, block_size);
    }
    if (filter_mode != MOE_FILTER_DROP && filter_mode != MOE_FILTER_KEEP) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "align_capacity: filter_mode is %d; drop is %d, keep is %d",
                             filter_mode, MOE_FILTER_DROP, MOE_FILTER_KEEP);
    }
    int64_t num_buckets = (int64_t)num_experts + (filter_mode == MOE_FILTER_KEEP);
    int64_t padded = moe_routing_worst_padded(num_routes, num_buckets, block_size);
    if (padded > INT32_MAX) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "align_capacity: %lld padded entries do not fit int32",
                             (long long)padded);
    }
    *sorted_capacity = padded;
    *expert_capacity = padded / block_size;
    return MOE_STATUS_OK;
}

/* Tokens that stand for the rows of a batched call, which has none. */
static int64_t count_batched_tokens(const struct moe_plan *plan, const struct moe_align_args *own)
{
    const struct moe_problem *problem = &plan->problem;
    if (own->batch_counts == NULL || own->max_batch_rows < 0) {
        return own->call.num_tokens;
    }
    const int64_t num_slots = moe_problem_num_slots(problem);
    if (own->max_batch_rows > problem->max_tokens * num_slots / problem->num_experts) {
        return problem->max_tokens;
    }
    return (own->max_batch_rows * problem->num_experts + num_slots - 1) / num_slots;
}

int32_t moe_calls_align(const struct moe_plan *plan, const struct moe_align_args *args,
                        struct moe_error *error)
{
    static const char op[] = "align_block_size";
    struct moe_align_args own;
    struct moe_op_align align;
    struct moe_call_tensors tensors = {.num_outputs = 0};
    struct moe_run run;
    MOE_TRY(moe_call_check_plan(plan, MOE_OP_ALIGN_BLOCK_SIZE, error));
    MOE_TRY(MOE_STRUCT_READ(&own, args, moe_align_args, error));
    MOE_TRY(moe_call_begin(plan, MOE_OP_ALIGN_BLOCK_SIZE, &own.call,
                           count_batched_tokens(plan, &own), &run, error));
    MOE_TRY(moe_routing_read_align(op, &run, &own, &align, error));
    moe_routing_list_align(&plan->problem, &own, &tensors);
    if (own.batch_counts == NULL) {
        moe_call_add_input(&tensors, moe_routing_ids(&plan->problem, own.topk_ids, own.ids_dtype,
                                                     own.call.num_tokens));
        moe_call_add_input(&tensors, moe_routing_map(&plan->problem, &own.filter));
    }
    moe_call_add_common(&tensors, plan, MOE_OP_ALIGN_BLOCK_SIZE, &own.call);
    MOE_TRY(moe_call_check_tensors(op, &tensors, error));
    return plan->backend->align(&run, &align, error);
}

int32_t moe_calls_ep_preprocess(const struct moe_plan *plan,
                                const struct moe_ep_preprocess_args *args, struct moe_error *error)
{
    static const char op[] = "ep_preprocess";
    struct moe_ep_preprocess_args own;
    struct moe_op_ep_preprocess preprocess;
    struct moe_call_tensors tensors = {.num_outputs = 0};
    struct moe_run run;
    MOE_TRY(moe_call_check_plan(plan, MOE_OP_EP_PREPROCESS, error));
    MOE_TRY(MOE_STRUCT_READ(&own, args, moe_ep_preprocess_args, error));
    MOE_TRY(
        moe_call_begin(plan, MOE_OP_EP_PREPROCESS, &own.call, own.call.num_tokens, &run, error));
    if (own.filter.mode != MOE_FILTER_DROP) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "ep_preprocess: filter.mode must be drop (%d): filtered routes have no row",
            MOE_FILTER_DROP);
    }
    MOE_TRY(moe_routing_read_ep_preprocess(op, &run, &own, &preprocess, error));
    moe_routing_list_ep_preprocess(&plan->problem, &own, &tensors);
    moe_call_add_input(&tensors, moe_routing_ids(&plan->problem, own.topk_ids, own.ids_dtype,
                                                 own.call.num_tokens));
    moe_call_add_input(&tensors, moe_routing_map(&plan->problem, &own.filter));
    moe_call_add_common(&tensors, plan, MOE_OP_EP_PREPROCESS, &own.call);
    MOE_TRY(moe_call_check_tensors(op, &tensors, error));
    return plan->backend->ep_preprocess(&run, &preprocess, error);
}
