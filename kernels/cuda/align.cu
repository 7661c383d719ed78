/* SPDX-License-Identifier: Apache-2.0 */
/*
 * align_block_size: route indices grouped by local expert, every group padded to a multiple of the
 * block size, and the expert of every block (the contract of SGLang's and vLLM's
 * moe_align_block_size, with a stable order).
 * Moves: the ids twice, 4 bytes per entry of the outputs. Bound by latency: one launch, one
 *   cluster.
 * Pipeline: 1 to 4 as in route_sort.cuh. 5 experts of blocks by binary search over the starts, so
 *   that skewed routing costs no more. 6 padding and tails.
 * Limits: those of route_sort.cuh.
 */
#include "route_sort.cuh"

namespace
{

/* The bucket that position `position` lies in: the last whose start is not behind it. */
__device__ __forceinline__ int32_t search_bucket(const RouteSort &sort, int32_t position)
{
    int32_t low = 0;
    int32_t high = sort.num_buckets - 1;
    while (low < high) {
        const int32_t middle = (low + high + 1) / 2;
        if (sort.starts[middle] <= position) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

template <int kNumCtas>
__device__ __forceinline__ void write_expert_ids(const struct moe_op_align &op,
                                                 const RouteSort &sort)
{
    const int32_t end = sort.starts[sort.num_buckets];
    for (int64_t block = cluster_thread<kNumCtas>(); block < op.expert_capacity;
         block += cluster_threads<kNumCtas>()) {
        const int64_t position = block * op.block_size;
        int32_t expert = -1;
        if (position < end) {
            expert = search_bucket(sort, static_cast<int32_t>(position));
        }
        op.expert_ids[block] = expert < op.filter.num_experts ? expert : -1;
    }
}

template <int kNumCtas> __device__ __forceinline__ void align(const struct moe_cuda_align &args)
{
    const struct moe_op_align &op = args.op;
    const bool keeps = op.filter_mode == MOE_FILTER_KEEP;
    const RouteSort sort =
        make_route_sort(args.shape, op.num_routes, op.filter.num_experts + (keeps ? 1 : 0));
    const auto find = [&](int64_t route) {
        return find_bucket(op.topk_ids, op.ids_dtype, op.filter, route, keeps);
    };
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    count_routes<kNumCtas>(sort, op.block_size, find);
    if (op.expert_counts != nullptr) {
        for (int64_t expert = cluster_thread<kNumCtas>(); expert < op.filter.num_experts;
             expert += cluster_threads<kNumCtas>()) {
            op.expert_counts[expert] = sort.packed_starts[expert + 1] - sort.packed_starts[expert];
        }
    }
    if (op.sorted_ids == nullptr) {
        return;
    }
    place_routes<kNumCtas>(sort, find, [&](int64_t route, int32_t, int32_t position) {
        if (position >= 0) {
            op.sorted_ids[position] = static_cast<int32_t>(route);
        }
    });
    fill_padding<kNumCtas>(sort, op.sorted_ids, op.sorted_capacity,
                           static_cast<int32_t>(op.num_routes));
    write_expert_ids<kNumCtas>(op, sort);
    if (cluster_thread<kNumCtas>() == 0) {
        *op.num_tokens_post_pad = sort.starts[sort.num_buckets];
    }
}

} // namespace

#define MOE_EMIT_SORT(symbol, size)                                        \
    extern "C" __global__ void __launch_bounds__(MOE_CUDA_SORT_THREADS, 1) \
        symbol(const __grid_constant__ struct moe_cuda_align args)         \
    {                                                                      \
        align<(size) / MOE_CUDA_SORT_THREADS>(args);                       \
    }
#define MOE_EMIT_CUDA_SORT(symbol, size) MOE_EMIT_SORT(symbol, size)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define MOE_EMIT_SM90_SORT(symbol, size) MOE_EMIT_SORT(symbol, size)
#endif
#define MOE_INSTANTIATE_ALIGN_BLOCK_SIZE(kernel, size) MOE_EMIT_ROW(ALIGN_BLOCK_SIZE, kernel, size)
#include "instantiate.cuh"
