/* SPDX-License-Identifier: Apache-2.0 */
/*
 * experts on the CPU: rows that are already with their experts pass GEMM1 and GEMM2 in passes of as
 * many rows as the workspace has room for.
 *
 * Positions are the rows in use, one segment after the other. Contiguous rows are their own
 * positions. Masked rows are gathered by GEMM1 and scattered by GEMM2, so that gaps between them
 * take no workspace and no time.
 */
#include "cpu_chain.h"
#include "plan.h"
#include "weights.h"

struct experts_layout {
    uint64_t seg_indptr;                /* int64 [E + 1]: segments of one pass */
    uint64_t row_ids;                   /* int32 [positions]: masked rows of one pass */
    struct moe_cpu_quantized quantized; /* of plain rows that meet fp8 weights as fp8 */
    struct moe_cpu_inter inter;
    uint64_t scratch;
    uint64_t scratch_stride;
    uint64_t total;
};

static void lay_out_experts(const struct moe_plan *plan, const struct moe_dispatch_bucket *bucket,
                            int64_t num_rows, struct experts_layout *out)
{
    const struct moe_problem *problem = &plan->problem;
    const uint64_t stages =
        MOE_OP_BIT(MOE_OP_GEMM1) | MOE_OP_BIT(MOE_OP_GEMM2) |
        (moe_recipe_is_fp8(&problem->intermediate) ? MOE_OP_BIT(MOE_OP_QUANTIZE) : 0);
    uint64_t total = 0;
    *out = (struct experts_layout){0};
    out->seg_indptr =
        moe_cpu_append(&total, ((uint64_t)problem->num_experts + 1) * sizeof(int64_t));
    out->row_ids = moe_cpu_append(&total, (uint64_t)num_rows * sizeof(int32_t));
    if (moe_recipe_quantizes_tokens(problem)) {
        out->quantized =
            moe_cpu_append_quantized(&total, &problem->intermediate, num_rows, problem->hidden);
    }
    out->inter = moe_cpu_append_inter(&total, problem, num_rows, problem->inter);
    out->scratch_stride = moe_cpu_chain_scratch(plan, bucket, stages);
    out->scratch = moe_cpu_append(
        &total, out->scratch_stride * (uint64_t)moe_cpu_pool_num_threads(moe_cpu_plan_pool(plan)));
    out->total = total;
}

/* Rows that one pass takes with the workspace of `num_tokens` tokens. */
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

/* A call in progress. */
struct experts_run {
    const struct moe_run *run;
    const struct moe_op_experts *op;
    struct experts_layout layout;
    struct moe_cpu_run cpu;
    struct moe_cpu_mlp mlp;
    int64_t *segments; /* of the pass at hand, counted from its first position */
    int32_t *row_ids;
};

/* Positions of expert e's segment. */
static int64_t segment_size(const struct moe_op_experts *op, int32_t e)
{
    if (op->seg_indptr != NULL) {
        return op->seg_indptr[e + 1] - op->seg_indptr[e];
    }
    const int64_t count = op->masked_m != NULL ? op->masked_m[e] : 0;
    return count < 0 ? 0 : count > op->max_masked_rows ? op->max_masked_rows : count;
}

static int64_t clip(int64_t position, int64_t first, int64_t last)
{
    return position < first ? 0 : (position > last ? last : position) - first;
}

/* The part of the segments that lies in positions [first, last); rows of masked positions. */
static void clip_segments(struct experts_run *experts, int64_t first, int64_t last)
{
    const struct moe_op_experts *op = experts->op;
    const int32_t num_experts = experts->mlp.num_experts;
    int64_t begin = op->seg_indptr != NULL ? op->seg_indptr[0] : 0;
    for (int32_t e = 0; e < num_experts; e++) {
        const int64_t end = begin + segment_size(op, e);
        experts->segments[e] = clip(begin, first, last);
        experts->segments[e + 1] = clip(end, first, last);
        for (int64_t p = experts->segments[e]; op->masked_m != NULL && p < experts->segments[e + 1];
             p++) {
            experts->row_ids[p] = (int32_t)(e * op->max_masked_rows + first + p - begin);
        }
        begin = end;
    }
}

/* Rows of the pass as the call has them; contiguous ones from position `first` on. */
static struct moe_cpu_rows rows_of_pass(const struct experts_run *experts, int64_t first)
{
    const struct moe_op_experts *op = experts->op;
    const struct moe_recipe *recipe = &experts->run->plan->problem.tokens;
    const int64_t row = op->masked_m != NULL ? 0 : first;
    struct moe_cpu_rows rows = {.base = (const char *)op->rows +
                                        row * op->row_stride * moe_dtype_bytes(recipe->dtype),
                                .stride = op->row_stride,
                                .dtype = recipe->dtype,
                                .scales = op->input_scales};
    if (rows.scales.base != NULL) {
        rows.scales.base = (const char *)rows.scales.base +
                           moe_recipe_scale_offset(recipe, row, rows.scales.stride);
    }
    return rows;
}

/* Quantize the rows of a pass: they are then in order of their positions. */
static struct moe_cpu_rows quantize_pass(struct experts_run *experts,
                                         const struct moe_cpu_rows *rows)
{
    const struct moe_problem *problem = &experts->run->plan->problem;
    const struct moe_cpu_quantized *place = &experts->layout.quantized;
    const int64_t *segments = experts->segments;
    const int32_t num_experts = experts->mlp.num_experts;
    if (experts->op->masked_m == NULL) {
        moe_cpu_quantize_rows(&experts->cpu, experts->run, rows, segments[0], segments[num_experts],
                              place, &problem->intermediate, problem->hidden, segments[0]);
    }
    for (int32_t e = 0; experts->op->masked_m != NULL && e < num_experts; e++) {
        const int64_t count = segments[e + 1] - segments[e];
        const int64_t row = count > 0 ? experts->row_ids[segments[e]] : 0;
        moe_cpu_quantize_rows(&experts->cpu, experts->run, rows, row, row + count, place,
                              &problem->intermediate, problem->hidden, segments[e]);
    }
    return moe_cpu_quantized_rows(experts->run, place, &problem->intermediate, problem->hidden);
}

/* The positions [first, last). */
static void run_pass(struct experts_run *experts, int64_t first, int64_t last)
{
    const struct moe_op_experts *op = experts->op;
    const struct moe_problem *problem = &experts->run->plan->problem;
    const bool masked = op->masked_m != NULL;
    const bool quantizes = moe_recipe_quantizes_tokens(problem);
    clip_segments(experts, first, last);
    struct moe_cpu_rows rows = rows_of_pass(experts, first);
    if (quantizes) {
        rows = quantize_pass(experts, &rows);
    }
    struct moe_op_gemm gemm1 = {.seg_indptr = experts->segments,
                                .num_rows = last - first,
                                .row_ids = masked ? experts->row_ids : NULL,
                                .num_row_ids = op->num_rows,
                                .row_ids_div = quantizes ? 0 : 1,
                                .row_weights = op->row_weights};
    struct moe_op_gemm gemm2 = {.seg_indptr = experts->segments,
                                .num_rows = last - first,
                                .row_ids = gemm1.row_ids,
                                .num_row_ids = op->num_rows,
                                .row_ids_div = 0,
                                .scatter = masked,
                                .output = op->output,
                                .output_stride = op->output_stride};
    if (!masked) {
        const int64_t row_bytes = op->output_stride * moe_dtype_bytes(problem->output_dtype);
        gemm1.row_weights = op->row_weights != NULL ? op->row_weights + first : NULL;
        gemm2.output = (char *)op->output + first * row_bytes;
    }
    moe_cpu_run_mlp(&experts->cpu, experts->run, &experts->mlp, &rows, &experts->layout.inter,
                    experts->segments[0], experts->segments[experts->mlp.num_experts], &gemm1,
                    &gemm2);
}

int32_t moe_cpu_experts(const struct moe_run *run, const struct moe_op_experts *op,
                        struct moe_error *error)
{
    (void)error;
    const struct moe_plan *plan = run->plan;
    const int64_t rows_per_pass = pass_rows(plan, plan->chunk_tokens);
    struct experts_run experts = {.run = run, .op = op};
    int64_t num_positions = op->num_rows;
    experts.mlp = moe_cpu_routed_mlp(&plan->problem, &op->weights->desc);
    for (int32_t e = 0; op->masked_m != NULL && e < experts.mlp.num_experts; e++) {
        num_positions = (e == 0 ? 0 : num_positions) + segment_size(op, e);
    }
    lay_out_experts(plan, run->bucket, op->num_rows < rows_per_pass ? op->num_rows : rows_per_pass,
                    &experts.layout);
    char *workspace = run->workspace;
    experts.segments = (int64_t *)(void *)(workspace + experts.layout.seg_indptr);
    experts.row_ids = (int32_t *)(void *)(workspace + experts.layout.row_ids);
    experts.cpu.scratch = workspace + experts.layout.scratch;
    experts.cpu.scratch_stride = experts.layout.scratch_stride;

    moe_cpu_session_begin(&experts.cpu.session, moe_cpu_plan_pool(plan));
    for (int64_t first = 0; first < num_positions; first += rows_per_pass) {
        run_pass(&experts, first,
                 num_positions - first < rows_per_pass ? num_positions : first + rows_per_pass);
    }
    moe_cpu_session_end(&experts.cpu.session);
    return MOE_STATUS_OK;
}
