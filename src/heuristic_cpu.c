/* SPDX-License-Identifier: Apache-2.0 */
/* The cost model of the CPU backend. */
#include "heuristic_costs.h"

#include <math.h>
#include <stdbool.h>

/* What one core does with one kernel's instruction set. */
struct cpu_speed {
    double macs_per_cycle;          /* fp32 multiply-adds */
    double cycles_per_fp32_load;    /* one element, as part of a vector */
    double cycles_per_widened_load; /* the same from a narrower type */
    double work_factor;             /* of operations without a GEMM, relative to AVX2 */
};

static const struct cpu_speed cpu_speeds[MOE_NUM_KERNELS] = {
    [MOE_KERNEL_CPU_C11] = {0.5, 0.5, 1.0, 4.0},
    [MOE_KERNEL_CPU_AVX2] = {16.0, 0.125, 0.25, 1.0},
};

static const double task_cycles = 400.0; /* claiming a task and starting it with cold registers */
static const double spill_cycles = 2.0;  /* writing and reading back one accumulator of 8 lanes */
static const double accumulator_bytes = 32.0;          /* 8 lanes of fp32 */
static const double memory_bytes_per_cycle = 8.0;      /* one core alone */
static const double memory_bytes_per_cycle_max = 32.0; /* all cores together */
static const double cache_bytes_per_cycle = 32.0;      /* one core */
static const double default_cache_bytes = 1048576.0;   /* a device that does not say */
static const double overlap_lost =
    0.25; /* share of the smaller of compute and memory that is not hidden */

/* `num_groups` products [rows, k] x [k, n], each with num_matrices matrices of its own. */
struct gemm_shape {
    double num_groups;
    double rows;
    bool rows_vary; /* rows is a mean over groups: the last panel of a group is filled by chance */
    double n;
    double k;
    double num_matrices;
    int32_t weight_dtype;
    int32_t input_dtype;
};

/*
 * Expected panels per group. Numbers of rows that vary leave the last panel half empty on average.
 */
static double expect_panels(const struct gemm_shape *shape, double block_m)
{
    double rows = moe_cost_at_least_1(shape->rows);
    if (!shape->rows_vary) {
        return ceil(rows / block_m);
    }
    return moe_cost_at_least_1(rows / block_m + (block_m - 1.0) / (2.0 * block_m));
}

static double cpu_gemm_cost(const struct moe_tile *tile, const struct moe_device *device,
                            const struct gemm_shape *shape)
{
    const struct cpu_speed *speed = &cpu_speeds[tile->kernel];
    double threads = moe_cost_at_least_1(device->num_sms);
    double bm = tile->block_m;
    double bn = tile->block_n;
    double k = moe_cost_at_least_1(shape->k);
    double bk = tile->block_k < k ? tile->block_k : k;
    double panels = expect_panels(shape, bm);
    double blocks = moe_cost_blocks(shape->n, tile->block_n);
    double weight_bytes = moe_cost_element_bytes(shape->weight_dtype);
    double input_bytes = moe_cost_element_bytes(shape->input_dtype);

    double load_weight = shape->weight_dtype == MOE_DTYPE_FP32 ? speed->cycles_per_fp32_load
                                                               : speed->cycles_per_widened_load;
    double load_input = speed->cycles_per_fp32_load;
    /* Only rows that are there cost; every pass over the weights converts them. */
    double rows = shape->rows / panels;
    double column_cycles = rows * bn / speed->macs_per_cycle + bn * load_weight + rows * load_input;
    double spills = moe_cost_blocks(k, tile->block_k) * rows * bn * spill_cycles;
    double num_panels = shape->num_groups * shape->num_matrices * blocks * panels;
    double stretches = ceil(moe_cost_at_least_1(shape->rows) / MOE_CPU_GEMM_ROWS_PER_TASK);
    double tasks = shape->num_groups * blocks * stretches;
    double waves = ceil(tasks / threads);
    double compute = (num_panels * (k * column_cycles + spills) / tasks + task_cycles) * waves;

    double cache_bytes =
        (device->l2_bytes > 0 ? (double)device->l2_bytes : default_cache_bytes) / threads;
    double working_set = bn * bk * 4.0 + bm * bk * 4.0 + bm * bn * accumulator_bytes;
    double weight_reads = working_set <= cache_bytes ? stretches : panels;
    double from_memory =
        shape->num_groups * shape->num_matrices * shape->n * k * weight_bytes * weight_reads;
    double from_cache = shape->num_groups * shape->rows * k * input_bytes * blocks;
    double memory_rate = memory_bytes_per_cycle * threads;
    if (memory_rate > memory_bytes_per_cycle_max) {
        memory_rate = memory_bytes_per_cycle_max;
    }
    double memory = from_memory / memory_rate + from_cache / (cache_bytes_per_cycle * threads);
    return compute > memory ? compute + overlap_lost * memory : memory + overlap_lost * compute;
}

/* The shared expert is a group of its own that all tokens meet. */
static double cpu_experts_cost(const struct moe_tile *tile, int32_t op,
                               const struct moe_device *device, const struct moe_problem *problem,
                               int64_t num_tokens)
{
    bool is_gemm1 = op == MOE_OP_GEMM1;
    struct moe_cost_routing routing = moe_cost_routing(problem, num_tokens);
    struct gemm_shape shape;
    shape.num_groups = routing.active_experts;
    shape.rows = routing.num_routes / routing.active_experts;
    shape.rows_vary = true;
    shape.n = moe_cost_at_least_1(is_gemm1 ? problem->inter : problem->hidden);
    shape.k = moe_cost_at_least_1(is_gemm1 ? problem->hidden : problem->inter);
    shape.num_matrices = is_gemm1 && (problem->flags & MOE_PROBLEM_UNGATED) == 0 ? 2.0 : 1.0;
    shape.weight_dtype = is_gemm1 ? problem->gate_up.dtype : problem->down.dtype;
    shape.input_dtype = is_gemm1 || problem->intermediate.dtype == 0 ? problem->tokens.dtype
                                                                     : problem->intermediate.dtype;
    double cost = cpu_gemm_cost(tile, device, &shape);
    if (problem->shared_inter > 0) {
        shape.num_groups = 1.0;
        shape.rows = (double)num_tokens;
        shape.rows_vary = false;
        *(is_gemm1 ? &shape.n : &shape.k) = problem->shared_inter;
        cost += cpu_gemm_cost(tile, device, &shape);
    }
    return cost;
}

static double cpu_router_cost(const struct moe_tile *tile, const struct moe_device *device,
                              const struct moe_problem *problem, int64_t num_tokens)
{
    struct gemm_shape shape;
    shape.num_groups = 1.0;
    shape.rows = (double)num_tokens;
    shape.rows_vary = false;
    shape.n = moe_cost_at_least_1(problem->num_experts_global > 0 ? problem->num_experts_global
                                                                  : problem->num_experts);
    shape.k = problem->hidden;
    shape.num_matrices = 1.0;
    shape.weight_dtype = problem->gate_up.dtype;
    shape.input_dtype = problem->tokens.dtype;
    return cpu_gemm_cost(tile, device, &shape);
}

/*
 * Operations that are cut into tasks of block_size units; `unit_cycles` is AVX2's work for one
 * unit.
 */
static double cpu_block_cost(const struct moe_tile *tile, int32_t op,
                             const struct moe_device *device, const struct moe_problem *problem,
                             int64_t num_tokens)
{
    double units = (double)num_tokens;
    double top_k = moe_cost_at_least_1(problem->top_k);
    double hidden = moe_cost_at_least_1(problem->hidden);
    double experts = moe_cost_at_least_1(
        problem->num_experts_global > 0 ? problem->num_experts_global : problem->num_experts);
    double unit_cycles;
    switch (op) {
    case MOE_OP_GATING: /* an exp per expert, a scan per choice */
        unit_cycles = experts * (6.0 + 0.5 * top_k);
        break;
    case MOE_OP_ALIGN_BLOCK_SIZE: /* one task: count, prefix sum, place */
    case MOE_OP_EP_PREPROCESS:
        unit_cycles = (double)num_tokens * top_k * 8.0 + experts;
        units = 1.0;
        break;
    case MOE_OP_PRE_REORDER:
        unit_cycles = top_k * hidden * moe_cost_element_bytes(problem->tokens.dtype) / 8.0;
        break;
    case MOE_OP_ACTIVATION: /* an exp per element, 8 at a time */
        unit_cycles = moe_cost_at_least_1(problem->inter) * 4.0;
        units = moe_cost_routing(problem, num_tokens).num_routes;
        break;
    default: /* post_reorder, sum_reduce, quantize: a pass over the rows of a token */
        unit_cycles = (top_k + 1.0) * hidden * 0.5;
        break;
    }
    double tasks = moe_cost_blocks(units, tile->block_size);
    double units_per_task = tile->block_size < units ? tile->block_size : units;
    double threads = moe_cost_at_least_1(device->num_sms);
    return ceil(tasks / threads) *
           (task_cycles + units_per_task * unit_cycles * cpu_speeds[tile->kernel].work_factor);
}

/* Gating cut into tasks, then the two sorts, one task each. */
static double cpu_route_cost(const struct moe_tile *tile, const struct moe_device *device,
                             const struct moe_problem *problem, int64_t num_tokens)
{
    return cpu_block_cost(tile, MOE_OP_GATING, device, problem, num_tokens) +
           cpu_block_cost(tile, MOE_OP_ALIGN_BLOCK_SIZE, device, problem, num_tokens) +
           cpu_block_cost(tile, MOE_OP_EP_PREPROCESS, device, problem, num_tokens);
}

double moe_heuristic_cpu_cost(const struct moe_tile *tile, int32_t op,
                              const struct moe_device *device, const struct moe_problem *problem,
                              int64_t num_tokens)
{
    if (op == MOE_OP_ROUTER) {
        return cpu_router_cost(tile, device, problem, num_tokens);
    }
    if (moe_tiles_row_op(op) == MOE_OP_GEMM1) {
        return cpu_experts_cost(tile, op, device, problem, num_tokens);
    }
    if (op == MOE_OP_ROUTE) {
        return cpu_route_cost(tile, device, problem, num_tokens);
    }
    return cpu_block_cost(tile, op, device, problem, num_tokens);
}
