/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ep_preprocess: the index arrays of expert parallelism (seg_indptr, src2dst, dst2src, reorder_ids,
 * m_indices, masked_m) by one stable counting sort of the routes, in the contiguous or the masked
 * layout.
 * Moves: the ids once, 4 bytes per route and output, 8 per segment. Bound by latency.
 * Pipeline: as in route_flat.cuh or route_split.cuh; then the arrays, padding and tails.
 * Limits: those of route_sort.cuh.
 */
#include "route_flat.cuh"
#include "route_split.cuh"

namespace
{

__device__ __forceinline__ Layout make_layout(const struct moe_op_ep_preprocess &op)
{
    return {0, 0, op.segment_alignment, static_cast<int32_t>(op.max_masked_rows)};
}

/* cuda.sort */
template <int kThreads, bool kClusters>
__device__ __forceinline__ void ep_preprocess(const struct moe_cuda_ep_preprocess &args)
{
    const struct moe_op_ep_preprocess &op = args.op;
    RouteSort sort = make_route_sort(args.shape, op.filter.num_experts);
    if (kClusters) {
        moe_ptx_cluster_arrive();
    }
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    set_routes(args.shape, flat_chunk<kClusters>(),
               real_routes(op.num_tokens_device, op.num_routes, op.top_k), &sort);
    const IdSource source(op.topk_ids, op.ids_dtype, op.filter);
    route_flat<kThreads, kClusters, false, true>(nullptr, &op, sort, make_layout(op), source);
}

/* cuda.split */
template <int kThreads, bool kPlaces>
__device__ __forceinline__ void ep_preprocess_split(const struct moe_cuda_ep_preprocess &args)
{
    const struct moe_op_ep_preprocess &op = args.op;
    RouteSort sort = make_route_sort(args.shape, op.filter.num_experts);
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    set_routes(args.shape, static_cast<int32_t>(blockIdx.x),
               real_routes(op.num_tokens_device, op.num_routes, op.top_k), &sort);
    if (kPlaces) {
        place_routes<kThreads, false, true>(args.shape, nullptr, &op, sort, make_layout(op));
    } else {
        count_chunk<kThreads>(args.shape, sort, IdSource(op.topk_ids, op.ids_dtype, op.filter));
    }
}

} // namespace

#define MOE_EMIT_PREPROCESS(symbol, dims, size, function, flag)            \
    extern "C" __global__ void dims __launch_bounds__(size, 1)             \
        symbol(const __grid_constant__ struct moe_cuda_ep_preprocess args) \
    {                                                                      \
        function<size, flag>(args);                                        \
    }
#define MOE_EMIT_CUDA_SORT(symbol, size)                      \
    MOE_EMIT_PREPROCESS(symbol, , size, ep_preprocess, false) \
    MOE_EMIT_PREPROCESS(MOE_FORM(1, symbol), MOE_CLUSTER_DIMS, size, ep_preprocess, true)
#define MOE_EMIT_CUDA_SPLIT(symbol, size)                           \
    MOE_EMIT_PREPROCESS(symbol, , size, ep_preprocess_split, false) \
    MOE_EMIT_PREPROCESS(MOE_FORM(1, symbol), , size, ep_preprocess_split, true)
#define MOE_INSTANTIATE_EP_PREPROCESS(kernel, size) MOE_EMIT_ROW(EP_PREPROCESS, kernel, size)
#include "instantiate.cuh"
