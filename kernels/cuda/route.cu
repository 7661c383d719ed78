/* SPDX-License-Identifier: Apache-2.0 */
/*
 * route: the outputs of align_block_size and of ep_preprocess from one sort. Gated forms take
 * logits: a CTA gates the tokens of its chunk first (gate_quick.cuh), so that few tokens are one
 * launch and many are two: gating and COUNT, then PLACE. Other gating is a launch of its own in
 * front.
 * Moves: the logits or ids once, ids, weights and the outputs of both. Bound by latency; with many
 *   tokens by the instructions of gating.
 * Pipeline: gating; then as in route_flat.cuh or route_split.cuh, for both.
 * Limits: those of route_sort.cuh and gate_quick.cuh.
 */
#include "gate_quick.cuh"
#include "route_flat.cuh"
#include "route_split.cuh"

namespace
{

/* The tokens of a chunk. The sort reads `ids`, in shared memory, behind the barrier. `stores`:
 * this CTA also writes what gating writes. */
template <int kThreads>
__device__ __forceinline__ void gate_chunk(const struct moe_cuda_route &args, int32_t chunk,
                                           bool stores, int32_t *ids)
{
    const struct moe_op_gating &op = args.op.gating;
    const int32_t batch = args.batch_tokens;
    const int32_t num_tokens = count_tokens(op);
    const int32_t num_valid = count_valid(op, num_tokens);
    const int32_t begin = chunk * args.chunk_tokens;
    const int32_t end = min(begin + args.chunk_tokens, num_tokens);
#pragma unroll 1
    for (int32_t first = begin + thread_warp() * batch; first < end;
         first += kThreads / 32 * batch) {
        gate_batch<MOE_CUDA_ROUTE_PER_LANE>(op, first, min(first + batch, end), num_valid,
                                            {ids, begin, stores});
    }
    __syncthreads();
}

/* What both sorts have in common. */
struct RouteInput {
    const struct moe_op_filter *filter;
    Layout layout;
    const void *ids;
    int32_t ids_dtype;
    int32_t top_k;
    int64_t num_routes;
    const int32_t *num_tokens_device;

    __device__ __forceinline__ int32_t count() const
    {
        return real_routes(num_tokens_device, num_routes, top_k);
    }
};

/* kAligns: as align has it; it may not be there otherwise. */
template <bool kAligns>
__device__ __forceinline__ RouteInput make_input(const struct moe_cuda_route &args)
{
    const struct moe_op_align &align = args.op.align;
    const struct moe_op_ep_preprocess &preprocess = args.op.preprocess;
    const struct moe_op_filter &filter = kAligns ? align.filter : preprocess.filter;
    const bool keeps = kAligns && align.filter_mode == MOE_FILTER_KEEP;
    return {&filter,
            {max(align.block_size, 1), filter.num_experts + (keeps ? 1 : 0),
             max(preprocess.segment_alignment, 1),
             static_cast<int32_t>(preprocess.max_masked_rows)},
            kAligns ? align.topk_ids : preprocess.topk_ids,
            kAligns ? align.ids_dtype : preprocess.ids_dtype,
            kAligns ? align.top_k : preprocess.top_k,
            kAligns ? align.num_routes : preprocess.num_routes,
            kAligns ? align.num_tokens_device : preprocess.num_tokens_device};
}

/* cuda.sort. kAligns, kPreprocesses: the outputs that are wanted; code of the other is not even
 * fetched. */
template <int kThreads, bool kAligns, bool kPreprocesses, bool kGates, bool kClusters>
__device__ __forceinline__ void route(const struct moe_cuda_route &args)
{
    const RouteInput input = make_input<kAligns>(args);
    RouteSort sort = make_route_sort(args.shape, input.filter->num_experts);
    const int32_t chunk = flat_chunk<kClusters>();
    if (kClusters) {
        moe_ptx_cluster_arrive();
    }
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    int32_t *ids = flat_ids<kThreads, kClusters>(sort);
    if (kGates) {
        gate_chunk<kThreads>(args, chunk, flat_share<kClusters>() == 0, ids);
    }
    set_routes(args.shape, chunk, input.count(), &sort);
    const IdSource source = kGates ? IdSource(ids, MOE_IDS_INT32, *input.filter, sort.first_route)
                                   : IdSource(input.ids, input.ids_dtype, *input.filter);
    route_flat<kThreads, kClusters, kAligns, kPreprocesses>(&args.op.align, &args.op.preprocess,
                                                            sort, input.layout, source);
}

/* cuda.split, COUNT */
template <int kThreads, bool kGates>
__device__ __forceinline__ void route_count(const struct moe_cuda_route &args)
{
    const RouteInput input = args.op.wants_align ? make_input<true>(args) : make_input<false>(args);
    RouteSort sort = make_route_sort(args.shape, input.filter->num_experts);
    const int32_t chunk = static_cast<int32_t>(blockIdx.x);
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    /* Ids in place of the ranks that a lane writes after it has read them. */
    int32_t *ids = reinterpret_cast<int32_t *>(sort.ranked);
    if (kGates) {
        gate_chunk<kThreads>(args, chunk, true, ids);
    }
    set_routes(args.shape, chunk, input.count(), &sort);
    count_chunk<kThreads>(args.shape, sort,
                          kGates ? IdSource(ids, MOE_IDS_INT32, *input.filter, sort.first_route)
                                 : IdSource(input.ids, input.ids_dtype, *input.filter));
}

/* cuda.split, PLACE */
template <int kThreads, bool kAligns, bool kPreprocesses>
__device__ __forceinline__ void route_place(const struct moe_cuda_route &args)
{
    const RouteInput input = make_input<kAligns>(args);
    RouteSort sort = make_route_sort(args.shape, input.filter->num_experts);
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    set_routes(args.shape, static_cast<int32_t>(blockIdx.x), input.count(), &sort);
    place_routes<kThreads, kAligns, kPreprocesses>(args.shape, &args.op.align, &args.op.preprocess,
                                                   sort, input.layout);
}

} // namespace

#define MOE_EMIT_ROUTE(symbol, dims, size, ...)                    \
    extern "C" __global__ void dims __launch_bounds__(size, 1)     \
        symbol(const __grid_constant__ struct moe_cuda_route args) \
    {                                                              \
        __VA_ARGS__(args);                                         \
    }
#define MOE_EMIT_ROUTES(dims, size, gates, clusters, both, align, preprocess)    \
    MOE_EMIT_ROUTE(both, dims, size, route<size, true, true, gates, clusters>)   \
    MOE_EMIT_ROUTE(align, dims, size, route<size, true, false, gates, clusters>) \
    MOE_EMIT_ROUTE(preprocess, dims, size, route<size, false, true, gates, clusters>)
#define MOE_EMIT_CUDA_SORT(symbol, size)                                                           \
    MOE_EMIT_ROUTES(, size, false, false, symbol, MOE_FORM(1, symbol), MOE_FORM(2, symbol))        \
    MOE_EMIT_ROUTES(, size, true, false, MOE_FORM(3, symbol), MOE_FORM(4, symbol),                 \
                    MOE_FORM(5, symbol))                                                           \
    MOE_EMIT_ROUTES(MOE_CLUSTER_DIMS, size, false, true, MOE_FORM(6, symbol), MOE_FORM(7, symbol), \
                    MOE_FORM(8, symbol))                                                           \
    MOE_EMIT_ROUTES(MOE_CLUSTER_DIMS, size, true, true, MOE_FORM(9, symbol), MOE_FORM(10, symbol), \
                    MOE_FORM(11, symbol))
#define MOE_EMIT_CUDA_SPLIT(symbol, size)                                       \
    MOE_EMIT_ROUTE(symbol, , size, route_place<size, true, true>)               \
    MOE_EMIT_ROUTE(MOE_FORM(1, symbol), , size, route_place<size, true, false>) \
    MOE_EMIT_ROUTE(MOE_FORM(2, symbol), , size, route_place<size, false, true>) \
    MOE_EMIT_ROUTE(MOE_FORM(3, symbol), , size, route_count<size, false>)       \
    MOE_EMIT_ROUTE(MOE_FORM(4, symbol), , size, route_count<size, true>)
#define MOE_INSTANTIATE_ROUTE(kernel, size) MOE_EMIT_ROW(ROUTE, kernel, size)
#include "instantiate.cuh"
