/* SPDX-License-Identifier: Apache-2.0 */
/* The cost model of the CUDA backend. */
#include "heuristic_costs.h"

#include <math.h>
#include <stdbool.h>

/*
 * A GPU. Row operations: waves of CTAs, each with a fixed latency, plus the bytes of all CTAs,
 * partly filled ones counted whole. Sorts: CTAs to launch and, if there are several, their
 * barriers; the sum over the warps of a CTA that count; and every further turn of 32 routes that a
 * warp takes (measured on an H200 with E 128, k 8 and T 1 to 16384).
 */
static const double cuda_wave_cycles = 1500.0;
static const double cuda_bytes_per_cycle = 20.0;    /* of one SM, at its share of the memory */
static const double cuda_l2_bytes_per_cycle = 40.0; /* of one SM, out of the L2 */
static const double cuda_barrier_cycles = 700.0;
static const double cuda_cta_cycles = 90.0;
static const double cuda_warp_cycles = 270.0;
static const double cuda_turn_cycles = 2600.0;

static double cuda_sort_cost(const struct moe_tile *tile, const struct moe_problem *problem,
                             int64_t num_tokens)
{
    const double ctas = fmax(1.0, floor(tile->block_size / 1024.0));
    const double routes = (double)num_tokens * moe_cost_at_least_1(problem->top_k);
    const double warps = fmin(32.0, ceil(routes / (32.0 * ctas)));
    const double turns = ceil(routes / (32.0 * ctas * fmax(warps, 1.0)));
    const double passes = ceil(moe_cost_at_least_1(problem->num_experts) / 1024.0);
    return (ctas > 1.0 ? cuda_barrier_cycles : 0.0) + ctas * cuda_cta_cycles +
           passes * warps * cuda_warp_cycles + fmax(turns - 1.0, 0.0) * cuda_turn_cycles;
}

static double cuda_rows_cost(const struct moe_tile *tile, const struct moe_device *device,
                             const struct moe_problem *problem, int64_t num_tokens)
{
    const double vectors =
        moe_cost_at_least_1(problem->hidden) * moe_cost_element_bytes(problem->tokens.dtype) / 16.0;
    const double ctas = (double)num_tokens * moe_cost_blocks(vectors, tile->block_size);
    const double sms = moe_cost_at_least_1(device->num_sms);
    const double waves = ceil(ctas * tile->block_size / (sms * 2048.0));
    const double bytes =
        ctas * tile->block_size * 16.0 * (moe_cost_at_least_1(problem->top_k) + 1.0);
    return waves * cuda_wave_cycles + bytes / (sms * cuda_bytes_per_cycle);
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
        return cuda_sort_cost(tile, problem, num_tokens);
    }
    if (tile->op == MOE_OP_GEMM1) {
        return moe_heuristic_cuda_gemm_cost(tile, op, device, problem, num_tokens);
    }
    if (op == MOE_OP_ROUTER) {
        return cuda_router_cost(tile, device, problem, num_tokens);
    }
    return cuda_rows_cost(tile, device, problem, num_tokens);
}
