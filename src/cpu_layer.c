/* SPDX-License-Identifier: Apache-2.0 */
/*
 * layer on the CPU: a chain of kernels on one set of threads, with everything between them in the
 * workspace.
 *
 *   router -> gating -> ep_preprocess -> GEMM1 (tokens gathered, activation fused) -> GEMM2
 *   shared expert: GEMM1, GEMM2 and its sigmoid, as one segment of all tokens   -> post_reorder
 *
 * Where rows are fp8, tokens are quantized once before GEMM1 (unless they came so), and the
 * intermediate, in fp32, between the GEMMs.
 *
 * Rows are sorted by expert, so each expert's weights are read once per chunk of tokens. Every
 * stage is a pure function of the one before, so threads, tiles and chunks do not change a bit.
 */
#include "cpu_chain.h"
#include "cpu_isa.h"
#include "op_fill.h"
#include "plan.h"
#include "weights.h"

#include <string.h>

/* Offsets into the workspace of a layer call with a number of tokens. */
struct layer_layout {
    uint64_t logits;                   /* [T, E_global] */
    uint64_t ids;                      /* int32 [T, k] */
    uint64_t weights;                  /* fp32 [T, k] */
    uint64_t seg_indptr;               /* int64 [E + 1] */
    uint64_t src2dst;                  /* int32 [T * k] */
    uint64_t dst2src;                  /* int32 [T * k] */
    struct moe_cpu_quantized tokens;   /* [T, H], of plain tokens that meet fp8 weights as fp8 */
    struct moe_cpu_inter inter;        /* [T * k, I] */
    uint64_t rows;                     /* [T * k, H] */
    struct moe_cpu_inter shared_inter; /* [T, shared I] */
    uint64_t shared_rows;              /* [T, H] */
    uint64_t shared_logits;            /* fp32 [T] */
    uint64_t shared_ids;               /* int32 [T] */
    uint64_t shared_factor;            /* fp32 [T] */
    uint64_t scratch;
    uint64_t scratch_stride;
    uint64_t total;
};

static void lay_out_layer(const struct moe_plan *plan, const struct moe_dispatch_bucket *bucket,
                          int64_t num_tokens, struct layer_layout *out)
{
    const struct moe_problem *problem = &plan->problem;
    const uint64_t tokens = (uint64_t)num_tokens;
    const uint64_t routes = tokens * (uint64_t)moe_problem_num_slots(problem);
    const uint64_t hidden = (uint64_t)problem->hidden;
    const uint64_t output_bytes = (uint64_t)moe_dtype_bytes(problem->output_dtype);
    const uint64_t stages =
        MOE_OP_BIT(MOE_OP_ROUTER) | MOE_OP_BIT(MOE_OP_GATING) | MOE_OP_BIT(MOE_OP_EP_PREPROCESS) |
        MOE_OP_BIT(MOE_OP_GEMM1) | MOE_OP_BIT(MOE_OP_GEMM2) | MOE_OP_BIT(MOE_OP_POST_REORDER) |
        (moe_recipe_is_fp8(&problem->intermediate) ? MOE_OP_BIT(MOE_OP_QUANTIZE) : 0);
    uint64_t total = 0;
    memset(out, 0, sizeof(*out));
    if (problem->gating != MOE_GATING_NONE) {
        out->logits = moe_cpu_append(&total, tokens * (uint64_t)problem->num_experts_global *
                                                 (uint64_t)moe_dtype_bytes(problem->logits_dtype));
        out->ids = moe_cpu_append(&total, routes * sizeof(int32_t));
        out->weights = moe_cpu_append(&total, routes * sizeof(float));
    }
    out->seg_indptr =
        moe_cpu_append(&total, ((uint64_t)problem->num_experts + 1) * sizeof(int64_t));
    out->src2dst = moe_cpu_append(&total, routes * sizeof(int32_t));
    out->dst2src = moe_cpu_append(&total, routes * sizeof(int32_t));
    if (moe_recipe_quantizes_tokens(problem)) {
        out->tokens =
            moe_cpu_append_quantized(&total, &problem->intermediate, num_tokens, problem->hidden);
    }
    out->inter = moe_cpu_append_inter(&total, problem, (int64_t)routes, problem->inter);
    out->rows = moe_cpu_append(&total, routes * hidden * output_bytes);
    if (problem->shared_inter > 0) {
        out->shared_inter =
            moe_cpu_append_inter(&total, problem, num_tokens, problem->shared_inter);
        out->shared_rows = moe_cpu_append(&total, tokens * hidden * output_bytes);
    }
    if ((problem->flags & MOE_PROBLEM_SHARED_SIGMOID) != 0) {
        out->shared_logits = moe_cpu_append(&total, tokens * sizeof(float));
        out->shared_ids = moe_cpu_append(&total, tokens * sizeof(int32_t));
        out->shared_factor = moe_cpu_append(&total, tokens * sizeof(float));
    }
    out->scratch_stride = moe_cpu_chain_scratch(plan, bucket, stages);
    out->scratch = moe_cpu_append(
        &total, out->scratch_stride * (uint64_t)moe_cpu_pool_num_threads(moe_cpu_plan_pool(plan)));
    out->total = total;
}

uint64_t moe_cpu_layer_workspace(const struct moe_plan *plan,
                                 const struct moe_dispatch_bucket *bucket, int64_t num_tokens)
{
    struct layer_layout layout;
    lay_out_layer(plan, bucket, num_tokens, &layout);
    return layout.total;
}

/* A layer call in progress. */
struct layer_run {
    const struct moe_run *run;
    const struct moe_problem *problem;
    const struct moe_op_layer *op;
    struct layer_layout layout;
    struct moe_cpu_run cpu;
    /* Routing, wherever it came from. */
    const void *topk_ids;
    int32_t ids_dtype;
    const float *topk_weights;
    const float *shared_factor;
};

static void *at(const struct layer_run *layer, uint64_t offset)
{
    return (char *)layer->run->workspace + offset;
}

static const struct moe_cpu_kernels *kernels_of(const struct layer_run *layer, int32_t op)
{
    return moe_cpu_kernels_of(moe_cpu_tile_of(layer->run->bucket, op));
}

/* Logits and gating, unless the host gave ids. */
static void run_routing(struct layer_run *layer)
{
    const struct moe_op_layer *op = layer->op;
    const struct moe_problem *problem = layer->problem;
    layer->topk_ids = op->topk_ids;
    layer->topk_weights = op->topk_weights;
    layer->ids_dtype = op->ids_dtype;
    if (op->topk_ids != NULL) {
        return;
    }
    const void *logits = op->logits;
    int64_t logits_stride = op->logits_stride;
    if (logits == NULL) {
        void *made = op->logits_out != NULL ? op->logits_out : at(layer, layer->layout.logits);
        struct moe_op_router router;
        moe_op_fill_router(problem, &router);
        router.num_tokens = op->num_tokens;
        router.tokens = op->tokens;
        router.token_stride = op->token_stride;
        router.weight = op->weights->desc.router;
        router.bias = op->weights->desc.router_bias;
        router.logits = made;
        router.logits_stride = problem->num_experts_global;
        moe_cpu_run_kernel(&layer->cpu, &kernels_of(layer, MOE_OP_ROUTER)->router, &router,
                           moe_cpu_tile_of(layer->run->bucket, MOE_OP_ROUTER));
        logits = made;
        logits_stride = problem->num_experts_global;
    }
    bool wants_ids = op->topk_ids_out != NULL;
    void *ids = wants_ids ? op->topk_ids_out : at(layer, layer->layout.ids);
    float *weights =
        op->topk_weights_out != NULL ? op->topk_weights_out : at(layer, layer->layout.weights);
    struct moe_op_gating gating;
    moe_op_fill_gating(problem, &gating);
    gating.num_tokens = op->num_tokens;
    gating.first_token = op->first_token;
    gating.logits = logits;
    gating.logits_stride = logits_stride;
    gating.correction_bias = op->weights->desc.correction_bias.base;
    gating.topk_ids = ids;
    gating.ids_dtype = wants_ids ? op->ids_dtype : MOE_IDS_INT32;
    gating.topk_weights = weights;
    gating.num_valid_tokens = op->num_valid_tokens;
    gating.physical_ids = op->physical_ids;
    gating.num_replicas = op->num_replicas;
    gating.max_replicas = op->max_replicas;
    gating.load_counters = op->load_counters;
    moe_cpu_run_kernel(&layer->cpu, &kernels_of(layer, MOE_OP_GATING)->gating, &gating,
                       moe_cpu_tile_of(layer->run->bucket, MOE_OP_GATING));
    layer->topk_ids = ids;
    layer->topk_weights = weights;
    layer->ids_dtype = gating.ids_dtype;
}

static void run_sort(struct layer_run *layer)
{
    int64_t num_routes = layer->op->num_tokens * moe_problem_num_slots(layer->problem);
    struct moe_op_ep_preprocess sort;
    moe_op_fill_ep_preprocess(layer->problem, &sort);
    sort.num_routes = num_routes;
    sort.topk_ids = layer->topk_ids;
    sort.ids_dtype = layer->ids_dtype;
    sort.filter = layer->op->filter;
    sort.seg_indptr = at(layer, layer->layout.seg_indptr);
    sort.src2dst = at(layer, layer->layout.src2dst);
    sort.dst2src = at(layer, layer->layout.dst2src);
    sort.row_capacity = num_routes;
    moe_cpu_run_kernel(&layer->cpu, &kernels_of(layer, MOE_OP_EP_PREPROCESS)->ep_preprocess, &sort,
                       moe_cpu_tile_of(layer->run->bucket, MOE_OP_EP_PREPROCESS));
}

/* The rows that GEMM1 gathers from. */
static struct moe_cpu_rows gemm1_rows(struct layer_run *layer)
{
    const struct moe_op_layer *op = layer->op;
    const struct moe_problem *problem = layer->problem;
    const struct moe_cpu_rows tokens = {.base = op->tokens,
                                        .stride = op->token_stride,
                                        .dtype = problem->tokens.dtype,
                                        .scales = op->input_scales};
    if (!moe_recipe_quantizes_tokens(problem)) {
        return tokens;
    }
    const struct moe_recipe *recipe = &problem->intermediate;
    moe_cpu_quantize_rows(&layer->cpu, layer->run, &tokens, 0, op->num_tokens,
                          &layer->layout.tokens, recipe, problem->hidden, 0);
    return moe_cpu_quantized_rows(layer->run, &layer->layout.tokens, recipe, problem->hidden);
}

static void run_experts(struct layer_run *layer, const struct moe_cpu_rows *tokens)
{
    const struct moe_problem *problem = layer->problem;
    const struct moe_cpu_mlp mlp = moe_cpu_routed_mlp(problem, &layer->op->weights->desc);
    const int64_t num_routes = layer->op->num_tokens * moe_problem_num_slots(problem);
    const int64_t *seg_indptr = at(layer, layer->layout.seg_indptr);
    const bool on_input = (problem->flags & MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT) != 0;
    struct moe_op_gemm gemm1 = {.seg_indptr = seg_indptr,
                                .num_rows = num_routes,
                                .row_ids = at(layer, layer->layout.dst2src),
                                .num_row_ids = num_routes,
                                .row_ids_div = moe_problem_num_slots(problem),
                                .row_weights = on_input ? layer->topk_weights : NULL};
    struct moe_op_gemm gemm2 = {.seg_indptr = seg_indptr,
                                .num_rows = num_routes,
                                .output = at(layer, layer->layout.rows),
                                .output_stride = problem->hidden};
    moe_cpu_run_mlp(&layer->cpu, layer->run, &mlp, tokens, &layer->layout.inter, 0,
                    seg_indptr[problem->num_experts], &gemm1, &gemm2);
}

/* The shared expert is one segment that all tokens are in. */
static void run_shared(struct layer_run *layer, const struct moe_cpu_rows *tokens)
{
    const struct moe_problem *problem = layer->problem;
    const struct moe_cpu_mlp mlp = moe_cpu_shared_mlp(problem, &layer->op->weights->desc);
    const int64_t segment[2] = {0, layer->op->num_tokens};
    struct moe_op_gemm gemm1 = {.seg_indptr = segment, .num_rows = segment[1]};
    struct moe_op_gemm gemm2 = {.seg_indptr = segment,
                                .num_rows = segment[1],
                                .output = at(layer, layer->layout.shared_rows),
                                .output_stride = problem->hidden};
    moe_cpu_run_mlp(&layer->cpu, layer->run, &mlp, tokens, &layer->layout.shared_inter, 0,
                    segment[1], &gemm1, &gemm2);
}

/* factor[t] = sigma(x . w): a router with one expert, gated by the rule whose weight is the sigmoid
 * of the logit. */
static void run_shared_sigmoid(struct layer_run *layer)
{
    const struct moe_op_layer *op = layer->op;
    struct moe_op_router router = {
        .num_tokens = op->num_tokens,
        .num_experts = 1,
        .hidden = layer->problem->hidden,
        .tokens = op->tokens,
        .token_stride = op->token_stride,
        .token_dtype = layer->problem->tokens.dtype,
        .logits_dtype = MOE_DTYPE_FP32,
        .weight = op->weights->desc.shared_sigmoid,
        .logits = at(layer, layer->layout.shared_logits),
        .logits_stride = 1,
    };
    moe_cpu_run_kernel(&layer->cpu, &kernels_of(layer, MOE_OP_ROUTER)->router, &router,
                       moe_cpu_tile_of(layer->run->bucket, MOE_OP_ROUTER));
    struct moe_op_gating gating = {
        .num_tokens = op->num_tokens,
        .num_experts = 1,
        .top_k = 1,
        .rule = MOE_GATING_LLAMA4,
        .num_groups = 1,
        .topk_groups = 1,
        .logits_dtype = MOE_DTYPE_FP32,
        .scaling = 1.0f,
        .logits = router.logits,
        .logits_stride = 1,
        .topk_ids = at(layer, layer->layout.shared_ids),
        .ids_dtype = MOE_IDS_INT32,
        .topk_weights = at(layer, layer->layout.shared_factor),
    };
    moe_cpu_run_kernel(&layer->cpu, &kernels_of(layer, MOE_OP_GATING)->gating, &gating,
                       moe_cpu_tile_of(layer->run->bucket, MOE_OP_GATING));
    layer->shared_factor = gating.topk_weights;
}

static void run_combine(struct layer_run *layer)
{
    const struct moe_op_layer *op = layer->op;
    const struct moe_problem *problem = layer->problem;
    bool on_input = (problem->flags & MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT) != 0;
    struct moe_op_post_reorder combine = {
        .num_tokens = op->num_tokens,
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
    moe_cpu_prepare_post_reorder(layer->run, &combine);
    moe_cpu_run_kernel(&layer->cpu, &kernels_of(layer, MOE_OP_POST_REORDER)->post_reorder, &combine,
                       moe_cpu_tile_of(layer->run->bucket, MOE_OP_POST_REORDER));
}

int32_t moe_cpu_layer(const struct moe_run *run, const struct moe_op_layer *op,
                      struct moe_error *error)
{
    (void)error;
    struct layer_run layer = {.run = run, .problem = &run->plan->problem, .op = op};
    lay_out_layer(run->plan, run->bucket, op->num_tokens, &layer.layout);
    layer.cpu.scratch = at(&layer, layer.layout.scratch);
    layer.cpu.scratch_stride = layer.layout.scratch_stride;
    moe_cpu_session_begin(&layer.cpu.session, moe_cpu_plan_pool(run->plan));
    run_routing(&layer);
    run_sort(&layer);
    const struct moe_cpu_rows tokens = gemm1_rows(&layer);
    run_experts(&layer, &tokens);
    if (layer.problem->shared_inter > 0) {
        run_shared(&layer, &tokens);
    }
    if ((layer.problem->flags & MOE_PROBLEM_SHARED_SIGMOID) != 0) {
        run_shared_sigmoid(&layer);
    }
    run_combine(&layer);
    moe_cpu_session_end(&layer.cpu.session);
    return MOE_STATUS_OK;
}
