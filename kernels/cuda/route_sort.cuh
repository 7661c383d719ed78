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
 *   MOE_CUDA_SORT_COUNT, then MOE_CUDA_SORT_PLACE: a CTA per chunk; 1 and 2 and the chunk in order
 *   of buckets, so that neighbouring threads write neighbouring words; then 3 from a table.
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
    int32_t *offsets;   /* [num_buckets] routes of earlier chunks; PLACE: minus place in the list */
    int32_t *packed;    /* [num_buckets + 1] first position without padding */
    int32_t *starts;    /* [num_buckets + 1] first block of align */
    int32_t *segments;  /* [num_buckets + 1] first row of ep_preprocess; masked: without what does
                            not fit */
    uint32_t *ranked;   /* [chunk_routes] in order of routes: bucket << 16 | number in its warp */
    uint32_t *list;     /* not ALL: [chunk_routes] in order of buckets: bucket << 16 | index */
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

/* What steps 1 and 3 count into. */
template <int kThreads>
__device__ __forceinline__ void clear_counts(const struct moe_cuda_sort_shape &shape,
                                             const RouteSort &sort)
{
    if (shape.phase == MOE_CUDA_SORT_ALL) {
        clear_words<kThreads>(sort.totals, moe_cuda_sort_bucket_words(sort.num_buckets - 1));
    }
    if (shape.phase != MOE_CUDA_SORT_PLACE) {
        clear_words<kThreads>(reinterpret_cast<int32_t *>(sort.counters),
                              shape.num_warps * sort.stride / 2);
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
 * sum reaches 2^16. COUNT: the sums are the totals. ALL: totals and offsets are taken apart. */
template <int kThreads>
__device__ __forceinline__ void sum_warps(const struct moe_cuda_sort_shape &shape,
                                          const RouteSort &sort)
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
        int2 *totals = reinterpret_cast<int2 *>(sort.totals) + pair;
        if (shape.phase == MOE_CUDA_SORT_COUNT) {
            *totals =
                make_int2(static_cast<int32_t>(sum & 0xffffu), static_cast<int32_t>(sum >> 16));
        } else {
            const int2 both = *totals;
            *totals = make_int2(both.x >> 16, both.y >> 16);
            reinterpret_cast<int2 *>(sort.offsets)[pair] =
                make_int2(both.x & 0xffff, both.y & 0xffff);
        }
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

/* Step 4: packed, and starts or segments or both, from totals; entry num_buckets is the end. */
template <int kThreads, bool kAligns, bool kPreprocesses>
__device__ __forceinline__ void scan_totals(const RouteSort &sort, const Layout &layout)
{
    constexpr int kSums = 1 + (kAligns ? 1 : 0) + (kPreprocesses ? 1 : 0);
    const int32_t num_experts = sort.num_buckets - 1;
    const int32_t per_thread = (sort.num_buckets + kThreads - 1) / kThreads;
    const int32_t first = static_cast<int32_t>(threadIdx.x) * per_thread;
    const int32_t end = min(first + per_thread, sort.num_buckets);
    const int32_t stop = first < end && end == sort.num_buckets ? end + 1 : end;
    const auto add_sizes = [&](int32_t bucket, int32_t(&sums)[kSums]) {
        const int32_t total = sort.totals[bucket];
        sums[0] += total;
        if (kAligns && bucket < layout.num_starts) {
            sums[1] += count_blocks(total, layout.block_size);
        }
        if (kPreprocesses && bucket < num_experts) {
            sums[kSums - 1] +=
                layout.max_masked_rows > 0
                    ? min(total, layout.max_masked_rows)
                    : count_blocks(total, layout.segment_alignment) * layout.segment_alignment;
        }
    };
    int32_t sums[kSums] = {};
#pragma unroll 1
    for (int32_t bucket = first; bucket < end; bucket++) {
        add_sizes(bucket, sums);
    }
    scan_threads<kSums>(sums, sort.scan);
#pragma unroll 1
    for (int32_t bucket = first; bucket < stop; bucket++) {
        sort.packed[bucket] = sums[0];
        if (kAligns) {
            sort.starts[bucket] = sums[1];
        }
        if (kPreprocesses) {
            sort.segments[bucket] = sums[kSums - 1];
        }
        if (bucket < end) {
            add_sizes(bucket, sums);
        }
    }
}

/* Last of COUNT: the chunk in order of buckets, its counts and places go to the workspace. */
template <int kThreads>
__device__ __forceinline__ void store_chunk(const struct moe_cuda_sort_shape &shape,
                                            const RouteSort &sort)
{
    const Stretch stretch(shape, sort);
    const uint16_t *counters = sort.counters + thread_warp() * sort.stride;
#pragma unroll 1
    for (int32_t i = stretch.begin + thread_lane(); i < stretch.end; i += 32) {
        const uint32_t entry = sort.ranked[i];
        const uint32_t bucket = entry >> 16;
        sort.list[sort.packed[bucket] + counters[bucket] + (entry & 0xffffu)] =
            bucket << 16 | static_cast<uint32_t>(i);
    }
    const int64_t row = static_cast<int64_t>(blockIdx.x) * sort.stride;
#pragma unroll 1
    for (int32_t bucket = threadIdx.x; bucket < sort.stride; bucket += kThreads) {
        const bool exists = bucket < sort.num_buckets;
        shape.counts[row + bucket] = static_cast<uint16_t>(exists ? sort.totals[bucket] : 0);
        shape.places[row + bucket] = static_cast<uint16_t>(exists ? sort.packed[bucket] : 0);
    }
    __syncthreads();
    uint32_t *list = shape.lists + sort.first_route;
#pragma unroll 1
    for (int32_t i = threadIdx.x; i < sort.num_ranked; i += kThreads) {
        list[i] = sort.list[i];
    }
}

/*
 * Step 3 of PLACE: totals and offsets from the table. Groups of warps take rows in turn, a thread
 * two buckets of a row and up to eight rows at once; the groups' sums meet in shared memory.
 */
template <int kThreads>
__device__ __forceinline__ void sum_chunks(const struct moe_cuda_sort_shape &shape,
                                           const RouteSort &sort)
{
    constexpr int kBatch = 8;
    const int32_t num_pairs = sort.stride / 2;
    const int32_t own = static_cast<int32_t>(blockIdx.x);
    const uint32_t *table = reinterpret_cast<const uint32_t *>(shape.counts);
    const uint32_t *places =
        reinterpret_cast<const uint32_t *>(shape.places) + static_cast<int64_t>(own) * num_pairs;
    int32_t group = 0;
    int32_t pair = static_cast<int32_t>(threadIdx.x);
    while (pair >= shape.group_threads) {
        pair -= shape.group_threads;
        group++;
    }
#pragma unroll 1
    for (; group < shape.num_groups && pair < num_pairs; pair += kThreads) {
        int2 sums = make_int2(0, 0);
        int2 before = make_int2(0, 0);
        const uint32_t place = group == 0 ? __ldcg(places + pair) : 0;
#pragma unroll 1
        for (int32_t first = group; first < shape.num_chunks; first += kBatch * shape.num_groups) {
            uint32_t rows[kBatch];
#pragma unroll
            for (int i = 0; i < kBatch; i++) {
                const int32_t chunk = first + i * shape.num_groups;
                rows[i] = chunk < shape.num_chunks
                              ? __ldcg(table + static_cast<int64_t>(chunk) * num_pairs + pair)
                              : 0;
            }
#pragma unroll
            for (int i = 0; i < kBatch; i++) {
                const int32_t low = static_cast<int32_t>(rows[i] & 0xffffu);
                const int32_t high = static_cast<int32_t>(rows[i] >> 16);
                const bool is_before = first + i * shape.num_groups < own;
                sums.x += low;
                sums.y += high;
                before.x += is_before ? low : 0;
                before.y += is_before ? high : 0;
            }
        }
        before.x -= static_cast<int32_t>(place & 0xffffu);
        before.y -= static_cast<int32_t>(place >> 16);
        int2 *to = reinterpret_cast<int2 *>(sort.partials + group * 2 * sort.stride);
        to[pair] = sums;
        to[num_pairs + pair] = before;
    }
    __syncthreads();
#pragma unroll 1
    for (int32_t bucket = threadIdx.x; bucket < sort.num_buckets; bucket += kThreads) {
        int32_t total = 0;
        int32_t offset = 0;
#pragma unroll 2
        for (int32_t i = 0; i < shape.num_groups; i++) {
            total += sort.partials[i * 2 * sort.stride + bucket];
            offset += sort.partials[(i * 2 + 1) * sort.stride + bucket];
        }
        sort.totals[bucket] = total;
        sort.offsets[bucket] = offset;
    }
}

/*
 * Steps 1 to 4. After it, behind a barrier: true, and what route_emit.cuh reads is there; false
 * after COUNT, which has nothing to emit. The wait for the node before has been. Ids are loaded
 * before anything else, so that counters are cleared meanwhile.
 */
template <int kThreads, bool kAligns, bool kPreprocesses, typename Source>
__device__ __forceinline__ bool sort_routes(const struct moe_cuda_sort_shape &shape,
                                            const RouteSort &sort, const Layout &layout,
                                            const Source &source)
{
    if (shape.phase == MOE_CUDA_SORT_PLACE) {
        constexpr int kListTurns = 2;
        const uint32_t *list = shape.lists + sort.first_route;
        uint32_t entries[kListTurns];
#pragma unroll
        for (int turn = 0; turn < kListTurns; turn++) {
            const int32_t i = static_cast<int32_t>(threadIdx.x) + turn * kThreads;
            entries[turn] = i < sort.num_ranked ? __ldcg(list + i) : 0;
        }
        sum_chunks<kThreads>(shape, sort);
        __syncthreads();
#pragma unroll
        for (int turn = 0; turn < kListTurns; turn++) {
            const int32_t i = static_cast<int32_t>(threadIdx.x) + turn * kThreads;
            if (i < sort.num_ranked) {
                sort.list[i] = entries[turn];
            }
        }
#pragma unroll 1
        for (int32_t i = static_cast<int32_t>(threadIdx.x) + kListTurns * kThreads;
             i < sort.num_ranked; i += kThreads) {
            sort.list[i] = __ldcg(list + i);
        }
    } else {
        const Stretch stretch(shape, sort);
        int32_t ranked_ids[kRankTurns];
        int32_t counted_ids[kCountTurns];
        load_turns(source, sort.first_route + stretch.begin + thread_lane(), 32,
                   sort.first_route + stretch.end, ranked_ids);
        if (shape.phase == MOE_CUDA_SORT_ALL) {
            load_turns(source, static_cast<int32_t>(threadIdx.x), kThreads, sort.num_routes,
                       counted_ids);
        }
        clear_counts<kThreads>(shape, sort);
        __syncthreads();
        if (shape.phase == MOE_CUDA_SORT_ALL) {
            count_all<kThreads>(sort, source, counted_ids);
        }
        rank_chunk(sort, source, stretch, ranked_ids);
        __syncthreads();
        sum_warps<kThreads>(shape, sort);
        __syncthreads();
    }
    scan_totals<kThreads, kAligns, kPreprocesses>(sort, layout);
    __syncthreads();
    if (shape.phase == MOE_CUDA_SORT_COUNT) {
        store_chunk<kThreads>(shape, sort);
        return false;
    }
    return true;
}

} // namespace

#endif
