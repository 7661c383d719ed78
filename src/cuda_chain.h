/* SPDX-License-Identifier: Apache-2.0 */
/* What layer and experts share: their GEMMs, and pieces of the workspace. */
#ifndef MOE_CUDA_CHAIN_H
#define MOE_CUDA_CHAIN_H

#include "backend.h"
#include "ops.h"
#include "tiles.h"

struct moe_cuda_gemm_routes;

#define MOE_CUDA_WORKSPACE_ALIGNMENT 256

/* A piece of the workspace: its offset; `total` grows by it. */
static inline uint64_t moe_cuda_append(uint64_t *total, uint64_t bytes)
{
    const uint64_t offset = *total;
    *total += (bytes + MOE_CUDA_WORKSPACE_ALIGNMENT - 1) / MOE_CUDA_WORKSPACE_ALIGNMENT *
              MOE_CUDA_WORKSPACE_ALIGNMENT;
    return offset;
}

/* Channels of an expert from which on clusters read copies of the tokens in order, though they
 * could gather. Both ways were timed with 768 channels, where a gather is faster, and with 14336,
 * where copies are; the limit between them is assumed (docs/adr/0012). */
#define MOE_CUDA_IN_ORDER_INTER 1875

/* Does a layer copy the rows into the order of the experts before this GEMM1? */
static inline bool moe_cuda_reads_in_order(const struct moe_problem *problem,
                                           const struct moe_tile *tile)
{
    return moe_tiles_cluster_ctas(tile) > 1 && (problem->inter >= MOE_CUDA_IN_ORDER_INTER ||
                                                tile->block_m > MOE_CUDA_GEMM_GATHERED_BLOCK_M);
}

/* The part of a GEMM that depends on the problem and the experts' width only: activation fused in
 * GEMM1, outputs packed. */
struct moe_op_gemm moe_cuda_make_gemm1(const struct moe_problem *problem, int32_t inter);
struct moe_op_gemm moe_cuda_make_gemm2(const struct moe_problem *problem, int32_t inter);

/*
 * Launch a GEMM with the bound weights `first_matrix` (MOE_CUDA_GATE, ...; up follows gate); all
 * after it in this call is chained. `is_early`, and `routes` (NULL: none): as in struct
 * moe_cuda_gemm.
 */
int32_t moe_cuda_run_gemm(struct moe_run *run, int32_t op_id, const struct moe_op_gemm *gemm,
                          int32_t first_matrix, int32_t is_early,
                          const struct moe_cuda_gemm_routes *routes, struct moe_error *error);

#endif
