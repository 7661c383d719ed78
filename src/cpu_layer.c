/* SPDX-License-Identifier: Apache-2.0 */
/*
 * layer and experts on the CPU: a chain of kernels on one set of threads, with everything between
 * them in the workspace.
 *
 *   router -> gating -> ep_preprocess -> GEMM1 (tokens gathered, activation fused) -> GEMM2 ->
 *                post_reorder shared expert: GEMM1, GEMM2 and its sigmoid, as one segment of all
 *                tokens  ----^
 *
 * Rows are sorted by expert, so each expert's weights are read once per chunk of tokens. Every
 * stage is a pure function of the one before, so threads, tiles and chunks do not change a bit.
 */
#include "backend_cpu.h"

#include "plan.h"
#include "tiles.h"
#include "weights.h"

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
    uint64_t rows;          /* [T * k, H] */
    uint64_t shared_inter;  /* [T, shared I] */
    uint64_t shared_rows;   /* [T, H] */
    uint64_t shared_logits; /* fp32 [T] */
    uint64_t shared_ids;    /* int32 [T] */
    uint64_t shared_factor; /* fp32 [T] */
    uint64_t scratch;
    uint64_t scratch_stride;
    uint64_t total;
};

static uint64_t append(uint64_t *total, uint64_t bytes)
{
    uint64_t offset = *total;
    *total += moe_cpu_align(bytes);
    return offset;
}

static const struct moe_tile *tile_of(const struct moe_dispatch_bucket *bucket, int32_t op)
{
    return &moe_tiles[bucket->choices[op].tile];
}

/* Scratch per thread that the stages in `ops` need at most. */
static uint64_t scratch_of(const struct moe_plan *plan, const struct moe_dispatch_bucket *bucket,
                           uint64_t ops)
{
    uint64_t largest = 0;
    for (int32_t op = 0; op < MOE_NUM_OPS; op++) {
        if ((ops & MOE_OP_BIT(op)) != 0 && bucket->choices[op].tile >= 0) {
            uint64_t bytes = moe_cpu_op_scratch(plan, op, tile_of(bucket, op));
            largest = bytes > largest ? bytes : largest;
        }
    }
    return moe_cpu_align(largest);
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
    const uint64_t stages = MOE_OP_BIT(MOE_OP_ROUTER) | MOE_OP_BIT(MOE_OP_GATING) |
                            MOE_OP_BIT(MOE_OP_EP_PREPROCESS) | MOE_OP_BIT(MOE_OP_GEMM1) |
                            MOE_OP_BIT(MOE_OP_GEMM2) | MOE_OP_BIT(MOE_OP_POST_REORDER);
    uint64_t total = 0;
    memset(out, 0, sizeof(*out));
    if (problem->gating != MOE_GATING_NONE) {
        out->logits = append(&total, tokens * (uint64_t)problem->num_experts_global *
                                         (uint64_t)moe_dtype_bytes(problem->logits_dtype));
        out->ids = append(&total, routes * sizeof(int32_t));
        out->weights = append(&total, routes * sizeof(float));
    }
    out->seg_indptr = append(&total, ((uint64_t)problem->num_experts + 1) * sizeof(int64_t));
    out->src2dst = append(&total, routes * sizeof(int32_t));
    out->dst2src = append(&total, routes * sizeof(int32_t));
    out->inter = append(&total, routes * inter * inter_bytes);
    out->rows = append(&total, routes * hidden * output_bytes);
    if (problem->shared_inter > 0) {
        out->shared_inter = append(&total, tokens * (uint64_t)problem->shared_inter * inter_bytes);
        out->shared_rows = append(&total, tokens * hidden * output_bytes);
    }
    if ((problem->flags & MOE_PROBLEM_SHARED_SIGMOID) != 0) {
        out->shared_logits = append(&total, tokens * sizeof(float));
        out->shared_ids = append(&total, tokens * sizeof(int32_t));
        out->shared_factor = append(&total, tokens * sizeof(float));
    }
    out->scratch_stride = scratch_of(plan, bucket, stages);
    out->scratch = append(&total, out->scratch_stride *
                                      (uint64_t)moe_cpu_pool_num_threads(moe_cpu_plan_pool(plan)));
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
    return moe_cpu_kernels_of(tile_of(layer->run->bucket, op));
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
        struct moe_op_router router = {
            .num_tokens = op->num_tokens,
            .num_experts = problem->num_experts_global,
            .hidden = problem->hidden,
            .tokens = op->tokens,
            .token_stride = op->token_stride,
            .token_dtype = problem->tokens.dtype,
            .logits_dtype = problem->logits_dtype,
            .weight = op->weights->desc.router,
            .bias = op->weights->desc.router_bias,
            .logits = made,
            .logits_stride = problem->num_experts_global,
        };
        moe_cpu_run_kernel(&layer->cpu, &kernels_of(layer, MOE_OP_ROUTER)->router, &router,
                           tile_of(layer->run->bucket, MOE_OP_ROUTER));
        logits = made;
        logits_stride = problem->num_experts_global;
    }
    bool wants_ids = op->topk_ids_out != NULL;
    void *ids = wants_ids ? op->topk_ids_out : at(layer, layer->layout.ids);
    float *weights =
        op->topk_weights_out != NULL ? op->topk_weights_out : at(layer, layer->layout.weights);
    struct moe_op_gating gating = {
        .num_tokens = op->num_tokens,
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
        .logits = logits,
        .logits_stride = logits_stride,
        .correction_bias = op->weights->desc.correction_bias.base,
        .topk_ids = ids,
        .ids_dtype = wants_ids ? op->ids_dtype : MOE_IDS_INT32,
        .topk_weights = weights,
    };
    moe_cpu_run_kernel(&layer->cpu, &kernels_of(layer, MOE_OP_GATING)->gating, &gating,
                       tile_of(layer->run->bucket, MOE_OP_GATING));
    layer->topk_ids = ids;
    layer->topk_weights = weights;
    layer->ids_dtype = gating.ids_dtype;
}

static void run_sort(struct layer_run *layer)
{
    int64_t num_routes = layer->op->num_tokens * moe_problem_num_slots(layer->problem);
    struct moe_op_ep_preprocess sort = {
        .num_routes = num_routes,
        .topk_ids = layer->topk_ids,
        .ids_dtype = layer->ids_dtype,
        .segment_alignment = 1,
        .filter = layer->op->filter,
        .seg_indptr = at(layer, layer->layout.seg_indptr),
        .src2dst = at(layer, layer->layout.src2dst),
        .dst2src = at(layer, layer->layout.dst2src),
        .row_capacity = num_routes,
    };
    moe_cpu_run_kernel(&layer->cpu, &kernels_of(layer, MOE_OP_EP_PREPROCESS)->ep_preprocess, &sort,
                       tile_of(layer->run->bucket, MOE_OP_EP_PREPROCESS));
}

/* The part of a GEMM1 that depends on the problem and these operands only. */
static void fill_gemm1(const struct moe_problem *problem, const struct moe_operand *gate,
                       const struct moe_operand *up, const struct moe_operand *gate_bias,
                       const struct moe_operand *up_bias, int32_t inter, struct moe_op_gemm *gemm)
{
    bool ungated = (problem->flags & MOE_PROBLEM_UNGATED) != 0;
    gemm->row_ids_div = 1;
    gemm->input_dtype = problem->tokens.dtype;
    gemm->output_dtype = problem->intermediate.dtype;
    gemm->output_stride = inter;
    gemm->n = inter;
    gemm->k = problem->hidden;
    gemm->num_matrices = ungated ? 1 : 2;
    gemm->has_activation = 1;
    gemm->act.activation = problem->activation;
    gemm->act.ungated = ungated;
    gemm->act.alpha = problem->act_alpha;
    gemm->act.limit = problem->act_limit;
    gemm->weight[0] = ungated ? *up : *gate;
    gemm->weight[1] = *up;
    gemm->bias[0] = ungated ? *up_bias : *gate_bias;
    gemm->bias[1] = *up_bias;
}

static void fill_gemm2(const struct moe_problem *problem, const struct moe_operand *down,
                       const struct moe_operand *down_bias, int32_t inter, struct moe_op_gemm *gemm)
{
    gemm->row_ids_div = 1;
    gemm->input_dtype = problem->intermediate.dtype;
    gemm->output_dtype = problem->output_dtype;
    gemm->input_stride = inter;
    gemm->n = problem->hidden;
    gemm->k = inter;
    gemm->num_matrices = 1;
    gemm->weight[0] = *down;
    gemm->bias[0] = *down_bias;
}

static void run_gemm(struct moe_cpu_run *cpu, const struct moe_run *run, int32_t op,
                     const struct moe_op_gemm *gemm)
{
    const struct moe_tile *tile = tile_of(run->bucket, op);
    moe_cpu_run_kernel(cpu, &moe_cpu_kernels_of(tile)->gemm, gemm, tile);
}

static void run_experts(struct layer_run *layer)
{
    const struct moe_problem *problem = layer->problem;
    const struct moe_weights_desc *desc = &layer->op->weights->desc;
    int64_t num_routes = layer->op->num_tokens * moe_problem_num_slots(problem);
    struct moe_op_gemm gemm1 = {0}, gemm2 = {0};

    fill_gemm1(problem, &desc->gate, &desc->up, &desc->gate_bias, &desc->up_bias, problem->inter,
               &gemm1);
    gemm1.num_segments = problem->num_experts;
    gemm1.num_experts = problem->num_experts;
    gemm1.seg_indptr = at(layer, layer->layout.seg_indptr);
    gemm1.num_rows = num_routes;
    gemm1.row_ids = at(layer, layer->layout.dst2src);
    gemm1.num_row_ids = num_routes;
    gemm1.row_ids_div = moe_problem_num_slots(problem);
    gemm1.row_weights =
        (problem->flags & MOE_PROBLEM_ROUTER_WEIGHT_ON_INPUT) != 0 ? layer->topk_weights : NULL;
    gemm1.input = layer->op->tokens;
    gemm1.input_stride = layer->op->token_stride;
    gemm1.output = at(layer, layer->layout.inter);
    run_gemm(&layer->cpu, layer->run, MOE_OP_GEMM1, &gemm1);

    fill_gemm2(problem, &desc->down, &desc->down_bias, problem->inter, &gemm2);
    gemm2.num_segments = problem->num_experts;
    gemm2.num_experts = problem->num_experts;
    gemm2.seg_indptr = gemm1.seg_indptr;
    gemm2.num_rows = num_routes;
    gemm2.input = gemm1.output;
    gemm2.output = at(layer, layer->layout.rows);
    gemm2.output_stride = problem->hidden;
    run_gemm(&layer->cpu, layer->run, MOE_OP_GEMM2, &gemm2);
}

/* The shared expert is one segment that all tokens are in. */
static void run_shared(struct layer_run *layer)
{
    const struct moe_problem *problem = layer->problem;
    const struct moe_weights_desc *desc = &layer->op->weights->desc;
    const struct moe_operand no_bias = {0};
    const int64_t segment[2] = {0, layer->op->num_tokens};
    struct moe_op_gemm gemm1 = {0}, gemm2 = {0};

    fill_gemm1(problem, &desc->shared_gate, &desc->shared_up, &no_bias, &no_bias,
               problem->shared_inter, &gemm1);
    gemm1.num_segments = 1;
    gemm1.num_experts = 1;
    gemm1.seg_indptr = segment;
    gemm1.num_rows = layer->op->num_tokens;
    gemm1.input = layer->op->tokens;
    gemm1.input_stride = layer->op->token_stride;
    gemm1.output = at(layer, layer->layout.shared_inter);
    run_gemm(&layer->cpu, layer->run, MOE_OP_GEMM1, &gemm1);

    fill_gemm2(problem, &desc->shared_down, &no_bias, problem->shared_inter, &gemm2);
    gemm2.num_segments = 1;
    gemm2.num_experts = 1;
    gemm2.seg_indptr = segment;
    gemm2.num_rows = layer->op->num_tokens;
    gemm2.input = gemm1.output;
    gemm2.output = at(layer, layer->layout.shared_rows);
    gemm2.output_stride = problem->hidden;
    run_gemm(&layer->cpu, layer->run, MOE_OP_GEMM2, &gemm2);
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
                       tile_of(layer->run->bucket, MOE_OP_ROUTER));
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
                       tile_of(layer->run->bucket, MOE_OP_GATING));
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
    moe_cpu_run_kernel(&layer->cpu, &kernels_of(layer, MOE_OP_POST_REORDER)->post_reorder, &combine,
                       tile_of(layer->run->bucket, MOE_OP_POST_REORDER));
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
    run_experts(&layer);
    if (layer.problem->shared_inter > 0) {
        run_shared(&layer);
    }
    if ((layer.problem->flags & MOE_PROBLEM_SHARED_SIGMOID) != 0) {
        run_shared_sigmoid(&layer);
    }
    run_combine(&layer);
    moe_cpu_session_end(&layer.cpu.session);
    return MOE_STATUS_OK;
}

/* Workspace of experts: the segments of one pass, the intermediate of its rows, scratch. */
struct experts_layout {
    uint64_t seg_indptr;
    uint64_t inter;
    uint64_t scratch;
    uint64_t scratch_stride;
    uint64_t total;
};

static void lay_out_experts(const struct moe_plan *plan, const struct moe_dispatch_bucket *bucket,
                            int64_t num_rows, struct experts_layout *out)
{
    const struct moe_problem *problem = &plan->problem;
    uint64_t row_bytes =
        (uint64_t)problem->inter * (uint64_t)moe_dtype_bytes(problem->intermediate.dtype);
    uint64_t total = 0;
    out->seg_indptr = append(&total, ((uint64_t)problem->num_experts + 1) * sizeof(int64_t));
    out->inter = append(&total, (uint64_t)num_rows * row_bytes);
    out->scratch_stride =
        scratch_of(plan, bucket, MOE_OP_BIT(MOE_OP_GEMM1) | MOE_OP_BIT(MOE_OP_GEMM2));
    out->scratch = append(&total, out->scratch_stride *
                                      (uint64_t)moe_cpu_pool_num_threads(moe_cpu_plan_pool(plan)));
    out->total = total;
}

/* Rows that one pass of experts takes with the workspace of `num_tokens` tokens. */
static int64_t pass_rows(const struct moe_plan *plan, int64_t num_tokens)
{
    return (num_tokens > 0 ? num_tokens : 1) * moe_problem_num_slots(&plan->problem);
}

uint64_t moe_cpu_experts_workspace(const struct moe_plan *plan,
                                   const struct moe_dispatch_bucket *bucket, int64_t num_tokens)
{
    struct experts_layout layout;
    lay_out_experts(plan, bucket, pass_rows(plan, num_tokens), &layout);
    return layout.total;
}

/* The part of the segments that lies in rows [first, last), counted from `first`. */
static void clip_segments(const int64_t *seg_indptr, int32_t num_experts, int64_t first,
                          int64_t last, int64_t *out)
{
    for (int32_t e = 0; e <= num_experts; e++) {
        int64_t row = seg_indptr[e] < first ? first : seg_indptr[e];
        out[e] = (row > last ? last : row) - first;
    }
}

int32_t moe_cpu_experts(const struct moe_run *run, const struct moe_op_experts *op,
                        struct moe_error *error)
{
    (void)error;
    const struct moe_plan *plan = run->plan;
    const struct moe_problem *problem = &plan->problem;
    const struct moe_weights_desc *desc = &op->weights->desc;
    const int64_t rows_per_pass = pass_rows(plan, plan->chunk_tokens);
    const int64_t token_bytes = moe_dtype_bytes(problem->tokens.dtype);
    const int64_t output_bytes = moe_dtype_bytes(problem->output_dtype);
    struct experts_layout layout;
    lay_out_experts(plan, run->bucket, op->num_rows < rows_per_pass ? op->num_rows : rows_per_pass,
                    &layout);
    char *workspace = run->workspace;
    int64_t *segments = (int64_t *)(void *)(workspace + layout.seg_indptr);
    struct moe_cpu_run cpu = {.scratch = workspace + layout.scratch,
                              .scratch_stride = layout.scratch_stride};

    struct moe_op_gemm gemm1 = {0}, gemm2 = {0};
    fill_gemm1(problem, &desc->gate, &desc->up, &desc->gate_bias, &desc->up_bias, problem->inter,
               &gemm1);
    gemm1.num_segments = problem->num_experts;
    gemm1.num_experts = problem->num_experts;
    gemm1.seg_indptr = segments;
    gemm1.input_stride = op->row_stride;
    gemm1.output = workspace + layout.inter;
    fill_gemm2(problem, &desc->down, &desc->down_bias, problem->inter, &gemm2);
    gemm2.num_segments = problem->num_experts;
    gemm2.num_experts = problem->num_experts;
    gemm2.seg_indptr = segments;
    gemm2.input = gemm1.output;
    gemm2.output_stride = op->output_stride;

    moe_cpu_session_begin(&cpu.session, moe_cpu_plan_pool(plan));
    for (int64_t first = 0; first < op->num_rows; first += rows_per_pass) {
        int64_t last = op->num_rows - first < rows_per_pass ? op->num_rows : first + rows_per_pass;
        clip_segments(op->seg_indptr, problem->num_experts, first, last, segments);
        gemm1.num_rows = last - first;
        gemm1.input = (const char *)op->rows + first * op->row_stride * token_bytes;
        gemm1.row_weights = op->row_weights != NULL ? op->row_weights + first : NULL;
        gemm2.num_rows = last - first;
        gemm2.output = (char *)op->output + first * op->output_stride * output_bytes;
        run_gemm(&cpu, run, MOE_OP_GEMM1, &gemm1);
        run_gemm(&cpu, run, MOE_OP_GEMM2, &gemm2);
    }
    moe_cpu_session_end(&cpu.session);
    return MOE_STATUS_OK;
}
