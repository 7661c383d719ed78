/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sort of route_sort.cuh in two launches, a CTA per chunk in both. MOE_CUDA_SORT_COUNT: steps 1
 * and 2; a route's bucket and number in its chunk, and a row of counts per chunk, go to the
 * workspace. MOE_CUDA_SORT_PLACE: 3 from the table of counts, 4, and the chunk in order of buckets,
 * so that neighbouring threads write neighbouring words.
 * Moves: besides ids and outputs 4 bytes per route and two per bucket and chunk, out of the L2 the
 *   whole table per CTA of PLACE.
 */
#ifndef MOE_ROUTE_SPLIT_CUH
#define MOE_ROUTE_SPLIT_CUH

#include "route_emit.cuh"

namespace
{

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

/* Step 2: counts of the warps become their offsets inside the chunk, two buckets at a time; neither
 * sum reaches 2^16. `take(pair, sums)` gets the chunk's counts. */
template <int kThreads, typename Take>
__device__ __forceinline__ void sum_warps(const struct moe_cuda_sort_shape &shape,
                                          const RouteSort &sort, const Take &take)
{
    constexpr int kBatch = 4;
    const int32_t stride = sort.stride / 2;
    uint32_t *pairs = reinterpret_cast<uint32_t *>(sort.counters);
#pragma unroll 1
    for (int32_t pair = threadIdx.x; pair < stride; pair += kThreads) {
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

/* Last of COUNT: numbers of routes in the chunk go to the workspace. */
__device__ __forceinline__ void store_ranks(const struct moe_cuda_sort_shape &shape,
                                            const RouteSort &sort, const Stretch &stretch)
{
    const uint16_t *counters = sort.counters + thread_warp() * sort.stride;
    uint32_t *ranks = shape.ranks + sort.first_route;
#pragma unroll 1
    for (int32_t i = stretch.begin + thread_lane(); i < stretch.end; i += 32) {
        const uint32_t entry = sort.ranked[i];
        ranks[i] = entry + (shape.num_warps > 1 ? counters[entry >> 16] : 0);
    }
}

/* Eight buckets of the rows of a group: MOE_CUDA_SORT_BATCH_ROWS rows at once, which are added two
 * buckets at a time. */
__device__ __forceinline__ void add_rows(const struct moe_cuda_sort_shape &shape,
                                         const RouteSort &sort, int32_t group, int32_t vector,
                                         int32_t num_vectors)
{
    constexpr int kBatch = MOE_CUDA_SORT_BATCH_ROWS;
    const int32_t own = static_cast<int32_t>(blockIdx.x);
    const uint4 *table = reinterpret_cast<const uint4 *>(shape.counts) + vector;
    const uint4 none = make_uint4(0, 0, 0, 0);
    if (group == 0) {
        reinterpret_cast<uint4 *>(sort.row)[vector] =
            own < shape.num_chunks ? __ldcg(table + own * num_vectors) : none;
    }
    int32_t totals[8] = {};
    int32_t offsets[8] = {};
#pragma unroll 1
    for (int32_t first = group; first < shape.num_chunks; first += kBatch * shape.num_groups) {
        uint4 rows[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; i++) {
            const int32_t chunk = first + i * shape.num_groups;
            rows[i] = chunk < shape.num_chunks ? __ldcg(table + chunk * num_vectors) : none;
        }
        uint32_t sums[4] = {};
        uint32_t before[4] = {};
#pragma unroll
        for (int i = 0; i < kBatch; i++) {
            const uint32_t words[4] = {rows[i].x, rows[i].y, rows[i].z, rows[i].w};
            const bool is_before = first + i * shape.num_groups < own;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                sums[j] += words[j];
                before[j] += is_before ? words[j] : 0;
            }
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            totals[i] += static_cast<int32_t>(sums[i / 2] >> (i % 2 * 16) & 0xffffu);
            offsets[i] += static_cast<int32_t>(before[i / 2] >> (i % 2 * 16) & 0xffffu);
        }
    }
    int4 *to = reinterpret_cast<int4 *>(sort.partials + 2 * group * sort.stride) + 2 * vector;
    to[0] = make_int4(totals[0], totals[1], totals[2], totals[3]);
    to[1] = make_int4(totals[4], totals[5], totals[6], totals[7]);
    to += sort.stride / 4;
    to[0] = make_int4(offsets[0], offsets[1], offsets[2], offsets[3]);
    to[1] = make_int4(offsets[4], offsets[5], offsets[6], offsets[7]);
}

/* Step 3 of PLACE: totals and offsets from the table. Groups of threads take rows in turn; their
 * sums stand in sort.partials. */
template <int kThreads>
__device__ __forceinline__ void sum_chunks(const struct moe_cuda_sort_shape &shape,
                                           const RouteSort &sort)
{
    const int32_t num_vectors = sort.stride / 8;
    const uint32_t group = threadIdx.x / static_cast<uint32_t>(num_vectors);
    if (group >= static_cast<uint32_t>(shape.num_groups)) {
        return;
    }
    int32_t vector = static_cast<int32_t>(threadIdx.x - group * num_vectors);
#pragma unroll 1
    for (; vector < num_vectors; vector += kThreads) {
        add_rows(shape, sort, static_cast<int32_t>(group), vector, num_vectors);
    }
}

/* The chunk in order of buckets, from numbers in the chunk. */
__device__ __forceinline__ void put_on_list(const RouteSort &sort, uint32_t bucket, uint32_t number,
                                            int32_t index)
{
    sort.list[sort.places[bucket] + static_cast<int32_t>(number)] =
        bucket << 16 | static_cast<uint32_t>(index);
}

/* Steps 3 and 4 of PLACE, and the chunk's list from the ranks of COUNT. */
template <int kThreads, bool kAligns, bool kPreprocesses>
__device__ __forceinline__ void place_chunk(const struct moe_cuda_sort_shape &shape,
                                            const RouteSort &sort, const Layout &layout)
{
    constexpr int kTurns = 2; /* loaded ahead */
    const uint32_t *ranks = shape.ranks + sort.first_route;
    uint32_t entries[kTurns];
#pragma unroll
    for (int turn = 0; turn < kTurns; turn++) {
        const int32_t i = static_cast<int32_t>(threadIdx.x) + turn * kThreads;
        entries[turn] = i < sort.num_ranked ? __ldcg(ranks + i) : 0;
    }
    sum_chunks<kThreads>(shape, sort);
    __syncthreads();
    scan_totals<kThreads, true, kPreprocesses, kAligns, kPreprocesses>(
        sort, layout,
        [&](int32_t bucket) {
            int32_t total = 0;
            int32_t offset = 0;
#pragma unroll 4
            for (int32_t i = 0; i < shape.num_groups; i++) {
                total += sort.partials[i * 2 * sort.stride + bucket];
                offset += sort.partials[(i * 2 + 1) * sort.stride + bucket];
            }
            sort.totals[bucket] = total;
            sort.offsets[bucket] = offset;
            return total;
        },
        [&](int32_t bucket) { return static_cast<int32_t>(sort.row[bucket]); });
    __syncthreads();
#pragma unroll
    for (int turn = 0; turn < kTurns; turn++) {
        const int32_t i = static_cast<int32_t>(threadIdx.x) + turn * kThreads;
        if (i < sort.num_ranked) {
            put_on_list(sort, entries[turn] >> 16, entries[turn] & 0xffffu, i);
        }
    }
#pragma unroll 1
    for (int32_t i = static_cast<int32_t>(threadIdx.x) + kTurns * kThreads; i < sort.num_ranked;
         i += kThreads) {
        const uint32_t entry = __ldcg(ranks + i);
        put_on_list(sort, entry >> 16, entry & 0xffffu, i);
    }
}

/* COUNT: steps 1 and 2; counts and ranks of the chunk go to the workspace. */
template <int kThreads, typename Source>
__device__ __forceinline__ void count_chunk(const struct moe_cuda_sort_shape &shape,
                                            const RouteSort &sort, const Source &source)
{
    const Stretch stretch(shape, sort);
    int32_t ranked_ids[kRankTurns];
    load_turns(source, sort.first_route + stretch.begin + thread_lane(), 32,
               sort.first_route + stretch.end, ranked_ids);
    clear_words<kThreads>(reinterpret_cast<int32_t *>(sort.counters),
                          shape.num_warps * sort.stride / 2);
    __syncthreads();
    rank_chunk(sort, source, stretch, ranked_ids);
    __syncthreads();
    uint32_t *row = reinterpret_cast<uint32_t *>(shape.counts) +
                    static_cast<int64_t>(blockIdx.x) * (sort.stride / 2);
    sum_warps<kThreads>(shape, sort, [&](int32_t pair, uint32_t sums) { row[pair] = sums; });
    __syncthreads();
    store_ranks(shape, sort, stretch);
}

/* What belongs to a route, in the order of the chunk's list, so that neighbours mostly write
 * neighbouring words; src2dst is put in the order of routes in shared memory first. */
template <int kThreads, bool kAligns, bool kPreprocesses>
__device__ __forceinline__ void emit_list(const struct moe_op_align *align,
                                          const struct moe_op_ep_preprocess *preprocess,
                                          const RouteSort &sort, const Layout &layout)
{
    const bool has_rows = kPreprocesses && preprocess->src2dst != nullptr;
    int32_t *rows = reinterpret_cast<int32_t *>(sort.ranked);
#pragma unroll 2
    for (int32_t i = threadIdx.x; i < sort.num_ranked; i += kThreads) {
        const uint32_t entry = sort.list[i];
        const int32_t bucket = static_cast<int32_t>(entry >> 16);
        const int32_t index = static_cast<int32_t>(entry & 0xffffu);
        const int32_t row = emit_route<kAligns, kPreprocesses>(align, preprocess, sort, layout,
                                                               sort.first_route + index, bucket,
                                                               i + sort.offsets[bucket]);
        if (has_rows) {
            rows[index] = row;
        }
    }
    if (has_rows) {
        __syncthreads();
        int32_t *src2dst = preprocess->src2dst + sort.first_route;
#pragma unroll 1
        for (int32_t i = threadIdx.x; i < sort.num_ranked; i += kThreads) {
            src2dst[i] = rows[i];
        }
    }
}

/* PLACE as a whole. */
template <int kThreads, bool kAligns, bool kPreprocesses>
__device__ __forceinline__ void place_routes(const struct moe_cuda_sort_shape &shape,
                                             const struct moe_op_align *align,
                                             const struct moe_op_ep_preprocess *preprocess,
                                             const RouteSort &sort, const Layout &layout)
{
    place_chunk<kThreads, kAligns, kPreprocesses>(shape, sort, layout);
    __syncthreads();
    emit_list<kThreads, kAligns, kPreprocesses>(align, preprocess, sort, layout);
    if (kAligns) {
        emit_blocks<kThreads>(*align, sort, layout.num_starts);
    }
    if (kPreprocesses) {
        emit_segments<kThreads>(*preprocess, sort);
    }
}

} // namespace

#endif
