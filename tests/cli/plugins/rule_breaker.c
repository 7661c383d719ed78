/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plugin with one rule of docs/abi.md broken; BREAKS says which. Everything else is the real
 * one: its source is included with one function replaced.
 */
#include "calls.h"
#include "context.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum breaks {
    BREAKS_P7,           /* sum_reduce takes an unknown tail */
    BREAKS_P8,           /* stats writes one byte behind its struct */
    BREAKS_P13,          /* gating takes num_valid_tokens and ignores it */
    BREAKS_P15,          /* layer allocates */
    BREAKS_P24,          /* sum_reduce is wrong in one element */
    BREAKS_P24_padded,   /* gating leaves the weights of padded tokens as they were */
    BREAKS_P24_replicas, /* gating gives out the first replica only */
    BREAKS_P24_batched,  /* align_block_size takes one row too few of a full batch */
    BREAKS_P24_masked,   /* ep_preprocess gives counts of the masked layout that are one too high */
    BREAKS_P24_route,    /* route forgets dst2src */
};

static int32_t broken_layer(const struct moe_plan *plan, const struct moe_layer_args *args,
                            struct moe_error *error);
static int32_t broken_gating(const struct moe_plan *plan, const struct moe_gating_args *args,
                             struct moe_error *error);
static int32_t broken_align(const struct moe_plan *plan, const struct moe_align_args *args,
                            struct moe_error *error);
static int32_t broken_ep_preprocess(const struct moe_plan *plan,
                                    const struct moe_ep_preprocess_args *args,
                                    struct moe_error *error);
static int32_t broken_route(const struct moe_plan *plan, const struct moe_route_args *args,
                            struct moe_error *error);
static int32_t broken_sum_reduce(const struct moe_plan *plan,
                                 const struct moe_sum_reduce_args *args, struct moe_error *error);
static int32_t broken_stats(const struct moe_context *context, struct moe_stats *out,
                            struct moe_error *error);

#define moe_calls_layer         broken_layer
#define moe_calls_gating        broken_gating
#define moe_calls_align         broken_align
#define moe_calls_ep_preprocess broken_ep_preprocess
#define moe_calls_route         broken_route
#define moe_calls_sum_reduce    broken_sum_reduce
#define moe_context_stats       broken_stats
#include "init.c"
#undef moe_calls_layer
#undef moe_calls_gating
#undef moe_calls_align
#undef moe_calls_ep_preprocess
#undef moe_calls_route
#undef moe_calls_sum_reduce
#undef moe_context_stats

static int32_t broken_layer(const struct moe_plan *plan, const struct moe_layer_args *args,
                            struct moe_error *error)
{
    if (BREAKS == BREAKS_P15) {
        void *volatile block = malloc(1);
        free(block);
    }
    return moe_calls_layer(plan, args, error);
}

static int32_t broken_gating(const struct moe_plan *plan, const struct moe_gating_args *args,
                             struct moe_error *error)
{
    const bool is_own_size = args != NULL && args->call.struct_size == sizeof *args;
    if (BREAKS == BREAKS_P13 && is_own_size) {
        struct moe_gating_args own = *args;
        own.num_valid_tokens = NULL;
        return moe_calls_gating(plan, &own, error);
    }
    if (BREAKS == BREAKS_P24_replicas && is_own_size && args->num_replicas != NULL) {
        static const int32_t ones[64] = {0}; /* taken as 1 */
        struct moe_gating_args own = *args;
        own.num_replicas = ones;
        return moe_calls_gating(plan, &own, error);
    }
    const int32_t status = moe_calls_gating(plan, args, error);
    if (BREAKS == BREAKS_P24_padded && status == MOE_STATUS_OK && is_own_size &&
        args->num_valid_tokens != NULL && args->call.num_tokens > 0) {
        args->topk_weights[args->call.num_tokens * moe_problem_num_slots(&plan->problem) - 1] =
            0.5f;
    }
    return status;
}

static int32_t broken_align(const struct moe_plan *plan, const struct moe_align_args *args,
                            struct moe_error *error)
{
    if (BREAKS != BREAKS_P24_batched || args == NULL || args->call.struct_size != sizeof *args ||
        args->batch_counts == NULL || args->max_batch_rows < 1) {
        return moe_calls_align(plan, args, error);
    }
    struct moe_align_args own = *args;
    own.max_batch_rows--;
    return moe_calls_align(plan, &own, error);
}

static int32_t broken_ep_preprocess(const struct moe_plan *plan,
                                    const struct moe_ep_preprocess_args *args,
                                    struct moe_error *error)
{
    const int32_t status = moe_calls_ep_preprocess(plan, args, error);
    if (BREAKS == BREAKS_P24_masked && status == MOE_STATUS_OK && args->masked_m != NULL) {
        args->masked_m[0]++;
    }
    return status;
}

static int32_t broken_route(const struct moe_plan *plan, const struct moe_route_args *args,
                            struct moe_error *error)
{
    const int32_t status = moe_calls_route(plan, args, error);
    if (BREAKS == BREAKS_P24_route && status == MOE_STATUS_OK && args->dst2src != NULL &&
        args->call.num_tokens > 0) {
        args->dst2src[0] = -1;
    }
    return status;
}

static int32_t broken_sum_reduce(const struct moe_plan *plan,
                                 const struct moe_sum_reduce_args *args, struct moe_error *error)
{
    if (BREAKS == BREAKS_P7 && args != NULL && args->call.struct_size > sizeof *args) {
        struct moe_sum_reduce_args own = *args;
        own.call.struct_size = sizeof own;
        return moe_calls_sum_reduce(plan, &own, error);
    }
    const int32_t status = moe_calls_sum_reduce(plan, args, error);
    if (BREAKS == BREAKS_P24 && status == MOE_STATUS_OK && args->call.num_tokens > 0) {
        memset(args->output, 0x40, sizeof(float)); /* about 3 in every element type */
    }
    return status;
}

static int32_t broken_stats(const struct moe_context *context, struct moe_stats *out,
                            struct moe_error *error)
{
    const int32_t status = moe_context_stats(context, out, error);
    if (BREAKS == BREAKS_P8 && status == MOE_STATUS_OK) {
        ((unsigned char *)out)[out->struct_size] = 0;
    }
    return status;
}
