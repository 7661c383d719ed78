/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sort of route_sort.cuh in two launches, a CTA per chunk in both. MOE_CUDA_SORT_COUNT: steps 1
 * and 2, and the chunk in order of buckets, so that neighbouring threads write neighbouring words;
 * a row of counts per chunk goes to the workspace. MOE_CUDA_SORT_PLACE: 3 from the table of counts,
 * and 4.
 * Moves: besides ids and outputs 4 bytes per route and two 16-bit words per bucket and chunk, out
 *   of the L2 the whole table per CTA of PLACE.
 */
#ifndef MOE_ROUTE_SPLIT_CUH
#define MOE_ROUTE_SPLIT_CUH

#include "route_sort.cuh"

namespace
{

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
    const uint4 *places = reinterpret_cast<const uint4 *>(shape.places) + vector;
    const uint4 place =
        group == 0 && own < shape.num_chunks ? __ldcg(places + own * num_vectors) : none;
    const uint32_t starts[4] = {place.x, place.y, place.z, place.w};
    int32_t totals[8] = {};
    int32_t offsets[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        offsets[i] = -static_cast<int32_t>(starts[i / 2] >> (i % 2 * 16) & 0xffffu);
    }
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

/* The list of COUNT, whose first entries have been loaded. */
constexpr int kListTurns = 2;

template <int kThreads>
__device__ __forceinline__ void take_list(const RouteSort &sort, const uint32_t *list,
                                          const uint32_t (&entries)[kListTurns])
{
#pragma unroll
    for (int turn = 0; turn < kListTurns; turn++) {
        const int32_t i = static_cast<int32_t>(threadIdx.x) + turn * kThreads;
        if (i < sort.num_ranked) {
            sort.list[i] = entries[turn];
        }
    }
#pragma unroll 1
    for (int32_t i = static_cast<int32_t>(threadIdx.x) + kListTurns * kThreads; i < sort.num_ranked;
         i += kThreads) {
        sort.list[i] = __ldcg(list + i);
    }
}

/* Steps 3 and 4 of PLACE. */
template <int kThreads, bool kAligns, bool kPreprocesses>
__device__ __forceinline__ void place_chunk(const struct moe_cuda_sort_shape &shape,
                                            const RouteSort &sort, const Layout &layout)
{
    const uint32_t *list = shape.lists + sort.first_route;
    uint32_t entries[kListTurns];
#pragma unroll
    for (int turn = 0; turn < kListTurns; turn++) {
        const int32_t i = static_cast<int32_t>(threadIdx.x) + turn * kThreads;
        entries[turn] = i < sort.num_ranked ? __ldcg(list + i) : 0;
    }
    sum_chunks<kThreads>(shape, sort);
    take_list<kThreads>(sort, list, entries);
    __syncthreads();
    scan_totals<kThreads, kPreprocesses, kAligns, kPreprocesses>(sort, layout, [&](int32_t bucket) {
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
    });
}

/* COUNT: steps 1, 2 and 4 of the chunk alone. */
template <int kThreads, typename Source>
__device__ __forceinline__ void count_chunk(const struct moe_cuda_sort_shape &shape,
                                            const RouteSort &sort, const Layout &layout,
                                            const Source &source)
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
    sum_warps<kThreads>(shape, sort, [&](int32_t pair, uint32_t sums) {
        reinterpret_cast<int2 *>(sort.totals)[pair] =
            make_int2(static_cast<int32_t>(sums & 0xffffu), static_cast<int32_t>(sums >> 16));
    });
    __syncthreads();
    scan_totals<kThreads, true, false, false>(sort, layout,
                                              [&](int32_t bucket) { return sort.totals[bucket]; });
    __syncthreads();
    store_chunk<kThreads>(shape, sort);
}

/* Steps 1 to 4. After it, behind a barrier: true, and what route_emit.cuh reads is there; false
 * after COUNT, which has nothing to emit. The wait for the node before has been. */
template <int kThreads, bool kAligns, bool kPreprocesses, typename Source>
__device__ __forceinline__ bool sort_routes(const struct moe_cuda_sort_shape &shape,
                                            const RouteSort &sort, const Layout &layout,
                                            const Source &source)
{
    if (shape.phase == MOE_CUDA_SORT_COUNT) {
        count_chunk<kThreads>(shape, sort, layout, source);
        return false;
    }
    if (shape.phase == MOE_CUDA_SORT_PLACE) {
        place_chunk<kThreads, kAligns, kPreprocesses>(shape, sort, layout);
    } else {
        sort_all<kThreads, kAligns, kPreprocesses>(shape, sort, layout, source);
    }
    __syncthreads();
    return true;
}

} // namespace

#endif
