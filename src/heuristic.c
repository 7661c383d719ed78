/* SPDX-License-Identifier: Apache-2.0 */
#include "heuristic.h"

#include "heuristic_costs.h"
#include "tiles.h"

#include <math.h>

double moe_cost_at_least_1(double value)
{
    return value > 1.0 ? value : 1.0;
}

double moe_cost_blocks(double size, int32_t block)
{
    return ceil(moe_cost_at_least_1(size) / (double)block);
}

/* base^exponent by squaring: the same bits on every machine, which pow does not promise. */
static double power(double base, int64_t exponent)
{
    double result = 1.0;
    for (; exponent > 0; exponent /= 2) {
        if (exponent % 2 == 1) {
            result *= base;
        }
        base *= base;
    }
    return result;
}

double moe_cost_element_bytes(int32_t dtype)
{
    switch (dtype) {
    case MOE_DTYPE_FP32:
        return 4.0;
    case MOE_DTYPE_FP8_E4M3:
    case MOE_DTYPE_INT8:
        return 1.0;
    case MOE_DTYPE_INT4:
    case MOE_DTYPE_MXFP4:
    case MOE_DTYPE_NVFP4:
        return 0.5;
    default:
        return 2.0;
    }
}

struct moe_cost_routing moe_cost_routing(const struct moe_problem *problem, int64_t num_tokens)
{
    double experts = moe_cost_at_least_1(problem->num_experts);
    double global = problem->num_experts_global > 0 ? problem->num_experts_global : experts;
    double top_k = moe_cost_at_least_1(problem->top_k);
    double chosen =
        top_k < global ? top_k / global : 1.0; /* share of the experts that one token meets */
    struct moe_cost_routing routing;
    routing.num_routes = moe_cost_at_least_1((double)num_tokens * top_k * experts / global);
    routing.active_experts = experts * (1.0 - power(1.0 - chosen, num_tokens));
    if (routing.active_experts < 1.0) {
        routing.active_experts = 1.0;
    }
    return routing;
}

typedef double cost_fn(const struct moe_tile *tile, int32_t op, const struct moe_device *device,
                       const struct moe_problem *problem, int64_t num_tokens);

/* A backend whose kernels stand in tiles.def has its function here. */
static cost_fn *const costs[] = {
    [MOE_BACKEND_CPU] = moe_heuristic_cpu_cost, [MOE_BACKEND_CUDA] = moe_heuristic_cuda_cost};

double moe_heuristic_cost(const struct moe_tile *tile, int32_t op, const struct moe_device *device,
                          const struct moe_problem *problem, int64_t num_tokens)
{
    return costs[moe_kernels[tile->kernel].backend](tile, op, device, problem,
                                                    num_tokens > 1 ? num_tokens : 1);
}

/* Tables above have an entry for each kernel and backend of tiles.def. */
#define MOE_KERNEL(id, name, backend, isa, min_sm, built)        \
    _Static_assert((backend) < sizeof(costs) / sizeof(costs[0]), \
                   "a backend without a cost function");
#include "tiles.def"

int64_t moe_heuristic_round_tokens(int64_t num_tokens)
{
    int64_t rounded = 1;
    while (rounded < num_tokens && rounded <= INT64_MAX / 2) {
        rounded *= 2;
    }
    return rounded;
}

double moe_heuristic_edge_cost(const struct moe_tile *gemm1, const struct moe_tile *gemm2)
{
    static const double edge_cycles = 12000.0; /* 1 to 8 us on an H200: seldom worth it */
    const bool is_gpu = moe_kernels[gemm1->kernel].backend == MOE_BACKEND_CUDA;
    return is_gpu && gemm1 != gemm2 ? edge_cycles : 0.0;
}
