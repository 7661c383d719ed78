/* SPDX-License-Identifier: Apache-2.0 */
#include "routing_check.h"

#include "calls.h"
#include "op_fill.h"
#include "status.h"
#include "tiles.h"

static size_t bytes_of_id(int32_t ids_dtype)
{
    return ids_dtype == MOE_IDS_INT64 ? sizeof(int64_t) : sizeof(int32_t);
}

struct moe_call_tensor moe_routing_ids(const struct moe_problem *problem, const void *topk_ids,
                                       int32_t ids_dtype, int64_t num_tokens)
{
    return moe_call_array("topk_ids", topk_ids, num_tokens * moe_problem_num_slots(problem),
                          bytes_of_id(ids_dtype));
}

struct moe_call_tensor moe_routing_map(const struct moe_problem *problem,
                                       const struct moe_route_filter *filter)
{
    return moe_call_array("filter.expert_map", filter->expert_map, moe_problem_num_ids(problem),
                          sizeof(int32_t));
}

int64_t moe_routing_worst_padded(int64_t num_routes, int64_t num_buckets, int64_t block_size)
{
    const int64_t used_buckets = num_routes < num_buckets ? num_routes : num_buckets;
    return (num_routes + used_buckets * (block_size - 1)) / block_size * block_size;
}

/* ---------------------------------------------------------------- gating */

int32_t moe_routing_check_replicas(const char *op, const int32_t *physical_ids,
                                   const int32_t *num_replicas, int64_t max_replicas,
                                   struct moe_error *error)
{
    const bool has_map = physical_ids != NULL && num_replicas != NULL;
    const bool has_none = physical_ids == NULL && num_replicas == NULL;
    if (max_replicas < 0 || max_replicas > INT32_MAX || (max_replicas > 0 ? !has_map : !has_none)) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "%s: physical_ids %s, num_replicas %s, max_replicas %lld; a map needs "
            "both arrays and max_replicas of 1 to 2^31-1, no map none of the three",
            op, physical_ids != NULL ? "given" : "NULL", num_replicas != NULL ? "given" : "NULL",
            (long long)max_replicas);
    }
    MOE_TRY(moe_call_check_array(op, "physical_ids", physical_ids, sizeof(int32_t), 0, error));
    return moe_call_check_array(op, "num_replicas", num_replicas, sizeof(int32_t), 0, error);
}

int32_t moe_routing_read_gating(const char *op, const struct moe_run *run,
                                struct moe_gating_args *own, struct moe_op_gating *out,
                                struct moe_error *error)
{
    const struct moe_problem *problem = &run->plan->problem;
    const int64_t num_tokens = own->call.num_tokens;
    const bool biased = (problem->flags & MOE_PROBLEM_CORRECTION_BIAS) != 0;
    if (problem->gating == MOE_GATING_NONE) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: the plan's problem has no gating rule for logits", op);
    }
    if (own->correction_bias != NULL && !biased) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "%s: correction_bias is given, but the problem lacks MOE_PROBLEM_CORRECTION_BIAS", op);
    }
    MOE_TRY(moe_call_check_ids(op, own->ids_dtype, error));
    MOE_TRY(moe_call_resolve_stride(op, "logits_stride", &own->logits_stride,
                                    problem->num_experts_global, error));
    MOE_TRY(
        moe_call_check_tensor(op, "logits", own->logits, problem->logits_dtype, num_tokens, error));
    MOE_TRY(moe_call_check_array(op, "correction_bias", own->correction_bias, sizeof(float), biased,
                                 error));
    MOE_TRY(moe_call_check_array(op, "topk_ids", own->topk_ids, bytes_of_id(own->ids_dtype),
                                 num_tokens, error));
    MOE_TRY(moe_call_check_array(op, "topk_weights", own->topk_weights, sizeof(float), num_tokens,
                                 error));
    MOE_TRY(moe_call_check_array(op, "num_valid_tokens", own->num_valid_tokens, sizeof(int32_t), 0,
                                 error));
    MOE_TRY(
        moe_call_check_array(op, "load_counters", own->load_counters, sizeof(int64_t), 0, error));
    MOE_TRY(moe_routing_check_replicas(op, own->physical_ids, own->num_replicas, own->max_replicas,
                                       error));
    moe_op_fill_gating(problem, out);
    out->num_tokens = run->num_tokens;
    out->num_tokens_device = run->num_tokens_device;
    out->logits = own->logits;
    out->logits_stride = own->logits_stride;
    out->correction_bias = own->correction_bias;
    out->topk_ids = own->topk_ids;
    out->ids_dtype = own->ids_dtype;
    out->topk_weights = own->topk_weights;
    out->num_valid_tokens = own->num_valid_tokens;
    out->physical_ids = own->physical_ids;
    out->num_replicas = own->num_replicas;
    out->max_replicas = own->max_replicas;
    out->load_counters = own->load_counters;
    return MOE_STATUS_OK;
}

void moe_routing_list_gating(const struct moe_problem *problem, const struct moe_gating_args *own,
                             struct moe_call_tensors *tensors)
{
    const int64_t num_tokens = own->call.num_tokens, num_experts = problem->num_experts_global;
    const struct moe_call_tensor logits = {"logits", moe_call_span(own->logits, num_tokens,
                                                                   num_experts, own->logits_stride,
                                                                   problem->logits_dtype)};
    moe_call_add_output(tensors,
                        moe_call_array("topk_weights", own->topk_weights,
                                       num_tokens * moe_problem_num_slots(problem), sizeof(float)));
    moe_call_add_output(
        tensors, moe_call_array("load_counters", own->load_counters, num_experts, sizeof(int64_t)));
    moe_call_add_input(tensors, logits);
    moe_call_add_input(tensors, moe_call_array("correction_bias", own->correction_bias, num_experts,
                                               sizeof(float)));
    moe_call_add_input(
        tensors, moe_call_array("num_valid_tokens", own->num_valid_tokens, 1, sizeof(int32_t)));
    moe_call_add_input(tensors, moe_call_array("physical_ids", own->physical_ids,
                                               num_experts * own->max_replicas, sizeof(int32_t)));
    moe_call_add_input(
        tensors, moe_call_array("num_replicas", own->num_replicas, num_experts, sizeof(int32_t)));
}

/* ---------------------------------------------------------------- align_block_size */

bool moe_routing_is_counts_only(const struct moe_align_args *own)
{
    return own->sorted_ids == NULL && own->expert_ids == NULL && own->num_tokens_post_pad == NULL;
}

/* Capacities that hold whatever the routes are, or the counts of a batched call. */
static int32_t find_align_capacity(const char *op, const struct moe_align_args *own,
                                   const struct moe_op_align *align, int64_t *sorted_needed,
                                   int64_t *expert_needed, struct moe_error *error)
{
    const int32_t block_size = align->block_size, num_experts = align->filter.num_experts;
    if (own->batch_counts == NULL) {
        return moe_calls_align_capacity(align->sentinel, num_experts, block_size, own->filter.mode,
                                        sorted_needed, expert_needed, error);
    }
    const int64_t blocks = (own->max_batch_rows + block_size - 1) / block_size;
    *expert_needed = num_experts * blocks;
    *sorted_needed = *expert_needed * block_size;
    if (*sorted_needed > INT32_MAX) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: %d experts of max_batch_rows %lld in blocks of %d are 2^31 "
                             "entries or more",
                             op, num_experts, (long long)own->max_batch_rows, block_size);
    }
    return MOE_STATUS_OK;
}

static int32_t check_align_outputs(const char *op, const struct moe_align_args *own,
                                   const struct moe_op_align *align, struct moe_error *error)
{
    const bool counts_only = moe_routing_is_counts_only(own);
    MOE_TRY(moe_call_check_array(op, "expert_counts", own->expert_counts, sizeof(int32_t),
                                 counts_only, error));
    if (counts_only) {
        return MOE_STATUS_OK;
    }
    int64_t sorted_needed = 0, expert_needed = 0;
    MOE_TRY(find_align_capacity(op, own, align, &sorted_needed, &expert_needed, error));
    if (own->sorted_capacity < sorted_needed || own->expert_capacity < expert_needed ||
        own->sorted_capacity > INT32_MAX || own->expert_capacity > INT32_MAX) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: capacities are %lld sorted and %lld expert ids; %d %s in blocks "
                             "of %d need %lld and %lld%s, below 2^31",
                             op, (long long)own->sorted_capacity, (long long)own->expert_capacity,
                             align->sentinel, own->batch_counts != NULL ? "rows" : "routes",
                             align->block_size, (long long)sorted_needed, (long long)expert_needed,
                             own->batch_counts != NULL ? "" : " (align_capacity)");
    }
    MOE_TRY(moe_call_check_array(op, "sorted_ids", own->sorted_ids, sizeof(int32_t),
                                 own->sorted_capacity, error));
    MOE_TRY(moe_call_check_array(op, "expert_ids", own->expert_ids, sizeof(int32_t),
                                 own->expert_capacity, error));
    return moe_call_check_array(op, "num_tokens_post_pad", own->num_tokens_post_pad,
                                sizeof(int32_t), 1, error);
}

static int32_t check_batches(const char *op, const struct moe_run *run,
                             const struct moe_align_args *own, struct moe_error *error)
{
    const int32_t num_experts = run->plan->problem.num_experts;
    MOE_TRY(moe_call_check_array(op, "batch_counts", own->batch_counts, sizeof(int32_t), 1, error));
    if (own->topk_ids != NULL || own->call.num_tokens_device != NULL) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: with batch_counts the rows are given by expert; topk_ids and "
                             "call.num_tokens_device must be NULL",
                             op);
    }
    if (own->max_batch_rows < 0 || own->max_batch_rows > INT32_MAX / num_experts) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: max_batch_rows is %lld; it must be 0 to %d with %d experts", op,
                             (long long)own->max_batch_rows, INT32_MAX / num_experts, num_experts);
    }
    return MOE_STATUS_OK;
}

static int32_t find_block_size(const char *op, const struct moe_run *run, int32_t block_size,
                               int32_t *out, struct moe_error *error)
{
    *out = block_size;
    if (block_size == 0 && (run->plan->ops & MOE_OP_BIT(MOE_OP_GEMM1)) != 0) {
        *out = moe_tiles[run->bucket->choices[MOE_OP_GEMM1].tile].block_m;
    }
    if (*out < 1) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: block_size is %d; it must be at least 1, or 0 in a plan that has "
                             "gemm1",
                             op, block_size);
    }
    return MOE_STATUS_OK;
}

int32_t moe_routing_read_align(const char *op, const struct moe_run *run,
                               const struct moe_align_args *own, struct moe_op_align *out,
                               struct moe_error *error)
{
    const struct moe_problem *problem = &run->plan->problem;
    const int64_t num_slots = moe_problem_num_slots(problem);
    const int64_t num_routes = own->call.num_tokens * num_slots;
    MOE_TRY(moe_call_check_ids(op, own->ids_dtype, error));
    moe_op_fill_align(problem, out);
    MOE_TRY(find_block_size(op, run, own->block_size, &out->block_size, error));
    out->num_routes = run->num_tokens * num_slots;
    out->sentinel = (int32_t)num_routes;
    if (own->batch_counts != NULL || own->max_batch_rows != 0) {
        MOE_TRY(check_batches(op, run, own, error));
        out->num_routes = problem->num_experts * own->max_batch_rows;
        out->sentinel = (int32_t)out->num_routes;
    } else {
        MOE_TRY(moe_call_read_filter(op, problem, &own->filter, &out->filter, error));
        MOE_TRY(moe_call_check_array(op, "topk_ids", own->topk_ids, bytes_of_id(own->ids_dtype),
                                     num_routes, error));
        out->filter_mode = own->filter.mode;
        out->num_tokens_device = run->num_tokens_device;
    }
    MOE_TRY(check_align_outputs(op, own, out, error));
    out->topk_ids = own->topk_ids;
    out->ids_dtype = own->ids_dtype;
    out->sorted_ids = own->sorted_ids;
    out->sorted_capacity = own->sorted_capacity;
    out->expert_ids = own->expert_ids;
    out->expert_capacity = own->expert_capacity;
    out->num_tokens_post_pad = own->num_tokens_post_pad;
    out->expert_counts = own->expert_counts;
    out->batch_counts = own->batch_counts;
    out->max_batch_rows = own->max_batch_rows;
    return MOE_STATUS_OK;
}

void moe_routing_list_align(const struct moe_problem *problem, const struct moe_align_args *own,
                            struct moe_call_tensors *tensors)
{
    moe_call_add_output(tensors, moe_call_array("sorted_ids", own->sorted_ids, own->sorted_capacity,
                                                sizeof(int32_t)));
    moe_call_add_output(tensors, moe_call_array("expert_ids", own->expert_ids, own->expert_capacity,
                                                sizeof(int32_t)));
    moe_call_add_output(tensors, moe_call_array("num_tokens_post_pad", own->num_tokens_post_pad, 1,
                                                sizeof(int32_t)));
    moe_call_add_output(tensors, moe_call_array("expert_counts", own->expert_counts,
                                                problem->num_experts, sizeof(int32_t)));
    moe_call_add_input(tensors, moe_call_array("batch_counts", own->batch_counts,
                                               problem->num_experts, sizeof(int32_t)));
}

/* ---------------------------------------------------------------- ep_preprocess */

/* The masked layout: every token finds room in each of its experts. */
static int32_t check_masked(const char *op, const struct moe_ep_preprocess_args *own,
                            int32_t num_experts, int32_t alignment, struct moe_error *error)
{
    if (own->masked_m == NULL || own->max_masked_rows < 1) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: masked_m is %s and max_masked_rows %lld; the masked layout needs "
                             "both, the contiguous one neither",
                             op, own->masked_m != NULL ? "given" : "NULL",
                             (long long)own->max_masked_rows);
    }
    MOE_TRY(moe_call_check_array(op, "masked_m", own->masked_m, sizeof(int32_t), 1, error));
    if (own->max_masked_rows < own->call.num_tokens ||
        own->max_masked_rows > INT32_MAX / num_experts) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: max_masked_rows is %lld; it must be %lld (num_tokens) to %d with "
                             "%d experts",
                             op, (long long)own->max_masked_rows, (long long)own->call.num_tokens,
                             INT32_MAX / num_experts, num_experts);
    }
    if (own->max_masked_rows % alignment != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: max_masked_rows %lld is not a multiple of segment_alignment %d",
                             op, (long long)own->max_masked_rows, alignment);
    }
    return MOE_STATUS_OK;
}

/* Rows that segments can take at most. */
static int32_t find_rows(const char *op, const struct moe_ep_preprocess_args *own,
                         int64_t num_routes, int32_t num_experts, int32_t alignment, int64_t *rows,
                         struct moe_error *error)
{
    if (own->masked_m != NULL || own->max_masked_rows != 0) {
        MOE_TRY(check_masked(op, own, num_experts, alignment, error));
        *rows = num_experts * own->max_masked_rows;
        return MOE_STATUS_OK;
    }
    *rows =
        alignment == 1 ? num_routes : moe_routing_worst_padded(num_routes, num_experts, alignment);
    if (*rows > INT32_MAX) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: %lld rows with segments aligned to %d do not fit int32", op,
                             (long long)*rows, alignment);
    }
    return MOE_STATUS_OK;
}

static int32_t check_row_capacity(const char *op, const struct moe_ep_preprocess_args *own,
                                  int64_t rows, struct moe_error *error)
{
    const bool wants_rows = own->dst2src != NULL || own->m_indices != NULL;
    if (wants_rows && (own->row_capacity < rows || own->row_capacity > INT32_MAX)) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: row_capacity is %lld; these tokens can need %lld rows, below "
                             "2^31",
                             op, (long long)own->row_capacity, (long long)rows);
    }
    return MOE_STATUS_OK;
}

int32_t moe_routing_read_ep_preprocess(const char *op, const struct moe_run *run,
                                       const struct moe_ep_preprocess_args *own,
                                       struct moe_op_ep_preprocess *out, struct moe_error *error)
{
    const struct moe_problem *problem = &run->plan->problem;
    const int64_t num_slots = moe_problem_num_slots(problem);
    const int64_t num_routes = own->call.num_tokens * num_slots;
    const int32_t alignment = own->segment_alignment == 0 ? 1 : own->segment_alignment;
    int64_t rows = 0;
    MOE_TRY(moe_call_check_ids(op, own->ids_dtype, error));
    if (alignment < 1) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: segment_alignment is %d; it must be 1 or more, or 0 for 1", op,
                             alignment);
    }
    MOE_TRY(find_rows(op, own, num_routes, problem->num_experts, alignment, &rows, error));
    MOE_TRY(check_row_capacity(op, own, rows, error));
    MOE_TRY(moe_call_check_array(op, "topk_ids", own->topk_ids, bytes_of_id(own->ids_dtype),
                                 num_routes, error));
    MOE_TRY(moe_call_check_array(op, "seg_indptr", own->seg_indptr, sizeof(int64_t),
                                 own->masked_m == NULL, error));
    MOE_TRY(moe_call_check_array(op, "src2dst", own->src2dst, sizeof(int32_t), num_routes, error));
    MOE_TRY(moe_call_check_array(op, "dst2src", own->dst2src, sizeof(int32_t), 0, error));
    MOE_TRY(moe_call_check_array(op, "reorder_ids", own->reorder_ids, sizeof(int32_t), 0, error));
    MOE_TRY(moe_call_check_array(op, "m_indices", own->m_indices, sizeof(int32_t), 0, error));
    moe_op_fill_ep_preprocess(problem, out);
    MOE_TRY(moe_call_read_filter(op, problem, &own->filter, &out->filter, error));
    out->num_routes = run->num_tokens * num_slots;
    out->num_tokens_device = run->num_tokens_device;
    out->topk_ids = own->topk_ids;
    out->ids_dtype = own->ids_dtype;
    out->segment_alignment = alignment;
    out->seg_indptr = own->seg_indptr;
    out->src2dst = own->src2dst;
    out->dst2src = own->dst2src;
    out->reorder_ids = own->reorder_ids;
    out->m_indices = own->m_indices;
    out->row_capacity = own->row_capacity;
    out->masked_m = own->masked_m;
    out->max_masked_rows = own->max_masked_rows;
    return MOE_STATUS_OK;
}

void moe_routing_list_ep_preprocess(const struct moe_problem *problem,
                                    const struct moe_ep_preprocess_args *own,
                                    struct moe_call_tensors *tensors)
{
    const int64_t num_experts = problem->num_experts;
    const int64_t num_routes = own->call.num_tokens * moe_problem_num_slots(problem);
    moe_call_add_output(
        tensors, moe_call_array("seg_indptr", own->seg_indptr, num_experts + 1, sizeof(int64_t)));
    moe_call_add_output(tensors,
                        moe_call_array("src2dst", own->src2dst, num_routes, sizeof(int32_t)));
    moe_call_add_output(
        tensors, moe_call_array("dst2src", own->dst2src, own->row_capacity, sizeof(int32_t)));
    moe_call_add_output(
        tensors, moe_call_array("reorder_ids", own->reorder_ids, num_routes, sizeof(int32_t)));
    moe_call_add_output(
        tensors, moe_call_array("m_indices", own->m_indices, own->row_capacity, sizeof(int32_t)));
    moe_call_add_output(tensors,
                        moe_call_array("masked_m", own->masked_m, num_experts, sizeof(int32_t)));
}
