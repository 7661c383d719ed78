/* SPDX-License-Identifier: Apache-2.0 */
/* Run calls of the CUDA backend (struct moe_backend documents them), a file per group. */
#ifndef MOE_CUDA_OPS_H
#define MOE_CUDA_OPS_H

#include "backend.h"
#include "cuda_state.h"
#include "plan.h"
#include "tiles.h"

struct moe_cuda_gemm_routes;

static inline const struct moe_cuda_state *moe_cuda_state_of(const struct moe_run *run)
{
    return run->plan->context->state;
}

static inline const struct moe_tile *moe_cuda_tile_of(const struct moe_run *run, int32_t op)
{
    return &moe_tiles[run->bucket->choices[op].tile];
}

/* cuda_routing.c */
int32_t moe_cuda_gating(const struct moe_run *run, const struct moe_op_gating *op,
                        struct moe_error *error);
/* `is_late`: what is chained to it begins when it has ended. */
int32_t moe_cuda_gating_before(const struct moe_run *run, const struct moe_op_gating *op,
                               bool is_late, struct moe_error *error);
int32_t moe_cuda_route(const struct moe_run *run, const struct moe_op_route *op,
                       struct moe_error *error);
int32_t moe_cuda_align(const struct moe_run *run, const struct moe_op_align *op,
                       struct moe_error *error);
int32_t moe_cuda_ep_preprocess(const struct moe_run *run, const struct moe_op_ep_preprocess *op,
                               struct moe_error *error);

/* cuda_rows.c */
int32_t moe_cuda_pre_reorder(const struct moe_run *run, const struct moe_op_pre_reorder *op,
                             struct moe_error *error);
int32_t moe_cuda_quantize(const struct moe_run *run, const struct moe_op_quantize *op,
                          struct moe_error *error);
int32_t moe_cuda_activation(const struct moe_run *run, const struct moe_op_activation *op,
                            struct moe_error *error);
int32_t moe_cuda_post_reorder(const struct moe_run *run, int32_t op_id,
                              const struct moe_op_post_reorder *op, struct moe_error *error);
/* The same; `is_early`: as in struct moe_cuda_post_reorder. */
int32_t moe_cuda_combine(const struct moe_run *run, int32_t op_id,
                         const struct moe_op_post_reorder *op, int32_t is_early,
                         struct moe_error *error);

/* cuda_router.c; shared_factor: 1 / (1 + exp(-logit)) of a router with one expert, in fp32. */
int32_t moe_cuda_router(const struct moe_run *run, const struct moe_op_router *op,
                        struct moe_error *error);
int32_t moe_cuda_shared_factor(const struct moe_run *run, const struct moe_op_router *op,
                               struct moe_error *error);

/*
 * cuda_gemm.c. `first_matrix`: the bound weights (MOE_CUDA_GATE, ...) that are op->weight[0]; of a
 * gate without matrix, those of up, which follow. The operands and biases in `op` are not read.
 * `is_early`, and `routes` (NULL: none): as in struct moe_cuda_gemm.
 */
int32_t moe_cuda_gemm(const struct moe_run *run, int32_t op_id, const struct moe_op_gemm *op,
                      int32_t first_matrix, int32_t is_early,
                      const struct moe_cuda_gemm_routes *routes, struct moe_error *error);

/* Is the tile that moe_cuda_gemm would launch to sort so many routes itself (routes.src2dst)? It
 * can, and gains. */
bool moe_cuda_gemm_sorts(const struct moe_run *run, int32_t op_id, const struct moe_op_gemm *op,
                         int32_t first_matrix, int64_t num_routes);

/* Rows that GEMMs and router read begin at multiples of 16 bytes; checked before the first launch
 * of a call. `name`: "layer: tokens". UNSUPPORTED. */
int32_t moe_cuda_check_rows(const char *name, const void *rows, int64_t stride, int32_t dtype,
                            struct moe_error *error);

int32_t moe_cuda_grouped_gemm(const struct moe_run *run, int32_t op_id,
                              const struct moe_op_gemm *op, struct moe_error *error);

/* Dynamic shared memory of a GEMM tile for a number of segments. */
int64_t moe_cuda_gemm_smem_bytes(const struct moe_tile *tile, int64_t num_segments);

/* cuda_supports.c: refuses problems that gemm1, gemm2 and router, as far as they are in `ops`, do
 * not run. UNSUPPORTED. */
int32_t moe_cuda_supports_gemms(const struct moe_device *device, const struct moe_problem *problem,
                                uint64_t ops, struct moe_error *error);

/* Does the whole layer run on this device? */
bool moe_cuda_runs_layer(const struct moe_device *device);

/* cuda_layer.c */
uint64_t moe_cuda_layer_workspace(const struct moe_plan *plan,
                                  const struct moe_dispatch_bucket *bucket, int64_t num_tokens);
uint64_t moe_cuda_experts_workspace(const struct moe_plan *plan, int64_t num_tokens);
int32_t moe_cuda_layer(const struct moe_run *run, const struct moe_op_layer *op,
                       struct moe_error *error);
int32_t moe_cuda_experts(const struct moe_run *run, const struct moe_op_experts *op,
                         struct moe_error *error);

#endif
