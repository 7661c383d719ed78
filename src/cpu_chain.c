/* SPDX-License-Identifier: Apache-2.0 */
#include "cpu_chain.h"

#include "cpu_isa.h"
#include "plan.h"

uint64_t moe_cpu_chain_scratch(const struct moe_plan *plan,
                               const struct moe_dispatch_bucket *bucket, uint64_t ops)
{
    uint64_t largest = 0;
    for (int32_t op = 0; op < MOE_NUM_OPS; op++) {
        if ((ops & MOE_OP_BIT(op)) != 0 && bucket->choices[op].tile >= 0) {
            uint64_t bytes = moe_cpu_op_scratch(plan, op, moe_cpu_tile_of(bucket, op));
            largest = bytes > largest ? bytes : largest;
        }
    }
    return moe_cpu_align(largest);
}

/* ---------------------------------------------------------------- quantized rows */

struct moe_cpu_quantized moe_cpu_append_quantized(uint64_t *total, const struct moe_recipe *recipe,
                                                  int64_t num_rows, int64_t width)
{
    struct moe_cpu_quantized place = {0};
    if (moe_recipe_is_fp8(recipe)) {
        place.scale_stride = moe_recipe_packed_stride(recipe, num_rows, width);
        place.rows = moe_cpu_append(total, (uint64_t)(num_rows * width));
        place.scales = moe_cpu_append(
            total, (uint64_t)moe_recipe_scale_bytes(recipe, num_rows, width, place.scale_stride));
    }
    return place;
}

struct moe_cpu_rows moe_cpu_quantized_rows(const struct moe_run *run,
                                           const struct moe_cpu_quantized *place,
                                           const struct moe_recipe *recipe, int64_t width)
{
    const char *workspace = run->workspace;
    struct moe_cpu_rows rows = {
        .base = workspace + place->rows, .stride = width, .dtype = recipe->dtype};
    rows.scales = moe_recipe_scales(recipe, workspace + place->scales, width, place->scale_stride);
    return rows;
}

void moe_cpu_quantize_rows(struct moe_cpu_run *cpu, const struct moe_run *run,
                           const struct moe_cpu_rows *from, int64_t first, int64_t end,
                           const struct moe_cpu_quantized *place, const struct moe_recipe *recipe,
                           int64_t width, int64_t to)
{
    const struct moe_tile *tile = moe_cpu_tile_of(run->bucket, MOE_OP_QUANTIZE);
    char *workspace = run->workspace;
    struct moe_op_quantize quantize = {
        .num_tokens = end - first,
        .hidden = (int32_t)width,
        .dtype = from->dtype,
        .tokens = (const char *)from->base + first * from->stride * moe_dtype_bytes(from->dtype),
        .token_stride = from->stride,
        .output = workspace + place->rows + to * width,
        .output_stride = width,
        .quant = {.dtype = recipe->dtype,
                  .is_dynamic = 1,
                  .group_k = recipe->group_k != 0 ? recipe->group_k : (int32_t)width,
                  .scale_layout = recipe->scale_layout,
                  .has_avx512 = moe_cpu_isa_has_avx512_vbmi(),
                  .scales = workspace + place->scales +
                            moe_recipe_scale_offset(recipe, to, place->scale_stride),
                  .scale_stride = place->scale_stride},
    };
    if (end > first) {
        moe_cpu_run_kernel(cpu, &moe_cpu_kernels_of(tile)->quantize, &quantize, tile);
    }
}

/* ---------------------------------------------------------------- an expert's two GEMMs */

/* GEMM1's output: fp32 where it is quantized afterwards, so that it is rounded once. */
static int32_t inter_dtype(const struct moe_problem *problem)
{
    return moe_recipe_is_fp8(&problem->intermediate) ? MOE_DTYPE_FP32 : problem->intermediate.dtype;
}

struct moe_cpu_inter moe_cpu_append_inter(uint64_t *total, const struct moe_problem *problem,
                                          int64_t num_rows, int64_t inter)
{
    struct moe_cpu_inter place;
    place.rows =
        moe_cpu_append(total, (uint64_t)(num_rows * inter * moe_dtype_bytes(inter_dtype(problem))));
    place.quantized = moe_cpu_append_quantized(total, &problem->intermediate, num_rows, inter);
    return place;
}

struct moe_cpu_mlp moe_cpu_routed_mlp(const struct moe_problem *problem,
                                      const struct moe_weights_desc *desc)
{
    return (struct moe_cpu_mlp){
        .gate = desc->gate,
        .up = desc->up,
        .down = desc->down,
        .gate_bias = desc->gate_bias,
        .up_bias = desc->up_bias,
        .down_bias = desc->down_bias,
        .gate_scale = desc->gate_scale,
        .up_scale = desc->up_scale,
        .down_scale = desc->down_scale,
        .inter = problem->inter,
        .num_experts = problem->num_experts,
    };
}

struct moe_cpu_mlp moe_cpu_shared_mlp(const struct moe_problem *problem,
                                      const struct moe_weights_desc *desc)
{
    return (struct moe_cpu_mlp){
        .gate = desc->shared_gate,
        .up = desc->shared_up,
        .down = desc->shared_down,
        .gate_scale = desc->shared_gate_scale,
        .up_scale = desc->shared_up_scale,
        .down_scale = desc->shared_down_scale,
        .inter = problem->shared_inter,
        .num_experts = 1,
    };
}

static void set_input(struct moe_op_gemm *gemm, const struct moe_cpu_rows *rows)
{
    gemm->input = rows->base;
    gemm->input_stride = rows->stride;
    gemm->input_dtype = rows->dtype;
    gemm->input_scales = rows->scales;
}

static void fill_gemm1(const struct moe_problem *problem, const struct moe_cpu_mlp *mlp,
                       struct moe_op_gemm *gemm)
{
    bool ungated = (problem->flags & MOE_PROBLEM_UNGATED) != 0;
    gemm->num_segments = gemm->num_experts = mlp->num_experts;
    gemm->output_dtype = inter_dtype(problem);
    gemm->output_stride = mlp->inter;
    gemm->n = mlp->inter;
    gemm->k = problem->hidden;
    gemm->num_matrices = ungated ? 1 : 2;
    gemm->has_activation = 1;
    gemm->act =
        (struct moe_op_act){problem->activation, ungated, problem->act_alpha, problem->act_limit};
    gemm->weight[0] = ungated ? mlp->up : mlp->gate;
    gemm->weight[1] = mlp->up;
    gemm->bias[0] = ungated ? mlp->up_bias : mlp->gate_bias;
    gemm->bias[1] = mlp->up_bias;
    gemm->weight_scale[0] = ungated ? mlp->up_scale : mlp->gate_scale;
    gemm->weight_scale[1] = mlp->up_scale;
    moe_recipe_weight_groups(&problem->gate_up, gemm);
}

static void fill_gemm2(const struct moe_problem *problem, const struct moe_cpu_mlp *mlp,
                       struct moe_op_gemm *gemm)
{
    gemm->num_segments = gemm->num_experts = mlp->num_experts;
    gemm->output_dtype = problem->output_dtype;
    gemm->n = problem->hidden;
    gemm->k = mlp->inter;
    gemm->num_matrices = 1;
    gemm->weight[0] = mlp->down;
    gemm->bias[0] = mlp->down_bias;
    gemm->weight_scale[0] = mlp->down_scale;
    moe_recipe_weight_groups(&problem->down, gemm);
}

static void run_gemm(struct moe_cpu_run *cpu, const struct moe_run *run, int32_t op,
                     struct moe_op_gemm *gemm)
{
    gemm->has_avx512_vbmi = moe_cpu_isa_has_avx512_vbmi();
    gemm->has_avx512_bf16 = moe_cpu_isa_has_avx512_bf16();
    const struct moe_tile *tile = moe_cpu_tile_of(run->bucket, op);
    moe_cpu_run_kernel(cpu, &moe_cpu_kernels_of(tile)->gemm, gemm, tile);
}

void moe_cpu_run_mlp(struct moe_cpu_run *cpu, const struct moe_run *run,
                     const struct moe_cpu_mlp *mlp, const struct moe_cpu_rows *rows,
                     const struct moe_cpu_inter *inter, int64_t first, int64_t end,
                     struct moe_op_gemm *gemm1, struct moe_op_gemm *gemm2)
{
    const struct moe_problem *problem = &run->plan->problem;
    const struct moe_recipe *recipe = &problem->intermediate;
    struct moe_cpu_rows between = {.base = (char *)run->workspace + inter->rows,
                                   .stride = mlp->inter,
                                   .dtype = inter_dtype(problem)};
    fill_gemm1(problem, mlp, gemm1);
    set_input(gemm1, rows);
    gemm1->output = (char *)run->workspace + inter->rows;
    run_gemm(cpu, run, MOE_OP_GEMM1, gemm1);
    if (moe_recipe_is_fp8(recipe)) {
        moe_cpu_quantize_rows(cpu, run, &between, first, end, &inter->quantized, recipe, mlp->inter,
                              first);
        between = moe_cpu_quantized_rows(run, &inter->quantized, recipe, mlp->inter);
    }
    fill_gemm2(problem, mlp, gemm2);
    set_input(gemm2, &between);
    run_gemm(cpu, run, MOE_OP_GEMM2, gemm2);
}
