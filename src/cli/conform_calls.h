/* SPDX-License-Identifier: Apache-2.0 */
/* The run calls as a table: valid arguments for each, in every form that it has. */
#ifndef MOE_CONFORM_CALLS_H
#define MOE_CONFORM_CALLS_H

#include "conform_session.h"

/* Any argument struct, with room for what a newer header would append. */
union moe_conform_args {
    struct moe_call call;
    struct moe_layer_args layer;
    struct moe_experts_args experts;
    struct moe_router_args router;
    struct moe_gating_args gating;
    struct moe_align_args align;
    struct moe_ep_preprocess_args ep_preprocess;
    struct moe_route_args route;
    struct moe_pre_reorder_args pre_reorder;
    struct moe_activation_args activation;
    struct moe_grouped_gemm_args grouped_gemm;
    struct moe_post_reorder_args post_reorder;
    struct moe_sum_reduce_args sum_reduce;
    unsigned char bytes[1024];
};

struct moe_conform_call {
    const char *form;        /* what to call it in sentences */
    const char *struct_name; /* of its arguments */
    size_t args_bytes;
    int is_optional;      /* a plugin may refuse this form with UNSUPPORTED */
    int32_t op;           /* whose workspace it needs: MOE_OP_* */
    size_t member_offset; /* of the function in moe_plugin_api */
    size_t output_offset; /* of its main output in the arguments */
    void (*fill)(const struct moe_conform *conform, union moe_conform_args *args);
    int32_t (*run)(const struct moe_plugin_api *api, const struct moe_plan *plan, const void *args,
                   struct moe_error *error);
};

extern const struct moe_conform_call moe_conform_calls[];
extern const size_t moe_conform_num_calls;

/* Is this call offered: is its member not NULL, and its form not one that the plugin leaves out? */
int moe_conform_call_is_offered(const struct moe_conform *conform,
                                const struct moe_conform_call *call);

/* Finds out which optional forms the plugin leaves out; the session's plan exists. */
void moe_conform_calls_probe(struct moe_conform *conform);

/* Valid arguments of a call, with all of the plan's workspace. */
void moe_conform_call_fill(const struct moe_conform_call *call, const struct moe_conform *conform,
                           union moe_conform_args *args);

/* Fills and runs; fails, naming the call, when the status is not OK. */
void moe_conform_call_run(const struct moe_conform_call *call, struct moe_conform *conform);

const struct moe_conform_call *moe_conform_call_find(const char *form);

/* Runs the call of this form on fresh memory. Returns 0 when it is not offered. */
int moe_conform_call_try(struct moe_conform *conform, const char *form);

/* Fails, naming call and array, when one of `count` values is not `wanted`. */
void moe_conform_check_indices(struct moe_conform *conform, const char *call, const char *array,
                               const int32_t *values, const int32_t *wanted, int64_t count);

#endif
