/* SPDX-License-Identifier: Apache-2.0 */
/* What align_block_size and ep_preprocess write, from a finished sort (route_sort.cuh). */
#ifndef MOE_ROUTE_EMIT_CUH
#define MOE_ROUTE_EMIT_CUH

#include "route_sort.cuh"

namespace
{

/* This thread among those of all CTAs, for outputs that belong to no chunk. */
template <int kThreads> __device__ __forceinline__ int32_t grid_thread()
{
    return static_cast<int32_t>(blockIdx.x * kThreads + threadIdx.x);
}

template <int kThreads> __device__ __forceinline__ int32_t grid_threads()
{
    return static_cast<int32_t>(gridDim.x * kThreads);
}

/* array[begin .. end) = value, by one of `num_threads`; indices are below 2^31. */
__device__ __forceinline__ void fill(int32_t *array, int32_t begin, int32_t end, int32_t value,
                                     int32_t thread, int32_t num_threads)
{
#pragma unroll 1
    for (uint32_t i = static_cast<uint32_t>(begin + thread); i < static_cast<uint32_t>(end);
         i += static_cast<uint32_t>(num_threads)) {
        array[i] = value;
    }
}

/* All that align writes but for the routes: a warp has every so many-th bucket, its lanes look at
 * 32 of them at once, and those with blocks are filled one after the other; then the tails. */
template <int kThreads>
__device__ __forceinline__ void emit_blocks(const struct moe_op_align &op, const RouteSort &sort,
                                            int32_t num_starts)
{
    const int32_t lane = thread_lane();
    const int32_t thread = grid_thread<kThreads>();
    const int32_t num_threads = grid_threads<kThreads>();
    const int32_t num_warps = num_threads / 32;
    const int32_t num_experts = sort.num_buckets - 1;
    const bool has_blocks = op.num_tokens_post_pad != nullptr; /* ids are NULL without routes */
#pragma unroll 1
    for (int32_t first = thread / 32; first < num_starts; first += 32 * num_warps) {
        const int32_t bucket = first + lane * num_warps;
        int32_t total = 0;
        int32_t begin = 0;
        int32_t end = 0;
        if (bucket < num_starts) {
            total = sort.totals[bucket];
            begin = sort.starts[bucket];
            end = sort.starts[bucket + 1];
            if (op.expert_counts != nullptr && bucket < num_experts) {
                op.expert_counts[bucket] = total;
            }
        }
        unsigned left = __ballot_sync(kAllLanes, has_blocks && begin < end);
#pragma unroll 1
        while (left != 0) {
            const int32_t from = __ffs(static_cast<int>(left)) - 1;
            const int32_t expert = first + from * num_warps;
            const int32_t block = __shfl_sync(kAllLanes, begin, from);
            const int32_t stop = __shfl_sync(kAllLanes, end, from);
            const int32_t used = __shfl_sync(kAllLanes, total, from);
            left &= left - 1;
            fill(op.sorted_ids, block * op.block_size + used, stop * op.block_size, op.sentinel,
                 lane, 32);
            fill(op.expert_ids, block, stop, expert < num_experts ? expert : -1, lane, 32);
        }
    }
    if (has_blocks) {
        const int32_t end = sort.starts[num_starts];
        fill(op.sorted_ids, end * op.block_size, static_cast<int32_t>(op.sorted_capacity),
             op.sentinel, thread, num_threads);
        fill(op.expert_ids, end, static_cast<int32_t>(op.expert_capacity), -1, thread, num_threads);
        if (thread == 0) {
            *op.num_tokens_post_pad = end * op.block_size;
        }
    }
}

/* All that ep_preprocess writes but for the routes, in the same way. */
template <int kThreads>
__device__ __forceinline__ void emit_segments(const struct moe_op_ep_preprocess &op,
                                              const RouteSort &sort)
{
    const int32_t lane = thread_lane();
    const int32_t thread = grid_thread<kThreads>();
    const int32_t num_threads = grid_threads<kThreads>();
    const int32_t num_warps = num_threads / 32;
    const int32_t num_experts = sort.num_buckets - 1;
    const int32_t most = static_cast<int32_t>(op.max_masked_rows);
    const int32_t capacity = static_cast<int32_t>(op.row_capacity);
    const bool has_rows = op.dst2src != nullptr || op.m_indices != nullptr;
#pragma unroll 1
    for (int32_t first = thread / 32; first < num_experts; first += 32 * num_warps) {
        const int32_t expert = first + lane * num_warps;
        int32_t used = 0;
        int32_t begin = 0;
        int32_t end = 0;
        if (expert < num_experts) {
            begin = sort.segments[expert];
            end = sort.segments[expert + 1];
            used = most > 0 ? end - begin : sort.totals[expert];
            begin = most > 0 ? expert * most : begin;
            end = most > 0 ? begin + most : end;
            if (op.seg_indptr != nullptr) {
                op.seg_indptr[expert] = begin;
            }
            if (op.masked_m != nullptr) {
                op.masked_m[expert] = used;
            }
        }
        unsigned left = __ballot_sync(kAllLanes, has_rows && begin + used < end);
#pragma unroll 1
        while (left != 0) {
            const int32_t from = __ffs(static_cast<int>(left)) - 1;
            const int32_t row = __shfl_sync(kAllLanes, begin + used, from);
            const int32_t stop = __shfl_sync(kAllLanes, end, from);
            left &= left - 1;
            if (op.dst2src != nullptr) {
                fill(op.dst2src, row, stop, -1, lane, 32);
            }
            if (op.m_indices != nullptr) {
                fill(op.m_indices, row, stop, -1, lane, 32);
            }
        }
    }
    const int32_t end = most > 0 ? num_experts * most : sort.segments[num_experts];
    if (thread == 0 && op.seg_indptr != nullptr) {
        op.seg_indptr[num_experts] = end;
    }
    if (op.dst2src != nullptr) {
        fill(op.dst2src, end, capacity, -1, thread, num_threads);
    }
    if (op.m_indices != nullptr) {
        fill(op.m_indices, end, capacity, -1, thread, num_threads);
    }
    if (op.reorder_ids != nullptr) {
        const int32_t *rows = most > 0 ? sort.segments : sort.packed;
        fill(op.reorder_ids, rows[num_experts], sort.num_routes, -1, thread, num_threads);
    }
}

/* One route goes where its number in its bucket says; returns its row, -1: none. */
template <bool kAligns, bool kPreprocesses>
__device__ __forceinline__ int32_t emit_route(const struct moe_op_align *align,
                                              const struct moe_op_ep_preprocess *preprocess,
                                              const RouteSort &sort, const Layout &layout,
                                              int32_t route, int32_t bucket, int32_t number)
{
    if (kAligns && align->sorted_ids != nullptr && bucket < layout.num_starts) {
        align->sorted_ids[sort.starts[bucket] * layout.block_size + number] = route;
    }
    const int32_t most = layout.max_masked_rows;
    if (!kPreprocesses || preprocess->src2dst == nullptr || bucket == sort.num_buckets - 1 ||
        (most > 0 && number >= most)) {
        return -1;
    }
    const int32_t row = (most > 0 ? bucket * most : sort.segments[bucket]) + number;
    if (preprocess->dst2src != nullptr) {
        preprocess->dst2src[row] = route;
    }
    if (preprocess->m_indices != nullptr) {
        preprocess->m_indices[row] = bucket;
    }
    if (preprocess->reorder_ids != nullptr) {
        preprocess->reorder_ids[(most > 0 ? sort.segments : sort.packed)[bucket] + number] = bucket;
    }
    return row;
}

} // namespace

#endif
