/* SPDX-License-Identifier: Apache-2.0 */
/* P24 for routing: padded tokens, replicas, load, and every index array of the sorts in each of
 * their forms. */
#include "conform_calls.h"
#include "conform_rules.h"

#include <string.h>

enum {
    TOKENS = MOE_CONFORM_TOKENS,
    EXPERTS = MOE_CONFORM_EXPERTS,
    ROUTES = MOE_CONFORM_ROUTES,
    SORTED = MOE_CONFORM_SORTED,
};

/* ---------------------------------------------------------------- gating */

/* Gating without extras, whose ids another check compares: what the extras must follow. */
struct plain {
    int32_t ids[ROUTES];
    float weights[ROUTES];
};

static void check_padded(struct moe_conform *conform, const struct plain *plain)
{
    static const char call[] = "gating, padded";
    const int32_t top_k = conform->problem.top_k;
    const int32_t num_valid = MOE_CONFORM_VALID_TOKENS * top_k;
    if (!moe_conform_call_try(conform, call)) {
        return;
    }
    for (int32_t route = 0; route < TOKENS * top_k; ++route) {
        const int32_t id = route < num_valid ? plain->ids[route] : -1;
        const float weight = route < num_valid ? plain->weights[route] : 0.0f;
        moe_conform_check_indices(conform, call, "topk_ids", &conform->out->topk_ids[route], &id,
                                  1);
        if (!(conform->out->topk_weights[route] == weight)) {
            moe_conform_fail(conform, "%s (%s): weight %d is %g instead of %g", call,
                             conform->shape->name, route, (double)conform->out->topk_weights[route],
                             (double)weight);
        }
    }
}

static void check_replicas(struct moe_conform *conform, const struct plain *plain)
{
    static const char call[] = "gating, replicas";
    const int32_t top_k = conform->problem.top_k;
    int32_t ids[ROUTES];
    memcpy(ids, plain->ids, sizeof ids);
    if (!moe_conform_call_try(conform, call)) {
        return;
    }
    ref_map_replicas(ids, TOKENS, top_k, EXPERTS, conform->in->physical_ids, MOE_CONFORM_REPLICAS,
                     conform->in->num_replicas);
    moe_conform_check_indices(conform, call, "topk_ids", conform->out->topk_ids, ids,
                              (int64_t)TOKENS * top_k);
}

/* Counts are added to what is there, and padded tokens have none. */
static void check_load(struct moe_conform *conform, const struct plain *plain)
{
    const struct moe_conform_call *call = moe_conform_call_find("gating, padded");
    int64_t wanted[EXPERTS];
    union moe_conform_args args;
    struct moe_error error;
    moe_conform_reset(conform, MOE_CONFORM_POISON);
    if (!moe_conform_call_is_offered(conform, call)) {
        return;
    }
    for (int expert = 0; expert < EXPERTS; ++expert) {
        wanted[expert] = 1000 + expert;
        conform->out->load_counters[expert] = wanted[expert];
    }
    for (int route = 0; route < MOE_CONFORM_VALID_TOKENS * conform->problem.top_k; ++route) {
        ++wanted[plain->ids[route]];
    }
    moe_conform_call_fill(call, conform, &args);
    args.gating.load_counters = conform->out->load_counters;
    MOE_INIT(error);
    const int32_t status = call->run(conform->api, conform->plan, &args, &error);
    if (status == MOE_STATUS_UNSUPPORTED) {
        return;
    }
    moe_conform_require(conform, status, &error, "gating with load_counters");
    if (memcmp(wanted, conform->out->load_counters, sizeof wanted) != 0) {
        moe_conform_fail(conform, "gating (%s): load_counters are wrong", conform->shape->name);
    }
}

static void check_gating_extras(struct moe_conform *conform)
{
    struct plain plain = {.ids = {0}};
    if (!moe_conform_call_try(conform, "gating")) {
        return;
    }
    memcpy(plain.ids, conform->out->topk_ids, sizeof plain.ids);
    memcpy(plain.weights, conform->out->topk_weights, sizeof plain.weights);
    check_padded(conform, &plain);
    check_replicas(conform, &plain);
    check_load(conform, &plain);
}

/* ---------------------------------------------------------------- sorts */

static void check_align(struct moe_conform *conform, const char *call, const int64_t *ids)
{
    int32_t sorted_ids[SORTED];
    int32_t expert_ids[SORTED];
    int32_t counts[EXPERTS];
    int64_t wide_counts[EXPERTS];
    const int64_t num_routes = (int64_t)TOKENS * conform->problem.top_k;
    const struct ref_filter filter = ref_filter_all(EXPERTS);
    const int32_t num_padded = (int32_t)ref_align_block_size(
        &filter, ids, num_routes, MOE_CONFORM_BLOCK, false, sorted_ids, SORTED, expert_ids, SORTED);
    ref_count_routes(&filter, ids, num_routes, wide_counts);
    for (int expert = 0; expert < EXPERTS; ++expert) {
        counts[expert] = (int32_t)wide_counts[expert];
    }
    moe_conform_check_indices(conform, call, "num_tokens_post_pad",
                              conform->out->num_tokens_post_pad, &num_padded, 1);
    moe_conform_check_indices(conform, call, "sorted_ids", conform->out->sorted_ids, sorted_ids,
                              SORTED);
    moe_conform_check_indices(conform, call, "expert_ids", conform->out->expert_ids, expert_ids,
                              SORTED);
    moe_conform_check_indices(conform, call, "expert_counts", conform->out->expert_counts, counts,
                              EXPERTS);
}

static void check_batched(struct moe_conform *conform)
{
    static const char call[] = "align_block_size, batched";
    int32_t sorted_ids[SORTED];
    int32_t expert_ids[SORTED];
    int32_t counts[EXPERTS];
    if (!moe_conform_call_try(conform, call)) {
        return;
    }
    const int32_t num_padded =
        (int32_t)ref_align_batched(conform->in->batch_counts, EXPERTS, MOE_CONFORM_BATCH_ROWS,
                                   MOE_CONFORM_BLOCK, sorted_ids, SORTED, expert_ids, SORTED);
    for (int expert = 0; expert < EXPERTS; ++expert) {
        const int32_t count = conform->in->batch_counts[expert];
        counts[expert] = count < MOE_CONFORM_BATCH_ROWS ? count : MOE_CONFORM_BATCH_ROWS;
    }
    moe_conform_check_indices(conform, call, "num_tokens_post_pad",
                              conform->out->num_tokens_post_pad, &num_padded, 1);
    moe_conform_check_indices(conform, call, "sorted_ids", conform->out->sorted_ids, sorted_ids,
                              SORTED);
    moe_conform_check_indices(conform, call, "expert_ids", conform->out->expert_ids, expert_ids,
                              SORTED);
    moe_conform_check_indices(conform, call, "expert_counts", conform->out->expert_counts, counts,
                              EXPERTS);
}

/* The index arrays of rows, contiguous or masked. */
static void check_rows(struct moe_conform *conform, const char *call, const int64_t *ids,
                       int is_masked)
{
    int64_t seg_indptr[EXPERTS + 1];
    int64_t counts[EXPERTS];
    int32_t masked_m[EXPERTS];
    int32_t src2dst[ROUTES];
    int32_t dst2src[SORTED];
    int32_t m_indices[SORTED];
    int32_t reorder_ids[ROUTES];
    const int64_t num_routes = (int64_t)TOKENS * conform->problem.top_k;
    const struct ref_filter filter = ref_filter_all(EXPERTS);
    const struct ref_ep_layout layout = {seg_indptr, counts, src2dst,    dst2src,
                                         m_indices,  SORTED, reorder_ids};
    if (is_masked) {
        ref_ep_masked(&filter, ids, num_routes, MOE_CONFORM_MASKED_ROWS, &layout);
        for (int expert = 0; expert < EXPERTS; ++expert) {
            masked_m[expert] = (int32_t)counts[expert];
        }
        moe_conform_check_indices(conform, call, "masked_m", conform->out->masked_m, masked_m,
                                  EXPERTS);
    } else {
        ref_ep_preprocess(&filter, ids, num_routes, 1, &layout);
        if (memcmp(seg_indptr, conform->out->seg_indptr, sizeof seg_indptr) != 0) {
            moe_conform_fail(conform, "%s (%s): seg_indptr is wrong", call, conform->shape->name);
        }
    }
    moe_conform_check_indices(conform, call, "src2dst", conform->out->src2dst, src2dst, num_routes);
    moe_conform_check_indices(conform, call, "dst2src", conform->out->dst2src, dst2src, SORTED);
    moe_conform_check_indices(conform, call, "m_indices", conform->out->m_indices, m_indices,
                              SORTED);
    moe_conform_check_indices(conform, call, "reorder_ids", conform->out->reorder_ids, reorder_ids,
                              num_routes);
}

/* The sorts of route follow its own ids: those that it was given, or that it has made. */
static void check_route(struct moe_conform *conform, const int64_t *given)
{
    int64_t made[ROUTES];
    if (moe_conform_call_try(conform, "route of ids")) {
        check_align(conform, "route of ids", given);
        check_rows(conform, "route of ids", given, 0);
    }
    if (moe_conform_call_try(conform, "route")) {
        for (int32_t route = 0; route < TOKENS * conform->problem.top_k; ++route) {
            made[route] = conform->out->topk_ids[route];
        }
        check_align(conform, "route", made);
        check_rows(conform, "route", made, 0);
    }
}

void moe_conform_check_routing_results(struct moe_conform *conform)
{
    int64_t ids[ROUTES];
    for (int route = 0; route < ROUTES; ++route) {
        ids[route] = conform->in->topk_ids[route];
    }
    check_gating_extras(conform);
    if (moe_conform_call_try(conform, "align_block_size")) {
        check_align(conform, "align_block_size", ids);
    }
    check_batched(conform);
    if (moe_conform_call_try(conform, "ep_preprocess")) {
        check_rows(conform, "ep_preprocess", ids, 0);
    }
    if (moe_conform_call_try(conform, "ep_preprocess, masked")) {
        check_rows(conform, "ep_preprocess, masked", ids, 1);
    }
    check_route(conform, ids);
}
