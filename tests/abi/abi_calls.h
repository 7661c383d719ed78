/* SPDX-License-Identifier: Apache-2.0 */
/* The run calls as a table: valid arguments for each, in every form that it has. */
#ifndef MOE_TESTS_ABI_CALLS_H
#define MOE_TESTS_ABI_CALLS_H

#include "abi_host.h"

/* Any argument struct, with room for what a newer header would append. */
union abi_args {
    struct moe_call call;
    struct moe_layer_args layer;
    struct moe_experts_args experts;
    struct moe_router_args router;
    struct moe_gating_args gating;
    struct moe_align_args align;
    struct moe_ep_preprocess_args ep_preprocess;
    struct moe_route_args route;
    struct moe_pre_reorder_args pre_reorder;
    struct moe_quantize_args quantize;
    struct moe_activation_args activation;
    struct moe_grouped_gemm_args grouped_gemm;
    struct moe_post_reorder_args post_reorder;
    struct moe_sum_reduce_args sum_reduce;
    unsigned char bytes[1024];
};

struct abi_call {
    const char *form;        /* what to call it in messages */
    const char *struct_name; /* of its arguments */
    size_t args_bytes;
    int32_t status;       /* of the valid arguments */
    const char *required; /* members that may not be NULL in this form, each between spaces */
    void (*fill)(const struct abi_host *host, union abi_args *args);
    int32_t (*run)(const struct moe_plugin_api *api, const struct moe_plan *plan, const void *args,
                   struct moe_error *error);
};

#define ABI_RUN_(op, type)                                                            \
    static inline int32_t abi_run_##op(const struct moe_plugin_api *api,              \
                                       const struct moe_plan *plan, const void *args, \
                                       struct moe_error *error)                       \
    {                                                                                 \
        return api->op(plan, (const struct type *)args, error);                       \
    }
ABI_RUN_(layer, moe_layer_args)
ABI_RUN_(experts, moe_experts_args)
ABI_RUN_(router, moe_router_args)
ABI_RUN_(gating, moe_gating_args)
ABI_RUN_(align_block_size, moe_align_args)
ABI_RUN_(ep_preprocess, moe_ep_preprocess_args)
ABI_RUN_(route, moe_route_args)
ABI_RUN_(pre_reorder, moe_pre_reorder_args)
ABI_RUN_(quantize, moe_quantize_args)
ABI_RUN_(activation, moe_activation_args)
ABI_RUN_(grouped_gemm, moe_grouped_gemm_args)
ABI_RUN_(post_reorder, moe_post_reorder_args)
ABI_RUN_(sum_reduce, moe_sum_reduce_args)
#undef ABI_RUN_

/* Fills get a zeroed union whose call is complete. */
static inline void abi_fill_layer_of_router(const struct abi_host *host, union abi_args *args)
{
    struct abi_memory *memory = host->memory;
    args->layer.weights = host->weights;
    args->layer.tokens = memory->in.tokens;
    args->layer.residual = memory->in.residual;
    args->layer.filter.expert_map = memory->in.expert_map;
    args->layer.output = memory->out.tokens;
    args->layer.logits_out = memory->out.logits;
    args->layer.topk_ids_out = memory->out.topk_ids;
    args->layer.topk_weights_out = memory->out.topk_weights;
}

static inline void abi_fill_layer_of_logits(const struct abi_host *host, union abi_args *args)
{
    abi_fill_layer_of_router(host, args);
    args->layer.logits = host->memory->in.logits;
    args->layer.logits_out = NULL;
}

static inline void abi_fill_layer_of_ids(const struct abi_host *host, union abi_args *args)
{
    abi_fill_layer_of_router(host, args);
    args->layer.topk_ids = host->memory->in.topk_ids;
    args->layer.topk_weights = host->memory->in.topk_weights;
    args->layer.logits_out = NULL;
    args->layer.topk_ids_out = NULL;
    args->layer.topk_weights_out = NULL;
}

static inline void abi_fill_experts(const struct abi_host *host, union abi_args *args)
{
    args->experts.weights = host->weights;
    args->experts.rows = host->memory->in.rows;
    args->experts.num_rows = ABI_ROUTES;
    args->experts.seg_indptr = host->memory->in.seg_indptr;
    args->experts.output = host->memory->out.rows;
}

static inline void abi_fill_router(const struct abi_host *host, union abi_args *args)
{
    args->router.weights = host->weights;
    args->router.tokens = host->memory->in.tokens;
    args->router.logits = host->memory->out.logits;
}

static inline void abi_fill_gating(const struct abi_host *host, union abi_args *args)
{
    args->gating.logits = host->memory->in.logits;
    args->gating.correction_bias = host->values->correction_bias;
    args->gating.topk_ids = host->memory->out.topk_ids;
    args->gating.topk_weights = host->memory->out.topk_weights;
}

static inline void abi_fill_gating_replicas(const struct abi_host *host, union abi_args *args)
{
    abi_fill_gating(host, args);
    args->gating.max_replicas = ABI_REPLICAS;
    args->gating.num_valid_tokens = host->memory->in.num_valid_tokens;
    args->gating.physical_ids = host->memory->in.physical_ids;
    args->gating.num_replicas = host->memory->in.num_replicas;
    args->gating.load_counters = host->memory->out.load_counters;
}

static inline void abi_fill_align(const struct abi_host *host, union abi_args *args)
{
    args->align.topk_ids = host->memory->in.topk_ids;
    args->align.block_size = ABI_BLOCK;
    args->align.filter.expert_map = host->memory->in.expert_map;
    args->align.sorted_ids = host->memory->out.sorted_ids;
    args->align.sorted_capacity = ABI_SORTED;
    args->align.expert_ids = host->memory->out.expert_ids;
    args->align.expert_capacity = ABI_SORTED;
    args->align.num_tokens_post_pad = host->memory->out.num_tokens_post_pad;
    args->align.expert_counts = host->memory->out.expert_counts;
}

static inline void abi_fill_align_counts(const struct abi_host *host, union abi_args *args)
{
    args->align.topk_ids = host->memory->in.topk_ids;
    args->align.block_size = ABI_BLOCK;
    args->align.expert_counts = host->memory->out.expert_counts;
}

static inline void abi_fill_align_batched(const struct abi_host *host, union abi_args *args)
{
    abi_fill_align(host, args);
    args->align.topk_ids = NULL;
    args->align.filter.expert_map = NULL;
    args->align.batch_counts = host->memory->in.batch_counts;
    args->align.max_batch_rows = ABI_BATCH_ROWS;
}

static inline void abi_fill_ep_preprocess(const struct abi_host *host, union abi_args *args)
{
    args->ep_preprocess.topk_ids = host->memory->in.topk_ids;
    args->ep_preprocess.filter.expert_map = host->memory->in.expert_map;
    args->ep_preprocess.seg_indptr = host->memory->out.seg_indptr;
    args->ep_preprocess.src2dst = host->memory->out.src2dst;
    args->ep_preprocess.dst2src = host->memory->out.dst2src;
    args->ep_preprocess.reorder_ids = host->memory->out.reorder_ids;
    args->ep_preprocess.m_indices = host->memory->out.m_indices;
    args->ep_preprocess.row_capacity = ABI_SORTED;
}

static inline void abi_fill_ep_masked(const struct abi_host *host, union abi_args *args)
{
    abi_fill_ep_preprocess(host, args);
    args->ep_preprocess.masked_m = host->memory->out.masked_m;
    args->ep_preprocess.max_masked_rows = ABI_MASKED_ROWS;
}

static inline void abi_fill_route(const struct abi_host *host, union abi_args *args)
{
    struct abi_memory *memory = host->memory;
    args->route.logits = memory->in.logits;
    args->route.correction_bias = host->values->correction_bias;
    args->route.topk_ids = memory->out.topk_ids;
    args->route.topk_weights = memory->out.topk_weights;
    args->route.max_replicas = ABI_REPLICAS;
    args->route.num_valid_tokens = memory->in.num_valid_tokens;
    args->route.physical_ids = memory->in.physical_ids;
    args->route.num_replicas = memory->in.num_replicas;
    args->route.load_counters = memory->out.load_counters;
    args->route.filter.expert_map = memory->in.expert_map;
    args->route.block_size = ABI_BLOCK;
    args->route.sorted_ids = memory->out.sorted_ids;
    args->route.sorted_capacity = ABI_SORTED;
    args->route.expert_ids = memory->out.expert_ids;
    args->route.expert_capacity = ABI_SORTED;
    args->route.num_tokens_post_pad = memory->out.num_tokens_post_pad;
    args->route.expert_counts = memory->out.expert_counts;
    args->route.seg_indptr = memory->out.seg_indptr;
    args->route.src2dst = memory->out.src2dst;
    args->route.dst2src = memory->out.dst2src;
    args->route.reorder_ids = memory->out.reorder_ids;
    args->route.m_indices = memory->out.m_indices;
    args->route.row_capacity = ABI_SORTED;
}

static inline void abi_fill_route_of_ids(const struct abi_host *host, union abi_args *args)
{
    struct abi_memory *memory = host->memory;
    args->route.topk_ids = memory->in.topk_ids;
    args->route.filter.expert_map = memory->in.expert_map;
    args->route.src2dst = memory->out.src2dst;
    args->route.dst2src = memory->out.dst2src;
    args->route.reorder_ids = memory->out.reorder_ids;
    args->route.m_indices = memory->out.m_indices;
    args->route.row_capacity = ABI_SORTED;
    args->route.masked_m = memory->out.masked_m;
    args->route.max_masked_rows = ABI_MASKED_ROWS;
}

static inline void abi_fill_pre_reorder(const struct abi_host *host, union abi_args *args)
{
    args->pre_reorder.tokens = host->memory->in.tokens;
    args->pre_reorder.src2dst = host->memory->in.src2dst;
    args->pre_reorder.rows = host->memory->out.rows;
    args->pre_reorder.num_rows = ABI_ROUTES;
}

static inline void abi_fill_quantize(const struct abi_host *host, union abi_args *args)
{
    args->quantize.tokens = host->memory->in.tokens;
    args->quantize.output = host->memory->out.rows;
    args->quantize.output_scales = host->memory->out.scales;
    args->quantize.quantization = (struct moe_recipe){.dtype = MOE_DTYPE_FP8_E4M3,
                                                      .scale_dtype = MOE_DTYPE_FP32,
                                                      .scale_layout = MOE_SCALE_ROW_MAJOR,
                                                      .group_rows = 1,
                                                      .group_k = 5,
                                                      .dynamic = 1};
}

/* A static scale per expert. */
static inline void abi_fill_pre_reorder_quantized(const struct abi_host *host, union abi_args *args)
{
    abi_fill_pre_reorder(host, args);
    args->pre_reorder.topk_ids = host->memory->in.topk_ids;
    args->pre_reorder.input_scales = host->memory->in.scales;
    args->pre_reorder.quantization.dtype = MOE_DTYPE_FP8_E4M3;
    args->pre_reorder.quantization.scale_dtype = MOE_DTYPE_FP32;
}

static inline void abi_fill_activation(const struct abi_host *host, union abi_args *args)
{
    args->activation.input = host->memory->in.gate_up_rows;
    args->activation.num_rows = ABI_ROUTES;
    args->activation.output = host->memory->out.rows;
}

static inline void abi_fill_activation_masked(const struct abi_host *host, union abi_args *args)
{
    abi_fill_activation(host, args);
    args->activation.masked_m = host->memory->in.batch_counts;
    args->activation.max_masked_rows = ABI_ROUTES / ABI_EXPERTS;
}

static inline void abi_fill_gemm1(const struct abi_host *host, union abi_args *args)
{
    args->grouped_gemm.which = MOE_GEMM_GATE_UP;
    args->grouped_gemm.weights = host->weights;
    args->grouped_gemm.input = host->memory->in.rows;
    args->grouped_gemm.output = host->memory->out.rows;
    args->grouped_gemm.num_rows = ABI_ROUTES;
    args->grouped_gemm.seg_indptr = host->memory->in.seg_indptr;
    args->grouped_gemm.row_weights = host->memory->in.row_weights;
}

static inline void abi_fill_gemm1_act(const struct abi_host *host, union abi_args *args)
{
    abi_fill_gemm1(host, args);
    args->grouped_gemm.which = MOE_GEMM_GATE_UP_ACT;
}

static inline void abi_fill_gemm2(const struct abi_host *host, union abi_args *args)
{
    abi_fill_gemm1(host, args);
    args->grouped_gemm.which = MOE_GEMM_DOWN;
}

static inline void abi_fill_gemm_gathered(const struct abi_host *host, union abi_args *args)
{
    abi_fill_gemm1(host, args);
    args->grouped_gemm.seg_indptr = NULL;
    args->grouped_gemm.input = host->memory->in.tokens;
    args->grouped_gemm.block_size = ABI_BLOCK;
    args->grouped_gemm.sorted_ids = host->memory->in.sorted_ids;
    args->grouped_gemm.expert_ids = host->memory->in.expert_ids;
    args->grouped_gemm.num_tokens_post_pad = host->memory->in.num_tokens_post_pad;
}

static inline void abi_fill_post_reorder(const struct abi_host *host, union abi_args *args)
{
    args->post_reorder.rows = host->memory->in.rows;
    args->post_reorder.num_rows = ABI_ROUTES;
    args->post_reorder.src2dst = host->memory->in.src2dst;
    args->post_reorder.topk_weights = host->memory->in.topk_weights;
    args->post_reorder.shared = host->memory->in.shared;
    args->post_reorder.shared_factor = host->memory->in.shared_factor;
    args->post_reorder.residual = host->memory->in.residual;
    args->post_reorder.output = host->memory->out.tokens;
}

static inline void abi_fill_sum_reduce(const struct abi_host *host, union abi_args *args)
{
    args->sum_reduce.input = host->memory->in.rows;
    args->sum_reduce.output = host->memory->out.tokens;
}

static const struct abi_call abi_calls[] = {
    {"layer of router", "moe_layer_args", sizeof(struct moe_layer_args), MOE_STATUS_OK,
     " weights tokens output ", abi_fill_layer_of_router, abi_run_layer},
    {"layer of logits", "moe_layer_args", sizeof(struct moe_layer_args), MOE_STATUS_OK,
     " weights tokens output ", abi_fill_layer_of_logits, abi_run_layer},
    {"layer of ids", "moe_layer_args", sizeof(struct moe_layer_args), MOE_STATUS_OK,
     " weights tokens topk_ids topk_weights output ", abi_fill_layer_of_ids, abi_run_layer},
    {"experts", "moe_experts_args", sizeof(struct moe_experts_args), MOE_STATUS_OK,
     " weights rows seg_indptr output ", abi_fill_experts, abi_run_experts},
    {"router", "moe_router_args", sizeof(struct moe_router_args), MOE_STATUS_OK,
     " weights tokens logits ", abi_fill_router, abi_run_router},
    {"gating", "moe_gating_args", sizeof(struct moe_gating_args), MOE_STATUS_OK,
     " logits correction_bias topk_ids topk_weights ", abi_fill_gating, abi_run_gating},
    {"gating, replicas", "moe_gating_args", sizeof(struct moe_gating_args), MOE_STATUS_OK,
     " logits correction_bias topk_ids topk_weights physical_ids num_replicas ",
     abi_fill_gating_replicas, abi_run_gating},
    {"align_block_size", "moe_align_args", sizeof(struct moe_align_args), MOE_STATUS_OK,
     " topk_ids sorted_ids expert_ids num_tokens_post_pad ", abi_fill_align,
     abi_run_align_block_size},
    {"align_block_size, counts", "moe_align_args", sizeof(struct moe_align_args), MOE_STATUS_OK,
     " topk_ids expert_counts ", abi_fill_align_counts, abi_run_align_block_size},
    {"align_block_size, batched", "moe_align_args", sizeof(struct moe_align_args), MOE_STATUS_OK,
     " batch_counts sorted_ids expert_ids num_tokens_post_pad ", abi_fill_align_batched,
     abi_run_align_block_size},
    {"ep_preprocess", "moe_ep_preprocess_args", sizeof(struct moe_ep_preprocess_args),
     MOE_STATUS_OK, " topk_ids seg_indptr src2dst ", abi_fill_ep_preprocess, abi_run_ep_preprocess},
    {"ep_preprocess, masked", "moe_ep_preprocess_args", sizeof(struct moe_ep_preprocess_args),
     MOE_STATUS_OK, " topk_ids src2dst masked_m ", abi_fill_ep_masked, abi_run_ep_preprocess},
    {"route", "moe_route_args", sizeof(struct moe_route_args), MOE_STATUS_OK,
     " logits correction_bias topk_ids topk_weights physical_ids num_replicas sorted_ids "
     "expert_ids "
     "num_tokens_post_pad seg_indptr src2dst ",
     abi_fill_route, abi_run_route},
    {"route of ids", "moe_route_args", sizeof(struct moe_route_args), MOE_STATUS_OK,
     " topk_ids src2dst masked_m ", abi_fill_route_of_ids, abi_run_route},
    {"pre_reorder", "moe_pre_reorder_args", sizeof(struct moe_pre_reorder_args), MOE_STATUS_OK,
     " tokens src2dst rows ", abi_fill_pre_reorder, abi_run_pre_reorder},
    {"pre_reorder, quantized", "moe_pre_reorder_args", sizeof(struct moe_pre_reorder_args),
     MOE_STATUS_OK, " tokens src2dst rows input_scales ", abi_fill_pre_reorder_quantized,
     abi_run_pre_reorder},
    {"quantize", "moe_quantize_args", sizeof(struct moe_quantize_args), MOE_STATUS_OK,
     " tokens output output_scales ", abi_fill_quantize, abi_run_quantize},
    {"activation, masked", "moe_activation_args", sizeof(struct moe_activation_args), MOE_STATUS_OK,
     " input output masked_m ", abi_fill_activation_masked, abi_run_activation},
    {"activation", "moe_activation_args", sizeof(struct moe_activation_args), MOE_STATUS_OK,
     " input output ", abi_fill_activation, abi_run_activation},
    {"grouped_gemm, gate and up", "moe_grouped_gemm_args", sizeof(struct moe_grouped_gemm_args),
     MOE_STATUS_OK, " weights input output seg_indptr ", abi_fill_gemm1, abi_run_grouped_gemm},
    {"grouped_gemm, activated", "moe_grouped_gemm_args", sizeof(struct moe_grouped_gemm_args),
     MOE_STATUS_OK, " weights input output seg_indptr ", abi_fill_gemm1_act, abi_run_grouped_gemm},
    {"grouped_gemm, down", "moe_grouped_gemm_args", sizeof(struct moe_grouped_gemm_args),
     MOE_STATUS_OK, " weights input output seg_indptr ", abi_fill_gemm2, abi_run_grouped_gemm},
    {"grouped_gemm, gathered", "moe_grouped_gemm_args", sizeof(struct moe_grouped_gemm_args),
     MOE_STATUS_OK, " weights input output sorted_ids expert_ids num_tokens_post_pad ",
     abi_fill_gemm_gathered, abi_run_grouped_gemm},
    {"post_reorder", "moe_post_reorder_args", sizeof(struct moe_post_reorder_args), MOE_STATUS_OK,
     " rows src2dst output ", abi_fill_post_reorder, abi_run_post_reorder},
    {"sum_reduce", "moe_sum_reduce_args", sizeof(struct moe_sum_reduce_args), MOE_STATUS_OK,
     " input output ", abi_fill_sum_reduce, abi_run_sum_reduce},
};

enum { ABI_NUM_CALLS = sizeof(abi_calls) / sizeof(abi_calls[0]) };

/* Valid arguments of a call. */
static inline void abi_call_fill(const struct abi_call *call, const struct abi_host *host,
                                 union abi_args *args)
{
    memset(args, 0, sizeof(*args));
    args->call.struct_size = (uint32_t)call->args_bytes;
    args->call.workspace = host->memory->workspace;
    args->call.workspace_bytes = ABI_WORKSPACE_BYTES;
    args->call.num_tokens = ABI_TOKENS;
    call->fill(host, args);
}

static inline const struct abi_call *abi_call_find(const char *form)
{
    for (size_t i = 0; i < ABI_NUM_CALLS; i++) {
        if (strcmp(abi_calls[i].form, form) == 0) {
            return &abi_calls[i];
        }
    }
    return NULL;
}

#endif
