/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tiles of few weight rows: the two slabs of a unit, 32 rows of gate and 32 of up, or 64 rows of
 * one matrix, lie beside each other in each box of columns and are the 64 rows of one wgmma. With a
 * wgmma per slab half of its rows were empty: it takes as long as a full one, and a stage took as
 * long to multiply as a multiprocessor alone needs to read it.
 *   Gate is in the first warps of the warpgroup then and up in those after them: up goes through
 *   the staging area, as fp32, to the threads that have the same channels and tokens of gate. From
 *   there on the epilogue is that of the other tiles. The chain over k of an output is the same.
 */
#ifndef MOE_GEMM_MERGE_CUH
#define MOE_GEMM_MERGE_CUH

#include "gemm_ring.cuh"

/* All of k for one unit, with kN columns of tokens; as moe_gemm_multiply. The tokens are always
 * gathered. */
template <typename Tile, int kN, bool kIsHalf, int kSums>
static __device__ __forceinline__ void moe_gemm_multiply_merged(int32_t num_steps,
                                                                struct moe_gemm_ring<Tile> &ring,
                                                                float (&sums)[kSums])
{
    uint32_t last = 0;
    for (int32_t step = 0; step < num_steps; step++) {
        const uint32_t slot = ring.slot();
        const uint64_t weights = moe_gemm_descriptor(slot);
        const uint64_t tokens = moe_gemm_descriptor(slot + Tile::kWeightBytes);
        moe_ptx_mbarrier_wait(ring.full_barrier(), ring.parity);
        moe_ptx_fence_async(); /* copies of tokens were not made by the copy engine */
        moe_ptx_keep(sums);
        moe_ptx_wgmma_fence();
#pragma unroll
        for (int32_t box = 0; box < Tile::kBoxes; box++) {
#pragma unroll
            for (int32_t k = 0; k < Tile::kMmas; k++) {
                const uint32_t accumulate = box + k > 0 ? 1 : (step > 0 ? 1 : 0);
                moe_ptx_wgmma<kN, kIsHalf, false>(
                    sums, weights + (Tile::box_offset(0, box) + k * Tile::kMmaBytes) / 16,
                    tokens + (box * Tile::kBlockM * Tile::kRowBytes + k * Tile::kMmaBytes) / 16,
                    accumulate);
            }
        }
        moe_ptx_wgmma_commit();
        moe_ptx_wgmma_wait<1>();
        moe_ptx_keep(sums);
        if (step > 0) {
            moe_gemm_release<Tile>(last);
        }
        last = ring.empty_barrier();
        ring.advance();
    }
    moe_ptx_wgmma_wait<0>();
    moe_ptx_keep(sums);
    moe_gemm_release<Tile>(last);
}

template <typename Tile, bool kIsHalf, int kSums>
static __device__ __forceinline__ void moe_gemm_multiply_merged_rows(
    int32_t num_rows, int32_t num_steps, struct moe_gemm_ring<Tile> &ring, float (&sums)[kSums])
{
    static_assert(Tile::kBlockM <= 16, "columns");
    if (Tile::kBlockM <= 8 || num_rows <= 8) {
        moe_gemm_multiply_merged<Tile, 8, kIsHalf>(num_steps, ring, sums);
    } else {
        moe_gemm_multiply_merged<Tile, Tile::kBlockM, kIsHalf>(num_steps, ring, sums);
    }
}

/* Sums of the second slab to the threads that have the first. They use the end of the staging area,
 * which no other part of an epilogue touches. */
template <typename Tile, int kSums>
static __device__ __forceinline__ void moe_gemm_exchange(uint32_t barrier, char *staged,
                                                         float (&sums)[2][kSums])
{
    constexpr int32_t kThreads = 2 * Tile::kSlabRows; /* of a slab */
    constexpr int32_t kBytes = kThreads * kSums * 4;
    static_assert(kBytes <= MOE_CUDA_GEMM_STAGING_BYTES / 4, "staging area");
    const int32_t thread = static_cast<int32_t>(threadIdx.x) % 128;
    float *words = reinterpret_cast<float *>(staged + MOE_CUDA_GEMM_STAGING_BYTES - kBytes) +
                   thread % kThreads;
    if (thread / kThreads == 1) {
#pragma unroll
        for (int32_t i = 0; i < kSums; i++) {
            words[i * kThreads] = sums[0][i];
        }
    }
    moe_ptx_barrier_sync(barrier, 128);
    if (thread / kThreads == 0) {
#pragma unroll
        for (int32_t i = 0; i < kSums; i++) {
            sums[1][i] = words[i * kThreads];
        }
    }
}

#endif
