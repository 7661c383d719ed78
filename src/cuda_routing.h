/* SPDX-License-Identifier: Apache-2.0 */
/* What the CUDA backend asks about the sorts before a call. */
#ifndef MOE_CUDA_ROUTING_H
#define MOE_CUDA_ROUTING_H

#include "moe_plugin.h"
#include "ops.h"
#include "tile.h"

#include <stdbool.h>

static inline int64_t moe_ceil_div(int64_t value, int64_t divisor)
{
    return (value + divisor - 1) / divisor;
}

static inline int64_t moe_clamp(int64_t value, int64_t low, int64_t high)
{
    return value < low ? low : value > high ? high : value;
}

/* Does a sort whose CTAs have so many threads begin when the gating in front of it has ended, and
 * not under its tail? That is faster where gating is long, and slower with CTAs of 1024 threads, as
 * measured on an H200 with more experts than a sort can gate by itself. */
static inline bool moe_cuda_gates_late(int64_t num_tokens, int64_t num_experts,
                                       int64_t sort_threads)
{
    return num_experts > 256 && num_tokens * num_experts > 1 << 19 && sort_threads <= 512;
}

/* Do the logits alone decide, in the way of gate_quick.cuh? */
bool moe_cuda_gates_quickly(const struct moe_op_gating *op);

/* Refuse problems whose experts do not fit the shared memory of the kernels. */
int32_t moe_cuda_supports_routing(const struct moe_device *device,
                                  const struct moe_problem *problem, uint64_t ops,
                                  struct moe_error *error);

/* Bytes of workspace of align_block_size, ep_preprocess or route with this tile. */
uint64_t moe_cuda_sort_workspace(const struct moe_problem *problem, const struct moe_tile *tile,
                                 int64_t num_tokens);

#endif
