/* SPDX-License-Identifier: Apache-2.0 */
/*
 * router: logits[t, e] = tokens[t] . weight[e] (+ bias[e]), rounded to the logits' type; with
 * applies_sigmoid the logistic function of it in fp32 (the factor of a shared expert).
 * Moves: (T + E) * H elements at least, each token once per BLOCK_SIZE_N experts and each expert
 *   once per BLOCK_SIZE_M tokens out of the L2; 2 T E H FLOPs on mma.sync. Bound by latency in
 *   decode, by L2 reads in prefill.
 * Pipeline: a CTA has BLOCK_SIZE_M tokens and BLOCK_SIZE_N experts. 1 wait for the grid before.
 *   2 each of 8 warps takes every eighth stretch of 64 columns and loads 16 bytes per lane and row
 *   straight into fragments: tokens and weights in one permutation of k, which leaves the sum as
 *   it is. 3 mma.m16n8k16 with fp32 accumulators. 4 the warps' sums meet in a fixed tree.
 *   5 bias, sigmoid, one rounding.
 * Arithmetic: which columns meet in which order follows from H alone, so a logit has the same bits
 *   in every tile and batch. Form 1, where tokens or weights are fp32: router_wide.cuh instead of 2
 *   to 4, with the CPU's bits; bound by shared memory in prefill.
 * Limits: tokens and weights of one 16-bit type, or one of them or both fp32; H a multiple of 8;
 *   rows begin at multiples of 16 bytes (cuda_router.c and cuda_weights.c check them).
 */
#include "cuda_args.h"
#include "ptx.cuh"
#include "router_wide.cuh"
#include "vmath.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace
{

constexpr int kWarps = MOE_CUDA_ROUTER_WARPS;
constexpr int kThreads = kWarps * 32;
constexpr int kVector = 8; /* elements of 16 bytes */
constexpr int kQuad = 32;  /* columns that the four lanes of a row load at once */
constexpr int kStretch = 2 * kQuad;
static_assert(kWarps == 8, "the tree of sums has three levels");

__device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1, __half)
{
    moe_ptx_mma_f16(sums, a, b0, b1);
}
__device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1, __nv_bfloat16)
{
    moe_ptx_mma_bf16(sums, a, b0, b1);
}

/* Rows of a matrix, zeros beyond its end. */
struct Rows {
    const char *base;
    int64_t row_bytes;
    int64_t num_rows;
    int32_t num_columns;

    __device__ __forceinline__ uint4 load(int64_t row, int32_t column) const
    {
        if (row >= num_rows || column >= num_columns) {
            return make_uint4(0, 0, 0, 0);
        }
        return __ldg(reinterpret_cast<const uint4 *>(base + row * row_bytes + column * 2));
    }
};

/* Sums of one warp over its stretches: kM * 16 tokens by kN * 8 experts. */
template <typename Element, int kM, int kN>
__device__ __forceinline__ void sum_stretches(const Rows &tokens, const Rows &weights,
                                              int64_t first_token, int64_t first_expert,
                                              float (&sums)[kM][kN][4])
{
    const int warp = threadIdx.x / 32;
    const int row = threadIdx.x % 32 / 4;
    const int32_t lane_column = threadIdx.x % 4 * kVector;
#pragma unroll(kM == 1 ? 4 : 1)
    for (int32_t k = warp * kStretch; k < tokens.num_columns; k += kWarps * kStretch) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int32_t column = k + half * kQuad + lane_column;
            uint4 a[kM][2];
            uint4 b[kN];
#pragma unroll
            for (int m = 0; m < kM; m++) {
                a[m][0] = tokens.load(first_token + m * 16 + row, column);
                a[m][1] = tokens.load(first_token + m * 16 + row + 8, column);
            }
#pragma unroll
            for (int n = 0; n < kN; n++) {
                b[n] = weights.load(first_expert + n * 8 + row, column);
            }
#pragma unroll
            for (int m = 0; m < kM; m++) {
                const uint32_t low[4] = {a[m][0].x, a[m][1].x, a[m][0].y, a[m][1].y};
                const uint32_t high[4] = {a[m][0].z, a[m][1].z, a[m][0].w, a[m][1].w};
#pragma unroll
                for (int n = 0; n < kN; n++) {
                    multiply(sums[m][n], low, b[n].x, b[n].y, Element());
                    multiply(sums[m][n], high, b[n].z, b[n].w, Element());
                }
            }
        }
    }
}

/* ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)) over the warps, into warp 0. */
template <int kCount>
__device__ __forceinline__ void sum_warps(float (&sums)[kCount], float *shared)
{
    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int level = 1; level < kWarps; level *= 2) {
        float *slot = shared + warp / (2 * level) * kCount * 32 + lane;
        __syncthreads();
        if (warp % (2 * level) == level) {
#pragma unroll
            for (int i = 0; i < kCount; i++) {
                slot[i * 32] = sums[i];
            }
        }
        __syncthreads();
        if (warp % (2 * level) == 0) {
#pragma unroll
            for (int i = 0; i < kCount; i++) {
                sums[i] = __fadd_rn(sums[i], slot[i * 32]);
            }
        }
    }
}

__device__ __forceinline__ float load_bias(const struct moe_operand &bias, int64_t expert)
{
    if (bias.base == nullptr) {
        return 0.0f;
    }
    const int64_t offset = expert * bias.row_stride;
    switch (bias.dtype) {
    case MOE_DTYPE_FP32:
        return static_cast<const float *>(bias.base)[offset];
    case MOE_DTYPE_FP16:
        return __half2float(static_cast<const __half *>(bias.base)[offset]);
    default:
        return __bfloat162float(static_cast<const __nv_bfloat16 *>(bias.base)[offset]);
    }
}

/* NaN of any payload is stored as the positive quiet one, as on the CPU. */
__device__ __forceinline__ void store_logit(void *logits, int64_t at, int32_t dtype, float value)
{
    const bool is_nan = value != value;
    switch (dtype) {
    case MOE_DTYPE_FP32:
        static_cast<float *>(logits)[at] = is_nan ? __int_as_float(0x7fc00000) : value;
        break;
    case MOE_DTYPE_FP16:
        static_cast<__half *>(logits)[at] =
            is_nan ? __ushort_as_half(0x7e00) : __float2half_rn(value);
        break;
    default:
        static_cast<__nv_bfloat16 *>(logits)[at] =
            is_nan ? __ushort_as_bfloat16(0x7fc0) : __float2bfloat16_rn(value);
        break;
    }
}

__device__ __forceinline__ void finish_logit(const struct moe_cuda_router &args, int64_t token,
                                             int64_t num_tokens, int64_t expert, float sum)
{
    const struct moe_op_router &op = args.op;
    if (token >= num_tokens || expert >= op.num_experts) {
        return;
    }
    float value = op.bias.base != nullptr ? __fadd_rn(sum, load_bias(op.bias, expert)) : sum;
    if (args.applies_sigmoid) {
        value = moe_vmath_logistic(value);
    }
    store_logit(op.logits, token * op.logits_stride + expert, op.logits_dtype, value);
}

/* Tokens of the call, as far as the device has them. */
__device__ __forceinline__ int64_t count_tokens(const struct moe_op_router &op)
{
    if (op.num_tokens_device == nullptr) {
        return op.num_tokens;
    }
    const int64_t real = max(*op.num_tokens_device, 0);
    return real < op.num_tokens ? real : op.num_tokens;
}

template <typename Element, int kM, int kN>
__device__ __forceinline__ void route_tokens(const struct moe_cuda_router &args, float *shared)
{
    const struct moe_op_router &op = args.op;
    const int64_t num_tokens = count_tokens(op);
    const Rows tokens = {static_cast<const char *>(op.tokens), op.token_stride * 2, num_tokens,
                         op.hidden};
    const Rows weights = {static_cast<const char *>(op.weight.base), op.weight.row_stride * 2,
                          op.num_experts, op.hidden};
    const int64_t first_expert = static_cast<int64_t>(blockIdx.x) * (kN * 8);
    const int lane = threadIdx.x % 32;
    for (int64_t first = static_cast<int64_t>(blockIdx.y) * (kM * 16); first < num_tokens;
         first += static_cast<int64_t>(gridDim.y) * (kM * 16)) {
        float sums[kM][kN][4] = {};
        sum_stretches<Element, kM, kN>(tokens, weights, first, first_expert, sums);
        sum_warps(reinterpret_cast<float(&)[kM * kN * 4]>(sums), shared);
        if (threadIdx.x >= 32) {
            continue;
        }
#pragma unroll
        for (int i = 0; i < kM * kN * 4; i++) {
            const int m = i / (kN * 4), n = i / 4 % kN, c = i % 4;
            finish_logit(args, first + m * 16 + lane / 4 + c / 2 * 8, num_tokens,
                         first_expert + n * 8 + lane % 4 * 2 + c % 2, sums[m][n][c]);
        }
    }
}

template <int kM, int kN>
__device__ __forceinline__ void run_router(const struct moe_cuda_router &args)
{
    __shared__ float shared[kWarps / 2 * kM * kN * 4 * 32];
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    if (args.op.token_dtype == MOE_DTYPE_FP16) {
        route_tokens<__half, kM, kN>(args, shared);
    } else {
        route_tokens<__nv_bfloat16, kM, kN>(args, shared);
    }
}

/* The same for any pair of types, one of them fp32. */
template <typename Token, typename Weight, int kBlockM, int kBlockN>
__device__ __forceinline__ void route_wide(const struct moe_cuda_router &args, char *shared)
{
    constexpr int kTokens = kBlockM / kRouterTokenGroups;
    constexpr int kExperts = kBlockN / kRouterExpertGroups;
    const struct moe_op_router &op = args.op;
    const int64_t num_tokens = count_tokens(op);
    const WideRows tokens = {static_cast<const char *>(op.tokens),
                             op.token_stride * static_cast<int64_t>(sizeof(Token)), num_tokens};
    const WideRows weights = {static_cast<const char *>(op.weight.base),
                              op.weight.row_stride * static_cast<int64_t>(sizeof(Weight)),
                              op.num_experts};
    const int group = static_cast<int>(threadIdx.x) / kRouterLanes;
    const int64_t first_expert = static_cast<int64_t>(blockIdx.x) * kBlockN;
    for (int64_t first = static_cast<int64_t>(blockIdx.y) * kBlockM; first < num_tokens;
         first += static_cast<int64_t>(gridDim.y) * kBlockM) {
        float sums[kTokens][kExperts] = {};
        sum_block<Token, Weight, kBlockM, kBlockN, kThreads>(tokens, weights, first, first_expert,
                                                             op.hidden, shared, sums);
#pragma unroll
        for (int i = 0; i < kTokens * kExperts; i++) {
            const float sum = sum_lanes(sums[i / kExperts][i % kExperts]);
            if (static_cast<int>(threadIdx.x) % kRouterLanes == i % kRouterLanes) {
                finish_logit(
                    args, first + i / kExperts * kRouterTokenGroups + group / kRouterExpertGroups,
                    num_tokens,
                    first_expert + i % kExperts * kRouterExpertGroups + group % kRouterExpertGroups,
                    sum);
            }
        }
    }
}

/* fp32 tokens. */
template <int kBlockM, int kBlockN>
__device__ __forceinline__ void route_wide_tokens(const struct moe_cuda_router &args, char *shared)
{
    switch (args.op.weight.dtype) {
    case MOE_DTYPE_FP16:
        route_wide<float, __half, kBlockM, kBlockN>(args, shared);
        break;
    case MOE_DTYPE_BF16:
        route_wide<float, __nv_bfloat16, kBlockM, kBlockN>(args, shared);
        break;
    default:
        route_wide<float, float, kBlockM, kBlockN>(args, shared);
        break;
    }
}

template <int kBlockM, int kBlockN>
__device__ __forceinline__ void run_wide_router(const struct moe_cuda_router &args)
{
    __shared__ __align__(16) char shared[kRouterStages * RouterStage<kBlockM, kBlockN>::kBytes];
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    switch (args.op.token_dtype) {
    case MOE_DTYPE_FP16:
        route_wide<__half, float, kBlockM, kBlockN>(args, shared);
        break;
    case MOE_DTYPE_BF16:
        route_wide<__nv_bfloat16, float, kBlockM, kBlockN>(args, shared);
        break;
    default:
        route_wide_tokens<kBlockM, kBlockN>(args, shared);
        break;
    }
}

} // namespace

static_assert(MOE_CUDA_ROUTER_NUM_FORMS == 2 && MOE_CUDA_ROUTER_WIDE == 1, "forms");
#define MOE_EMIT_WIDE_ROUTER(symbol, bm, bn)                        \
    extern "C" __global__ void __launch_bounds__(kThreads)          \
        symbol(const __grid_constant__ struct moe_cuda_router args) \
    {                                                               \
        run_wide_router<bm, bn>(args);                              \
    }
#define MOE_EMIT_CUDA_ROUTER(symbol, bm, bn)                        \
    extern "C" __global__ void __launch_bounds__(kThreads)          \
        symbol(const __grid_constant__ struct moe_cuda_router args) \
    {                                                               \
        run_router<(bm) / 16, (bn) / 8>(args);                      \
    }                                                               \
    MOE_EMIT_WIDE_ROUTER(MOE_FORM(1, symbol), bm, bn)
#define MOE_INSTANTIATE_ROUTER(kernel, bm, bn) MOE_EMIT_ROUTER_ROW(kernel, bm, bn)

#include "instantiate.cuh"
