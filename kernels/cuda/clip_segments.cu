/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For one pass of experts over rows that do not fit the workspace at once:
 * clip_segments: the part of each segment that lies in rows [first, last), counted from `first`.
 * clip_masked: how many of the rows [first_row, first_row + num_rows) of each of some experts are
 *   in use; none of the other experts'.
 * Moves: 16 or 8 bytes per expert. Bound by latency: a launch.
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

extern "C" __global__ void __launch_bounds__(MOE_CUDA_HELPER_THREADS)
    moe_clip_masked(const __grid_constant__ struct moe_cuda_clip_masked args)
{
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    for (int32_t e = threadIdx.x; e < args.num_experts; e += MOE_CUDA_HELPER_THREADS) {
        int64_t rows = 0;
        if (e >= args.first_expert && e < args.last_expert) {
            rows = args.masked_m[e] - args.first_row;
            rows = rows < 0 ? 0 : (rows > args.num_rows ? args.num_rows : rows);
        }
        args.out[e] = static_cast<int32_t>(rows);
    }
}
