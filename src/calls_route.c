/* SPDX-License-Identifier: Apache-2.0 */
/* The run call route: gating and both sorts in one call. */
#include "calls.h"
#include "routing_check.h"
#include "status.h"
#include "structs.h"

static const char op[] = "route";

/* The arguments as those of the three operations. */
struct parts {
    struct moe_gating_args gating;
    struct moe_align_args align;
    struct moe_ep_preprocess_args preprocess;
    bool wants_gating;
    bool wants_align;
    bool wants_preprocess;
};

static void split_args(const struct moe_route_args *own, struct parts *parts)
{
    *parts = (struct parts){
        .gating = {.call = own->call,
                   .logits = own->logits,
                   .logits_stride = own->logits_stride,
                   .correction_bias = own->correction_bias,
                   .topk_ids = own->topk_ids,
                   .topk_weights = own->topk_weights,
                   .ids_dtype = own->ids_dtype,
                   .max_replicas = own->max_replicas,
                   .num_valid_tokens = own->num_valid_tokens,
                   .physical_ids = own->physical_ids,
                   .num_replicas = own->num_replicas,
                   .load_counters = own->load_counters},
        .align = {.call = own->call,
                  .topk_ids = own->topk_ids,
                  .ids_dtype = own->ids_dtype,
                  .block_size = own->block_size,
                  .filter = own->filter,
                  .sorted_ids = own->sorted_ids,
                  .sorted_capacity = own->sorted_capacity,
                  .expert_ids = own->expert_ids,
                  .expert_capacity = own->expert_capacity,
                  .num_tokens_post_pad = own->num_tokens_post_pad,
                  .expert_counts = own->expert_counts},
        .preprocess = {.call = own->call,
                       .topk_ids = own->topk_ids,
                       .ids_dtype = own->ids_dtype,
                       .segment_alignment = own->segment_alignment,
                       .filter = own->filter,
                       .seg_indptr = own->seg_indptr,
                       .src2dst = own->src2dst,
                       .dst2src = own->dst2src,
                       .reorder_ids = own->reorder_ids,
                       .m_indices = own->m_indices,
                       .row_capacity = own->row_capacity,
                       .masked_m = own->masked_m,
                       .max_masked_rows = own->max_masked_rows},
        .wants_gating = own->logits != NULL,
        .wants_align = own->sorted_ids != NULL || own->expert_counts != NULL,
        .wants_preprocess = own->seg_indptr != NULL || own->masked_m != NULL,
    };
    parts->preprocess.filter.mode = MOE_FILTER_DROP;
}

/* A member that has no effect in this form of the call is a mistake. */
static int32_t refuse_unused(const char *names, bool is_set, const char *reason,
                             struct moe_error *error)
{
    if (!is_set) {
        return MOE_STATUS_OK;
    }
    return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT, "%s: %s must be NULL %s", op, names,
                         reason);
}

static int32_t check_form(const struct moe_problem *problem, const struct moe_route_args *own,
                          const struct parts *parts, struct moe_error *error)
{
    struct moe_op_filter filter; /* a wrong one is refused in every form */
    MOE_TRY(moe_call_read_filter(op, problem, &own->filter, &filter, error));
    if (!parts->wants_align && !parts->wants_preprocess) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: sorted_ids, expert_counts, seg_indptr and masked_m are all NULL; "
                             "at least one must be wanted",
                             op);
    }
    if (!parts->wants_gating) {
        MOE_TRY(refuse_unused("correction_bias, topk_weights, num_valid_tokens, physical_ids, "
                              "num_replicas and load_counters",
                              own->correction_bias != NULL || own->topk_weights != NULL ||
                                  own->num_valid_tokens != NULL || own->physical_ids != NULL ||
                                  own->num_replicas != NULL || own->load_counters != NULL,
                              "without logits: they belong to gating", error));
        if (own->max_replicas != 0) {
            return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                                 "%s: max_replicas is %d, but without logits it must be 0", op,
                                 own->max_replicas);
        }
    }
    if (own->sorted_ids == NULL) {
        MOE_TRY(refuse_unused("expert_ids and num_tokens_post_pad",
                              own->expert_ids != NULL || own->num_tokens_post_pad != NULL,
                              "without sorted_ids", error));
    }
    if (!parts->wants_preprocess) {
        MOE_TRY(refuse_unused("src2dst, dst2src, reorder_ids and m_indices",
                              own->src2dst != NULL || own->dst2src != NULL ||
                                  own->reorder_ids != NULL || own->m_indices != NULL,
                              "without seg_indptr or masked_m", error));
    }
    return MOE_STATUS_OK;
}

/* One list of all tensors; the ids are an output of gating or an input of the sorts. */
static int32_t check_tensors(const struct moe_plan *plan, const struct moe_route_args *own,
                             const struct parts *parts, struct moe_error *error)
{
    const struct moe_problem *problem = &plan->problem;
    const struct moe_call_tensor ids =
        moe_routing_ids(problem, own->topk_ids, own->ids_dtype, own->call.num_tokens);
    struct moe_call_tensors tensors = {.num_outputs = 0};
    if (parts->wants_gating) {
        moe_call_add_output(&tensors, ids);
        moe_routing_list_gating(problem, &parts->gating, &tensors);
    } else {
        moe_call_add_input(&tensors, ids);
    }
    if (parts->wants_align) {
        moe_routing_list_align(problem, &parts->align, &tensors);
    }
    if (parts->wants_preprocess) {
        moe_routing_list_ep_preprocess(problem, &parts->preprocess, &tensors);
    }
    moe_call_add_input(&tensors, moe_routing_map(problem, &own->filter));
    moe_call_add_common(&tensors, plan, MOE_OP_ROUTE, &own->call);
    return moe_call_check_tensors(op, &tensors, error);
}

int32_t moe_calls_route(const struct moe_plan *plan, const struct moe_route_args *args,
                        struct moe_error *error)
{
    struct moe_route_args own;
    struct moe_op_route route = {.wants_align = 0};
    struct moe_run run;
    struct parts parts;
    MOE_TRY(moe_call_check_plan(plan, MOE_OP_ROUTE, error));
    MOE_TRY(MOE_STRUCT_READ(&own, args, moe_route_args, error));
    MOE_TRY(moe_call_begin(plan, MOE_OP_ROUTE, &own.call, own.call.num_tokens, &run, error));
    split_args(&own, &parts);
    MOE_TRY(check_form(&plan->problem, &own, &parts, error));
    if (parts.wants_gating) {
        MOE_TRY(moe_routing_read_gating(op, &run, &parts.gating, &route.gating, error));
    }
    if (parts.wants_align) {
        MOE_TRY(moe_routing_read_align(op, &run, &parts.align, &route.align, error));
        route.wants_align = 1;
    }
    if (parts.wants_preprocess) {
        MOE_TRY(
            moe_routing_read_ep_preprocess(op, &run, &parts.preprocess, &route.preprocess, error));
        route.wants_preprocess = 1;
    }
    MOE_TRY(check_tensors(plan, &own, &parts, error));
    return plan->backend->route(&run, &route, error);
}
