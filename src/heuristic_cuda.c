/* SPDX-License-Identifier: Apache-2.0 */
/* The cost model of the CUDA backend. */
#include "cuda_routing.h"
#include "heuristic_costs.h"

#include <math.h>
#include <stdbool.h>

/*
 * A GPU. Row operations: waves of CTAs, each with a fixed latency, plus the bytes of all CTAs,
 * partly filled ones counted whole.
 */
static const double cuda_wave_cycles = 1500.0;
static const double cuda_bytes_per_cycle = 20.0;    /* of one SM, at its share of the memory */
static const double cuda_l2_bytes_per_cycle = 40.0; /* of one SM, out of the L2 */

/*
 * Sorts, in microseconds of an H200 with E 64 to 256. cuda.sort has a thread per route: one CTA, or
 * from sm_90 on a cluster; beyond, it is two launches. Those have a CTA per chunk, which reads a
 * table with a row per chunk.
 */
static const double cuda_cluster_ctas = 8.0;

static double cuda_split_cost(double threads, const struct moe_problem *problem, double routes)
{
    const double chunks = fmin(ceil(routes / threads), 128.0);
    const double turns = ceil(routes / (chunks * threads));
    const double table = chunks * moe_cost_at_least_1(problem->num_experts) / 256.0;
    const double many_threads = fmax(threads - 512.0, 0.0); /* pay off only where they gate */
    return 3.0 + threads * 0.0014 + (0.55 + (threads + many_threads) * 0.0021) * turns +
           0.016 * table;
}

static double cuda_sort_cost(const struct moe_tile *tile, const struct moe_device *device,
                             const struct moe_problem *problem, int64_t num_tokens)
{
    const double threads = (double)tile->block_size;
    const double routes = (double)num_tokens * moe_cost_at_least_1(problem->top_k);
    const double many_threads = fmax(threads - 512.0, 0.0);
    if (tile->kernel != MOE_KERNEL_CUDA_SORT) {
        return cuda_split_cost(threads, problem, routes);
    }
    if (routes <= threads) {
        return 2.25 + threads * 0.0001 + many_threads * 0.0007 + routes * 0.0016;
    }
    if (device->sm >= 90 && routes <= threads * cuda_cluster_ctas) {
        return 3.05 + threads * 0.0009 + many_threads * 0.0009 + routes * 0.00015;
    }
    return cuda_split_cost(512.0, problem, routes) + 0.1;
}

/* route, in the same way: gating and the sort in one launch while a warp has a token, gating in
 * front of the sort (which begins under its tail or when it has ended; two launches do the former
 * less closely), or gating in the first of two. */
static double cuda_route_cost(const struct moe_tile *tile, const struct moe_device *device,
                              const struct moe_problem *problem, int64_t num_tokens)
{
    const double threads = (double)tile->block_size;
    const double tokens = (double)num_tokens;
    const double experts =
        problem->num_experts_global > 0 ? problem->num_experts_global : problem->num_experts;
    const double routes = tokens * moe_cost_at_least_1(problem->top_k);
    if (problem->gating == MOE_GATING_NONE) {
        return cuda_sort_cost(tile, device, problem, num_tokens);
    }
    const bool is_quick = experts <= 256.0 && problem->top_k <= 8; /* sorts can gate */
    const bool is_split = tile->kernel == MOE_KERNEL_CUDA_SPLIT;
    if (is_quick && is_split) { /* more warps gate faster and sort slower */
        return threads > 512.0
                   ? 7.5 + experts * 0.0065 + tokens * (0.000446 + experts * 0.00000025)
                   : 6.05 + experts * 0.002 + tokens * (0.000411 + experts * 0.00000053) +
                         routes * 0.0000245;
    }
    if (!is_quick || tokens > cuda_cluster_ctas * threads / 32.0) {
        const bool is_long = is_split || routes > cuda_cluster_ctas * threads;
        const int64_t sort_threads = is_long && !is_split ? 512 : tile->block_size;
        const bool is_late = moe_cuda_gates_late(num_tokens, (int64_t)experts, sort_threads);
        const double follow = is_late ? 0.0 : is_long ? 0.7 : -0.3;
        const double gating = 2.2 + experts * 0.0035 + tokens * (0.00022 + experts * 0.00000109);
        return gating + cuda_sort_cost(tile, device, problem, num_tokens) + follow;
    }
    const double exchange = tokens > 8.0 ? 1.0 + tokens * 0.003 : 0.0;
    return 3.5 + threads * 0.0007 + fmax(threads - 512.0, 0.0) * 0.002 + exchange;
}

/* A warp gates a token in about half a microsecond; CTAs hold more warps than they use when tokens
 * are few. */
static double cuda_gating_cost(const struct moe_tile *tile, const struct moe_device *device,
                               int64_t num_tokens)
{
    const double warps = tile->block_size / 32.0;
    const double ctas = ceil((double)num_tokens / warps);
    const double resident = moe_cost_at_least_1(device->num_sms) * floor(32.0 / warps);
    return 2.0 + 0.02 * warps + ceil(ctas / resident) + 0.002 * ctas;
}

/* CTAs of 128 threads are as fast as any where rows divide by them alike: a wide row of pre_reorder
 * fills the registers of one, and the tail of a grid is shorter. */
static const double cuda_threads_cycles = 0.01; /* per thread of a CTA beyond 128, or missing */

static double cuda_rows_cost(const struct moe_tile *tile, int32_t op,
                             const struct moe_device *device, const struct moe_problem *problem,
                             int64_t num_tokens)
{
    const double width = op == MOE_OP_ACTIVATION ? problem->inter : problem->hidden;
    const double vectors =
        moe_cost_at_least_1(width) * moe_cost_element_bytes(problem->tokens.dtype) / 16.0;
    const double ctas = (double)num_tokens * moe_cost_blocks(vectors, tile->block_size);
    const double sms = moe_cost_at_least_1(device->num_sms);
    const double waves = ceil(ctas * tile->block_size / (sms * 2048.0));
    const double bytes =
        ctas * tile->block_size * 16.0 * (moe_cost_at_least_1(problem->top_k) + 1.0);
    return waves * cuda_wave_cycles + bytes / (sms * cuda_bytes_per_cycle) +
           fabs(tile->block_size - 128.0) * cuda_threads_cycles;
}

/* Waves of CTAs, each reading its tokens and experts out of the L2 at one SM's rate. */
static double cuda_router_cost(const struct moe_tile *tile, const struct moe_device *device,
                               const struct moe_problem *problem, int64_t num_tokens)
{
    const double experts =
        problem->num_experts_global > 0 ? problem->num_experts_global : problem->num_experts;
    const double bytes = ((double)tile->block_m + tile->block_n) *
                         moe_cost_at_least_1(problem->hidden) *
                         moe_cost_element_bytes(problem->tokens.dtype);
    const double ctas = moe_cost_blocks((double)num_tokens, tile->block_m) *
                        moe_cost_blocks(experts, tile->block_n);
    const double waves = ceil(ctas / moe_cost_at_least_1(device->num_sms));
    return waves * (cuda_wave_cycles + bytes / cuda_l2_bytes_per_cycle);
}

double moe_heuristic_cuda_cost(const struct moe_tile *tile, int32_t op,
                               const struct moe_device *device, const struct moe_problem *problem,
                               int64_t num_tokens)
{
    if (op == MOE_OP_ALIGN_BLOCK_SIZE || op == MOE_OP_EP_PREPROCESS) {
        return cuda_sort_cost(tile, device, problem, num_tokens);
    }
    if (op == MOE_OP_ROUTE) {
        return cuda_route_cost(tile, device, problem, num_tokens);
    }
    if (op == MOE_OP_GATING) {
        return cuda_gating_cost(tile, device, num_tokens);
    }
    if (tile->op == MOE_OP_GEMM1) {
        return moe_heuristic_cuda_gemm_cost(tile, op, device, problem, num_tokens);
    }
    if (op == MOE_OP_ROUTER) {
        return cuda_router_cost(tile, device, problem, num_tokens);
    }
    return cuda_rows_cost(tile, op, device, problem, num_tokens);
}
