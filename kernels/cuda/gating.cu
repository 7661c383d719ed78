/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gating: ids and weights of the top_k experts of each token, by the rules of MOE_GATING_LIST.
 * Moves: E logits in, top_k ids and weights out per token; up to about 30 E FLOPs where all experts
 *   need an exponential. Bound by instructions and, with few tokens, by latency.
 * Pipeline: a warp a token, as in gate.cuh: 1 logits to registers. 2 scores, if the choice needs
 *   them. 3 keys, groups. 4 choice of k. 5 weights of the chosen, ids of replicas, load.
 *   Where the logits decide, quick forms as in gate_quick.cuh.
 * Limits: those of gate.cuh and gate_quick.cuh.
 */
#include "gate_quick.cuh"

namespace
{

/* Else the end of the grid launches them. */
__device__ __forceinline__ void launch_dependents(const struct moe_cuda_gating &args)
{
    if (args.is_late == 0) {
        moe_ptx_griddep_launch();
    }
}

template <int kPerLane> __device__ __forceinline__ void gating(const struct moe_cuda_gating &args)
{
    extern __shared__ __align__(16) uint32_t shared_words[];
    const struct moe_op_gating &op = args.op;
    const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
    const GateScratch scratch = make_gate_scratch(op, shared_words + warp * args.gate_words);
    moe_ptx_griddep_wait();
    launch_dependents(args);
    const int32_t num_tokens = count_tokens(op);
    const int32_t num_valid = count_valid(op, num_tokens);
    const int32_t num_warps = static_cast<int32_t>(blockDim.x) / 32; /* fewer if rows do not fit */
    for (int32_t token = static_cast<int32_t>(blockIdx.x) * num_warps + warp; token < num_tokens;
         token += static_cast<int32_t>(gridDim.x) * num_warps) {
        gate_token<kPerLane>(op, scratch, token, num_valid, args.is_vectored != 0);
    }
}

template <int kPerLane>
__device__ __forceinline__ void gating_quick(const struct moe_cuda_gating &args)
{
    const struct moe_op_gating &op = args.op;
    const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
    const int32_t num_warps = static_cast<int32_t>(blockDim.x) / 32;
    moe_ptx_griddep_wait();
    launch_dependents(args);
    const int32_t num_tokens = count_tokens(op);
    const int32_t num_valid = count_valid(op, num_tokens);
    const int32_t step = static_cast<int32_t>(gridDim.x) * num_warps * args.batch_tokens;
    int32_t first = (static_cast<int32_t>(blockIdx.x) * num_warps + warp) * args.batch_tokens;
#pragma unroll 1
    for (; first < num_tokens; first += step) {
        gate_batch<kPerLane>(op, first, min(first + args.batch_tokens, num_tokens), num_valid,
                             {nullptr, 0, true});
    }
}

} // namespace

#define MOE_EMIT_GATING_KERNEL(symbol, size, function, threads, per_lane)  \
    extern "C" __global__ void __launch_bounds__(size, (threads) / (size)) \
        symbol(const __grid_constant__ struct moe_cuda_gating args)        \
    {                                                                      \
        function<per_lane>(args);                                          \
    }
#define MOE_EMIT_GATING(symbol, size, per_lane) \
    MOE_EMIT_GATING_KERNEL(symbol, size, gating, MOE_CUDA_GATE_THREADS_##per_lane, per_lane)
/* Before sm_90 the quick forms need a few registers more than 2048 threads leave; a multiprocessor
 * of sm_120 has 1536 threads. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define MOE_QUICK_THREADS(threads) ((threads) / 2)
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
#define MOE_QUICK_THREADS(threads) ((threads) < 1536 ? (threads) : 1536)
#else
#define MOE_QUICK_THREADS(threads) (threads)
#endif
#define MOE_EMIT_QUICK(symbol, size, per_lane)         \
    MOE_EMIT_GATING_KERNEL(symbol, size, gating_quick, \
                           MOE_QUICK_THREADS(MOE_CUDA_GATE_QUICK_THREADS_##per_lane), per_lane)
#define MOE_EMIT_CUDA_ROWS(symbol, size)           \
    MOE_EMIT_GATING(symbol, size, 0)               \
    MOE_EMIT_GATING(MOE_FORM(1, symbol), size, 4)  \
    MOE_EMIT_GATING(MOE_FORM(2, symbol), size, 8)  \
    MOE_EMIT_GATING(MOE_FORM(3, symbol), size, 16) \
    MOE_EMIT_QUICK(MOE_FORM(4, symbol), size, 2)   \
    MOE_EMIT_QUICK(MOE_FORM(5, symbol), size, 4)   \
    MOE_EMIT_QUICK(MOE_FORM(6, symbol), size, 8)   \
    MOE_EMIT_QUICK(MOE_FORM(7, symbol), size, 16)
#define MOE_INSTANTIATE_GATING(kernel, size) MOE_EMIT_ROW(GATING, kernel, size)
#include "instantiate.cuh"
