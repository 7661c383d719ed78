/* SPDX-License-Identifier: Apache-2.0 */
/* Geometry of the routing operations on a GPU: it follows from the numbers and the tile; nothing is
 * read back from the device. */
#include "cuda_args.h"
#include "cuda_ops.h"
#include "plan.h"
#include "status.h"
#include "tiles.h"

/* Counting warps per CTA and their stretches: no more warps than have routes, since every one costs
 * a turn of the sum, and no more than shared memory has counters for. */
static struct moe_cuda_sort_shape shape_sort(const struct moe_cuda_state *state,
                                             const struct moe_tile *tile, int64_t num_routes,
                                             int32_t num_buckets)
{
    const int64_t num_ctas = tile->block_size / MOE_CUDA_SORT_THREADS;
    const int64_t useful_warps = (num_routes + num_ctas * 32 - 1) / (num_ctas * 32);
    int32_t num_warps = useful_warps < 1 ? 1 : useful_warps < 32 ? (int32_t)useful_warps : 32;
    while (num_warps > 1 && MOE_CUDA_SORT_SMEM_BYTES(num_warps, num_buckets) > state->smem_bytes) {
        num_warps--;
    }
    const int64_t routes_per_warp =
        (num_routes + num_ctas * num_warps - 1) / (num_ctas * num_warps);
    struct moe_cuda_sort_shape shape = {
        .num_warps = num_warps,
        .routes_per_warp = (int32_t)((routes_per_warp + 31) / 32 * 32),
        .smem_bytes = MOE_CUDA_SORT_SMEM_BYTES(num_warps, num_buckets),
    };
    const int64_t kept_bytes = (int64_t)num_warps * shape.routes_per_warp * 2;
    if (shape.smem_bytes + kept_bytes <= state->smem_bytes && num_buckets < INT16_MAX) {
        shape.keeps_buckets = 1;
        shape.smem_bytes += (int32_t)kept_bytes;
    }
    return shape;
}

static int32_t launch_sort(const struct moe_run *run, int32_t op, const void *args,
                           int32_t smem_bytes, struct moe_error *error)
{
    const struct moe_tile *tile = moe_cuda_tile_of(run, op);
    const uint32_t num_ctas = (uint32_t)(tile->block_size / MOE_CUDA_SORT_THREADS);
    struct moe_cuda_launch launch = {
        .tile = tile->id,
        .grid_x = num_ctas,
        .grid_y = 1,
        .num_threads = MOE_CUDA_SORT_THREADS,
        .cluster = num_ctas,
        .smem_bytes = (uint32_t)smem_bytes,
        .is_chained = run->is_chained,
        .args = args,
    };
    return moe_cuda_state_launch(moe_cuda_state_of(run), run->stream, &launch, error);
}

int32_t moe_cuda_align(const struct moe_run *run, const struct moe_op_align *op,
                       struct moe_error *error)
{
    const int32_t num_buckets = op->filter.num_experts + (op->filter_mode == MOE_FILTER_KEEP);
    struct moe_cuda_align args = {
        .op = *op,
        .shape = shape_sort(moe_cuda_state_of(run), moe_cuda_tile_of(run, MOE_OP_ALIGN_BLOCK_SIZE),
                            op->num_routes, num_buckets),
    };
    return launch_sort(run, MOE_OP_ALIGN_BLOCK_SIZE, &args, args.shape.smem_bytes, error);
}

int32_t moe_cuda_ep_preprocess(const struct moe_run *run, const struct moe_op_ep_preprocess *op,
                               struct moe_error *error)
{
    const int32_t num_buckets = op->filter.num_experts;
    struct moe_cuda_ep_preprocess args = {
        .op = *op,
        .shape = shape_sort(moe_cuda_state_of(run), moe_cuda_tile_of(run, MOE_OP_EP_PREPROCESS),
                            op->num_routes, num_buckets),
    };
    return launch_sort(run, MOE_OP_EP_PREPROCESS, &args, args.shape.smem_bytes, error);
}
