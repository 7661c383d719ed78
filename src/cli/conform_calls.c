/* SPDX-License-Identifier: Apache-2.0 */
#include "conform_calls.h"

#include <string.h>

#define RUN_(op, type)                                                                     \
    static int32_t run_##op(const struct moe_plugin_api *api, const struct moe_plan *plan, \
                            const void *args, struct moe_error *error)                     \
    {                                                                                      \
        return api->op(plan, (const struct type *)args, error);                            \
    }
RUN_(layer, moe_layer_args)
RUN_(experts, moe_experts_args)
RUN_(router, moe_router_args)
RUN_(gating, moe_gating_args)
RUN_(align_block_size, moe_align_args)
RUN_(ep_preprocess, moe_ep_preprocess_args)
RUN_(route, moe_route_args)
RUN_(pre_reorder, moe_pre_reorder_args)
RUN_(activation, moe_activation_args)
RUN_(grouped_gemm, moe_grouped_gemm_args)
RUN_(post_reorder, moe_post_reorder_args)
RUN_(sum_reduce, moe_sum_reduce_args)
#undef RUN_

static int64_t num_routes(const struct moe_conform *conform)
{
    return (int64_t)MOE_CONFORM_TOKENS * conform->problem.top_k;
}

static const float *input_weights(const struct moe_conform *conform)
{
    return conform->problem.flags & MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT ? conform->in->row_weights
                                                                       : NULL;
}

static void fill_layer_of_router(const struct moe_conform *conform, union moe_conform_args *args)
{
    args->layer.weights = conform->weights;
    args->layer.tokens = conform->in->tokens;
    args->layer.residual = conform->in->residual;
    args->layer.filter.expert_map = conform->in->expert_map;
    args->layer.output = conform->out->tokens;
    args->layer.logits_out = conform->out->logits;
    args->layer.topk_ids_out = conform->out->topk_ids;
    args->layer.topk_weights_out = conform->out->topk_weights;
}

static void fill_layer_of_logits(const struct moe_conform *conform, union moe_conform_args *args)
{
    fill_layer_of_router(conform, args);
    args->layer.logits = conform->in->logits;
    args->layer.logits_out = NULL;
}

static void fill_layer_of_ids(const struct moe_conform *conform, union moe_conform_args *args)
{
    fill_layer_of_router(conform, args);
    args->layer.topk_ids = conform->in->topk_ids;
    args->layer.topk_weights = conform->in->topk_weights;
    args->layer.logits_out = NULL;
    args->layer.topk_ids_out = NULL;
    args->layer.topk_weights_out = NULL;
}

static void fill_experts(const struct moe_conform *conform, union moe_conform_args *args)
{
    args->experts.weights = conform->weights;
    args->experts.rows = conform->in->rows;
    args->experts.num_rows = num_routes(conform);
    args->experts.seg_indptr = conform->in->seg_indptr;
    args->experts.row_weights = input_weights(conform);
    args->experts.output = conform->out->rows;
}

static void fill_router(const struct moe_conform *conform, union moe_conform_args *args)
{
    args->router.weights = conform->weights;
    args->router.tokens = conform->in->tokens;
    args->router.logits = conform->out->logits;
}

static void fill_gating(const struct moe_conform *conform, union moe_conform_args *args)
{
    args->gating.logits = conform->in->logits;
    if (conform->problem.flags & MOE_PROBLEM_CORRECTION_BIAS) {
        args->gating.correction_bias = conform->in->correction_bias;
    }
    args->gating.topk_ids = conform->out->topk_ids;
    args->gating.topk_weights = conform->out->topk_weights;
}

static void fill_gating_padded(const struct moe_conform *conform, union moe_conform_args *args)
{
    fill_gating(conform, args);
    args->gating.num_valid_tokens = conform->in->num_valid_tokens;
}

static void fill_gating_replicas(const struct moe_conform *conform, union moe_conform_args *args)
{
    fill_gating(conform, args);
    args->gating.max_replicas = MOE_CONFORM_REPLICAS;
    args->gating.physical_ids = conform->in->physical_ids;
    args->gating.num_replicas = conform->in->num_replicas;
}

static void fill_align(const struct moe_conform *conform, union moe_conform_args *args)
{
    args->align.topk_ids = conform->in->topk_ids;
    args->align.block_size = MOE_CONFORM_BLOCK;
    args->align.filter.expert_map = conform->in->expert_map;
    args->align.sorted_ids = conform->out->sorted_ids;
    args->align.sorted_capacity = MOE_CONFORM_SORTED;
    args->align.expert_ids = conform->out->expert_ids;
    args->align.expert_capacity = MOE_CONFORM_SORTED;
    args->align.num_tokens_post_pad = conform->out->num_tokens_post_pad;
    args->align.expert_counts = conform->out->expert_counts;
}

static void fill_align_counts(const struct moe_conform *conform, union moe_conform_args *args)
{
    args->align.topk_ids = conform->in->topk_ids;
    args->align.block_size = MOE_CONFORM_BLOCK;
    args->align.expert_counts = conform->out->expert_counts;
}

static void fill_align_batched(const struct moe_conform *conform, union moe_conform_args *args)
{
    fill_align(conform, args);
    args->align.topk_ids = NULL;
    args->align.filter.expert_map = NULL;
    args->align.batch_counts = conform->in->batch_counts;
    args->align.max_batch_rows = MOE_CONFORM_BATCH_ROWS;
}

static void fill_ep_preprocess(const struct moe_conform *conform, union moe_conform_args *args)
{
    args->ep_preprocess.topk_ids = conform->in->topk_ids;
    args->ep_preprocess.filter.expert_map = conform->in->expert_map;
    args->ep_preprocess.seg_indptr = conform->out->seg_indptr;
    args->ep_preprocess.src2dst = conform->out->src2dst;
    args->ep_preprocess.dst2src = conform->out->dst2src;
    args->ep_preprocess.reorder_ids = conform->out->reorder_ids;
    args->ep_preprocess.m_indices = conform->out->m_indices;
    args->ep_preprocess.row_capacity = MOE_CONFORM_SORTED;
}

static void fill_ep_masked(const struct moe_conform *conform, union moe_conform_args *args)
{
    fill_ep_preprocess(conform, args);
    args->ep_preprocess.seg_indptr = NULL;
    args->ep_preprocess.masked_m = conform->out->masked_m;
    args->ep_preprocess.max_masked_rows = MOE_CONFORM_MASKED_ROWS;
}

static void fill_route_of_ids(const struct moe_conform *conform, union moe_conform_args *args)
{
    args->route.topk_ids = (void *)conform->in->topk_ids;
    args->route.block_size = MOE_CONFORM_BLOCK;
    args->route.filter.expert_map = conform->in->expert_map;
    args->route.sorted_ids = conform->out->sorted_ids;
    args->route.sorted_capacity = MOE_CONFORM_SORTED;
    args->route.expert_ids = conform->out->expert_ids;
    args->route.expert_capacity = MOE_CONFORM_SORTED;
    args->route.num_tokens_post_pad = conform->out->num_tokens_post_pad;
    args->route.expert_counts = conform->out->expert_counts;
    args->route.seg_indptr = conform->out->seg_indptr;
    args->route.src2dst = conform->out->src2dst;
    args->route.dst2src = conform->out->dst2src;
    args->route.reorder_ids = conform->out->reorder_ids;
    args->route.m_indices = conform->out->m_indices;
    args->route.row_capacity = MOE_CONFORM_SORTED;
}

static void fill_route(const struct moe_conform *conform, union moe_conform_args *args)
{
    fill_route_of_ids(conform, args);
    args->route.logits = conform->in->logits;
    if (conform->problem.flags & MOE_PROBLEM_CORRECTION_BIAS) {
        args->route.correction_bias = conform->in->correction_bias;
    }
    args->route.topk_ids = conform->out->topk_ids;
    args->route.topk_weights = conform->out->topk_weights;
}

static void fill_pre_reorder(const struct moe_conform *conform, union moe_conform_args *args)
{
    args->pre_reorder.tokens = conform->in->tokens;
    args->pre_reorder.src2dst = conform->in->src2dst;
    args->pre_reorder.rows = conform->out->rows;
    args->pre_reorder.num_rows = num_routes(conform);
}

static void fill_activation(const struct moe_conform *conform, union moe_conform_args *args)
{
    args->activation.input = conform->in->gate_up_rows;
    args->activation.num_rows = num_routes(conform);
    args->activation.output = conform->out->inter_rows;
}

static void fill_gemm1(const struct moe_conform *conform, union moe_conform_args *args)
{
    args->grouped_gemm.which = MOE_GEMM_GATE_UP;
    args->grouped_gemm.weights = conform->weights;
    args->grouped_gemm.input = conform->in->rows;
    args->grouped_gemm.output = conform->out->gate_up_rows;
    args->grouped_gemm.num_rows = num_routes(conform);
    args->grouped_gemm.seg_indptr = conform->in->seg_indptr;
    args->grouped_gemm.row_weights = conform->in->row_weights;
}

static void fill_gemm1_act(const struct moe_conform *conform, union moe_conform_args *args)
{
    fill_gemm1(conform, args);
    args->grouped_gemm.which = MOE_GEMM_GATE_UP_ACT;
    args->grouped_gemm.output = conform->out->inter_rows;
}

static void fill_gemm2(const struct moe_conform *conform, union moe_conform_args *args)
{
    fill_gemm1(conform, args);
    args->grouped_gemm.which = MOE_GEMM_DOWN;
    args->grouped_gemm.input = conform->in->inter_rows;
    args->grouped_gemm.output = conform->out->rows;
}

static void fill_gemm_gathered(const struct moe_conform *conform, union moe_conform_args *args)
{
    fill_gemm1(conform, args);
    args->grouped_gemm.seg_indptr = NULL;
    args->grouped_gemm.input = conform->in->tokens;
    args->grouped_gemm.block_size = MOE_CONFORM_BLOCK;
    args->grouped_gemm.sorted_ids = conform->in->sorted_ids;
    args->grouped_gemm.expert_ids = conform->in->expert_ids;
    args->grouped_gemm.num_tokens_post_pad = conform->in->num_tokens_post_pad;
}

static void fill_post_reorder(const struct moe_conform *conform, union moe_conform_args *args)
{
    args->post_reorder.rows = conform->in->rows;
    args->post_reorder.num_rows = num_routes(conform);
    args->post_reorder.src2dst = conform->in->src2dst;
    if (!(conform->problem.flags & MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT)) {
        args->post_reorder.topk_weights = conform->in->topk_weights;
    }
    args->post_reorder.shared = conform->in->shared;
    args->post_reorder.shared_factor = conform->in->shared_factor;
    args->post_reorder.residual = conform->in->residual;
    args->post_reorder.output = conform->out->tokens;
}

static void fill_sum_reduce(const struct moe_conform *conform, union moe_conform_args *args)
{
    args->sum_reduce.input = conform->in->rows;
    args->sum_reduce.output = conform->out->tokens;
}

/* form, argument struct, operation, member of the table, main output, fill */
#define CALL(form, type, op, function, output, fill) FORM(0, form, type, op, function, output, fill)
/* a form that plugins may leave out */
#define OPTIONAL(form, type, op, function, output, fill) \
    FORM(1, form, type, op, function, output, fill)
#define FORM(is_optional, form, type, op, function, output, fill)                           \
    {                                                                                       \
        form, #type, sizeof(struct type), is_optional, op,                                  \
            offsetof(struct moe_plugin_api, function), offsetof(struct type, output), fill, \
            run_##function                                                                  \
    }
const struct moe_conform_call moe_conform_calls[] = {
    CALL("layer of router", moe_layer_args, MOE_OP_LAYER, layer, output, fill_layer_of_router),
    CALL("layer of logits", moe_layer_args, MOE_OP_LAYER, layer, output, fill_layer_of_logits),
    CALL("layer of ids", moe_layer_args, MOE_OP_LAYER, layer, output, fill_layer_of_ids),
    CALL("experts", moe_experts_args, MOE_OP_EXPERTS, experts, output, fill_experts),
    CALL("router", moe_router_args, MOE_OP_ROUTER, router, logits, fill_router),
    CALL("gating", moe_gating_args, MOE_OP_GATING, gating, topk_ids, fill_gating),
    OPTIONAL("gating, padded", moe_gating_args, MOE_OP_GATING, gating, topk_ids,
             fill_gating_padded),
    OPTIONAL("gating, replicas", moe_gating_args, MOE_OP_GATING, gating, topk_ids,
             fill_gating_replicas),
    CALL("align_block_size", moe_align_args, MOE_OP_ALIGN_BLOCK_SIZE, align_block_size, sorted_ids,
         fill_align),
    CALL("align_block_size, counts only", moe_align_args, MOE_OP_ALIGN_BLOCK_SIZE, align_block_size,
         expert_counts, fill_align_counts),
    OPTIONAL("align_block_size, batched", moe_align_args, MOE_OP_ALIGN_BLOCK_SIZE, align_block_size,
             sorted_ids, fill_align_batched),
    CALL("ep_preprocess", moe_ep_preprocess_args, MOE_OP_EP_PREPROCESS, ep_preprocess, src2dst,
         fill_ep_preprocess),
    OPTIONAL("ep_preprocess, masked", moe_ep_preprocess_args, MOE_OP_EP_PREPROCESS, ep_preprocess,
             src2dst, fill_ep_masked),
    CALL("route", moe_route_args, MOE_OP_ROUTE, route, topk_ids, fill_route),
    CALL("route of ids", moe_route_args, MOE_OP_ROUTE, route, src2dst, fill_route_of_ids),
    CALL("pre_reorder", moe_pre_reorder_args, MOE_OP_PRE_REORDER, pre_reorder, rows,
         fill_pre_reorder),
    CALL("activation", moe_activation_args, MOE_OP_ACTIVATION, activation, output, fill_activation),
    CALL("grouped_gemm, gate and up", moe_grouped_gemm_args, MOE_OP_GEMM1, grouped_gemm, output,
         fill_gemm1),
    CALL("grouped_gemm, activated", moe_grouped_gemm_args, MOE_OP_GEMM1, grouped_gemm, output,
         fill_gemm1_act),
    CALL("grouped_gemm, down", moe_grouped_gemm_args, MOE_OP_GEMM2, grouped_gemm, output,
         fill_gemm2),
    CALL("grouped_gemm, gathered", moe_grouped_gemm_args, MOE_OP_GEMM1, grouped_gemm, output,
         fill_gemm_gathered),
    CALL("post_reorder", moe_post_reorder_args, MOE_OP_POST_REORDER, post_reorder, output,
         fill_post_reorder),
    CALL("sum_reduce", moe_sum_reduce_args, MOE_OP_SUM_REDUCE, sum_reduce, output, fill_sum_reduce),
};
#undef CALL
#undef OPTIONAL
#undef FORM
const size_t moe_conform_num_calls = sizeof moe_conform_calls / sizeof moe_conform_calls[0];

int moe_conform_call_is_offered(const struct moe_conform *conform,
                                const struct moe_conform_call *call)
{
    void *member = NULL;
    memcpy(&member, (const char *)conform->api + call->member_offset, sizeof member);
    const size_t idx = (size_t)(call - moe_conform_calls);
    return member != NULL && (conform->refused_calls >> idx & 1u) == 0;
}

void moe_conform_calls_probe(struct moe_conform *conform)
{
    _Static_assert(sizeof moe_conform_calls / sizeof moe_conform_calls[0] <= 64, "a bit each");
    conform->refused_calls = 0;
    for (size_t i = 0; i < moe_conform_num_calls; ++i) {
        const struct moe_conform_call *call = &moe_conform_calls[i];
        union moe_conform_args args;
        if (!call->is_optional || !moe_conform_call_is_offered(conform, call)) {
            continue;
        }
        moe_conform_call_fill(call, conform, &args);
        if (call->run(conform->api, conform->plan, &args, NULL) == MOE_STATUS_UNSUPPORTED) {
            conform->refused_calls |= UINT64_C(1) << i;
        }
    }
    moe_conform_reset(conform, MOE_CONFORM_POISON);
}

void moe_conform_call_fill(const struct moe_conform_call *call, const struct moe_conform *conform,
                           union moe_conform_args *args)
{
    memset(args, 0, sizeof *args);
    args->call.struct_size = (uint32_t)call->args_bytes;
    args->call.workspace = conform->workspace;
    args->call.workspace_bytes = conform->info.workspace_bytes;
    args->call.num_tokens = MOE_CONFORM_TOKENS;
    call->fill(conform, args);
}

void moe_conform_call_run(const struct moe_conform_call *call, struct moe_conform *conform)
{
    union moe_conform_args args;
    struct moe_error error;
    MOE_INIT(error);
    moe_conform_call_fill(call, conform, &args);
    const int32_t status = call->run(conform->api, conform->plan, &args, &error);
    if (status != MOE_STATUS_OK) {
        moe_conform_fail(conform, "%s: status %d for valid arguments: %s", call->form, status,
                         error.message);
    }
}

const struct moe_conform_call *moe_conform_call_find(const char *form)
{
    for (size_t i = 0; i < moe_conform_num_calls; ++i) {
        if (strcmp(moe_conform_calls[i].form, form) == 0) {
            return &moe_conform_calls[i];
        }
    }
    return NULL;
}

int moe_conform_call_try(struct moe_conform *conform, const char *form)
{
    const struct moe_conform_call *call = moe_conform_call_find(form);
    moe_conform_reset(conform, MOE_CONFORM_POISON);
    if (!moe_conform_call_is_offered(conform, call)) {
        return 0;
    }
    moe_conform_call_run(call, conform);
    return 1;
}

void moe_conform_check_indices(struct moe_conform *conform, const char *call, const char *array,
                               const int32_t *values, const int32_t *wanted, int64_t count)
{
    for (int64_t i = 0; i < count; ++i) {
        if (values[i] != wanted[i]) {
            moe_conform_fail(conform, "%s (%s): %s[%lld] is %d instead of %d", call,
                             conform->shape->name, array, (long long)i, values[i], wanted[i]);
        }
    }
}
