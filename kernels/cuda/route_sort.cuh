/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stable counting sort of routes by local expert that align_block_size and ep_preprocess share.
 *
 * Computes, for every route, the position that it has when routes are grouped by bucket (local
 * expert; kept filtered routes form a last bucket) in ascending order, each group in ascending
 * order of routes and padded to a multiple of `alignment`. The order follows from the route indices
 * alone (atomics only count), so the result is the same in every run and with any number of CTAs.
 *
 * Moves: the ids twice; everything else stays in shared memory. Bound by latency.
 * Pipeline: 1 every warp of the cluster counts the buckets of its own stretch of routes. 2 a CTA
 *   sums its warps' counts; CTAs read each other's sums. 3 every CTA scans the padded totals.
 *   4 every warp walks its stretch again (from the buckets it kept) and ranks its routes from the
 *   counters.
 * Limits: one counter per bucket has to fit into shared memory three times plus once (about 14,000
 *   buckets with 227 KiB).
 */
#ifndef MOE_ROUTE_SORT_CUH
#define MOE_ROUTE_SORT_CUH

#include "cuda_args.h"
#include "ptx.cuh"

namespace
{

constexpr int kSortThreads = MOE_CUDA_SORT_THREADS;
constexpr unsigned kAllLanes = 0xffffffffu;

/* Shared memory of a CTA, laid out as MOE_CUDA_SORT_SMEM_BYTES counts it. */
struct RouteSort {
    int32_t num_buckets;
    int32_t num_warps; /* that count, of each CTA */
    int32_t routes_per_warp;
    bool keeps_buckets;
    int64_t num_routes;
    int32_t *counters;      /* [num_warps][num_buckets + 1]: counts, then offsets inside the CTA */
    int32_t *own_counts;    /* [num_buckets + 1] of this CTA, read by the others */
    int32_t *starts;        /* [num_buckets + 1] first padded position; the end */
    int32_t *packed_starts; /* [num_buckets + 1] first position without padding; the end */
    int32_t *bases;         /* [num_buckets + 1] first position of this CTA's routes */
    int64_t *scan;          /* [32] */
    uint16_t *kept;         /* [num_warps][routes_per_warp] buckets, if kept; 0xffff: none */
};

__device__ __forceinline__ RouteSort make_route_sort(const struct moe_cuda_sort_shape &shape,
                                                     int64_t num_routes, int32_t num_buckets)
{
    extern __shared__ __align__(16) int32_t shared_words[];
    const int32_t stride = num_buckets + 1;
    RouteSort sort;
    sort.num_buckets = num_buckets;
    sort.num_warps = shape.num_warps;
    sort.routes_per_warp = shape.routes_per_warp;
    sort.num_routes = num_routes;
    sort.scan = reinterpret_cast<int64_t *>(shared_words);
    sort.own_counts = shared_words + 64;
    sort.starts = sort.own_counts + stride;
    sort.packed_starts = sort.starts + stride;
    sort.bases = sort.packed_starts + stride;
    sort.counters = sort.bases + stride;
    sort.keeps_buckets = shape.keeps_buckets != 0;
    sort.kept = reinterpret_cast<uint16_t *>(sort.counters + shape.num_warps * stride);
    return sort;
}

template <int kNumCtas> __device__ __forceinline__ int32_t cta_rank()
{
#if __CUDA_ARCH__ >= 900
    if (kNumCtas > 1) {
        return static_cast<int32_t>(moe_ptx_cluster_rank());
    }
#endif
    return 0;
}

template <int kNumCtas> __device__ __forceinline__ void cluster_sync()
{
#if __CUDA_ARCH__ >= 900
    if (kNumCtas > 1) {
        moe_ptx_cluster_sync();
        return;
    }
#endif
    __syncthreads();
}

/* Bucket of a route, -1 if it is dropped. Any id is safe. */
__device__ __forceinline__ int32_t find_bucket(const void *ids, int32_t ids_dtype,
                                               const struct moe_op_filter &filter, int64_t route,
                                               bool keeps_filtered)
{
    const int64_t id = ids_dtype == MOE_IDS_INT64 ? static_cast<const int64_t *>(ids)[route]
                                                  : static_cast<const int32_t *>(ids)[route];
    const int32_t filtered = keeps_filtered ? filter.num_experts : -1;
    if (id < 0 || id >= filter.num_ids || id < filter.expert_begin ||
        id >= filter.expert_end) {
        return filtered;
    }
    const int64_t local =
        filter.expert_map != nullptr ? filter.expert_map[id] : id - filter.expert_begin;
    return local >= 0 && local < filter.num_experts ? static_cast<int32_t>(local) : filtered;
}

/* First and last route of this thread's warp; nothing for a warp that does not count. */
template <int kNumCtas>
__device__ __forceinline__ void find_stretch(const RouteSort &sort, int64_t *first, int64_t *end)
{
    const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
    const int64_t stretch = static_cast<int64_t>(cta_rank<kNumCtas>()) * sort.num_warps + warp;
    *first = stretch * sort.routes_per_warp;
    *end = *first + sort.routes_per_warp < sort.num_routes ? *first + sort.routes_per_warp
                                                           : sort.num_routes;
    if (warp >= sort.num_warps) {
        *end = *first;
    }
}

/* Step 1: counts the warp's stretch. Ids are loaded eight turns at a time, so that a warp waits for
 * memory once per 256 routes; buckets are kept for step 4 where there is room. */
template <int kNumCtas, typename Find>
__device__ __forceinline__ void count_stretch(const RouteSort &sort, Find find)
{
    constexpr int kTurns = 8;
    const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
    const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
    int32_t *counters = sort.counters + warp * (sort.num_buckets + 1);
    uint16_t *kept = sort.kept + static_cast<int64_t>(warp) * sort.routes_per_warp;
    int64_t first;
    int64_t end;
    find_stretch<kNumCtas>(sort, &first, &end);
    for (int64_t base = first; base < end; base += kTurns * 32) {
        int32_t buckets[kTurns];
#pragma unroll
        for (int turn = 0; turn < kTurns; turn++) {
            const int64_t route = base + turn * 32 + lane;
            buckets[turn] = route < end ? find(route) : -1;
        }
#pragma unroll
        for (int turn = 0; turn < kTurns; turn++) {
            const int64_t route = base + turn * 32 + lane;
            if (buckets[turn] >= 0) { /* a count does not depend on the order of additions */
                atomicAdd(counters + buckets[turn], 1);
            }
            if (sort.keeps_buckets && route < end) {
                kept[route - first] = static_cast<uint16_t>(buckets[turn]);
            }
        }
    }
}

/*
 * The lanes whose route has the same bucket as this lane's: one vote per bit of a bucket.
 * (match.any takes a turn per distinct value, and routes of neighbours are mostly distinct.)
 */
__device__ __forceinline__ unsigned find_peers(int32_t bucket, int32_t num_bits)
{
    unsigned peers = kAllLanes;
    for (int32_t bit = 0; bit < num_bits; bit++) {
        const bool is_set = (bucket >> bit) & 1;
        const unsigned votes = __ballot_sync(kAllLanes, is_set);
        peers &= is_set ? votes : ~votes;
    }
    return peers;
}

/* The counter's value for this lane's route, which then counts it: lanes of the same bucket get
 * consecutive values in order of lanes. -1 is a bucket of its own (all bits set). */
__device__ __forceinline__ int32_t take_position(int32_t *counters, int32_t bucket, int32_t lane,
                                                 int32_t num_bits)
{
    const unsigned peers = find_peers(bucket, num_bits);
    const int32_t rank = __popc(peers & ((1u << lane) - 1u));
    int32_t before = 0;
    if (bucket >= 0) {
        before = counters[bucket];
    }
    __syncwarp();
    if (bucket >= 0 && rank == 0) {
        counters[bucket] = before + __popc(peers);
    }
    __syncwarp();
    return before + rank;
}

/* Two sums at once: of padded sizes in the upper half, of sizes in the lower. */
__device__ __forceinline__ int64_t pack_sums(int32_t padded, int32_t packed)
{
    return static_cast<int64_t>(padded) << 32 | static_cast<uint32_t>(packed);
}

/* Exclusive prefix sum over the CTA of one value per thread; `total` is the sum of all. */
__device__ __forceinline__ int64_t scan_threads(int64_t value, int64_t *scratch, int64_t *total)
{
    const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
    const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
    int64_t sum = value;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        const int64_t other = __shfl_up_sync(kAllLanes, sum, offset);
        sum += lane >= offset ? other : 0;
    }
    if (lane == 31) {
        scratch[warp] = sum;
    }
    __syncthreads();
    int64_t warps = scratch[lane]; /* every warp sums the warps for itself */
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        const int64_t other = __shfl_up_sync(kAllLanes, warps, offset);
        warps += lane >= offset ? other : 0;
    }
    *total = __shfl_sync(kAllLanes, warps, 31);
    const int64_t before = __shfl_sync(kAllLanes, warps, warp > 0 ? warp - 1 : 0);
    return (warp > 0 ? before : 0) + sum - value;
}

/* Counts of the warps become their offsets inside the CTA; own_counts gets the CTA's sum. Loads go
 * eight at a time: one after the other they would cost a round trip each. */
__device__ __forceinline__ void sum_warps(const RouteSort &sort)
{
    constexpr int kBatch = 8;
    const int32_t stride = sort.num_buckets + 1;
    for (int32_t bucket = threadIdx.x; bucket < sort.num_buckets; bucket += kSortThreads) {
        int32_t sum = 0;
        for (int32_t first = 0; first < sort.num_warps; first += kBatch) {
            int32_t counts[kBatch];
#pragma unroll
            for (int i = 0; i < kBatch; i++) {
                counts[i] =
                    first + i < sort.num_warps ? sort.counters[(first + i) * stride + bucket] : 0;
            }
#pragma unroll
            for (int i = 0; i < kBatch; i++) {
                if (first + i < sort.num_warps) {
                    sort.counters[(first + i) * stride + bucket] = sum;
                }
                sum += counts[i];
            }
        }
        sort.own_counts[bucket] = sum;
    }
}

/*
 * From the CTAs' counts: starts, packed_starts, and bases: the first position of this CTA's routes
 * in each bucket. Every CTA works out all starts.
 */
template <int kNumCtas>
__device__ __forceinline__ void place_buckets(const RouteSort &sort, int32_t alignment)
{
    const int32_t own = cta_rank<kNumCtas>();
    int64_t end = 0;
    for (int32_t first = 0; first < sort.num_buckets; first += kSortThreads) {
        const int32_t bucket = first + static_cast<int32_t>(threadIdx.x);
        const bool exists = bucket < sort.num_buckets;
        int32_t total = exists ? sort.own_counts[bucket] : 0;
        int32_t before = 0;
#if __CUDA_ARCH__ >= 900
        if (kNumCtas > 1 && exists) {
            int32_t counts[kNumCtas];
#pragma unroll
            for (int cta = 0; cta < kNumCtas; cta++) {
                counts[cta] = moe_ptx_load_cluster(sort.own_counts + bucket, cta);
            }
            total = 0;
#pragma unroll
            for (int cta = 0; cta < kNumCtas; cta++) {
                before += cta < own ? counts[cta] : 0;
                total += counts[cta];
            }
        }
#endif
        const int32_t padded = (total + alignment - 1) / alignment * alignment;
        int64_t sum;
        const int64_t start = end + scan_threads(pack_sums(padded, total), sort.scan, &sum);
        if (exists) {
            sort.starts[bucket] = static_cast<int32_t>(start >> 32);
            sort.packed_starts[bucket] = static_cast<int32_t>(start);
            sort.bases[bucket] = static_cast<int32_t>(start >> 32) + before;
        }
        end += sum;
        __syncthreads(); /* the scratch of the scan is used again */
    }
    if (threadIdx.x == 0) {
        sort.starts[sort.num_buckets] = static_cast<int32_t>(end >> 32);
        sort.packed_starts[sort.num_buckets] = static_cast<int32_t>(end);
    }
    cluster_sync<kNumCtas>(); /* and nobody leaves while another reads its counts */
}

/* Steps 1 to 3. After it: starts, packed_starts, bases and counters are ready for step 4. */
template <int kNumCtas, typename Find>
__device__ __forceinline__ void count_routes(const RouteSort &sort, int32_t alignment, Find find)
{
    const int32_t num_counters = sort.num_warps * (sort.num_buckets + 1);
    for (int32_t i = threadIdx.x; i < num_counters; i += kSortThreads) {
        sort.counters[i] = 0;
    }
    __syncthreads();
    count_stretch<kNumCtas>(sort, find);
    __syncthreads();
    sum_warps(sort);
    cluster_sync<kNumCtas>();
    place_buckets<kNumCtas>(sort, alignment);
}

/* Step 4: place(route, bucket, position) for every route; position is -1 for a dropped one. */
template <int kNumCtas, typename Find, typename Place>
__device__ __forceinline__ void place_routes(const RouteSort &sort, Find find, Place place)
{
    const int32_t num_bits =
        32 - __clz(sort.num_buckets); /* a bucket fits, and -1 differs from all */
    const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
    const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
    int32_t *counters = sort.counters + warp * (sort.num_buckets + 1);
    const uint16_t *kept = sort.kept + static_cast<int64_t>(warp) * sort.routes_per_warp;
    int64_t first;
    int64_t end;
    find_stretch<kNumCtas>(sort, &first, &end);
    for (int64_t base = first; base < end; base += 32) {
        const int64_t route = base + lane;
        int32_t bucket = -1;
        if (route < end) {
            bucket = sort.keeps_buckets ? static_cast<int16_t>(kept[route - first]) : find(route);
        }
        const int32_t offset = take_position(counters, bucket, lane, num_bits);
        if (route < end) {
            place(route, bucket, bucket >= 0 ? sort.bases[bucket] + offset : -1);
        }
    }
}

/* This thread's number in the cluster, and how many there are: for loops over outputs. */
template <int kNumCtas> __device__ __forceinline__ int64_t cluster_thread()
{
    return static_cast<int64_t>(cta_rank<kNumCtas>()) * kSortThreads + threadIdx.x;
}

template <int kNumCtas> __device__ __forceinline__ constexpr int64_t cluster_threads()
{
    return static_cast<int64_t>(kNumCtas) * kSortThreads;
}

/* Fills what is left of every bucket's last block, one warp a bucket, and the tail behind all. */
template <int kNumCtas>
__device__ __forceinline__ void fill_padding(const RouteSort &sort, int32_t *array,
                                             int64_t capacity, int32_t value)
{
    const int64_t thread = cluster_thread<kNumCtas>();
    for (int64_t bucket = thread / 32; bucket < sort.num_buckets;
         bucket += cluster_threads<kNumCtas>() / 32) {
        const int32_t count = sort.packed_starts[bucket + 1] - sort.packed_starts[bucket];
        for (int32_t i = sort.starts[bucket] + count + static_cast<int32_t>(thread % 32);
             i < sort.starts[bucket + 1]; i += 32) {
            array[i] = value;
        }
    }
    for (int64_t i = sort.starts[sort.num_buckets] + thread; i < capacity;
         i += cluster_threads<kNumCtas>()) {
        array[i] = value;
    }
}

} // namespace

#endif
