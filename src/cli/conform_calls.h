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
    int32_t op;           /* whose workspace it needs: MOE_OP_* */
    size_t member_offset; /* of the function in moe_plugin_api */
    size_t output_offset; /* of its main output in the arguments */
    void (*fill)(const struct moe_conform *conform, union moe_conform_args *args);
    int32_t (*run)(const struct moe_plugin_api *api, const struct moe_plan *plan, const void *args,
                   struct moe_error *error);
};

extern const struct moe_conform_call moe_conform_calls[];
extern const size_t moe_conform_num_calls;

/* Is the function of this call offered (its member is not NULL)? */
int moe_conform_call_is_offered(const struct moe_conform *conform,
                                const struct moe_conform_call *call);

/* Valid arguments of a call, with all of the plan's workspace. */
void moe_conform_call_fill(const struct moe_conform_call *call, const struct moe_conform *conform,
                           union moe_conform_args *args);

/* Fills and runs; fails, naming the call, when the status is not OK. */
void moe_conform_call_run(const struct moe_conform_call *call, struct moe_conform *conform);

const struct moe_conform_call *moe_conform_call_find(const char *form);

#endif
