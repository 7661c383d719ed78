/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Transcendental functions on eight lanes, of our own because a C library picks variants per CPU
 * and bits would differ. All are polynomials of fused multiply-adds; coefficients are
 * interpolations at Chebyshev nodes, rounded to fp32. Largest errors against exact values over the
 * whole range of fp32; bounds are kept by tests/ops/test_kernel_vmath.c:
 *   exp         1.05 ulp;   0 below -103.98, inf above 88.73
 *   logistic    2.3 ulp
 *   normal_cdf  5 ulp
 *   one_plus_exp_neg  2.6 ulp for |x| <= 12, 5.6 at -88; inf below -88.73
 * Subnormal results are rounded twice: half a unit of 2^-149 more (and 0 if the host flushes
 * subnormals). NaN gives NaN. The tanh form of gelu needs no tanh: (1 + tanh(z)) / 2 is logistic(2
 * z), which does not cancel.
 */
#ifndef MOE_VMATH_H
#define MOE_VMATH_H

#include "vec8.h"

/* One step of Horner's rule. The polynomials below are written out: compilers leave a loop over
 * coefficients a loop. */
MOE_INLINE struct moe_vec8 moe_vmath_step(struct moe_vec8 sum, struct moe_vec8 x, float coefficient)
{
    return moe_vec8_fma(sum, x, moe_vec8_set1(coefficient));
}

/* e^x: x = n ln 2 + r, |r| <= ln 2 / 2, e^r = 1 + r + r^2 P(r). */
MOE_INLINE struct moe_vec8 moe_vmath_exp(struct moe_vec8 x)
{
    /* Bounds that give 0 and infinity by themselves; a NaN passes both. */
    x = moe_vec8_max(moe_vec8_set1(-105.0f), moe_vec8_min(moe_vec8_set1(89.0f), x));
    const struct moe_vec8 n = moe_vec8_round(moe_vec8_mul(x, moe_vec8_set1(0x1.715476p+0f)));
    struct moe_vec8 r = moe_vec8_fma(n, moe_vec8_set1(-0x1.62e430p-1f), x);
    r = moe_vec8_fma(n, moe_vec8_set1(0x1.05c610p-29f), r);
    const struct moe_vec8 r2 = moe_vec8_mul(r, r);
    struct moe_vec8 p = moe_vec8_set1(0x1.6d117cp-10f);
    p = moe_vmath_step(p, r, 0x1.120be2p-7f);
    p = moe_vmath_step(p, r, 0x1.555518p-5f);
    p = moe_vmath_step(p, r, 0x1.5554dcp-3f);
    p = moe_vmath_step(p, r, 0x1.000000p-1f);
    const struct moe_vec8 e = moe_vec8_add(moe_vec8_fma(p, r2, r), moe_vec8_set1(1.0f));
    /* 2^n in two factors: n runs from -151 to 128, beyond the exponents of one float. */
    const struct moe_vec8 half = moe_vec8_round(moe_vec8_mul(n, moe_vec8_set1(0.5f)));
    return moe_vec8_scale2(moe_vec8_scale2(e, half), moe_vec8_sub(n, half));
}

/* 1 / (1 + e^-x), from e^-|x| so that nothing overflows and small results keep their digits. */
MOE_INLINE struct moe_vec8 moe_vmath_logistic(struct moe_vec8 x)
{
    const struct moe_vec8 one = moe_vec8_set1(1.0f);
    const struct moe_vec8 e = moe_vmath_exp(moe_vec8_sub(moe_vec8_zero(), moe_vec8_abs(x)));
    const struct moe_mask8 negative = moe_vec8_lt(x, moe_vec8_zero());
    return moe_vec8_div(moe_vec8_select(negative, e, one), moe_vec8_add(one, e));
}

/*
 * 1 + e^-x, so that y / moe_vmath_one_plus_exp_neg(x) is y times the logistic function: what the
 * activations use, with half the operations of moe_vmath_logistic. e^-x overflows below -88.73, so
 * the quotient is 0 there; scores of experts, which are ranked, take moe_vmath_logistic.
 * x = s - n ln 2, |s| <= ln 2 / 2, and e^-x = 2^(n - 1) * 2 e^-s: the factor 2 in the polynomial
 * lets n reach 128, where the result overflows by itself.
 * Up to four vectors go side by side: each step waits for the one before it, and a core that looks
 * a hundred operations ahead finds too few others in the code of one vector after the other.
 */
MOE_INLINE void moe_vmath_ones_plus_exp_neg(struct moe_vec8 *x, int count)
{
    enum { MOST = 4 };
    const struct moe_vec8 rounder = moe_vec8_set1(MOE_VEC8_ROUNDER - 1.0f);
    struct moe_vec8 raised[MOST];
    struct moe_vec8 s[MOST];
    struct moe_vec8 p[MOST];
    MOE_UNROLL for (int i = 0; i < count; i++)
    {
        /* From 86 on e^-x is far below half a unit of 1; a NaN passes both. */
        x[i] = moe_vec8_max(moe_vec8_set1(-89.0f), moe_vec8_min(moe_vec8_set1(86.0f), x[i]));
        raised[i] = moe_vec8_fma(x[i], moe_vec8_set1(-0x1.715476p+0f), rounder);
    }
    MOE_UNROLL for (int i = 0; i < count; i++)
    {
        /* One fused step: fp32's ln 2 is off by 1.9e-9, which makes 2.4e-7 of e^-x at the most. */
        const struct moe_vec8 n = moe_vec8_sub(raised[i], rounder);
        s[i] = moe_vec8_fma(n, moe_vec8_set1(0x1.62e430p-1f), x[i]);
        p[i] = moe_vec8_set1(-0x1.10627ap-6f);
    }
    static const float coefficients[] = {0x1.572a06p-4f, -0x1.5557aep-2f, 0x1.fffdfcp-1f, -2.0f,
                                         2.0f};
    MOE_UNROLL for (int c = 0; c < 5; c++)
    {
        MOE_UNROLL for (int i = 0; i < count; i++)
        {
            p[i] = moe_vmath_step(p[i], s[i], coefficients[c]);
        }
    }
    MOE_UNROLL for (int i = 0; i < count; i++)
    {
        x[i] = moe_vec8_fma(p[i], moe_vec8_exp2_raised(raised[i]), moe_vec8_set1(1.0f));
    }
}

MOE_INLINE struct moe_vec8 moe_vmath_one_plus_exp_neg(struct moe_vec8 x)
{
    moe_vmath_ones_plus_exp_neg(&x, 1);
    return x;
}

/*
 * Phi(x) = (1 + erf(x / sqrt 2)) / 2 without the cancellation for negative x: with a = |x| the tail
 * is Phi(-a) = e^(-a^2 / 2) R(a), and (1 + 1.4 a) R(a) is a polynomial in (a - 3.5) / (a + 3.5) to
 * 5e-8.
 */
MOE_INLINE struct moe_vec8 moe_vmath_normal_cdf(struct moe_vec8 x)
{
    const struct moe_vec8 one = moe_vec8_set1(1.0f);
    const struct moe_vec8 k = moe_vec8_set1(3.5f);
    /* Phi(-14.5) is below half the smallest subnormal. */
    const struct moe_vec8 a = moe_vec8_min(moe_vec8_set1(14.5f), moe_vec8_abs(x));
    const struct moe_vec8 q = moe_vec8_div(moe_vec8_sub(a, k), moe_vec8_add(a, k));
    struct moe_vec8 p = moe_vec8_set1(0x1.c36c06p-13f);
    p = moe_vmath_step(p, q, 0x1.6a2f94p-14f);
    p = moe_vmath_step(p, q, -0x1.11807ep-9f);
    p = moe_vmath_step(p, q, 0x1.f89d56p-11f);
    p = moe_vmath_step(p, q, 0x1.f01ae0p-7f);
    p = moe_vmath_step(p, q, -0x1.998d8ep-5f);
    p = moe_vmath_step(p, q, 0x1.3f2db2p-4f);
    p = moe_vmath_step(p, q, -0x1.935f5ep-5f);
    p = moe_vmath_step(p, q, -0x1.fb6d5cp-5f);
    p = moe_vmath_step(p, q, 0x1.413f58p-1f);
    const struct moe_vec8 ratio =
        moe_vec8_div(p, moe_vec8_fma(a, moe_vec8_set1(0x1.666666p+0f), one));
    /* a^2 = square + rest exactly, and e^(-rest / 2) is 1 - rest / 2. */
    const struct moe_vec8 square = moe_vec8_mul(a, a);
    const struct moe_vec8 rest = moe_vec8_fma(a, a, moe_vec8_sub(moe_vec8_zero(), square));
    const struct moe_vec8 minus_half = moe_vec8_set1(-0.5f);
    const struct moe_vec8 decay = moe_vmath_exp(moe_vec8_mul(square, minus_half));
    const struct moe_vec8 correction = moe_vec8_fma(rest, minus_half, one);
    const struct moe_vec8 tail = moe_vec8_mul(moe_vec8_mul(ratio, correction), decay);
    return moe_vec8_select(moe_vec8_lt(x, moe_vec8_zero()), tail, moe_vec8_sub(one, tail));
}

#endif
