/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sums of the router where tokens or weights are fp32, which no tensor core multiplies exactly.
 *
 * A sum is the CPU's: eight lanes take every eighth column with fused multiply-adds, in order, and
 * meet in its tree. So it has the CPU's bits, whatever the tile.
 *
 * Eight neighbouring threads are the lanes of a sum; 32 such groups share a block's experts in
 * turns of 8 and its tokens in turns of 4. Columns come through a ring of stages in shared memory,
 * as they are stored; rows there are 32 bytes apart modulo the banks, so that the four groups of a
 * warp read all of them.
 */
#ifndef MOE_ROUTER_WIDE_CUH
#define MOE_ROUTER_WIDE_CUH

#include "ptx.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

constexpr int kRouterLanes = 8;
constexpr int kRouterExpertGroups = 8;
constexpr int kRouterTokenGroups = 4;
constexpr int kRouterStages = 3;

__device__ __forceinline__ float widen_element(float value)
{
    return value;
}
__device__ __forceinline__ float widen_element(__half value)
{
    return __half2float(value);
}
__device__ __forceinline__ float widen_element(__nv_bfloat16 value)
{
    return __bfloat162float(value);
}

/* Columns of a stage, and bytes of a row of it: fp32 with the distance that spreads the banks. */
template <int kBlockM, int kBlockN> struct RouterStage {
    static constexpr int kColumns = kBlockM + kBlockN <= 32 ? 128 : 32;
    static constexpr int kRowBytes = (kColumns + kRouterLanes) * 4;
    static constexpr int kBytes = (kBlockM + kBlockN) * kRowBytes;
};

/* A matrix of num_rows rows, row_bytes apart. */
struct WideRows {
    const char *base;
    int64_t row_bytes;
    int64_t num_rows;
};

/* Columns [first, first + kColumns) of kRows rows from `row` on; zeros where there is nothing. */
template <typename Element, int kRows, int kColumns, int kRowBytes, int kThreads>
__device__ __forceinline__ void copy_rows(const WideRows &from, int64_t row, int32_t first,
                                          int32_t num_columns, uint32_t to)
{
    constexpr int kPiece = 16 / static_cast<int>(sizeof(Element));
    constexpr int kPieces = kColumns / kPiece;
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kPieces; i += kThreads) {
        const int own_row = i / kPieces;
        const int32_t column = first + i % kPieces * kPiece;
        const bool is_inside = row + own_row < from.num_rows && column < num_columns;
        const char *piece = from.base + (row + own_row) * from.row_bytes +
                            static_cast<int64_t>(column) * static_cast<int>(sizeof(Element));
        moe_ptx_copy16(to + static_cast<uint32_t>(own_row * kRowBytes + i % kPieces * 16),
                       is_inside ? piece : from.base, is_inside ? 16 : 0);
    }
}

/* sums[t][e]: token t * 4 + token group, expert e * 8 + expert group, of this thread's lane. */
template <typename Token, typename Weight, int kBlockM, int kBlockN>
__device__ __forceinline__ void add_stage(
    const char *stage, int num_steps,
    float (&sums)[kBlockM / kRouterTokenGroups][kBlockN / kRouterExpertGroups])
{
    using Stage = RouterStage<kBlockM, kBlockN>;
    const int group = static_cast<int>(threadIdx.x) / kRouterLanes;
    const int lane = static_cast<int>(threadIdx.x) % kRouterLanes;
    const char *tokens = stage + group / kRouterExpertGroups * Stage::kRowBytes +
                         lane * static_cast<int>(sizeof(Token));
    const char *weights = stage + (kBlockM + group % kRouterExpertGroups) * Stage::kRowBytes +
                          lane * static_cast<int>(sizeof(Weight));
#pragma unroll(kBlockN > 8 ? 1 : 4)
    for (int step = 0; step < num_steps; step++) {
        float w[kBlockN / kRouterExpertGroups];
#pragma unroll
        for (int e = 0; e < kBlockN / kRouterExpertGroups; e++) {
            w[e] = widen_element(*reinterpret_cast<const Weight *>(
                weights + e * kRouterExpertGroups * Stage::kRowBytes +
                step * kRouterLanes * static_cast<int>(sizeof(Weight))));
        }
#pragma unroll
        for (int t = 0; t < kBlockM / kRouterTokenGroups; t++) {
            const float x = widen_element(*reinterpret_cast<const Token *>(
                tokens + t * kRouterTokenGroups * Stage::kRowBytes +
                step * kRouterLanes * static_cast<int>(sizeof(Token))));
#pragma unroll
            for (int e = 0; e < kBlockN / kRouterExpertGroups; e++) {
                sums[t][e] = __fmaf_rn(x, w[e], sums[t][e]);
            }
        }
    }
}

/* The lanes' sums, in all lanes: ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)). */
__device__ __forceinline__ float sum_lanes(float sum)
{
#pragma unroll
    for (int distance = kRouterLanes / 2; distance > 0; distance /= 2) {
        sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, distance));
    }
    return sum;
}

/* All columns of one block, by kThreads threads; `shared` has kRouterStages stages. */
template <typename Token, typename Weight, int kBlockM, int kBlockN, int kThreads>
__device__ __forceinline__ void sum_block(
    const WideRows &tokens, const WideRows &weights, int64_t first_token, int64_t first_expert,
    int32_t num_columns, char *shared,
    float (&sums)[kBlockM / kRouterTokenGroups][kBlockN / kRouterExpertGroups])
{
    using Stage = RouterStage<kBlockM, kBlockN>;
    const uint32_t base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    const int32_t num_stages = (num_columns + Stage::kColumns - 1) / Stage::kColumns;
    const auto fetch = [&](int32_t stage) {
        if (stage < num_stages) {
            const uint32_t to = base + static_cast<uint32_t>(stage % kRouterStages * Stage::kBytes);
            copy_rows<Token, kBlockM, Stage::kColumns, Stage::kRowBytes, kThreads>(
                tokens, first_token, stage * Stage::kColumns, num_columns, to);
            copy_rows<Weight, kBlockN, Stage::kColumns, Stage::kRowBytes, kThreads>(
                weights, first_expert, stage * Stage::kColumns, num_columns,
                to + kBlockM * Stage::kRowBytes);
        }
        moe_ptx_copy_commit();
    };
    __syncthreads(); /* the block before this one has been read */
#pragma unroll
    for (int32_t stage = 0; stage < kRouterStages - 1; stage++) {
        fetch(stage);
    }
    for (int32_t stage = 0; stage < num_stages; stage++) {
        moe_ptx_copy_wait<kRouterStages - 2>();
        __syncthreads();
        fetch(stage + kRouterStages - 1);
        const int32_t left = num_columns - stage * Stage::kColumns;
        add_stage<Token, Weight, kBlockM, kBlockN>(
            shared + stage % kRouterStages * Stage::kBytes,
            (left < Stage::kColumns ? left : Stage::kColumns) / kRouterLanes, sums);
    }
    moe_ptx_copy_wait<0>();
}

#endif
