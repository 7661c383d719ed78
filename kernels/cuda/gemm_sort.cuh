/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The first GEMM of a layer with few routes puts them in the order of their experts itself, so that
 * the layer has no launch for a sort. Every CTA sorts all of them, into shared memory: a stable
 * counting sort, with the positions that ep_preprocess gives.
 *
 *   rank   each sorting warp has a stretch of routes, 32 at a time: which lanes have the same
 *          expert tells a route's rank in its stretch, a byte per expert and warp counts them
 *   list   the counts are the rows of the experts (gemm_work.cuh)
 *   place  first row of the expert + the counts of the warps before + rank
 *
 * The warp that brings the weights does not sort: it begins behind `list`, and so the weights are
 * on their way while routes are placed. CTA 0 tells the kernels behind where a route's row lies.
 * Counts and ranks lie in the staging of the outputs, which nothing uses before the first unit is
 * multiplied. Limits: MOE_CUDA_GEMM_MAX_SORTED and, by the staging, segments; the host decides.
 */
#ifndef MOE_GEMM_SORT_CUH
#define MOE_GEMM_SORT_CUH

#include "cuda_args.h"
#include "filter.cuh"
#include "ptx.cuh"

/* Routes that there are: the smaller of what the host said and what the device says. */
static __device__ __forceinline__ int32_t
moe_gemm_num_routes(const struct moe_cuda_gemm_routes &routes)
{
    if (routes.num_tokens_device == nullptr) {
        return routes.num_routes;
    }
    const int32_t given = *routes.num_tokens_device;
    const int64_t real = static_cast<int64_t>(given < 0 ? 0 : given) * routes.top_k;
    return real < routes.num_routes ? static_cast<int32_t>(real) : routes.num_routes;
}

/* Which routes a thread sorts: `first`, and every 32 from there, `num_turns` of them. */
template <typename Tile> struct moe_gemm_stretch {
    static constexpr int32_t kSorters = Tile::kThreads / 32 - 1;
    static constexpr int32_t kTurns =
        (MOE_CUDA_GEMM_MAX_SORTED + 32 * kSorters - 1) / (32 * kSorters);
    static constexpr int32_t kWeightWarp = 4 * Tile::kConsumers;
    static_assert(32 * kTurns < 256, "a byte counts a stretch");
    static_assert(kSorters <= MOE_CUDA_GEMM_SORT_WARPS, "a byte of each in a segment's counts");

    int32_t sorter; /* -1: the warp does not sort */
    int32_t num_turns;
    int32_t first;

    __device__ __forceinline__ explicit moe_gemm_stretch(int32_t num_routes)
    {
        const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
        sorter = warp < kWeightWarp ? warp : (warp > kWeightWarp ? warp - 1 : -1);
        num_turns = sorter < 0 ? 0 : (num_routes + 32 * kSorters - 1) / (32 * kSorters);
        first = 32 * sorter * num_turns + static_cast<int32_t>(threadIdx.x) % 32;
    }
};

/* The counts of a segment, of the warps before `num_warps`. */
static __device__ __forceinline__ int32_t moe_gemm_sum_counts(const uint4 &counts,
                                                              int32_t num_warps)
{
    const uint32_t words[4] = {counts.x, counts.y, counts.z, counts.w};
    uint32_t sum = 0;
#pragma unroll
    for (int32_t i = 0; i < 4; i++) {
        const int32_t num_bytes = num_warps - 4 * i;
        const uint32_t ones = num_bytes >= 4  ? 0x01010101u
                              : num_bytes > 0 ? 0x01010101u & ((1u << (8 * num_bytes)) - 1)
                                              : 0;
        sum = __dp4a(words[i], ones, sum);
    }
    return static_cast<int32_t>(sum);
}

/* A route's segment and its rank among those of its warp, in one word. */
enum { MOE_GEMM_RANK_BITS = 8 };

/* Ranks of all routes, counts of all warps, by all threads of the CTA. Ends with a barrier. */
template <typename Tile>
static __device__ __forceinline__ void moe_gemm_rank_routes(
    const struct moe_cuda_gemm_routes &routes, int32_t num_segments, char *staging)
{
    using Stretch = struct moe_gemm_stretch<Tile>;
    const Stretch stretch(routes.num_routes);
    const int32_t num_routes = moe_gemm_num_routes(routes);
    const uint32_t lane = threadIdx.x % 32;
    uint4 *all_counts = reinterpret_cast<uint4 *>(staging);
    int32_t *ranks = reinterpret_cast<int32_t *>(all_counts + num_segments);
    int32_t locals[Stretch::kTurns]; /* all loads before the first is waited for */
#pragma unroll
    for (int32_t turn = 0; turn < Stretch::kTurns; turn++) {
        const int32_t route = stretch.first + 32 * turn;
        locals[turn] =
            turn < stretch.num_turns && route < num_routes
                ? moe_filter_local(routes.filter, routes.topk_ids, routes.ids_dtype, route)
                : -1;
    }
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < num_segments; i += Tile::kThreads) {
        all_counts[i] = make_uint4(0, 0, 0, 0);
    }
    __syncthreads();
#pragma unroll
    for (int32_t turn = 0; turn < Stretch::kTurns; turn++) {
        if (turn >= stretch.num_turns) {
            break;
        }
        const int32_t route = stretch.first + 32 * turn;
        const int32_t local = locals[turn];
        const uint32_t same = __match_any_sync(0xffffffffu, local);
        uint8_t *count =
            reinterpret_cast<uint8_t *>(all_counts + (local < 0 ? 0 : local)) + stretch.sorter;
        const int32_t rank = *count + static_cast<int32_t>(__popc(same & ((1u << lane) - 1)));
        __syncwarp(); /* all have read what the last of them adds to */
        if (local >= 0 && same >> lane == 1) {
            *count = static_cast<uint8_t>(rank + 1);
        }
        if (route < routes.num_routes) {
            ranks[route] = local < 0 ? -1 : local << MOE_GEMM_RANK_BITS | rank;
        }
        __syncwarp();
    }
    __syncthreads();
}

/* order[position] = route; src2dst[route] = position, or -1. By all warps but the one that brings
 * the weights, with a barrier of theirs at the end. */
template <typename Tile>
static __device__ __forceinline__ void moe_gemm_place_routes(const struct moe_cuda_gemm &args,
                                                             const int32_t *first_row,
                                                             const char *staging, int32_t *order)
{
    const struct moe_cuda_gemm_routes &routes = args.routes;
    const struct moe_gemm_stretch<Tile> stretch(routes.num_routes);
    const uint4 *all_counts = reinterpret_cast<const uint4 *>(staging);
    const int32_t *ranks = reinterpret_cast<const int32_t *>(all_counts + args.op.num_segments);
    if (stretch.sorter < 0) {
        return;
    }
    if (blockIdx.x == 0 && args.is_early) {
        moe_ptx_griddep_wait(); /* a node before may still read src2dst */
    }
    for (int32_t turn = 0; turn < stretch.num_turns; turn++) {
        const int32_t route = stretch.first + 32 * turn;
        if (route >= routes.num_routes) {
            break;
        }
        int32_t to = -1;
        if (ranks[route] >= 0) {
            const int32_t local = ranks[route] >> MOE_GEMM_RANK_BITS;
            to = first_row[local] + moe_gemm_sum_counts(all_counts[local], stretch.sorter) +
                 (ranks[route] & ((1 << MOE_GEMM_RANK_BITS) - 1));
            order[to] = route;
        }
        if (blockIdx.x == 0) {
            routes.src2dst[route] = to;
        }
    }
    __syncwarp(); /* lanes leave the loop at different turns */
    moe_ptx_barrier_sync(1 + Tile::kConsumers, Tile::kThreads - 32);
}

#endif
