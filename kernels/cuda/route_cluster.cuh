/* SPDX-License-Identifier: Apache-2.0 */
/*
 * MOE_CUDA_SORT_CLUSTER: the sort of route_sort.cuh by one cluster, for sm_90 and up. Each CTA
 * ranks and counts its chunk, and writes its counts into the shared memory of all others; behind
 * one barrier of the cluster every CTA has the table that COUNT and PLACE have in global memory.
 * Moves: the ids once. Bound by latency, one cluster barrier included.
 */
#ifndef MOE_ROUTE_CLUSTER_CUH
#define MOE_ROUTE_CLUSTER_CUH

#include "route_sort.cuh"

namespace
{

constexpr int kClusterCtas = MOE_CUDA_SORT_CLUSTER_CTAS;

/* Older devices have the kernels and never launch them. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define MOE_CLUSTER_DIMS
#else
#define MOE_CLUSTER_DIMS __cluster_dims__(MOE_CUDA_SORT_CLUSTER_CTAS, 1, 1)
#endif

/* Behind what make_route_sort has laid out: places, then [CTAs][stride] counts of 16 bits, then the
 * counters of the warps. */
__device__ __forceinline__ uint16_t *add_cluster_arrays(RouteSort *sort)
{
    sort->places = sort->partials;
    uint16_t *table = reinterpret_cast<uint16_t *>(
        sort->places + moe_cuda_sort_bucket_words(sort->num_buckets - 1));
    sort->counters = table + kClusterCtas * sort->stride;
    return table;
}

/* Steps 1 to 4 and the chunk's list. Every thread of the cluster has arrived at its barrier once,
 * before. */
template <int kThreads, bool kAligns, bool kPreprocesses, typename Source>
__device__ __forceinline__ void sort_cluster(const struct moe_cuda_sort_shape &shape,
                                             const RouteSort &sort, const Layout &layout,
                                             const Source &source, uint16_t *table)
{
    const Stretch stretch(shape, sort);
    const int32_t own = static_cast<int32_t>(blockIdx.x); /* the grid is one cluster */
    int32_t ranked_ids[kRankTurns];
    load_turns(source, sort.first_route + stretch.begin + thread_lane(), 32,
               sort.first_route + stretch.end, ranked_ids);
    clear_words<kThreads>(reinterpret_cast<int32_t *>(sort.counters),
                          shape.num_warps * sort.stride / 2);
    __syncthreads();
    rank_chunk(sort, source, stretch, ranked_ids);
    __syncthreads();
    moe_ptx_cluster_wait(); /* all CTAs run: their shared memory can be written */
    const uint32_t row = static_cast<uint32_t>(__cvta_generic_to_shared(table + own * sort.stride));
    sum_warps<kThreads>(shape, sort, [&](int32_t pair, uint32_t sums) {
#pragma unroll
        for (int rank = 0; rank < kClusterCtas; rank++) {
            moe_ptx_cluster_store(row + 4 * static_cast<uint32_t>(pair), rank, sums);
        }
    });
    moe_ptx_cluster_arrive();
    moe_ptx_cluster_wait();
    scan_totals<kThreads, true, kPreprocesses, kAligns, kPreprocesses>(
        sort, layout,
        [&](int32_t bucket) {
            int32_t total = 0;
            int32_t before = 0;
#pragma unroll
            for (int rank = 0; rank < kClusterCtas; rank++) {
                const int32_t count = table[rank * sort.stride + bucket];
                total += count;
                before += rank < own ? count : 0;
            }
            sort.totals[bucket] = total;
            sort.offsets[bucket] = before;
            return total;
        },
        [&](int32_t bucket) { return static_cast<int32_t>(table[own * sort.stride + bucket]); });
    __syncthreads();
    const uint16_t *counters = sort.counters + thread_warp() * sort.stride;
#pragma unroll 1
    for (int32_t i = stretch.begin + thread_lane(); i < stretch.end; i += 32) {
        const uint32_t entry = sort.ranked[i];
        const uint32_t bucket = entry >> 16;
        sort.list[sort.places[bucket] + counters[bucket] + static_cast<int32_t>(entry & 0xffffu)] =
            bucket << 16 | static_cast<uint32_t>(i);
    }
    __syncthreads();
}

} // namespace

#endif
