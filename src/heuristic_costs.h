/* SPDX-License-Identifier: Apache-2.0 */
/* What the cost models of the backends share. */
#ifndef MOE_HEURISTIC_COSTS_H
#define MOE_HEURISTIC_COSTS_H

#include "tiles.h"

double moe_cost_at_least_1(double value);

/* Blocks of `block` that cover `size`, at least one. */
double moe_cost_blocks(double size, int32_t block);

/* Bytes of an element of a MOE_DTYPE_*, scales not counted. */
double moe_cost_element_bytes(int32_t dtype);

/* How routes fall on experts. */
struct moe_cost_routing {
    double num_routes;     /* that stay on this rank */
    double active_experts; /* that get at least one of them */
};

struct moe_cost_routing moe_cost_routing(const struct moe_problem *problem, int64_t num_tokens);

/* Cost of a row of tiles.def for an operation, in cycles of the device; num_tokens >= 1. */
double moe_heuristic_cpu_cost(const struct moe_tile *tile, int32_t op,
                              const struct moe_device *device, const struct moe_problem *problem,
                              int64_t num_tokens);
double moe_heuristic_cuda_cost(const struct moe_tile *tile, int32_t op,
                               const struct moe_device *device, const struct moe_problem *problem,
                               int64_t num_tokens);

/* Its part for gemm1 and gemm2 (heuristic_cuda_gemm.c). */
double moe_heuristic_cuda_gemm_cost(const struct moe_tile *tile, int32_t op,
                                    const struct moe_device *device,
                                    const struct moe_problem *problem, int64_t num_tokens);

#endif
