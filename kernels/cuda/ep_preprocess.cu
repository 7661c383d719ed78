/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ep_preprocess: the index arrays of expert parallelism (seg_indptr, src2dst, dst2src, reorder_ids,
 * m_indices) by one stable counting sort of the routes.
 * Moves: the ids twice, 4 bytes per route and output, 8 per segment. Bound by latency: one launch,
 *   one cluster.
 * Pipeline: 1 to 4 as in route_sort.cuh, writing all arrays as a route is placed. 5 padding and
 *   tails. 6 seg_indptr.
 * Limits: those of route_sort.cuh.
 */
#include "route_sort.cuh"

namespace
{

template <int kNumCtas>
__device__ __forceinline__ void write_segments(const struct moe_op_ep_preprocess &op,
                                               const RouteSort &sort)
{
    for (int64_t expert = cluster_thread<kNumCtas>(); expert <= sort.num_buckets;
         expert += cluster_threads<kNumCtas>()) {
        op.seg_indptr[expert] = sort.starts[expert];
    }
    if (op.reorder_ids != nullptr) {
        const int64_t num_local = sort.packed_starts[sort.num_buckets];
        for (int64_t i = num_local + cluster_thread<kNumCtas>(); i < op.num_routes;
             i += cluster_threads<kNumCtas>()) {
            op.reorder_ids[i] = -1;
        }
    }
    if (op.dst2src != nullptr) {
        fill_padding<kNumCtas>(sort, op.dst2src, op.row_capacity, -1);
    }
    if (op.m_indices != nullptr) {
        fill_padding<kNumCtas>(sort, op.m_indices, op.row_capacity, -1);
    }
}

template <int kNumCtas>
__device__ __forceinline__ void ep_preprocess(const struct moe_cuda_ep_preprocess &args)
{
    const struct moe_op_ep_preprocess &op = args.op;
    const RouteSort sort = make_route_sort(args.shape, op.num_routes, op.filter.num_experts);
    const auto find = [&](int64_t route) {
        return find_bucket(op.topk_ids, op.ids_dtype, op.filter, route, false);
    };
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    count_routes<kNumCtas>(sort, op.segment_alignment, find);
    place_routes<kNumCtas>(sort, find, [&](int64_t route, int32_t bucket, int32_t position) {
        op.src2dst[route] = position;
        if (position < 0) {
            return;
        }
        if (op.dst2src != nullptr) {
            op.dst2src[position] = static_cast<int32_t>(route);
        }
        if (op.m_indices != nullptr) {
            op.m_indices[position] = bucket;
        }
        if (op.reorder_ids != nullptr) {
            op.reorder_ids[position - sort.starts[bucket] + sort.packed_starts[bucket]] = bucket;
        }
    });
    write_segments<kNumCtas>(op, sort);
}

} // namespace

#define MOE_EMIT_SORT(symbol, size)                                        \
    extern "C" __global__ void __launch_bounds__(MOE_CUDA_SORT_THREADS, 1) \
        symbol(const __grid_constant__ struct moe_cuda_ep_preprocess args) \
    {                                                                      \
        ep_preprocess<(size) / MOE_CUDA_SORT_THREADS>(args);               \
    }
#define MOE_EMIT_CUDA_SORT(symbol, size) MOE_EMIT_SORT(symbol, size)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define MOE_EMIT_SM90_SORT(symbol, size) MOE_EMIT_SORT(symbol, size)
#endif
#define MOE_INSTANTIATE_EP_PREPROCESS(kernel, size) MOE_EMIT_ROW(EP_PREPROCESS, kernel, size)
#include "instantiate.cuh"
