/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The activations of MOE_ACTIVATION_LIST on one value, for the operation activation:
 * kernels/cpu/act.h step by step, so the bits are the CPU's. The epilogue of the GEMM has its own,
 * gemm_act.cuh. kNear: the caller has asked moe_act_is_near.
 */
#ifndef MOE_ACT_CUH
#define MOE_ACT_CUH

#include "ops.h"
#include "vmath.cuh"

/* Of kernels/cpu/act.h: sqrt(2 / pi), doubled, and the cubic term of gelu's tanh form. */
#define MOE_ACT_GELU_SCALE 0x1.988454p+0f
#define MOE_ACT_GELU_CUBIC 0x1.6e4e26p-5f

/* What logistic is taken of, where the activation takes it: `gate` already limited. */
template <int kActivation>
static __device__ __forceinline__ float moe_act_argument(const struct moe_op_act &act, float gate)
{
    if (kActivation == MOE_ACTIVATION_SWIGLU_OAI) {
        return __fmul_rn(act.alpha, gate);
    }
    if (kActivation == MOE_ACTIVATION_GELU_TANH) {
        const float cubic = __fmaf_rn(__fmul_rn(gate, gate), MOE_ACT_GELU_CUBIC, 1.0f);
        return __fmul_rn(__fmul_rn(gate, MOE_ACT_GELU_SCALE), cubic);
    }
    return gate;
}

/* min(limit, gate) where swiglu_oai has a limit; NaN passes. */
static __device__ __forceinline__ float moe_act_limit_gate(const struct moe_op_act &act, float gate)
{
    return act.limit > 0.0f && act.limit < gate ? act.limit : gate;
}

static __device__ __forceinline__ float moe_act_limit_up(const struct moe_op_act &act, float up)
{
    if (!(act.limit > 0.0f)) {
        return up;
    }
    const float low = act.limit < up ? act.limit : up;
    return -act.limit > low ? -act.limit : low;
}

/* Are x, what the logistic function multiplies, and its argument moderate? */
template <int kActivation>
static __device__ __forceinline__ bool moe_act_is_near(const struct moe_op_act &act, float x)
{
    if (kActivation == MOE_ACTIVATION_SWIGLU_OAI) {
        x = moe_act_limit_gate(act, x);
    }
    const bool is_far = kActivation != MOE_ACTIVATION_SILU &&
                        !(fabsf(moe_act_argument<kActivation>(act, x)) < MOE_VMATH_NEAR);
    return moe_vmath_is_near(x) & !is_far;
}

/* The function of one argument. */
template <int kActivation, bool kNear>
static __device__ __forceinline__ float moe_act_single(const struct moe_op_act &act, float x)
{
    if (kActivation == MOE_ACTIVATION_SILU || kActivation == MOE_ACTIVATION_GELU_TANH) {
        return moe_vmath_times_logistic<kNear, false>(x, moe_act_argument<kActivation>(act, x));
    }
    if (kActivation == MOE_ACTIVATION_GELU) {
        return __fmul_rn(x, moe_vmath_normal_cdf(x));
    }
    if (kActivation == MOE_ACTIVATION_RELU2) {
        const float positive = 0.0f > x ? 0.0f : x;
        return __fmul_rn(positive, positive);
    }
    return x;
}

/* act(gate, up). */
template <int kActivation, bool kNear>
static __device__ __forceinline__ float moe_act_gated(const struct moe_op_act &act, float gate,
                                                      float up)
{
    if (kActivation == MOE_ACTIVATION_SWIGLU_OAI) {
        gate = moe_act_limit_gate(act, gate);
        up = moe_act_limit_up(act, up);
        const float z = moe_act_argument<kActivation>(act, gate);
        return __fmul_rn(moe_vmath_times_logistic<kNear, true>(gate, z), __fadd_rn(up, 1.0f));
    }
    return __fmul_rn(moe_act_single<kActivation, kNear>(act, gate), up);
}

#endif
