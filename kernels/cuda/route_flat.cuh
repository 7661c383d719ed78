/* SPDX-License-Identifier: Apache-2.0 */
/*
 * MOE_CUDA_SORT_FLAT: the sort of route_sort.cuh in one launch with a thread per route, so that
 * nothing is counted by atomics and nothing is read twice. A CTA sorts up to kThreads routes; in
 * the cluster form (sm_90 and up) the CTAs of a cluster sort a chunk each and write their counts
 * into the shared memory of all others. CTAs (clusters) of a grid all do the same sort and write a
 * share of the outputs each.
 * Moves: the ids once per CTA or cluster. Bound by latency: of one load, three barriers, and with
 *   clusters one of those.
 * Pipeline: 1 lanes of a warp with the same bucket find each other; the first writes their number
 *   into the bucket's row of counts, a byte per warp. 2 a thread adds up a row, four bytes per
 *   instruction; clusters exchange the sums. 3 one scan. 4 a route's number is the sum of the bytes
 *   before its warp's.
 * Limits: MOE_CUDA_SORT_FLAT_BYTES of shared memory.
 */
#ifndef MOE_ROUTE_FLAT_CUH
#define MOE_ROUTE_FLAT_CUH

#include "route_emit.cuh"

namespace
{

constexpr int kClusterCtas = MOE_CUDA_SORT_CLUSTER_CTAS;

/* Older devices have the kernels and never launch them. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define MOE_CLUSTER_DIMS
#else
#define MOE_CLUSTER_DIMS __cluster_dims__(MOE_CUDA_SORT_CLUSTER_CTAS, 1, 1)
#endif

/* Counts of a bucket: a byte per warp, `kBytes` in use, rows in different banks. */
template <int kThreads> struct FlatRow {
    static constexpr int kBytes = kThreads / 32 < 16 ? 16 : kThreads / 32;
    static constexpr int kStride = MOE_CUDA_SORT_FLAT_ROW_BYTES(kThreads);
    uint32_t words[kBytes / 4];

    __device__ __forceinline__ FlatRow(const unsigned char *rows, uint32_t bucket)
    {
        const uint4 *row = reinterpret_cast<const uint4 *>(rows + bucket * kStride);
#pragma unroll
        for (int i = 0; i < kBytes / 16; i++) {
            const uint4 part = row[i];
            words[4 * i] = part.x;
            words[4 * i + 1] = part.y;
            words[4 * i + 2] = part.z;
            words[4 * i + 3] = part.w;
        }
    }

    __device__ __forceinline__ uint32_t sum() const
    {
        uint32_t total = 0;
#pragma unroll
        for (int i = 0; i < kBytes / 4; i++) {
            total = __dp4a(words[i], 0x01010101u, total);
        }
        return total;
    }

    /* Of the warps before one. */
    __device__ __forceinline__ uint32_t sum_before(int32_t warp) const
    {
        uint32_t total = 0;
#pragma unroll
        for (int i = 0; i < kBytes / 4; i++) {
            const int32_t num_bytes = max(0, min(warp - 4 * i, 4));
            const uint32_t mask = static_cast<uint32_t>((1ull << (8 * num_bytes)) - 1);
            total = __dp4a(words[i], 0x01010101u & mask, total);
        }
        return total;
    }
};

/* A route of this thread, and where it stands. */
struct FlatRoute {
    bool exists;
    uint32_t bucket;
    uint32_t rank; /* in its warp */
};

/* Rows of counts. */
__device__ __forceinline__ unsigned char *flat_rows(const RouteSort &sort)
{
    return reinterpret_cast<unsigned char *>(sort.ranked);
}

/* Behind them, in a cluster: [CTAs][stride] counts of 16 bits. */
template <int kThreads> __device__ __forceinline__ uint16_t *flat_table(const RouteSort &sort)
{
    return reinterpret_cast<uint16_t *>(flat_rows(sort) +
                                        sort.num_buckets * FlatRow<kThreads>::kStride);
}

/* Behind those, where the CTA gates: [chunk_routes] ids. */
template <int kThreads, bool kClusters>
__device__ __forceinline__ int32_t *flat_ids(const RouteSort &sort)
{
    return reinterpret_cast<int32_t *>(flat_table<kThreads>(sort) +
                                       (kClusters ? kClusterCtas * sort.stride : 0));
}

/* The number of a CTA in its cluster, and of its cluster in the grid. */
template <bool kClusters> __device__ __forceinline__ int32_t flat_chunk()
{
    return kClusters ? static_cast<int32_t>(blockIdx.x) % kClusterCtas : 0;
}

template <bool kClusters> __device__ __forceinline__ int32_t flat_share()
{
    return static_cast<int32_t>(blockIdx.x) / (kClusters ? kClusterCtas : 1);
}

/* Step 1, behind a barrier. */
template <int kThreads, typename Source>
__device__ __forceinline__ FlatRoute rank_flat(const RouteSort &sort, const Source &source)
{
    unsigned char *rows = flat_rows(sort);
    const int32_t thread = static_cast<int32_t>(threadIdx.x);
    FlatRoute route = {thread < sort.num_ranked, 0, 0};
    const int32_t id = route.exists ? source.load(sort.first_route + thread) : 0;
    clear_words<kThreads>(reinterpret_cast<int32_t *>(rows),
                          sort.num_buckets * FlatRow<kThreads>::kStride / 4);
    route.bucket = route.exists ? source.find(id) : kAllLanes;
    __syncthreads();
    if (thread / 32 * 32 < sort.num_ranked) {
        const unsigned peers = __match_any_sync(kAllLanes, route.bucket);
        route.rank = __popc(peers & ((1u << thread_lane()) - 1u));
        if (route.exists && route.rank == 0) {
            rows[route.bucket * FlatRow<kThreads>::kStride + thread_warp()] =
                static_cast<unsigned char>(__popc(peers));
        }
    }
    __syncthreads();
    return route;
}

/* Steps 1 to 3, and behind a barrier what route_emit.cuh reads of a sort. In a cluster every thread
 * has arrived at its barrier once, before. */
template <int kThreads, bool kClusters, bool kAligns, bool kPreprocesses, typename Source>
__device__ __forceinline__ FlatRoute sort_flat(const RouteSort &sort, const Layout &layout,
                                               const Source &source)
{
    const FlatRoute route = rank_flat<kThreads>(sort, source);
    const unsigned char *rows = flat_rows(sort);
    const int32_t own = flat_chunk<kClusters>();
    const uint16_t *table = flat_table<kThreads>(sort);
    if (kClusters) {
        const uint32_t row =
            static_cast<uint32_t>(__cvta_generic_to_shared(table + own * sort.stride));
        moe_ptx_cluster_wait(); /* all CTAs run: their shared memory can be written */
#pragma unroll 1
        for (int32_t pair = static_cast<int32_t>(threadIdx.x); pair < sort.stride / 2;
             pair += kThreads) {
            const int32_t last = sort.num_buckets - 1;
            const uint32_t low = FlatRow<kThreads>(rows, min(2 * pair, last)).sum();
            const uint32_t high = FlatRow<kThreads>(rows, min(2 * pair + 1, last)).sum();
#pragma unroll
            for (int rank = 0; rank < kClusterCtas; rank++) {
                moe_ptx_cluster_store(row + 4 * static_cast<uint32_t>(pair), rank,
                                      low | high << 16);
            }
        }
        moe_ptx_cluster_arrive();
        moe_ptx_cluster_wait();
    }
    scan_totals<kThreads, kPreprocesses, kAligns, kPreprocesses>(sort, layout, [&](int32_t bucket) {
        int32_t total = 0;
        int32_t before = 0;
        if (kClusters) {
#pragma unroll
            for (int rank = 0; rank < kClusterCtas; rank++) {
                const int32_t count = table[rank * sort.stride + bucket];
                total += count;
                before += rank < own ? count : 0;
            }
            sort.offsets[bucket] = before;
        } else {
            total =
                static_cast<int32_t>(FlatRow<kThreads>(rows, static_cast<uint32_t>(bucket)).sum());
        }
        sort.totals[bucket] = total;
        return total;
    });
    __syncthreads();
    return route;
}

/* Step 4 and what belongs to a route. A grid's CTAs (clusters) share the warps' routes. */
template <int kThreads, bool kClusters, bool kAligns, bool kPreprocesses>
__device__ __forceinline__ void emit_flat(const struct moe_op_align *align,
                                          const struct moe_op_ep_preprocess *preprocess,
                                          const RouteSort &sort, const Layout &layout,
                                          const FlatRoute &route)
{
    const uint32_t num_shares = gridDim.x / (kClusters ? kClusterCtas : 1);
    const uint32_t share = static_cast<uint32_t>(flat_share<kClusters>());
    if (!route.exists || static_cast<uint32_t>(thread_warp()) % num_shares != share) {
        return;
    }
    const int32_t bucket = static_cast<int32_t>(route.bucket);
    const FlatRow<kThreads> row(flat_rows(sort), route.bucket);
    const int32_t number = static_cast<int32_t>(row.sum_before(thread_warp()) + route.rank) +
                           (kClusters ? sort.offsets[bucket] : 0);
    const int32_t index = sort.first_route + static_cast<int32_t>(threadIdx.x);
    const int32_t to =
        emit_route<kAligns, kPreprocesses>(align, preprocess, sort, layout, index, bucket, number);
    if (kPreprocesses && preprocess->src2dst != nullptr) {
        preprocess->src2dst[index] = to;
    }
}

/* FLAT as a whole. */
template <int kThreads, bool kClusters, bool kAligns, bool kPreprocesses, typename Source>
__device__ __forceinline__ void route_flat(const struct moe_op_align *align,
                                           const struct moe_op_ep_preprocess *preprocess,
                                           const RouteSort &sort, const Layout &layout,
                                           const Source &source)
{
    const FlatRoute route =
        sort_flat<kThreads, kClusters, kAligns, kPreprocesses>(sort, layout, source);
    emit_flat<kThreads, kClusters, kAligns, kPreprocesses>(align, preprocess, sort, layout, route);
    if (kAligns) {
        emit_blocks<kThreads>(*align, sort, layout.num_starts);
    }
    if (kPreprocesses) {
        emit_segments<kThreads>(*preprocess, sort);
    }
}

} // namespace

#endif
