/* SPDX-License-Identifier: Apache-2.0 */
/*
 * align_block_size: route indices grouped by local expert, every group padded to a multiple of the
 * block size, and the expert of every block (the contract of SGLang's and vLLM's
 * moe_align_block_size, with a stable order). In the batched form the groups are given.
 * Moves: the ids once, 4 bytes per entry of the outputs. Bound by latency; with many experts and
 *   few routes by the padding, which is most of what is written.
 * Pipeline: as in route_flat.cuh or route_split.cuh; then routes, padding, experts of blocks,
 *   tails.
 * Limits: those of route_sort.cuh.
 */
#include "route_flat.cuh"
#include "route_split.cuh"

namespace
{

/* The batched form: rows expert * max_batch_rows + i of each expert, i below its count. */
template <int kThreads>
__device__ __forceinline__ void align_batches(const struct moe_op_align &op, const RouteSort &sort,
                                              const Layout &layout)
{
    const int32_t most = static_cast<int32_t>(op.max_batch_rows);
    for (int32_t expert = threadIdx.x; expert < sort.num_buckets; expert += kThreads) {
        const int32_t count = expert < sort.num_buckets - 1 ? op.batch_counts[expert] : 0;
        sort.totals[expert] = max(0, min(count, most));
    }
    __syncthreads();
    scan_totals<kThreads, true, true, false>(sort, layout,
                                             [&](int32_t bucket) { return sort.totals[bucket]; });
    __syncthreads();
    emit_blocks<kThreads>(op, sort, layout.num_starts);
    if (op.sorted_ids == nullptr) {
        return;
    }
    const int32_t end = sort.packed[layout.num_starts];
    for (int32_t i = grid_thread<kThreads>(); i < end; i += grid_threads<kThreads>()) {
        int32_t low = 0; /* the last expert whose first row is not behind i */
        for (int32_t high = layout.num_starts - 1; low < high;) {
            const int32_t middle = (low + high + 1) / 2;
            if (sort.packed[middle] <= i) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        const int32_t number = i - sort.packed[low];
        op.sorted_ids[sort.starts[low] * op.block_size + number] = low * most + number;
    }
}

__device__ __forceinline__ Layout make_layout(const struct moe_cuda_align &args)
{
    const struct moe_op_align &op = args.op;
    const bool keeps = op.filter_mode == MOE_FILTER_KEEP && args.shape.phase != MOE_CUDA_SORT_BATCH;
    return {op.block_size, op.filter.num_experts + (keeps ? 1 : 0), 0, 0};
}

/* cuda.sort */
template <int kThreads, bool kClusters>
__device__ __forceinline__ void align(const struct moe_cuda_align &args)
{
    const struct moe_op_align &op = args.op;
    RouteSort sort = make_route_sort(args.shape, op.filter.num_experts);
    if (kClusters) {
        moe_ptx_cluster_arrive();
    }
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    set_routes(args.shape, flat_chunk<kClusters>(),
               real_routes(op.num_tokens_device, op.num_routes, op.top_k), &sort);
    const IdSource source(op.topk_ids, op.ids_dtype, op.filter);
    route_flat<kThreads, kClusters, true, false>(&op, nullptr, sort, make_layout(args), source);
}

/* cuda.split */
template <int kThreads, bool kPlaces>
__device__ __forceinline__ void align_split(const struct moe_cuda_align &args)
{
    const struct moe_op_align &op = args.op;
    RouteSort sort = make_route_sort(args.shape, op.filter.num_experts);
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    if (kPlaces && args.shape.phase == MOE_CUDA_SORT_BATCH) {
        align_batches<kThreads>(op, sort, make_layout(args));
        return;
    }
    set_routes(args.shape, static_cast<int32_t>(blockIdx.x),
               real_routes(op.num_tokens_device, op.num_routes, op.top_k), &sort);
    if (kPlaces) {
        place_routes<kThreads, true, false>(args.shape, &op, nullptr, sort, make_layout(args));
    } else {
        count_chunk<kThreads>(args.shape, sort, IdSource(op.topk_ids, op.ids_dtype, op.filter));
    }
}

} // namespace

#define MOE_EMIT_ALIGN(symbol, dims, size, function, flag)         \
    extern "C" __global__ void dims __launch_bounds__(size, 1)     \
        symbol(const __grid_constant__ struct moe_cuda_align args) \
    {                                                              \
        function<size, flag>(args);                                \
    }
#define MOE_EMIT_CUDA_SORT(symbol, size)         \
    MOE_EMIT_ALIGN(symbol, , size, align, false) \
    MOE_EMIT_ALIGN(MOE_FORM(1, symbol), MOE_CLUSTER_DIMS, size, align, true)
#define MOE_EMIT_CUDA_SPLIT(symbol, size)              \
    MOE_EMIT_ALIGN(symbol, , size, align_split, false) \
    MOE_EMIT_ALIGN(MOE_FORM(1, symbol), , size, align_split, true)
#define MOE_INSTANTIATE_ALIGN_BLOCK_SIZE(kernel, size) MOE_EMIT_ROW(ALIGN_BLOCK_SIZE, kernel, size)
#include "instantiate.cuh"
