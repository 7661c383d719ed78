/* SPDX-License-Identifier: Apache-2.0 */
/*
 * layer on a GPU: a chain of launches on one stream, with everything between them in the workspace.
 * The first is an ordinary node; each of the others begins under the tail of the one before (PDL).
 *
 *   shared expert: GEMM1, GEMM2, its factor     (what does not depend on routing comes first)
 *   router                                      (unless the host gives logits or ids)
 *   gating                                      (unless the host gives ids)
 *   ep_preprocess: the sort                     (of more routes than GEMM1 sorts itself)
 *   pre_reorder                                 (for a GEMM1 of clusters and many channels)
 *   GEMM1, tokens gathered and activation fused; GEMM2; post_reorder
 *
 * Few routes GEMM1 sorts itself (record 0018), and GEMM2 counts them again. Some more, GEMM1
 * counts, like the sort in front of it, so that weights are on their way while the sort still runs;
 * only its tokens wait for the sort.
 *
 * Nothing is read back: how many rows each expert has stays on the device. Every stage is a pure
 * function of the one before, so tiles and chunks do not change a bit.
 */
#include "cuda_args.h"
#include "cuda_chain.h"
#include "cuda_ops.h"
#include "cuda_weights.h"
#include "plan.h"
#include "problem.h"
#include "status.h"

#include <string.h>

/* Offsets into the workspace of a layer call with a number of tokens. */
struct layer_layout {
    uint64_t logits;        /* [T, E_global] */
    uint64_t ids;           /* int32 [T, k] */
    uint64_t weights;       /* fp32 [T, k] */
    uint64_t seg_indptr;    /* int64 [E + 1] */
    uint64_t src2dst;       /* int32 [T * k] */
    uint64_t dst2src;       /* int32 [T * k] */
    uint64_t inter;         /* [T * k, I] */
    uint64_t tokens;        /* [T * k, H] in the order of the rows, if they are not gathered */
    uint64_t rows;          /* [T * k, H] */
    uint64_t shared_inter;  /* [T, shared I] */
    uint64_t shared_rows;   /* [T, H] */
    uint64_t shared_factor; /* fp32 [T] */
    uint64_t scratch;       /* of the sort */
    uint64_t total;
};

static bool reads_in_order(const struct moe_problem *problem,
                           const struct moe_dispatch_bucket *bucket)
{
    return moe_cuda_reads_in_order(problem, &moe_tiles[bucket->choices[MOE_OP_GEMM1].tile]);
}

static void lay_out_layer(const struct moe_plan *plan, const struct moe_dispatch_bucket *bucket,
                          int64_t num_tokens, struct layer_layout *out)
{
    const struct moe_problem *problem = &plan->problem;
    const uint64_t tokens = (uint64_t)num_tokens;
    const uint64_t routes = tokens * (uint64_t)moe_problem_num_slots(problem);
    const uint64_t hidden = (uint64_t)problem->hidden, inter = (uint64_t)problem->inter;
    const uint64_t inter_bytes = (uint64_t)moe_dtype_bytes(problem->intermediate.dtype);
    const uint64_t output_bytes = (uint64_t)moe_dtype_bytes(problem->output_dtype);
    uint64_t total = 0;
    memset(out, 0, sizeof(*out));
    if (problem->gating != MOE_GATING_NONE) {
        out->logits = moe_cuda_append(&total, tokens * (uint64_t)problem->num_experts_global *
                                                  (uint64_t)moe_dtype_bytes(problem->logits_dtype));
        out->ids = moe_cuda_append(&total, routes * sizeof(int32_t));
        out->weights = moe_cuda_append(&total, routes * sizeof(float));
    }
    out->seg_indptr =
        moe_cuda_append(&total, ((uint64_t)problem->num_experts + 1) * sizeof(int64_t));
    out->src2dst = moe_cuda_append(&total, routes * sizeof(int32_t));
    out->dst2src = moe_cuda_append(&total, routes * sizeof(int32_t));
    out->inter = moe_cuda_append(&total, routes * inter * inter_bytes);
    out->rows = moe_cuda_append(&total, routes * hidden * output_bytes);
    if (reads_in_order(problem, bucket)) {
        out->tokens = moe_cuda_append(&total, routes * hidden *
                                                  (uint64_t)moe_dtype_bytes(problem->tokens.dtype));
    }
    if (problem->shared_inter > 0) {
        out->shared_inter =
            moe_cuda_append(&total, tokens * (uint64_t)problem->shared_inter * inter_bytes);
        out->shared_rows = moe_cuda_append(&total, tokens * hidden * output_bytes);
    }
    if ((problem->flags & MOE_PROBLEM_SHARED_SIGMOID) != 0) {
        out->shared_factor = moe_cuda_append(&total, tokens * sizeof(float));
    }
    out->scratch = moe_cuda_append(
        &total, plan->backend->op_workspace(plan, bucket, MOE_OP_EP_PREPROCESS, num_tokens));
    out->total = total;
}

uint64_t moe_cuda_layer_workspace(const struct moe_plan *plan,
                                  const struct moe_dispatch_bucket *bucket, int64_t num_tokens)
{
    struct layer_layout layout;
    lay_out_layer(plan, bucket, num_tokens, &layout);
    return layout.total;
}

/* A layer call in progress. */
struct layer_run {
    struct moe_run run; /* is_chained from the second launch on */
    const struct moe_problem *problem;
    const struct moe_op_layer *op;
    struct layer_layout layout;
    /* Routing, wherever it came from. */
    const void *topk_ids;
    int32_t ids_dtype;
    const float *topk_weights;
    const float *shared_factor;
};

static void *at(const struct layer_run *layer, uint64_t offset)
{
    return (char *)layer->run.workspace + offset;
}

/* The shared expert is one segment that all tokens are in; nothing that a node before writes tells
 * its work, unless the host has the number of tokens on the device. */
static int32_t run_shared(struct layer_run *layer, struct moe_error *error)
{
    const struct moe_problem *problem = layer->problem;
    const struct moe_op_layer *op = layer->op;
    struct moe_op_gemm gemm1 = moe_cuda_make_gemm1(problem, problem->shared_inter);
    struct moe_op_gemm gemm2 = moe_cuda_make_gemm2(problem, problem->shared_inter);
    gemm1.num_segments = 1;
    gemm1.num_experts = 1;
    gemm1.masked_m = op->num_tokens_device;
    gemm1.max_masked_rows = op->num_tokens;
    gemm1.num_rows = op->num_tokens;
    gemm1.input = op->tokens;
    gemm1.input_stride = op->token_stride;
    gemm1.output = at(layer, layer->layout.shared_inter);
    MOE_TRY(
        moe_cuda_run_gemm(&layer->run, MOE_OP_GEMM1, &gemm1, MOE_CUDA_SHARED_GATE, 0, NULL, error));
    gemm2.num_segments = 1;
    gemm2.num_experts = 1;
    gemm2.masked_m = op->num_tokens_device;
    gemm2.max_masked_rows = op->num_tokens;
    gemm2.num_rows = op->num_tokens;
    gemm2.input = gemm1.output;
    gemm2.output = at(layer, layer->layout.shared_rows);
    return moe_cuda_run_gemm(&layer->run, MOE_OP_GEMM2, &gemm2, MOE_CUDA_SHARED_DOWN, 1, NULL,
                             error);
}

/* factor[t] = sigma(x . w) */
static int32_t run_shared_factor(struct layer_run *layer, struct moe_error *error)
{
    const struct moe_op_layer *op = layer->op;
    const struct moe_cuda_weights *weights = layer->run.weights->backend_data;
    struct moe_op_router router = {
        .num_tokens = op->num_tokens,
        .num_tokens_device = op->num_tokens_device,
        .num_experts = 1,
        .hidden = layer->problem->hidden,
        .tokens = op->tokens,
        .token_stride = op->token_stride,
        .token_dtype = layer->problem->tokens.dtype,
        .logits_dtype = MOE_DTYPE_FP32,
        .weight = weights->shared_sigmoid,
        .logits = at(layer, layer->layout.shared_factor),
        .logits_stride = 1,
    };
    MOE_TRY(moe_cuda_shared_factor(&layer->run, &router, error));
    layer->run.is_chained = 1;
    layer->shared_factor = router.logits;
    return MOE_STATUS_OK;
}

/* Where gating reads its logits: the host's, or the router's. */
static int32_t run_router(struct layer_run *layer, const void **logits, int64_t *logits_stride,
                          struct moe_error *error)
{
    const struct moe_op_layer *op = layer->op;
    const struct moe_problem *problem = layer->problem;
    const struct moe_cuda_weights *weights = layer->run.weights->backend_data;
    *logits = op->logits;
    *logits_stride = op->logits_stride;
    if (op->logits != NULL) {
        return MOE_STATUS_OK;
    }
    struct moe_op_router router = {
        .num_tokens = op->num_tokens,
        .num_tokens_device = op->num_tokens_device,
        .num_experts = problem->num_experts_global,
        .hidden = problem->hidden,
        .tokens = op->tokens,
        .token_stride = op->token_stride,
        .token_dtype = problem->tokens.dtype,
        .logits_dtype = problem->logits_dtype,
        .weight = weights->router,
        .bias = weights->router_bias,
        .logits = op->logits_out != NULL ? op->logits_out : at(layer, layer->layout.logits),
        .logits_stride = problem->num_experts_global,
    };
    MOE_TRY(moe_cuda_router(&layer->run, &router, error));
    layer->run.is_chained = 1;
    *logits = router.logits;
    *logits_stride = router.logits_stride;
    return MOE_STATUS_OK;
}

/* Ids and weights in the workspace, or where the host wants them. */
static void fill_gating(struct layer_run *layer, const void *logits, int64_t logits_stride,
                        struct moe_op_gating *gating)
{
    const struct moe_op_layer *op = layer->op;
    const struct moe_problem *problem = layer->problem;
    const bool wants_ids = op->topk_ids_out != NULL;
    *gating = (struct moe_op_gating){
        .num_tokens = op->num_tokens,
        .num_tokens_device = op->num_tokens_device,
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
        .logits = logits,
        .logits_stride = logits_stride,
        .correction_bias = layer->run.weights->desc.correction_bias.base,
        .topk_ids = wants_ids ? op->topk_ids_out : at(layer, layer->layout.ids),
        .ids_dtype = wants_ids ? op->ids_dtype : MOE_IDS_INT32,
        .topk_weights =
            op->topk_weights_out != NULL ? op->topk_weights_out : at(layer, layer->layout.weights),
        .num_valid_tokens = op->num_valid_tokens,
        .physical_ids = op->physical_ids,
        .num_replicas = op->num_replicas,
        .load_counters = op->load_counters,
        .max_replicas = op->max_replicas,
        .first_appended_id = problem->num_physical_experts,
        .first_token = op->first_token,
    };
    layer->topk_ids = gating->topk_ids;
    layer->topk_weights = gating->topk_weights;
    layer->ids_dtype = gating->ids_dtype;
}

/* Ids and weights, unless the host gives them. */
static int32_t run_gating(struct layer_run *layer, struct moe_error *error)
{
    const struct moe_op_layer *op = layer->op;
    struct moe_op_gating gating;
    const void *logits;
    int64_t logits_stride;
    layer->topk_ids = op->topk_ids;
    layer->topk_weights = op->topk_weights;
    layer->ids_dtype = op->ids_dtype;
    if (op->topk_ids != NULL) {
        return MOE_STATUS_OK;
    }
    MOE_TRY(run_router(layer, &logits, &logits_stride, error));
    fill_gating(layer, logits, logits_stride, &gating);
    MOE_TRY(moe_cuda_gating(&layer->run, &gating, error));
    layer->run.is_chained = 1;
    return MOE_STATUS_OK;
}

/* Rows of the routes. Gating and sort are two launches: together they take less than the one of
 * route, whose sort waits for the gating of all tokens. */
static int32_t run_sort(struct layer_run *layer, struct moe_error *error)
{
    const struct moe_op_layer *op = layer->op;
    const int64_t num_routes = op->num_tokens * moe_problem_num_slots(layer->problem);
    const struct moe_op_ep_preprocess sort = {
        .num_routes = num_routes,
        .num_tokens_device = op->num_tokens_device,
        .topk_ids = layer->topk_ids,
        .ids_dtype = layer->ids_dtype,
        .segment_alignment = 1,
        .top_k = moe_problem_num_slots(layer->problem),
        .filter = op->filter,
        .seg_indptr = at(layer, layer->layout.seg_indptr),
        .src2dst = at(layer, layer->layout.src2dst),
        .dst2src = at(layer, layer->layout.dst2src),
        .row_capacity = num_routes,
    };
    struct moe_run run = layer->run;
    run.workspace = at(layer, layer->layout.scratch);
    MOE_TRY(moe_cuda_ep_preprocess(&run, &sort, error));
    layer->run.is_chained = 1;
    return MOE_STATUS_OK;
}

/* Copies of the tokens in the order of the rows. */
static int32_t run_reorder(struct layer_run *layer, struct moe_op_gemm *gemm1,
                           struct moe_error *error)
{
    const struct moe_op_layer *op = layer->op;
    const struct moe_problem *problem = layer->problem;
    const struct moe_op_pre_reorder reorder = {
        .num_tokens = op->num_tokens,
        .num_tokens_device = op->num_tokens_device,
        .top_k = moe_problem_num_slots(problem),
        .hidden = problem->hidden,
        .dtype = problem->tokens.dtype,
        .tokens = op->tokens,
        .token_stride = op->token_stride,
        .src2dst = at(layer, layer->layout.src2dst),
        .rows = at(layer, layer->layout.tokens),
        .row_stride = problem->hidden,
        .num_rows = op->num_tokens * moe_problem_num_slots(problem),
    };
    MOE_TRY(moe_cuda_pre_reorder(&layer->run, &reorder, error));
    gemm1->input = reorder.rows;
    gemm1->input_stride = reorder.row_stride;
    gemm1->row_ids_div = 0;
    return MOE_STATUS_OK;
}

/* What is to be sorted; with `sorts`, by the GEMM that is given this. */
static struct moe_cuda_gemm_routes find_routes(const struct layer_run *layer, bool sorts)
{
    const struct moe_op_layer *op = layer->op;
    const int32_t num_slots = moe_problem_num_slots(layer->problem);
    const struct moe_cuda_gemm_routes routes = {
        .topk_ids = layer->topk_ids,
        .num_tokens_device = op->num_tokens_device,
        .src2dst = sorts ? at(layer, layer->layout.src2dst) : NULL,
        .ids_dtype = layer->ids_dtype,
        .num_routes = (int32_t)(op->num_tokens * num_slots),
        .top_k = num_slots,
        .filter = op->filter,
    };
    return routes;
}

/* GEMM1 as it is with rows gathered in the order of a sort. */
static struct moe_op_gemm make_gemm1(const struct layer_run *layer)
{
    const struct moe_problem *problem = layer->problem;
    const int32_t num_slots = moe_problem_num_slots(problem);
    struct moe_op_gemm gemm1 = moe_cuda_make_gemm1(problem, problem->inter);
    gemm1.num_segments = problem->num_experts;
    gemm1.num_experts = problem->num_experts;
    gemm1.seg_indptr = at(layer, layer->layout.seg_indptr);
    gemm1.num_rows = layer->op->num_tokens * num_slots;
    gemm1.row_ids = at(layer, layer->layout.dst2src);
    gemm1.num_row_ids = gemm1.num_rows;
    gemm1.row_ids_div = num_slots;
    gemm1.row_weights =
        (problem->flags & MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT) != 0 ? layer->topk_weights : NULL;
    gemm1.input = layer->op->tokens;
    gemm1.input_stride = layer->op->token_stride;
    gemm1.output = at(layer, layer->layout.inter);
    return gemm1;
}

/* GEMM1 sorts. What it sorts is older than the node in front if it is the host's. */
static int32_t run_sorting_gemm1(struct layer_run *layer, struct moe_op_gemm *gemm1,
                                 struct moe_error *error)
{
    const struct moe_cuda_gemm_routes routes = find_routes(layer, true);
    const int32_t is_early = layer->op->topk_ids != NULL;
    gemm1->row_ids = NULL;
    return moe_cuda_run_gemm(&layer->run, MOE_OP_GEMM1, gemm1, MOE_CUDA_GATE, is_early, &routes,
                             error);
}

/* The sort, and GEMM1 behind it. Where it counts too, it need not wait for the sort to know which
 * weights it reads: the ids are older than the sort. */
static int32_t run_sorted_gemm1(struct layer_run *layer, struct moe_op_gemm *gemm1,
                                struct moe_error *error)
{
    const struct moe_cuda_gemm_routes routes = find_routes(layer, false);
    const bool is_in_order = reads_in_order(layer->problem, layer->run.bucket);
    const bool is_counted = !is_in_order && gemm1->num_rows <= MOE_CUDA_GEMM_MAX_ROUTES;
    MOE_TRY(run_sort(layer, error));
    if (is_in_order) {
        MOE_TRY(run_reorder(layer, gemm1, error));
    }
    return moe_cuda_run_gemm(&layer->run, MOE_OP_GEMM1, gemm1, MOE_CUDA_GATE,
                             is_in_order || is_counted, is_counted ? &routes : NULL, error);
}

static int32_t run_experts(struct layer_run *layer, struct moe_error *error)
{
    const struct moe_problem *problem = layer->problem;
    struct moe_op_gemm gemm1 = make_gemm1(layer);
    const bool sorts =
        moe_cuda_gemm_sorts(&layer->run, MOE_OP_GEMM1, &gemm1, MOE_CUDA_GATE, gemm1.num_rows);
    if (sorts) {
        MOE_TRY(run_sorting_gemm1(layer, &gemm1, error));
    } else {
        MOE_TRY(run_sorted_gemm1(layer, &gemm1, error));
    }
    const struct moe_cuda_gemm_routes routes = find_routes(layer, false);
    struct moe_op_gemm gemm2 = moe_cuda_make_gemm2(problem, problem->inter);
    gemm2.num_segments = problem->num_experts;
    gemm2.num_experts = problem->num_experts;
    gemm2.seg_indptr = gemm1.seg_indptr;
    gemm2.num_rows = gemm1.num_rows;
    gemm2.input = gemm1.output;
    gemm2.output = at(layer, layer->layout.rows);
    return moe_cuda_run_gemm(&layer->run, MOE_OP_GEMM2, &gemm2, MOE_CUDA_DOWN, 1,
                             sorts ? &routes : NULL, error);
}

static int32_t run_combine(struct layer_run *layer, struct moe_error *error)
{
    const struct moe_op_layer *op = layer->op;
    const struct moe_problem *problem = layer->problem;
    const bool on_input = (problem->flags & MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT) != 0;
    struct moe_op_post_reorder combine = {
        .num_tokens = op->num_tokens,
        .num_tokens_device = op->num_tokens_device,
        .top_k = moe_problem_num_slots(problem),
        .hidden = problem->hidden,
        .dtype = problem->output_dtype,
        .scaling = problem->scaling_on == MOE_SCALING_OUTPUT ? problem->routed_scaling : 1.0f,
        .rows = at(layer, layer->layout.rows),
        .row_stride = problem->hidden,
        .num_rows = op->num_tokens * moe_problem_num_slots(problem),
        .src2dst = at(layer, layer->layout.src2dst),
        .topk_weights = on_input ? NULL : layer->topk_weights,
        .shared = problem->shared_inter > 0 ? at(layer, layer->layout.shared_rows) : NULL,
        .shared_stride = problem->hidden,
        .shared_factor = layer->shared_factor,
        .residual = op->residual,
        .residual_stride = op->residual_stride,
        .output = op->output,
        .output_stride = op->output_stride,
    };
    return moe_cuda_combine(&layer->run, MOE_OP_POST_REORDER, &combine, 1, error);
}

int32_t moe_cuda_layer(const struct moe_run *run, const struct moe_op_layer *op,
                       struct moe_error *error)
{
    struct layer_run layer = {.run = *run, .problem = &run->plan->problem, .op = op};
    MOE_TRY(moe_cuda_check_rows("layer: tokens", op->tokens, op->token_stride,
                                layer.problem->tokens.dtype, error));
    layer.run.weights = op->weights;
    lay_out_layer(run->plan, run->bucket, op->num_tokens, &layer.layout);
    if (layer.problem->shared_inter > 0) {
        MOE_TRY(run_shared(&layer, error));
    }
    if ((layer.problem->flags & MOE_PROBLEM_SHARED_SIGMOID) != 0) {
        MOE_TRY(run_shared_factor(&layer, error));
    }
    MOE_TRY(run_gating(&layer, error));
    MOE_TRY(run_experts(&layer, error));
    return run_combine(&layer, error);
}
