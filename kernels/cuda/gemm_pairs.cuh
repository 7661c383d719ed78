/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Gate and up whose channels are neighbours in memory ([E, H, 2I], gate first): a slab has 32
 * channels of both, in turn, so gate and up of a channel come out in two lanes, four apart. Here
 * they come together.
 *   Lane 4 j + q has rows j and j + 8 of its warp's 16: gate (j even) or up of channels j / 2 and
 *   4 + j / 2 of the warp's eight. Of each two such lanes the first gives its gate of 4 + j / 2 for
 *   the other's up of j / 2, so one shuffle does for two sums. Then lanes have channels in the
 *   order 0, 4, 1, 5, 2, 6, 3, 7 (moe_gemm_channel); stores put that right. Slab 0's channel
 *   becomes the thread's first one, slab 1's its second.
 */
#ifndef MOE_GEMM_PAIRS_CUH
#define MOE_GEMM_PAIRS_CUH

#include "ptx.cuh"

/* One token of a slab: `low` and `high` are rows j and j + 8, then gate and up. */
static __device__ __forceinline__ void moe_gemm_part_pair(bool has_up, float &low, float &high)
{
    const float other = __shfl_xor_sync(0xffffffffu, has_up ? low : high, 4);
    low = has_up ? other : low;
    high = has_up ? high : other;
}

/* All tokens of both slabs, by whole warps; gate ends in sums[0], up in sums[1]. The sums are made
 * anew in front of it: else the compiler moves them where they shall end after each number of
 * columns, through memory. */
template <int kSums>
static __device__ __forceinline__ void moe_gemm_part_pairs(float (&sums)[2][kSums])
{
    moe_ptx_keep(sums[0]);
    moe_ptx_keep(sums[1]);
    const bool has_up = threadIdx.x / 4 % 2 != 0;
#pragma unroll
    for (int32_t i = 0; i < kSums; i += 4) {
#pragma unroll
        for (int32_t token = i; token < i + 2; token++) {
            moe_gemm_part_pair(has_up, sums[0][token], sums[0][token + 2]);
            moe_gemm_part_pair(has_up, sums[1][token], sums[1][token + 2]);
            const float up = sums[0][token + 2];
            sums[0][token + 2] = sums[1][token];
            sums[1][token] = up;
        }
    }
}

#endif
