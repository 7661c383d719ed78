/* SPDX-License-Identifier: Apache-2.0 */
/*
 * route: the outputs of align_block_size and of ep_preprocess from one sort. Gated forms take
 * logits: a CTA gates the tokens of its chunk first (gate_quick.cuh), so that few tokens are one
 * launch and more are two: gating and COUNT, then PLACE. Other gating is a launch of its own in
 * front.
 * Moves: the logits or ids once, ids, weights and the outputs of both. Bound by latency; with many
 *   tokens by the instructions of gating.
 * Pipeline: 0 gating. 1 to 4 as in route_sort.cuh. 5 route_emit.cuh, for both.
 * Limits: those of route_sort.cuh and gate_quick.cuh.
 */
#include "gate_quick.cuh"
#include "route_cluster.cuh"
#include "route_emit.cuh"
#include "route_split.cuh"

namespace
{

/* The tokens of this CTA's chunk. The sort reads their ids behind the barrier; `tokens` is shared
 * memory that it has not begun to use. */
template <int kThreads>
__device__ __forceinline__ void gate_chunk(const struct moe_cuda_route &args, QuickToken *tokens)
{
    const struct moe_op_gating &op = args.op.gating;
    const int32_t batch = args.batch_tokens;
    const int32_t num_tokens = count_tokens(op);
    const int32_t num_valid = count_valid(op, num_tokens);
    const int32_t begin = static_cast<int32_t>(blockIdx.x) * args.chunk_tokens;
    const int32_t end = min(begin + args.chunk_tokens, num_tokens);
#pragma unroll 1
    for (int32_t first = begin + thread_warp() * batch; first < end;
         first += kThreads / 32 * batch) {
        gate_batch<MOE_CUDA_ROUTE_PER_LANE>(op, first, min(first + batch, end), num_valid,
                                            tokens + thread_warp() * kQuickBatch);
    }
    __syncthreads();
}

/* kAligns, kPreprocesses: the outputs that are wanted; code of the other is not even fetched. */
template <int kThreads, bool kAligns, bool kPreprocesses, bool kGates, bool kClusters>
__device__ __forceinline__ void route(const struct moe_cuda_route &args)
{
    const struct moe_op_align &align = args.op.align;
    const struct moe_op_ep_preprocess &preprocess = args.op.preprocess;
    const struct moe_cuda_sort_shape &shape = args.shape;
    const struct moe_op_filter &filter = kAligns ? align.filter : preprocess.filter;
    RouteSort sort = make_route_sort(shape, filter.num_experts);
    const bool keeps = kAligns && align.filter_mode == MOE_FILTER_KEEP;
    const Layout layout = {max(align.block_size, 1), filter.num_experts + (keeps ? 1 : 0),
                           max(preprocess.segment_alignment, 1),
                           static_cast<int32_t>(preprocess.max_masked_rows)};
    if (kClusters) {
        moe_ptx_cluster_arrive();
    }
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    if (kGates) {
        gate_chunk<kThreads>(args, reinterpret_cast<QuickToken *>(sort.scan));
    }
    set_routes(shape,
               kAligns ? real_routes(align.num_tokens_device, align.num_routes, align.top_k)
                       : real_routes(preprocess.num_tokens_device, preprocess.num_routes,
                                     preprocess.top_k),
               &sort);
    const IdSource source(kAligns ? align.topk_ids : preprocess.topk_ids,
                          kAligns ? align.ids_dtype : preprocess.ids_dtype, filter);
    if (kClusters) {
        uint16_t *table = add_cluster_arrays(&sort);
        sort_cluster<kThreads, kAligns, kPreprocesses>(shape, sort, layout, source, table);
    } else if (!sort_routes<kThreads, kAligns, kPreprocesses>(shape, sort, layout, source)) {
        return;
    }
    emit_routes<kThreads, kClusters, kAligns, kPreprocesses>(shape, &align, &preprocess, sort,
                                                             layout);
    if (kAligns) {
        emit_blocks<kThreads>(align, sort, layout.num_starts);
    }
    if (kPreprocesses) {
        emit_segments<kThreads>(preprocess, sort);
    }
}

} // namespace

#define MOE_EMIT_ROUTE(symbol, dims, size, aligns, preprocesses, gates, clusters) \
    extern "C" __global__ void dims __launch_bounds__(size, 1)                    \
        symbol(const __grid_constant__ struct moe_cuda_route args)                \
    {                                                                             \
        route<size, aligns, preprocesses, gates, clusters>(args);                 \
    }
#define MOE_EMIT_ROUTES(symbol, dims, size, gates, clusters, both, align, preprocess) \
    MOE_EMIT_ROUTE(MOE_FORM(both, symbol), dims, size, true, true, gates, clusters)   \
    MOE_EMIT_ROUTE(MOE_FORM(align, symbol), dims, size, true, false, gates, clusters) \
    MOE_EMIT_ROUTE(MOE_FORM(preprocess, symbol), dims, size, false, true, gates, clusters)
#define MOE_EMIT_CUDA_SORT(symbol, size)                                   \
    MOE_EMIT_ROUTE(symbol, , size, true, true, false, false)               \
    MOE_EMIT_ROUTE(MOE_FORM(1, symbol), , size, true, false, false, false) \
    MOE_EMIT_ROUTE(MOE_FORM(2, symbol), , size, false, true, false, false) \
    MOE_EMIT_ROUTES(symbol, , size, true, false, 3, 4, 5)                  \
    MOE_EMIT_ROUTES(symbol, MOE_CLUSTER_DIMS, size, false, true, 6, 7, 8)  \
    MOE_EMIT_ROUTES(symbol, MOE_CLUSTER_DIMS, size, true, true, 9, 10, 11)
#define MOE_EMIT_CUDA_SPLIT(symbol, size)   MOE_EMIT_CUDA_SORT(symbol, size)
#define MOE_INSTANTIATE_ROUTE(kernel, size) MOE_EMIT_ROW(ROUTE, kernel, size)
#include "instantiate.cuh"
