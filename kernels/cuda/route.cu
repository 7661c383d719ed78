/* SPDX-License-Identifier: Apache-2.0 */
/*
 * route: the outputs of align_block_size and of ep_preprocess from one sort. With logits the launch
 * of gating is in front of it: gating in every CTA of the sort took longer than a second launch
 * from 64 tokens on, and as long for one.
 * Moves: the ids once, ids and the outputs of both. Bound by latency.
 * Pipeline: 1 to 4 as in route_sort.cuh. 5 route_emit.cuh, for both.
 * Limits: those of route_sort.cuh.
 */
#include "route_emit.cuh"

namespace
{

/* kAligns, kPreprocesses: the outputs that are wanted; code of the other is not even fetched. */
template <int kThreads, bool kAligns, bool kPreprocesses>
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
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    set_routes(shape,
               kAligns ? real_routes(align.num_tokens_device, align.num_routes, align.top_k)
                       : real_routes(preprocess.num_tokens_device, preprocess.num_routes,
                                     preprocess.top_k),
               &sort);
    const IdSource source(kAligns ? align.topk_ids : preprocess.topk_ids,
                          kAligns ? align.ids_dtype : preprocess.ids_dtype, filter);
    if (!sort_routes<kThreads, kAligns, kPreprocesses>(shape, sort, layout, source)) {
        return;
    }
    emit_routes<kThreads, kAligns, kPreprocesses>(shape, &align, &preprocess, sort, layout);
    if (kAligns) {
        emit_blocks<kThreads>(align, sort, layout.num_starts);
    }
    if (kPreprocesses) {
        emit_segments<kThreads>(preprocess, sort);
    }
}

} // namespace

#define MOE_EMIT_ROUTE(symbol, size, aligns, preprocesses)         \
    extern "C" __global__ void __launch_bounds__(size, 1)          \
        symbol(const __grid_constant__ struct moe_cuda_route args) \
    {                                                              \
        route<size, aligns, preprocesses>(args);                   \
    }
#define MOE_EMIT_CUDA_SORT(symbol, size)                   \
    MOE_EMIT_ROUTE(symbol, size, true, true)               \
    MOE_EMIT_ROUTE(MOE_FORM(1, symbol), size, true, false) \
    MOE_EMIT_ROUTE(MOE_FORM(2, symbol), size, false, true)
#define MOE_EMIT_CUDA_SPLIT(symbol, size)   MOE_EMIT_CUDA_SORT(symbol, size)
#define MOE_INSTANTIATE_ROUTE(kernel, size) MOE_EMIT_ROW(ROUTE, kernel, size)
#include "instantiate.cuh"
