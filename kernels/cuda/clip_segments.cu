/* SPDX-License-Identifier: Apache-2.0 */
/*
 * clip_segments: the part of each segment that lies in rows [first, last), counted from `first`,
 * for one pass of experts over rows that do not fit the workspace at once.
 * Moves: 16 bytes per expert. Bound by latency: a launch.
 * Pipeline: one CTA; 1 wait for the grid before, 2 load, 3 clamp, 4 store.
 * Limits: none.
 */
#include "cuda_args.h"
#include "ptx.cuh"

extern "C" __global__ void __launch_bounds__(MOE_CUDA_HELPER_THREADS)
    moe_clip_segments(const __grid_constant__ struct moe_cuda_clip_segments args)
{
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    for (int32_t s = threadIdx.x; s <= args.num_segments; s += MOE_CUDA_HELPER_THREADS) {
        int64_t row = args.seg_indptr[s];
        row = row < args.first ? args.first : row;
        args.out[s] = (row > args.last ? args.last : row) - args.first;
    }
}
