/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The activations of MOE_ACTIVATION_LIST on eight lanes: the one function that the activation
 * kernel and the GEMM's epilogue share, so that both give the same bits. Every step is one
 * rounding, in the order written here. NaN in, NaN out.
 */
#ifndef MOE_CPU_ACT_H
#define MOE_CPU_ACT_H

#include "ops.h"
#include "vec8.h"
#include "vmath.h"

/* sqrt(2 / pi) and the cubic term of gelu's tanh form, for logistic(2 z) in the place of (1 +
 * tanh(z)) / 2. */
#define MOE_CPU_ACT_GELU_SCALE 0x1.988454p+0f
#define MOE_CPU_ACT_GELU_CUBIC 0x1.6e4e26p-5f

/* min(g, limit) * sigma(alpha * min(g, limit)) * (clamp(u, -limit, limit) + 1); limit 0: none. */
MOE_INLINE struct moe_vec8 moe_cpu_act8_swiglu_oai(const struct moe_op_act *act,
                                                   struct moe_vec8 gate, struct moe_vec8 up)
{
    if (act->limit > 0.0f) {
        const struct moe_vec8 limit = moe_vec8_set1(act->limit);
        gate = moe_vec8_min(limit, gate);
        up = moe_vec8_max(moe_vec8_set1(-act->limit), moe_vec8_min(limit, up));
    }
    const struct moe_vec8 z = moe_vec8_mul(moe_vec8_set1(act->alpha), gate);
    const struct moe_vec8 swish = moe_vec8_div(gate, moe_vmath_one_plus_exp_neg(z));
    return moe_vec8_mul(swish, moe_vec8_add(up, moe_vec8_set1(1.0f)));
}

/* The function of one argument. */
MOE_INLINE struct moe_vec8 moe_cpu_act8_single(int32_t activation, struct moe_vec8 x)
{
    switch (activation) {
    case MOE_ACTIVATION_SILU:
        return moe_vec8_div(x, moe_vmath_one_plus_exp_neg(x));
    case MOE_ACTIVATION_GELU:
        return moe_vec8_mul(x, moe_vmath_normal_cdf(x));
    case MOE_ACTIVATION_GELU_TANH: {
        const struct moe_vec8 cubic = moe_vec8_fma(
            moe_vec8_mul(x, x), moe_vec8_set1(MOE_CPU_ACT_GELU_CUBIC), moe_vec8_set1(1.0f));
        const struct moe_vec8 z =
            moe_vec8_mul(moe_vec8_mul(x, moe_vec8_set1(MOE_CPU_ACT_GELU_SCALE)), cubic);
        return moe_vec8_div(x, moe_vmath_one_plus_exp_neg(z));
    }
    case MOE_ACTIVATION_RELU2: {
        const struct moe_vec8 positive = moe_vec8_max(moe_vec8_zero(), x);
        return moe_vec8_mul(positive, positive);
    }
    default: /* identity */
        return x;
    }
}

/* act(gate, up); ungated: act(up), gate is not used. */
MOE_INLINE struct moe_vec8 moe_cpu_act8(const struct moe_op_act *act, struct moe_vec8 gate,
                                        struct moe_vec8 up)
{
    if (act->ungated) {
        return moe_cpu_act8_single(act->activation, up);
    }
    if (act->activation == MOE_ACTIVATION_SWIGLU_OAI) {
        return moe_cpu_act8_swiglu_oai(act, gate, up);
    }
    return moe_vec8_mul(moe_cpu_act8_single(act->activation, gate), up);
}

/* The same for up to four vectors, results in the place of `up`; act's members are constants.
 * silu's exponentials go side by side. */
MOE_INLINE void moe_cpu_act8_few(const struct moe_op_act *act, const struct moe_vec8 *gate,
                                 struct moe_vec8 *up, int count)
{
    enum { MOST = 4 };
    struct moe_vec8 denominators[MOST];
    if (act->activation != MOE_ACTIVATION_SILU) {
        MOE_UNROLL for (int i = 0; i < count; i++)
        {
            up[i] = moe_cpu_act8(act, gate[i], up[i]);
        }
        return;
    }
    MOE_UNROLL for (int i = 0; i < count; i++)
    {
        denominators[i] = act->ungated ? up[i] : gate[i];
    }
    moe_vmath_ones_plus_exp_neg(denominators, count);
    MOE_UNROLL for (int i = 0; i < count; i++)
    {
        const struct moe_vec8 swish = moe_vec8_div(act->ungated ? up[i] : gate[i], denominators[i]);
        up[i] = act->ungated ? swish : moe_vec8_mul(swish, up[i]);
    }
}

#endif
