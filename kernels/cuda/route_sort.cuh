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
 * Moves: the ids once (ALL: once per CTA, out of the L2); between two launches 4 bytes per route
 *   and two 16-bit words per bucket and chunk. Bound by latency: that of the launch, of one load,
 *   and of a few hundred dependent instructions, so the code is short rather than unrolled.
 * Pipeline: 1 every warp of a CTA ranks a stretch of the chunk's routes with counters of its own.
 *   2 the warps' counts become offsets. 3 totals over all routes, and of those before the chunk.
 *   4 one scan gives positions. 5 outputs (route_emit.cuh).
 *   MOE_CUDA_SORT_ALL: one launch, a CTA per chunk; for 3 every CTA counts all routes.
 *   MOE_CUDA_SORT_CLUSTER: one launch of one cluster (route_cluster.cuh).
 *   MOE_CUDA_SORT_COUNT, then MOE_CUDA_SORT_PLACE: two launches (route_split.cuh).
 * Limits: MOE_CUDA_SORT_MAX_CHUNK routes per chunk, 65535 buckets, and what moe_cuda_sort_min_smem
 *   counts of shared memory.
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
    int32_t *totals;     /* [num_buckets] routes of all chunks; COUNT: of this one */
    int32_t *offsets;  /* [num_buckets] routes of earlier chunks; PLACE, CLUSTER: minus the bucket's
                            first place in the list */
    int32_t *packed;   /* [num_buckets + 1] first position without padding */
    int32_t *starts;   /* [num_buckets + 1] first block of align */
    int32_t *segments; /* [num_buckets + 1] first row of ep_preprocess; masked: without what does
                            not fit */
    int32_t *places;   /* CLUSTER: [num_buckets + 1] first place in the chunk's list */
    uint32_t *ranked;  /* [chunk_routes] in order of routes: bucket << 16 | number in its warp */
    uint32_t *list;    /* not ALL: [chunk_routes] in order of buckets: bucket << 16 | index */
    uint16_t *counters; /* [num_warps][stride]: counts, then offsets inside the chunk */
    int32_t *partials;  /* PLACE: [groups][2][stride]: totals, and of the chunks before this one */
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
    sort.ranked = reinterpret_cast<uint32_t *>(sort.segments + words);
    const int32_t chunk_words = moe_cuda_sort_chunk_words(shape.chunk_routes);
    sort.list = sort.ranked + chunk_words;
    sort.partials = reinterpret_cast<int32_t *>(
        sort.list + (shape.phase == MOE_CUDA_SORT_ALL ? 0 : chunk_words));
    sort.counters = reinterpret_cast<uint16_t *>(sort.partials);
    return sort;
}

/* There are num_routes; this CTA's chunk of them. */
__device__ __forceinline__ void set_routes(const struct moe_cuda_sort_shape &shape,
                                           int32_t num_routes, RouteSort *sort)
{
    sort->num_routes = num_routes;
    sort->first_route = static_cast<int32_t>(blockIdx.x) * shape.chunk_routes;
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

/* Buckets by the ids in global memory. Any id is safe. */
struct IdSource {
    const int32_t *words;
    int32_t words_per_id;
    const struct moe_op_filter *filter;

    __device__ __forceinline__ IdSource(const void *ids, int32_t ids_dtype,
                                        const struct moe_op_filter &f)
        : words(static_cast<const int32_t *>(ids)),
          words_per_id(ids_dtype == MOE_IDS_INT64 ? 2 : 1), filter(&f)
    {
    }

    /* The id of a route; -1 for one that no int32 is. */
    __device__ __forceinline__ int32_t load(int32_t route) const
    {
        const int32_t *from = words + static_cast<int64_t>(route) * words_per_id;
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

/* Ids that a thread has loaded ahead: of its turns `begin + i * step`, below `end`. */
template <int kTurns, typename Source>
__device__ __forceinline__ void load_turns(const Source &source, int32_t begin, int32_t step,
                                           int32_t end, int32_t (&ids)[kTurns])
{
#pragma unroll
    for (int turn = 0; turn < kTurns; turn++) {
        const int32_t route = begin + turn * step;
        ids[turn] = route < end ? source.load(route) : 0;
    }
}

/* A warp's stretch of the chunk, as routes. */
struct Stretch {
    int32_t begin;
    int32_t end;

    __device__ __forceinline__ Stretch(const struct moe_cuda_sort_shape &shape,
                                       const RouteSort &sort)
        : begin(thread_warp() * shape.routes_per_warp),
          end(min(begin + shape.routes_per_warp, sort.num_ranked))
    {
        end = thread_warp() < shape.num_warps ? end : begin;
    }
};

constexpr int kRankTurns = 2;
constexpr int kCountTurns = 8;

/* Step 1; the ids of the first turns have been loaded. */
template <typename Source>
__device__ __forceinline__ void rank_chunk(const RouteSort &sort, const Source &source,
                                           const Stretch &stretch, int32_t (&ids)[kRankTurns])
{
    const int32_t lane = thread_lane();
    uint16_t *counters = sort.counters + thread_warp() * sort.stride;
#pragma unroll 1
    for (int32_t base = stretch.begin; base < stretch.end; base += 32) {
        const int32_t index = base + lane;
        const bool exists = index < stretch.end;
        const uint32_t bucket = exists ? source.find(ids[0]) : kAllLanes;
        const int32_t next = index + kRankTurns * 32;
        ids[0] = ids[1];
        ids[1] = next < stretch.end ? source.load(sort.first_route + next) : 0;
        const unsigned peers = __match_any_sync(kAllLanes, bucket);
        const uint32_t rank = __popc(peers & ((1u << lane) - 1u));
        uint32_t before = 0;
        if (exists) {
            before = counters[bucket];
            sort.ranked[index] = bucket << 16 | (before + rank);
        }
        __syncwarp();
        if (exists && rank == 0) {
            counters[bucket] = static_cast<uint16_t>(before + __popc(peers));
        }
        __syncwarp();
    }
}

/* Step 3 of ALL: in totals routes of a bucket, times 2^16, plus those before this chunk; both are
 * at most MOE_CUDA_SORT_MAX_CHUNK. The ids of the first turns have been loaded. */
template <int kThreads, typename Source>
__device__ __forceinline__ void count_all(const RouteSort &sort, const Source &source,
                                          int32_t (&ids)[kCountTurns])
{
    int32_t route = threadIdx.x;
#pragma unroll 1
    while (route < sort.num_routes) {
#pragma unroll
        for (int turn = 0; turn < kCountTurns; turn++) {
            if (route < sort.num_routes) {
                const uint32_t bucket = source.find(ids[turn]);
                atomicAdd(sort.totals + bucket, route < sort.first_route ? 0x10001 : 0x10000);
            }
            route += kThreads;
        }
        if (route < sort.num_routes) {
            load_turns(source, route, kThreads, sort.num_routes, ids);
        }
    }
}

/* Step 2: counts of the warps become their offsets inside the chunk, two buckets at a time; neither
 * sum reaches 2^16. `take(pair, sums)` gets the chunk's counts. */
template <int kThreads, typename Take>
__device__ __forceinline__ void sum_warps(const struct moe_cuda_sort_shape &shape,
                                          const RouteSort &sort, const Take &take)
{
    constexpr int kBatch = 4;
    const int32_t num_pairs = (sort.num_buckets + 1) / 2;
    const int32_t stride = sort.stride / 2;
    uint32_t *pairs = reinterpret_cast<uint32_t *>(sort.counters);
#pragma unroll 1
    for (int32_t pair = threadIdx.x; pair < num_pairs; pair += kThreads) {
        uint32_t sum = 0;
#pragma unroll 1
        for (int32_t first = 0; first < shape.num_warps; first += kBatch) {
            uint32_t *at = pairs + first * stride + pair;
            uint32_t counts[kBatch];
#pragma unroll
            for (int i = 0; i < kBatch; i++) {
                counts[i] = first + i < shape.num_warps ? at[i * stride] : 0;
            }
#pragma unroll
            for (int i = 0; i < kBatch; i++) {
                if (first + i < shape.num_warps) {
                    at[i * stride] = sum;
                }
                sum += counts[i];
            }
        }
        take(pair, sum);
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

/* Steps 1 to 4 of ALL. Ids are loaded before anything else, so that counters are cleared
 * meanwhile. */
template <int kThreads, bool kAligns, bool kPreprocesses, typename Source>
__device__ __forceinline__ void sort_all(const struct moe_cuda_sort_shape &shape,
                                         const RouteSort &sort, const Layout &layout,
                                         const Source &source)
{
    const Stretch stretch(shape, sort);
    int32_t ranked_ids[kRankTurns];
    int32_t counted_ids[kCountTurns];
    load_turns(source, sort.first_route + stretch.begin + thread_lane(), 32,
               sort.first_route + stretch.end, ranked_ids);
    load_turns(source, static_cast<int32_t>(threadIdx.x), kThreads, sort.num_routes, counted_ids);
    clear_words<kThreads>(sort.totals, moe_cuda_sort_bucket_words(sort.num_buckets - 1));
    clear_words<kThreads>(reinterpret_cast<int32_t *>(sort.counters),
                          shape.num_warps * sort.stride / 2);
    __syncthreads();
    count_all<kThreads>(sort, source, counted_ids);
    rank_chunk(sort, source, stretch, ranked_ids);
    __syncthreads();
    if (shape.num_warps > 1) {
        sum_warps<kThreads>(shape, sort, [](int32_t, uint32_t) {});
    }
    scan_totals<kThreads, kPreprocesses, kAligns, kPreprocesses>(sort, layout, [&](int32_t bucket) {
        const int32_t both = sort.totals[bucket];
        sort.totals[bucket] = both >> 16;
        sort.offsets[bucket] = both & 0xffff;
        return both >> 16;
    });
}

} // namespace

#endif
