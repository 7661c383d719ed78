/* SPDX-License-Identifier: Apache-2.0 */
/* Run calls around routing: router, gating, align_block_size, ep_preprocess. */
#include "call_check.h"
#include "calls.h"
#include "status.h"
#include "structs.h"
#include "tiles.h"

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
    const int64_t token_bytes = moe_dtype_bytes(problem->tokens.dtype);
    const int64_t logit_bytes = moe_dtype_bytes(problem->logits_dtype);
    struct moe_span logits = {own.logits, num_tokens, problem->num_experts_global * logit_bytes,
                              own.logits_stride * logit_bytes};
    struct moe_span tokens = {own.tokens, num_tokens, problem->hidden * token_bytes,
                              own.token_stride * token_bytes};
    MOE_TRY(moe_call_check_overlap(op, "logits", logits, "tokens", tokens, 0, error));
    if (num_tokens == 0) {
        return MOE_STATUS_OK;
    }
    struct moe_op_router router = {
        .num_tokens = num_tokens,
        .num_experts = problem->num_experts_global,
        .hidden = problem->hidden,
        .tokens = own.tokens,
        .token_stride = own.token_stride,
        .token_dtype = problem->tokens.dtype,
        .logits_dtype = problem->logits_dtype,
        .weight = *weight,
        .bias = own.weights->desc.router_bias,
        .logits = own.logits,
        .logits_stride = own.logits_stride,
    };
    return plan->backend->router(&run, &router, error);
}

static size_t bytes_of_id(int32_t ids_dtype)
{
    return ids_dtype == MOE_IDS_INT64 ? sizeof(int64_t) : sizeof(int32_t);
}

static int32_t check_gating_overlap(const struct moe_plan *plan, const struct moe_gating_args *own,
                                    struct moe_error *error)
{
    const struct moe_problem *problem = &plan->problem;
    const int64_t num_tokens = own->call.num_tokens, num_experts = problem->num_experts_global;
    const int64_t num_chosen = num_tokens * moe_problem_num_slots(problem);
    const struct moe_call_tensor tensors[] = {
        moe_call_array("topk_ids", own->topk_ids, num_chosen, bytes_of_id(own->ids_dtype)),
        moe_call_array("topk_weights", own->topk_weights, num_chosen, sizeof(float)),
        moe_call_workspace(plan, MOE_OP_GATING, &own->call, num_tokens),
        {"logits", moe_call_span(own->logits, num_tokens, num_experts, own->logits_stride,
                                 problem->logits_dtype)},
        moe_call_array("correction_bias", own->correction_bias, num_experts, sizeof(float)),
    };
    return moe_call_check_disjoint("gating", tensors, sizeof(tensors) / sizeof(tensors[0]), 3,
                                   error);
}

int32_t moe_calls_gating(const struct moe_plan *plan, const struct moe_gating_args *args,
                         struct moe_error *error)
{
    static const char op[] = "gating";
    struct moe_gating_args own;
    struct moe_run run;
    MOE_TRY(moe_call_check_plan(plan, MOE_OP_GATING, error));
    MOE_TRY(MOE_STRUCT_READ(&own, args, moe_gating_args, error));
    MOE_TRY(moe_call_begin(plan, MOE_OP_GATING, &own.call, own.call.num_tokens, &run, error));
    const struct moe_problem *problem = &plan->problem;
    const int64_t num_tokens = own.call.num_tokens;
    const bool biased = (problem->flags & MOE_PROBLEM_CORRECTION_BIAS) != 0;
    if (problem->gating == MOE_GATING_NONE) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "gating: the plan's problem has no gating rule");
    }
    MOE_TRY(moe_call_refuse(op, "max_replicas (logical-to-physical map)", own.max_replicas != 0,
                            error));
    MOE_TRY(moe_call_refuse(op, "physical_ids or num_replicas",
                            own.physical_ids != NULL || own.num_replicas != NULL, error));
    MOE_TRY(moe_call_refuse(op, "num_valid_tokens (padded tokens)", own.num_valid_tokens != NULL,
                            error));
    MOE_TRY(moe_call_refuse(op, "load_counters", own.load_counters != NULL, error));
    MOE_TRY(moe_call_check_ids(op, own.ids_dtype, error));
    MOE_TRY(moe_call_resolve_stride(op, "logits_stride", &own.logits_stride,
                                    problem->num_experts_global, error));
    MOE_TRY(
        moe_call_check_tensor(op, "logits", own.logits, problem->logits_dtype, num_tokens, error));
    MOE_TRY(moe_call_check_array(op, "correction_bias", own.correction_bias, sizeof(float), biased,
                                 error));
    MOE_TRY(moe_call_check_array(op, "topk_ids", own.topk_ids, bytes_of_id(own.ids_dtype),
                                 num_tokens, error));
    MOE_TRY(moe_call_check_array(op, "topk_weights", own.topk_weights, sizeof(float), num_tokens,
                                 error));
    if (own.correction_bias != NULL && !biased) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "gating: correction_bias is given, but the problem lacks MOE_PROBLEM_CORRECTION_BIAS");
    }
    MOE_TRY(check_gating_overlap(plan, &own, error));
    if (num_tokens == 0) {
        return MOE_STATUS_OK;
    }
    struct moe_op_gating gating = {
        .num_tokens = num_tokens,
        .num_experts = problem->num_experts_global,
        .top_k = problem->top_k,
        .rule = problem->gating,
        .renormalize = (problem->flags & MOE_PROBLEM_RENORMALIZE) != 0,
        .num_groups = problem->num_groups,
        .topk_groups = problem->topk_groups,
        .group_score = problem->group_score,
        .logits_dtype = problem->logits_dtype,
        .router_jitter = problem->router_jitter,
        .scaling = problem->scaling_on == MOE_SCALING_WEIGHTS ? problem->routed_scaling : 1.0f,
        .num_appended = problem->num_appended_experts,
        .appended_weight = problem->appended_weight,
        .logits = own.logits,
        .logits_stride = own.logits_stride,
        .correction_bias = own.correction_bias,
        .topk_ids = own.topk_ids,
        .ids_dtype = own.ids_dtype,
        .topk_weights = own.topk_weights,
    };
    return plan->backend->gating(&run, &gating, error);
}

/* Worst case of routes padded per bucket: every bucket that can have a route wastes bs - 1 entries,
 * and whole blocks count. */
static int64_t worst_padded(int64_t num_routes, int64_t num_buckets, int64_t block_size)
{
    int64_t used_buckets = num_routes < num_buckets ? num_routes : num_buckets;
    return (num_routes + used_buckets * (block_size - 1)) / block_size * block_size;
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
    int64_t padded = worst_padded(num_routes, num_buckets, block_size);
    if (padded > INT32_MAX) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "align_capacity: %lld padded entries do not fit int32",
                             (long long)padded);
    }
    *sorted_capacity = padded;
    *expert_capacity = padded / block_size;
    return MOE_STATUS_OK;
}

static int32_t check_align_outputs(const struct moe_align_args *own, int64_t num_routes,
                                   int32_t num_experts, int32_t block_size, struct moe_error *error)
{
    static const char op[] = "align_block_size";
    bool counts_only =
        own->sorted_ids == NULL && own->expert_ids == NULL && own->num_tokens_post_pad == NULL;
    MOE_TRY(moe_call_check_array(op, "expert_counts", own->expert_counts, sizeof(int32_t),
                                 counts_only, error));
    if (counts_only) {
        return MOE_STATUS_OK;
    }
    int64_t sorted_needed = 0, expert_needed = 0;
    MOE_TRY(moe_calls_align_capacity(num_routes, num_experts, block_size, own->filter.mode,
                                     &sorted_needed, &expert_needed, error));
    if (own->sorted_capacity < sorted_needed || own->expert_capacity < expert_needed ||
        own->sorted_capacity > INT32_MAX || own->expert_capacity > INT32_MAX) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "align_block_size: capacities are %lld sorted and %lld expert ids; "
                             "%lld routes in blocks of %d need %lld and %lld "
                             "(align_capacity), below 2^31",
                             (long long)own->sorted_capacity, (long long)own->expert_capacity,
                             (long long)num_routes, block_size, (long long)sorted_needed,
                             (long long)expert_needed);
    }
    MOE_TRY(moe_call_check_array(op, "sorted_ids", own->sorted_ids, sizeof(int32_t),
                                 own->sorted_capacity, error));
    MOE_TRY(moe_call_check_array(op, "expert_ids", own->expert_ids, sizeof(int32_t),
                                 own->expert_capacity, error));
    return moe_call_check_array(op, "num_tokens_post_pad", own->num_tokens_post_pad,
                                sizeof(int32_t), 1, error);
}

static int32_t check_align_overlap(const struct moe_plan *plan, const struct moe_align_args *own,
                                   struct moe_error *error)
{
    const struct moe_problem *problem = &plan->problem;
    const int64_t num_tokens = own->call.num_tokens;
    const struct moe_call_tensor tensors[] = {
        moe_call_array("sorted_ids", own->sorted_ids, own->sorted_capacity, sizeof(int32_t)),
        moe_call_array("expert_ids", own->expert_ids, own->expert_capacity, sizeof(int32_t)),
        moe_call_array("num_tokens_post_pad", own->num_tokens_post_pad, 1, sizeof(int32_t)),
        moe_call_array("expert_counts", own->expert_counts, problem->num_experts, sizeof(int32_t)),
        moe_call_workspace(plan, MOE_OP_ALIGN_BLOCK_SIZE, &own->call, num_tokens),
        moe_call_array("topk_ids", own->topk_ids, num_tokens * moe_problem_num_slots(problem),
                       bytes_of_id(own->ids_dtype)),
        moe_call_array("filter.expert_map", own->filter.expert_map, moe_problem_num_ids(problem),
                       sizeof(int32_t)),
    };
    return moe_call_check_disjoint("align_block_size", tensors,
                                   sizeof(tensors) / sizeof(tensors[0]), 5, error);
}

int32_t moe_calls_align(const struct moe_plan *plan, const struct moe_align_args *args,
                        struct moe_error *error)
{
    static const char op[] = "align_block_size";
    struct moe_align_args own;
    struct moe_run run;
    MOE_TRY(moe_call_check_plan(plan, MOE_OP_ALIGN_BLOCK_SIZE, error));
    MOE_TRY(MOE_STRUCT_READ(&own, args, moe_align_args, error));
    MOE_TRY(
        moe_call_begin(plan, MOE_OP_ALIGN_BLOCK_SIZE, &own.call, own.call.num_tokens, &run, error));
    MOE_TRY(moe_call_refuse(op, "batch_counts or max_batch_rows (batched form)",
                            own.batch_counts != NULL || own.max_batch_rows != 0, error));
    MOE_TRY(moe_call_check_ids(op, own.ids_dtype, error));
    const int64_t num_routes = own.call.num_tokens * moe_problem_num_slots(&plan->problem);
    int32_t block_size = own.block_size;
    if (block_size == 0 && (plan->ops & MOE_OP_BIT(MOE_OP_GEMM1)) != 0) {
        block_size = moe_tiles[run.bucket->choices[MOE_OP_GEMM1].tile].block_m;
    }
    if (block_size < 1) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "align_block_size: block_size is %d; it must be at least 1, or 0 in a "
                             "plan that has gemm1",
                             own.block_size);
    }
    struct moe_op_align align = {
        .num_routes = num_routes,
        .topk_ids = own.topk_ids,
        .ids_dtype = own.ids_dtype,
        .block_size = block_size,
        .filter_mode = own.filter.mode,
        .sorted_ids = own.sorted_ids,
        .sorted_capacity = own.sorted_capacity,
        .expert_ids = own.expert_ids,
        .expert_capacity = own.expert_capacity,
        .num_tokens_post_pad = own.num_tokens_post_pad,
        .expert_counts = own.expert_counts,
    };
    MOE_TRY(moe_call_read_filter(op, &plan->problem, &own.filter, &align.filter, error));
    MOE_TRY(moe_call_check_array(op, "topk_ids", own.topk_ids, bytes_of_id(own.ids_dtype),
                                 num_routes, error));
    MOE_TRY(check_align_outputs(&own, num_routes, plan->problem.num_experts, block_size, error));
    MOE_TRY(check_align_overlap(plan, &own, error));
    return plan->backend->align(&run, &align, error);
}

/* Rows that aligned segments can take at most. */
static int32_t check_row_capacity(const struct moe_ep_preprocess_args *own, int64_t num_routes,
                                  int32_t num_experts, int64_t alignment, struct moe_error *error)
{
    int64_t worst = alignment == 1 ? num_routes : worst_padded(num_routes, num_experts, alignment);
    if (worst > INT32_MAX) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "ep_preprocess: %lld rows with segments aligned to %lld do not fit int32",
            (long long)worst, (long long)alignment);
    }
    bool wants_rows = own->dst2src != NULL || own->m_indices != NULL;
    if (wants_rows && (own->row_capacity < worst || own->row_capacity > INT32_MAX)) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "ep_preprocess: row_capacity is %lld; %lld routes with segments "
                             "aligned to %lld need %lld, below 2^31",
                             (long long)own->row_capacity, (long long)num_routes,
                             (long long)alignment, (long long)worst);
    }
    return MOE_STATUS_OK;
}

static int32_t check_preprocess_overlap(const struct moe_plan *plan,
                                        const struct moe_ep_preprocess_args *own,
                                        struct moe_error *error)
{
    const struct moe_problem *problem = &plan->problem;
    const int64_t num_tokens = own->call.num_tokens,
                  num_routes = num_tokens * moe_problem_num_slots(problem);
    const struct moe_call_tensor tensors[] = {
        moe_call_array("seg_indptr", own->seg_indptr, (int64_t)problem->num_experts + 1,
                       sizeof(int64_t)),
        moe_call_array("src2dst", own->src2dst, num_routes, sizeof(int32_t)),
        moe_call_array("dst2src", own->dst2src, own->row_capacity, sizeof(int32_t)),
        moe_call_array("reorder_ids", own->reorder_ids, num_routes, sizeof(int32_t)),
        moe_call_array("m_indices", own->m_indices, own->row_capacity, sizeof(int32_t)),
        moe_call_workspace(plan, MOE_OP_EP_PREPROCESS, &own->call, num_tokens),
        moe_call_array("topk_ids", own->topk_ids, num_routes, bytes_of_id(own->ids_dtype)),
        moe_call_array("filter.expert_map", own->filter.expert_map, moe_problem_num_ids(problem),
                       sizeof(int32_t)),
    };
    return moe_call_check_disjoint("ep_preprocess", tensors, sizeof(tensors) / sizeof(tensors[0]),
                                   6, error);
}

int32_t moe_calls_ep_preprocess(const struct moe_plan *plan,
                                const struct moe_ep_preprocess_args *args, struct moe_error *error)
{
    static const char op[] = "ep_preprocess";
    struct moe_ep_preprocess_args own;
    struct moe_run run;
    MOE_TRY(moe_call_check_plan(plan, MOE_OP_EP_PREPROCESS, error));
    MOE_TRY(MOE_STRUCT_READ(&own, args, moe_ep_preprocess_args, error));
    MOE_TRY(
        moe_call_begin(plan, MOE_OP_EP_PREPROCESS, &own.call, own.call.num_tokens, &run, error));
    MOE_TRY(moe_call_refuse(op, "masked_m or max_masked_rows (masked layout)",
                            own.masked_m != NULL || own.max_masked_rows != 0, error));
    MOE_TRY(moe_call_check_ids(op, own.ids_dtype, error));
    const int64_t num_routes = own.call.num_tokens * moe_problem_num_slots(&plan->problem);
    const int32_t num_experts = plan->problem.num_experts;
    const int32_t alignment = own.segment_alignment == 0 ? 1 : own.segment_alignment;
    if (alignment < 1) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "ep_preprocess: segment_alignment is %d", alignment);
    }
    if (own.filter.mode != MOE_FILTER_DROP) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "ep_preprocess: filter.mode must be drop (%d): filtered routes have no row",
            MOE_FILTER_DROP);
    }
    MOE_TRY(check_row_capacity(&own, num_routes, num_experts, alignment, error));
    MOE_TRY(moe_call_check_array(op, "topk_ids", own.topk_ids, bytes_of_id(own.ids_dtype),
                                 num_routes, error));
    MOE_TRY(moe_call_check_array(op, "seg_indptr", own.seg_indptr, sizeof(int64_t), 1, error));
    MOE_TRY(moe_call_check_array(op, "src2dst", own.src2dst, sizeof(int32_t), num_routes, error));
    MOE_TRY(moe_call_check_array(op, "dst2src", own.dst2src, sizeof(int32_t), 0, error));
    MOE_TRY(moe_call_check_array(op, "reorder_ids", own.reorder_ids, sizeof(int32_t), 0, error));
    MOE_TRY(moe_call_check_array(op, "m_indices", own.m_indices, sizeof(int32_t), 0, error));
    struct moe_op_ep_preprocess preprocess = {
        .num_routes = num_routes,
        .topk_ids = own.topk_ids,
        .ids_dtype = own.ids_dtype,
        .segment_alignment = alignment,
        .seg_indptr = own.seg_indptr,
        .src2dst = own.src2dst,
        .dst2src = own.dst2src,
        .reorder_ids = own.reorder_ids,
        .m_indices = own.m_indices,
        .row_capacity = own.row_capacity,
    };
    MOE_TRY(moe_call_read_filter(op, &plan->problem, &own.filter, &preprocess.filter, error));
    MOE_TRY(check_preprocess_overlap(plan, &own, error));
    return plan->backend->ep_preprocess(&run, &preprocess, error);
}
