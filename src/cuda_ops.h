/* SPDX-License-Identifier: Apache-2.0 */
/* Run calls of the CUDA backend (struct moe_backend documents them), a file per group. */
#ifndef MOE_CUDA_OPS_H
#define MOE_CUDA_OPS_H

#include "backend.h"
#include "cuda_state.h"
#include "plan.h"
#include "tiles.h"

static inline const struct moe_cuda_state *moe_cuda_state_of(const struct moe_run *run)
{
    return run->plan->context->state;
}

static inline const struct moe_tile *moe_cuda_tile_of(const struct moe_run *run, int32_t op)
{
    return &moe_tiles[run->bucket->choices[op].tile];
}

/* cuda_routing.c */
int32_t moe_cuda_align(const struct moe_run *run, const struct moe_op_align *op,
                       struct moe_error *error);
int32_t moe_cuda_ep_preprocess(const struct moe_run *run, const struct moe_op_ep_preprocess *op,
                               struct moe_error *error);

/* cuda_rows.c */
int32_t moe_cuda_pre_reorder(const struct moe_run *run, const struct moe_op_pre_reorder *op,
                             struct moe_error *error);
int32_t moe_cuda_post_reorder(const struct moe_run *run, int32_t op_id,
                              const struct moe_op_post_reorder *op, struct moe_error *error);

#endif
