/* SPDX-License-Identifier: Apache-2.0 */
/* The operations that gpu_bench measures: what a call moves, and the call. */
#include "gpu_bench.h"

#include <string.h>

struct gpu_host bench_host;

#define BEGIN(args) \
    (MOE_INIT_CALL(args), call.struct_size = (args).call.struct_size, (args).call = call)

static const struct moe_recipe fp8_groups = {.dtype = MOE_DTYPE_FP8_E4M3,
                                             .scale_dtype = MOE_DTYPE_FP32,
                                             .scale_layout = MOE_SCALE_ROW_MAJOR,
                                             .group_rows = 1,
                                             .group_k = BENCH_QUANTIZE_GROUP,
                                             .dynamic = 1};

static double num_routes(const struct bench *bench)
{
    return (double)bench->num_tokens * bench->top_k;
}

/* bf16 rows of the tokens, and fp8 rows with their scales. */
static double token_bytes(const struct bench *bench)
{
    return 2.0 * (double)bench->num_tokens * bench->hidden;
}

static double fp8_bytes(double num_rows, int32_t num_columns)
{
    const int32_t num_groups = (num_columns + BENCH_QUANTIZE_GROUP - 1) / BENCH_QUANTIZE_GROUP;
    return num_rows * (num_columns + 4.0 * num_groups);
}

/* ---------------------------------------------------------------- routing */

static double bytes_gating(const struct bench *bench)
{
    return 4.0 * (double)bench->num_tokens * bench->num_experts + 8.0 * num_routes(bench);
}

static int32_t run_gating(const struct bench *bench, const struct bench_set *set,
                          struct moe_call call, struct moe_error *error)
{
    struct moe_gating_args args;
    BEGIN(args);
    args.logits = set->logits;
    args.topk_ids = set->gated_ids;
    args.topk_weights = set->gated_weights;
    return bench_host.api->gating(bench->plan, &args, error);
}

static double bytes_sort(const struct bench *bench)
{
    return 12.0 * num_routes(bench);
}

static int32_t run_align(const struct bench *bench, const struct bench_set *set,
                         struct moe_call call, struct moe_error *error)
{
    struct moe_align_args args;
    BEGIN(args);
    args.topk_ids = set->ids;
    args.block_size = BENCH_ALIGN_BLOCK;
    args.sorted_ids = set->sorted;
    args.sorted_capacity = set->sorted_capacity;
    args.expert_ids = set->experts;
    args.expert_capacity = set->expert_capacity;
    args.num_tokens_post_pad = set->post_pad;
    return bench_host.api->align_block_size(bench->plan, &args, error);
}

static int32_t run_ep_preprocess(const struct bench *bench, const struct bench_set *set,
                                 struct moe_call call, struct moe_error *error)
{
    struct moe_ep_preprocess_args args;
    BEGIN(args);
    args.topk_ids = set->ids;
    args.seg_indptr = set->indptr;
    args.src2dst = set->src2dst;
    args.reorder_ids = set->reorder;
    args.dst2src = set->dst2src;
    args.row_capacity = bench->num_tokens * bench->top_k;
    return bench_host.api->ep_preprocess(bench->plan, &args, error);
}

static double bytes_route(const struct bench *bench)
{
    return bytes_gating(bench) + bytes_sort(bench);
}

/* Gating and align_block_size. */
static int32_t run_route(const struct bench *bench, const struct bench_set *set,
                         struct moe_call call, struct moe_error *error)
{
    struct moe_route_args args;
    BEGIN(args);
    args.logits = set->logits;
    args.topk_ids = set->gated_ids;
    args.topk_weights = set->gated_weights;
    args.block_size = BENCH_ALIGN_BLOCK;
    args.sorted_ids = set->sorted;
    args.sorted_capacity = set->sorted_capacity;
    args.expert_ids = set->experts;
    args.expert_capacity = set->expert_capacity;
    args.num_tokens_post_pad = set->post_pad;
    return bench_host.api->route(bench->plan, &args, error);
}

/* Gating and ep_preprocess. */
static int32_t run_route_ep(const struct bench *bench, const struct bench_set *set,
                            struct moe_call call, struct moe_error *error)
{
    struct moe_route_args args;
    BEGIN(args);
    args.logits = set->logits;
    args.topk_ids = set->gated_ids;
    args.topk_weights = set->gated_weights;
    args.seg_indptr = set->indptr;
    args.src2dst = set->src2dst;
    args.dst2src = set->dst2src;
    args.row_capacity = bench->num_tokens * bench->top_k;
    return bench_host.api->route(bench->plan, &args, error);
}

/* ---------------------------------------------------------------- rows */

static double bytes_reorder(const struct bench *bench)
{
    return token_bytes(bench) * (1.0 + bench->top_k);
}

static int32_t run_pre_reorder(const struct bench *bench, const struct bench_set *set,
                               struct moe_call call, struct moe_error *error)
{
    struct moe_pre_reorder_args args;
    BEGIN(args);
    args.tokens = set->tokens;
    args.src2dst = set->src2dst;
    args.rows = set->rows;
    args.num_rows = bench->num_tokens * bench->top_k;
    return bench_host.api->pre_reorder(bench->plan, &args, error);
}

static double bytes_pre_reorder_fp8(const struct bench *bench)
{
    return token_bytes(bench) + fp8_bytes(num_routes(bench), bench->hidden);
}

static int32_t run_pre_reorder_fp8(const struct bench *bench, const struct bench_set *set,
                                   struct moe_call call, struct moe_error *error)
{
    struct moe_pre_reorder_args args;
    BEGIN(args);
    args.tokens = set->tokens;
    args.src2dst = set->src2dst;
    args.rows = set->quantized;
    args.num_rows = bench->num_tokens * bench->top_k;
    args.output_dtype = MOE_DTYPE_FP8_E4M3;
    args.output_scales = set->scales;
    args.quantization = fp8_groups;
    return bench_host.api->pre_reorder(bench->plan, &args, error);
}

static double bytes_quantize(const struct bench *bench)
{
    return token_bytes(bench) + fp8_bytes((double)bench->num_tokens, bench->hidden);
}

static int32_t run_quantize(const struct bench *bench, const struct bench_set *set,
                            struct moe_call call, struct moe_error *error)
{
    struct moe_quantize_args args;
    BEGIN(args);
    args.tokens = set->tokens;
    args.output = set->quantized;
    args.output_scales = set->scales;
    args.quantization = fp8_groups;
    return bench_host.api->quantize(bench->plan, &args, error);
}

static double bytes_activation(const struct bench *bench)
{
    return 6.0 * num_routes(bench) * bench->inter;
}

static int32_t run_activation(const struct bench *bench, const struct bench_set *set,
                              struct moe_call call, struct moe_error *error)
{
    struct moe_activation_args args;
    BEGIN(args);
    args.input = set->gate_up;
    args.num_rows = bench->num_tokens * bench->top_k;
    args.output = set->quantized;
    return bench_host.api->activation(bench->plan, &args, error);
}

static double bytes_activation_fp8(const struct bench *bench)
{
    return 4.0 * num_routes(bench) * bench->inter + fp8_bytes(num_routes(bench), bench->inter);
}

static int32_t run_activation_fp8(const struct bench *bench, const struct bench_set *set,
                                  struct moe_call call, struct moe_error *error)
{
    struct moe_activation_args args;
    BEGIN(args);
    args.input = set->gate_up;
    args.num_rows = bench->num_tokens * bench->top_k;
    args.output = set->quantized;
    args.output_scales = set->scales;
    args.quantization = fp8_groups;
    return bench_host.api->activation(bench->plan, &args, error);
}

static int32_t run_post_reorder(const struct bench *bench, const struct bench_set *set,
                                struct moe_call call, struct moe_error *error)
{
    struct moe_post_reorder_args args;
    BEGIN(args);
    args.rows = set->rows;
    args.num_rows = bench->num_tokens * bench->top_k;
    args.src2dst = set->src2dst;
    args.topk_weights = set->weights;
    args.output = set->output;
    return bench_host.api->post_reorder(bench->plan, &args, error);
}

static int32_t run_sum_reduce(const struct bench *bench, const struct bench_set *set,
                              struct moe_call call, struct moe_error *error)
{
    struct moe_sum_reduce_args args;
    BEGIN(args);
    args.input = set->rows;
    args.output = set->output;
    return bench_host.api->sum_reduce(bench->plan, &args, error);
}

const struct bench_op bench_ops[] = {
    {"gating", MOE_OP_GATING, 0, bytes_gating, run_gating},
    {"align", MOE_OP_ALIGN_BLOCK_SIZE, 0, bytes_sort, run_align},
    {"ep_preprocess", MOE_OP_EP_PREPROCESS, 0, bytes_sort, run_ep_preprocess},
    {"route", MOE_OP_ROUTE, 0, bytes_route, run_route},
    {"route_ep", MOE_OP_ROUTE, 0, bytes_route, run_route_ep},
    {"pre_reorder", MOE_OP_PRE_REORDER, 1, bytes_reorder, run_pre_reorder},
    {"pre_reorder_fp8", MOE_OP_PRE_REORDER, 1, bytes_pre_reorder_fp8, run_pre_reorder_fp8},
    {"quantize", MOE_OP_QUANTIZE, 1, bytes_quantize, run_quantize},
    {"activation", MOE_OP_ACTIVATION, 1, bytes_activation, run_activation},
    {"activation_fp8", MOE_OP_ACTIVATION, 1, bytes_activation_fp8, run_activation_fp8},
    {"post_reorder", MOE_OP_POST_REORDER, 1, bytes_reorder, run_post_reorder},
    {"sum_reduce", MOE_OP_SUM_REDUCE, 1, bytes_reorder, run_sum_reduce},
};
const int bench_num_ops = sizeof(bench_ops) / sizeof(bench_ops[0]);

static int32_t run(const struct bench *bench, const struct bench_set *set, CUstream stream,
                   struct moe_error *error)
{
    struct moe_call call;
    memset(&call, 0, sizeof(call));
    call.num_tokens = bench->num_tokens;
    call.stream = stream;
    call.workspace = bench->workspace;
    call.workspace_bytes = bench->workspace_bytes;
    return bench->op->run(bench, set, call, error);
}

void bench_run(const struct bench *bench, const struct bench_set *set, CUstream stream)
{
    struct moe_error error;
    MOE_INIT(error);
    gpu_host_check(run(bench, set, stream, &error), &error, bench->op->name);
}

int bench_try(const struct bench *bench)
{
    static const struct bench_op *refused;
    struct moe_error error;
    MOE_INIT(error);
    const int32_t status = run(bench, &bench->sets[0], bench_host.stream, &error);
    if (status == MOE_STATUS_UNSUPPORTED) {
        if (refused != bench->op) {
            printf("%-15s not measured: %s\n", bench->op->name, error.message);
            refused = bench->op;
        }
        return 0;
    }
    gpu_host_check(status, &error, bench->op->name);
    gpu_synchronize(bench_host.stream);
    return 1;
}
