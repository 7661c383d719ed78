/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stable counting sort of routes by local expert that align_block_size, ep_preprocess and route
 * share.
 *
 * Computes, for every route, its number among the routes of its bucket (a local expert; the last
 * bucket is that of filtered routes) in ascending order of routes. Everything that the operations
 * write follows from these numbers and the buckets' totals. The order follows from route indices
 * alone (atomics only count), so the result is the same in every run and with any number of CTAs.
 * No CTA waits for another.
 *
 * Two ways: route_flat.cuh has a thread per route and one launch; route_split.cuh two launches and
 * any number of routes. Both end in the same scan, from totals to positions, and the same outputs
 * (route_emit.cuh). Bound by latency: that of the launch, of one load, and of a few hundred
 * dependent instructions, so the code is short rather than unrolled.
 * Limits: 65535 buckets, and what src/cuda_routing.c counts of shared memory.
 */
#ifndef MOE_ROUTE_SORT_CUH
#define MOE_ROUTE_SORT_CUH

#include "cuda_args.h"
#include "ptx.cuh"

namespace
{

constexpr unsigned kAllLanes = 0xffffffffu;

/* Shared memory of a CTA, laid out as src/cuda_routing.c counts it, and the numbers. */
struct RouteSort {
    int32_t num_buckets; /* experts + 1 */
    int32_t stride;      /* of counters and of rows of the tables */
    int32_t num_ranked;  /* routes of this chunk */
    int32_t num_routes;  /* of all */
    int32_t first_route; /* of this chunk */
    int32_t *scan;       /* [32][3] */
    int32_t *totals;     /* [num_buckets] routes of all chunks */
    int32_t *offsets;    /* [num_buckets] routes of earlier chunks; PLACE: minus the bucket's
                            first place in the list */
    int32_t *packed;     /* [num_buckets + 1] first position without padding */
    int32_t *starts;     /* [num_buckets + 1] first block of align */
    int32_t *segments;   /* [num_buckets + 1] first row of ep_preprocess; masked: without what does
                            not fit */
    int32_t *places;     /* PLACE: [num_buckets + 1] first place in the chunk's list */
    uint32_t *ranked;    /* COUNT: [chunk_routes] in order of routes: bucket << 16 | number in its
                            warp; PLACE: room for rows of routes; FLAT: its arrays */
    uint32_t *list;      /* PLACE: [chunk_routes] in order of buckets: bucket << 16 | index */
    uint16_t *counters;  /* [num_warps][stride]: counts, then offsets inside the chunk */
    uint16_t *row;       /* PLACE: [stride] counts of this chunk */
    int32_t *partials;   /* PLACE: [groups][2][stride]: totals, and of the chunks before this one */
};

__device__ __forceinline__ int32_t thread_lane()
{
    return static_cast<int32_t>(threadIdx.x) % 32;
}

__device__ __forceinline__ int32_t thread_warp()
{
    return static_cast<int32_t>(threadIdx.x) / 32;
}

/* Without the numbers of routes, which may have to be read first. */
__device__ __forceinline__ RouteSort make_route_sort(const struct moe_cuda_sort_shape &shape,
                                                     int32_t num_experts)
{
    extern __shared__ __align__(16) int32_t shared_words[];
    const int32_t words = moe_cuda_sort_bucket_words(num_experts);
    RouteSort sort;
    sort.num_buckets = num_experts + 1;
    sort.stride = moe_cuda_sort_row_words(num_experts);
    sort.num_ranked = 0;
    sort.num_routes = 0;
    sort.first_route = 0;
    sort.scan = shared_words;
    sort.totals = shared_words + MOE_CUDA_SORT_SCAN_WORDS;
    sort.offsets = sort.totals + words;
    sort.packed = sort.offsets + words;
    sort.starts = sort.packed + words;
    sort.segments = sort.starts + words;
    sort.places = sort.segments + words;
    sort.ranked = reinterpret_cast<uint32_t *>(sort.places + words);
    const int32_t chunk_words = moe_cuda_sort_chunk_words(shape.chunk_routes);
    const bool has_list = shape.phase == MOE_CUDA_SORT_PLACE;
    sort.list = sort.ranked + chunk_words;
    sort.counters = reinterpret_cast<uint16_t *>(sort.list + (has_list ? chunk_words : 0));
    sort.row = sort.counters;
    sort.partials = reinterpret_cast<int32_t *>(sort.row + sort.stride);
    return sort;
}

/* There are num_routes; this CTA's chunk of them. */
__device__ __forceinline__ void set_routes(const struct moe_cuda_sort_shape &shape, int32_t chunk,
                                           int32_t num_routes, RouteSort *sort)
{
    sort->num_routes = num_routes;
    sort->first_route = chunk * shape.chunk_routes;
    const int32_t left = num_routes - sort->first_route;
    sort->num_ranked = max(0, min(left, shape.chunk_routes));
}

/* num_tokens_device: the smaller of it and what the host said. */
__device__ __forceinline__ int32_t real_routes(const int32_t *num_tokens_device, int64_t num_routes,
                                               int32_t top_k)
{
    int64_t routes = num_routes;
    if (num_tokens_device != nullptr) {
        const int64_t real = static_cast<int64_t>(max(*num_tokens_device, 0)) * top_k;
        routes = real < routes ? real : routes;
    }
    return static_cast<int32_t>(routes);
}

/* Buckets by the ids in memory. Any id is safe. */
struct IdSource {
    const int32_t *words;
    int32_t words_per_id;
    const struct moe_op_filter *filter;
    int32_t first; /* route of ids[0] */

    __device__ __forceinline__ IdSource(const void *ids, int32_t ids_dtype,
                                        const struct moe_op_filter &f, int32_t first_route = 0)
        : words(static_cast<const int32_t *>(ids)),
          words_per_id(ids_dtype == MOE_IDS_INT64 ? 2 : 1), filter(&f), first(first_route)
    {
    }

    /* The id of a route; -1 for one that no int32 is. */
    __device__ __forceinline__ int32_t load(int32_t route) const
    {
        const int32_t *from = words + static_cast<int64_t>(route - first) * words_per_id;
        const int32_t low = from[0];
        return words_per_id == 2 && from[1] != low >> 31 ? -1 : low;
    }

    /* Local expert, or num_experts if the id is filtered. */
    __device__ __forceinline__ uint32_t find(int32_t id) const
    {
        const bool is_named = id >= filter->expert_begin && id < filter->expert_end && id >= 0 &&
                              id < filter->num_ids;
        int32_t local = -1;
        if (is_named) {
            local =
                filter->expert_map != nullptr ? filter->expert_map[id] : id - filter->expert_begin;
        }
        return min(static_cast<uint32_t>(local), static_cast<uint32_t>(filter->num_experts));
    }
};

template <int kThreads> __device__ __forceinline__ void clear_words(int32_t *words, int32_t count)
{
    int4 *vectors = reinterpret_cast<int4 *>(words); /* a multiple of four words, aligned */
#pragma unroll 1
    for (int32_t i = threadIdx.x; i < count / 4; i += kThreads) {
        vectors[i] = make_int4(0, 0, 0, 0);
    }
}

/* Exclusive prefix sums over the CTA of kSums values per thread. */
template <int kSums>
__device__ __forceinline__ void scan_threads(int32_t (&values)[kSums], int32_t *scratch)
{
    const int32_t lane = thread_lane();
    int32_t sums[kSums];
#pragma unroll
    for (int i = 0; i < kSums; i++) {
        sums[i] = values[i];
    }
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
#pragma unroll
        for (int i = 0; i < kSums; i++) {
            const int32_t other = __shfl_up_sync(kAllLanes, sums[i], offset);
            sums[i] += lane >= offset ? other : 0;
        }
    }
    if (lane == 31) {
#pragma unroll
        for (int i = 0; i < kSums; i++) {
            scratch[i * 32 + thread_warp()] = sums[i];
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kSums; i++) { /* every warp sums the warps before it for itself */
        const int32_t other = lane < thread_warp() ? scratch[i * 32 + lane] : 0;
        values[i] = sums[i] - values[i] + __reduce_add_sync(kAllLanes, other);
    }
}

/* How totals become positions. */
struct Layout {
    int32_t block_size;        /* of align */
    int32_t num_starts;        /* buckets that have blocks: experts, + 1 when filtered are kept */
    int32_t segment_alignment; /* of ep_preprocess */
    int32_t max_masked_rows;   /* 0: contiguous */
};

__device__ __noinline__ uint32_t divide_up(uint32_t count, uint32_t divisor)
{
    return (count + divisor - 1) / divisor;
}

/* Blocks that hold `count`; the sum of the two may pass 2^31. */
__device__ __forceinline__ int32_t count_blocks(int32_t count, int32_t block_size)
{
    const uint32_t routes = static_cast<uint32_t>(count);
    const uint32_t size = static_cast<uint32_t>(block_size);
    if ((size & (size - 1)) == 0) {
        return static_cast<int32_t>((routes + size - 1) >> (31 - __clz(block_size)));
    }
    return static_cast<int32_t>(divide_up(routes, size));
}

/*
 * Step 4: packed, starts and segments, as far as they are wanted; entry num_experts is the end of
 * the experts. `find(bucket)` is asked once for each bucket's total, before that has to stand in
 * sort.totals. kPlaces: `extra(bucket)` is summed into sort.places, which offsets are made less by.
 */
template <int kThreads, bool kPlaces, bool kPacks, bool kAligns, bool kPreprocesses, typename Find,
          typename Extra>
__device__ __forceinline__ void scan_totals(const RouteSort &sort, const Layout &layout,
                                            const Find &find, const Extra &extra)
{
    constexpr int kPacked = kPlaces ? 1 : 0;
    constexpr int kStarts = kPacked + (kPacks ? 1 : 0);
    constexpr int kSegments = kStarts + (kAligns ? 1 : 0);
    constexpr int kSums = kSegments + (kPreprocesses ? 1 : 0);
    const int32_t num_experts = sort.num_buckets - 1;
    const int32_t thread = static_cast<int32_t>(threadIdx.x);
    int32_t sums[kSums] = {};
    const auto add_sizes = [&](int32_t bucket, int32_t total) {
        if constexpr (kPlaces) {
            sums[0] += extra(bucket);
        }
        if constexpr (kPacks) {
            sums[kPacked] += total;
        }
        if constexpr (kAligns) {
            sums[kStarts] += count_blocks(total, layout.block_size);
        }
        if constexpr (kPreprocesses) {
            sums[kSegments] +=
                layout.max_masked_rows > 0
                    ? min(total, layout.max_masked_rows)
                    : count_blocks(total, layout.segment_alignment) * layout.segment_alignment;
        }
    };
    const auto store = [&](int32_t bucket) {
        if constexpr (kPlaces) {
            sort.places[bucket] = sums[0];
            sort.offsets[bucket] -= sums[0];
        }
        if constexpr (kPacks) {
            sort.packed[bucket] = sums[kPacked];
        }
        if constexpr (kAligns) {
            sort.starts[bucket] = sums[kStarts];
        }
        if constexpr (kPreprocesses) {
            sort.segments[bucket] = sums[kSegments];
        }
    };
    const int32_t per_thread = (num_experts + kThreads - 1) / kThreads;
    const int32_t first = thread * per_thread;
    const int32_t end = min(first + per_thread, num_experts);
    if (thread == kThreads - 1) {
        find(num_experts); /* filtered routes */
    }
#pragma unroll 1
    for (int32_t bucket = first; bucket < end; bucket++) {
        add_sizes(bucket, find(bucket));
    }
    scan_threads<kSums>(sums, sort.scan);
#pragma unroll 1
    for (int32_t bucket = first; bucket < end; bucket++) {
        store(bucket);
        add_sizes(bucket, sort.totals[bucket]);
    }
    if (first < end && end == num_experts) {
        store(num_experts);
        if (kAligns && layout.num_starts > num_experts) {
            sort.starts[num_experts + 1] =
                sums[kStarts] + count_blocks(sort.totals[num_experts], layout.block_size);
        }
    }
}

/* Without places. */
template <int kThreads, bool kPacks, bool kAligns, bool kPreprocesses, typename Find>
__device__ __forceinline__ void scan_totals(const RouteSort &sort, const Layout &layout,
                                            const Find &find)
{
    scan_totals<kThreads, false, kPacks, kAligns, kPreprocesses>(sort, layout, find,
                                                                 [](int32_t) { return 0; });
}

} // namespace

#endif
