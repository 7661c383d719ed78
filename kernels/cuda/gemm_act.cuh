/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The activations of MOE_ACTIVATION_LIST on fp32 values: the formulas of kernels/cpu/act.h and
 * vmath.h, with the hardware's 2^x and division in the place of polynomials. Against exact values:
 * 2^x is off by 2 ulp, its argument by 2^-24 of |x| log2 e, the quotient by 2 ulp, so a result by
 * 2^-21 (1 + |x| / 8) relative at most, far below one rounding to bf16 (2^-9) or fp16 (2^-12) while
 * the result is not itself negligible. NaN in, NaN out.
 */
#ifndef MOE_GEMM_ACT_CUH
#define MOE_GEMM_ACT_CUH

#include "ops.h"
#include "ptx.cuh"

/* 1 / (1 + e^-x); e^-x may be infinite. */
static __device__ __forceinline__ float moe_act_logistic(float x)
{
    return moe_ptx_reciprocal(1.0f + moe_ptx_exp2(x * -0x1.715476p+0f));
}

/* Phi(x); the tail e^(-a^2 / 2) R(a) as in vmath.h. */
static __device__ __forceinline__ float moe_act_normal_cdf(float x)
{
    const float bound = fabsf(x);
    const float a = bound > 14.5f ? 14.5f : bound;
    const float q = __fdividef(a - 3.5f, a + 3.5f);
    float p = 0x1.c36c06p-13f;
    p = __fmaf_rn(p, q, 0x1.6a2f94p-14f);
    p = __fmaf_rn(p, q, -0x1.11807ep-9f);
    p = __fmaf_rn(p, q, 0x1.f89d56p-11f);
    p = __fmaf_rn(p, q, 0x1.f01ae0p-7f);
    p = __fmaf_rn(p, q, -0x1.998d8ep-5f);
    p = __fmaf_rn(p, q, 0x1.3f2db2p-4f);
    p = __fmaf_rn(p, q, -0x1.935f5ep-5f);
    p = __fmaf_rn(p, q, -0x1.fb6d5cp-5f);
    p = __fmaf_rn(p, q, 0x1.413f58p-1f);
    const float ratio = __fdividef(p, __fmaf_rn(a, 0x1.666666p+0f, 1.0f));
    const float square = a * a;
    const float rest = __fmaf_rn(a, a, -square);
    const float correction = __fmaf_rn(rest, -0.5f, 1.0f);
    const float tail = ratio * correction * __expf(-0.5f * square);
    return x < 0.0f ? tail : 1.0f - tail;
}

static __device__ __forceinline__ float moe_act_swiglu_oai(const struct moe_op_act &act, float gate,
                                                           float up)
{
    if (act.limit > 0.0f) {
        gate = gate > act.limit ? act.limit : gate;
        up = up > act.limit ? act.limit : up;
        up = up < -act.limit ? -act.limit : up;
    }
    return gate * moe_act_logistic(act.alpha * gate) * (up + 1.0f);
}

static __device__ __forceinline__ float moe_act_single(int32_t activation, float x)
{
    if (activation == MOE_ACTIVATION_SILU) {
        return x * moe_act_logistic(x);
    }
    if (activation == MOE_ACTIVATION_GELU) {
        return x * moe_act_normal_cdf(x);
    }
    if (activation == MOE_ACTIVATION_GELU_TANH) {
        const float z = x * 0x1.988454p+0f * __fmaf_rn(x * x, 0x1.6e4e26p-5f, 1.0f);
        return x * moe_act_logistic(z);
    }
    if (activation == MOE_ACTIVATION_RELU2) {
        const float positive = x < 0.0f ? 0.0f : x;
        return positive * positive;
    }
    return x;
}

/* act(gate, up) of two matrices. */
static __device__ __forceinline__ float moe_act_gated(const struct moe_op_act &act, float gate,
                                                      float up)
{
    if (act.activation == MOE_ACTIVATION_SWIGLU_OAI) {
        return moe_act_swiglu_oai(act, gate, up);
    }
    return moe_act_single(act.activation, gate) * up;
}

#endif
