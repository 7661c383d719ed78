/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ep_preprocess: the index arrays of expert parallelism (seg_indptr, src2dst, dst2src, reorder_ids,
 * m_indices, masked_m) by one stable counting sort of the routes, in the contiguous or the masked
 * layout.
 * Moves: the ids once, 4 bytes per route and output, 8 per segment. Bound by latency.
 * Pipeline: 1 to 4 as in route_sort.cuh. 5 all arrays in order of rows, src2dst in order of routes;
 *   padding and tails.
 * Limits: those of route_sort.cuh.
 */
#include "route_cluster.cuh"
#include "route_emit.cuh"
#include "route_split.cuh"

namespace
{

template <int kThreads, bool kClusters>
__device__ __forceinline__ void ep_preprocess(const struct moe_cuda_ep_preprocess &args)
{
    const struct moe_op_ep_preprocess &op = args.op;
    const struct moe_cuda_sort_shape &shape = args.shape;
    const int32_t num_experts = op.filter.num_experts;
    RouteSort sort = make_route_sort(shape, num_experts);
    const Layout layout = {0, 0, op.segment_alignment, static_cast<int32_t>(op.max_masked_rows)};
    if (kClusters) {
        moe_ptx_cluster_arrive();
    }
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    set_routes(shape, real_routes(op.num_tokens_device, op.num_routes, op.top_k), &sort);
    const IdSource source(op.topk_ids, op.ids_dtype, op.filter);
    if (kClusters) {
        uint16_t *table = add_cluster_arrays(&sort);
        sort_cluster<kThreads, false, true>(shape, sort, layout, source, table);
    } else if (!sort_routes<kThreads, false, true>(shape, sort, layout, source)) {
        return;
    }
    emit_routes<kThreads, kClusters, false, true>(shape, nullptr, &op, sort, layout);
    emit_segments<kThreads>(op, sort);
}

} // namespace

#define MOE_EMIT_PREPROCESS(symbol, dims, size, clusters)                  \
    extern "C" __global__ void dims __launch_bounds__(size, 1)             \
        symbol(const __grid_constant__ struct moe_cuda_ep_preprocess args) \
    {                                                                      \
        ep_preprocess<size, clusters>(args);                               \
    }
#define MOE_EMIT_CUDA_SORT(symbol, size)       \
    MOE_EMIT_PREPROCESS(symbol, , size, false) \
    MOE_EMIT_PREPROCESS(MOE_FORM(1, symbol), MOE_CLUSTER_DIMS, size, true)
#define MOE_EMIT_CUDA_SPLIT(symbol, size)           MOE_EMIT_CUDA_SORT(symbol, size)
#define MOE_INSTANTIATE_EP_PREPROCESS(kernel, size) MOE_EMIT_ROW(EP_PREPROCESS, kernel, size)
#include "instantiate.cuh"
