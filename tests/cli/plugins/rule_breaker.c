/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plugin with one rule of docs/abi.md broken; BREAKS says which. Everything else is the real
 * one: its source is included with one function replaced.
 */
#include "calls.h"
#include "context.h"

#include <stdlib.h>
#include <string.h>

enum breaks {
    BREAKS_P7,  /* sum_reduce takes an unknown tail */
    BREAKS_P8,  /* stats writes one byte behind its struct */
    BREAKS_P13, /* gating takes num_valid_tokens and ignores it */
    BREAKS_P15, /* layer allocates */
    BREAKS_P24, /* sum_reduce is wrong in one element */
};

static int32_t broken_layer(const struct moe_plan *plan, const struct moe_layer_args *args,
                            struct moe_error *error);
static int32_t broken_gating(const struct moe_plan *plan, const struct moe_gating_args *args,
                             struct moe_error *error);
static int32_t broken_sum_reduce(const struct moe_plan *plan,
                                 const struct moe_sum_reduce_args *args, struct moe_error *error);
static int32_t broken_stats(const struct moe_context *context, struct moe_stats *out,
                            struct moe_error *error);

#define moe_calls_layer      broken_layer
#define moe_calls_gating     broken_gating
#define moe_calls_sum_reduce broken_sum_reduce
#define moe_context_stats    broken_stats
#include "init.c"
#undef moe_calls_layer
#undef moe_calls_gating
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
    if (BREAKS != BREAKS_P13 || args == NULL || args->call.struct_size != sizeof *args) {
        return moe_calls_gating(plan, args, error);
    }
    struct moe_gating_args own = *args;
    own.num_valid_tokens = NULL;
    return moe_calls_gating(plan, &own, error);
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
