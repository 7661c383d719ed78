/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The transcendental functions of kernels/cpu/vmath.h on one value: the same coefficients in the
 * same order of roundings, so the bits are the CPU's for every argument (NaN aside: sign and
 * payload are settled when values leave for memory). Subnormals are kept, as on the CPU.
 *
 * "near": the same bits with fewer instructions for moderate arguments. There nothing is clamped
 * and nothing overflows, and a quotient needs no care for extremes: it is the refinement that
 * __fdiv_rn itself takes for them.
 */
#ifndef MOE_VMATH_CUH
#define MOE_VMATH_CUH

#include "ptx.cuh"

#define MOE_VMATH_ROUNDER  0x1.8p23f /* adding it rounds to an integer in the low mantissa bits */
#define MOE_VMATH_NEAR     32.0f     /* magnitudes of near arguments lie below, */
#define MOE_VMATH_NEAR_MIN 0x1p-60f  /* those of near numerators not below this */

/* n = x / ln 2 to the nearest integer; `raised` has it in its low bits. */
struct moe_vmath_reduced {
    float raised;
    float n;
    float e; /* e^(x - n ln 2) */
};

static __device__ __forceinline__ struct moe_vmath_reduced moe_vmath_reduce(float x)
{
    struct moe_vmath_reduced out;
    out.raised = __fadd_rn(__fmul_rn(x, 0x1.715476p+0f), MOE_VMATH_ROUNDER);
    out.n = __fsub_rn(out.raised, MOE_VMATH_ROUNDER);
    float r = __fmaf_rn(out.n, -0x1.62e430p-1f, x);
    r = __fmaf_rn(out.n, 0x1.05c610p-29f, r);
    const float r2 = __fmul_rn(r, r);
    float p = __fmaf_rn(0x1.6d117cp-10f, r, 0x1.120be2p-7f);
    p = __fmaf_rn(p, r, 0x1.555518p-5f);
    p = __fmaf_rn(p, r, 0x1.5554dcp-3f);
    p = __fmaf_rn(p, r, 0x1.000000p-1f);
    out.e = __fadd_rn(__fmaf_rn(p, r2, r), 1.0f);
    return out;
}

/* a * 2^n for an integer n of -126 .. 127. */
static __device__ __forceinline__ float moe_vmath_scale2(float a, float n)
{
    const uint32_t raised = __float_as_uint(__fadd_rn(n, MOE_VMATH_ROUNDER));
    return __fmul_rn(a, __uint_as_float((raised << 23) + 0x3f800000u));
}

static __device__ __forceinline__ float moe_vmath_exp(float x)
{
    /* Bounds that give 0 and infinity by themselves; a NaN passes both. */
    x = 89.0f < x ? 89.0f : x;
    x = -105.0f > x ? -105.0f : x;
    const struct moe_vmath_reduced reduced = moe_vmath_reduce(x);
    const float half =
        __fsub_rn(__fadd_rn(__fmul_rn(reduced.n, 0.5f), MOE_VMATH_ROUNDER), MOE_VMATH_ROUNDER);
    return moe_vmath_scale2(moe_vmath_scale2(reduced.e, half), __fsub_rn(reduced.n, half));
}

/* 1 / (1 + e^-x) */
static __device__ __forceinline__ float moe_vmath_logistic(float x)
{
    const float e = moe_vmath_exp(__fsub_rn(0.0f, fabsf(x)));
    return __fdiv_rn(x < 0.0f ? e : 1.0f, __fadd_rn(1.0f, e));
}

/* n / d for a moderate n, not zero, and 1 <= d <= 1 + e^MOE_VMATH_NEAR, or n = +0. One correction
 * is enough for silu and gelu_tanh, which was tried for every x; kTwice takes the second that
 * __fdiv_rn has. */
template <bool kTwice>
static __device__ __forceinline__ float moe_vmath_divide_near(float n, float d)
{
    float y = moe_ptx_rcp_approx(d);
    y = __fmaf_rn(y, __fmaf_rn(-d, y, 1.0f), y);
    const float q = __fmul_rn(n, y);
    const float closer = __fmaf_rn(y, __fmaf_rn(-d, q, n), q);
    return kTwice ? __fmaf_rn(y, __fmaf_rn(-d, closer, n), closer) : closer;
}

/* Is MOE_VMATH_NEAR_MIN <= |x| < MOE_VMATH_NEAR? One comparison of the bits without the sign. */
static __device__ __forceinline__ bool moe_vmath_is_near(float x)
{
    const uint32_t least = 2u * __float_as_uint(MOE_VMATH_NEAR_MIN);
    return 2u * __float_as_uint(x) - least < 2u * __float_as_uint(MOE_VMATH_NEAR) - least;
}

/* 1 + e^-x: x = s - n ln 2, e^-x = 2^(n - 1) * 2 e^-s. kNear: |x| < MOE_VMATH_NEAR. */
template <bool kNear> static __device__ __forceinline__ float moe_vmath_one_plus_exp_neg(float x)
{
    if (!kNear) {
        x = 86.0f < x ? 86.0f : x;
        x = -89.0f > x ? -89.0f : x;
    }
    const float rounder = MOE_VMATH_ROUNDER - 1.0f;
    const float raised = __fmaf_rn(x, -0x1.715476p+0f, rounder);
    const float n = __fsub_rn(raised, rounder);
    const float s = __fmaf_rn(n, 0x1.62e430p-1f, x);
    float p = __fmaf_rn(-0x1.10627ap-6f, s, 0x1.572a06p-4f);
    p = __fmaf_rn(p, s, -0x1.5557aep-2f);
    p = __fmaf_rn(p, s, 0x1.fffdfcp-1f);
    p = __fmaf_rn(p, s, -2.0f);
    p = __fmaf_rn(p, s, 2.0f);
    const float power = __uint_as_float((__float_as_uint(raised) << 23) + 0x3f800000u);
    return __fmaf_rn(p, power, 1.0f);
}

/* x / (1 + e^-z), x times the logistic function of z. kNear: |z| < MOE_VMATH_NEAR and
 * MOE_VMATH_NEAR_MIN <= |x| < MOE_VMATH_NEAR. */
template <bool kNear, bool kTwice>
static __device__ __forceinline__ float moe_vmath_times_logistic(float x, float z)
{
    const float d = moe_vmath_one_plus_exp_neg<kNear>(z);
    return kNear ? moe_vmath_divide_near<kTwice>(x, d) : __fdiv_rn(x, d);
}

/* Phi(x) = (1 + erf(x / sqrt 2)) / 2. The quotients are always near: numerators are +0 or at least
 * 2^-22. */
static __device__ __forceinline__ float moe_vmath_normal_cdf(float x)
{
    const float magnitude = fabsf(x);
    const float a = 14.5f < magnitude ? 14.5f : magnitude;
    const float q = moe_vmath_divide_near<true>(__fsub_rn(a, 3.5f), __fadd_rn(a, 3.5f));
    float p = __fmaf_rn(0x1.c36c06p-13f, q, 0x1.6a2f94p-14f);
    p = __fmaf_rn(p, q, -0x1.11807ep-9f);
    p = __fmaf_rn(p, q, 0x1.f89d56p-11f);
    p = __fmaf_rn(p, q, 0x1.f01ae0p-7f);
    p = __fmaf_rn(p, q, -0x1.998d8ep-5f);
    p = __fmaf_rn(p, q, 0x1.3f2db2p-4f);
    p = __fmaf_rn(p, q, -0x1.935f5ep-5f);
    p = __fmaf_rn(p, q, -0x1.fb6d5cp-5f);
    p = __fmaf_rn(p, q, 0x1.413f58p-1f);
    const float ratio = moe_vmath_divide_near<true>(p, __fmaf_rn(a, 0x1.666666p+0f, 1.0f));
    const float square = __fmul_rn(a, a);
    const float rest = __fmaf_rn(a, a, __fsub_rn(0.0f, square));
    const float decay = moe_vmath_exp(__fmul_rn(square, -0.5f));
    const float correction = __fmaf_rn(rest, -0.5f, 1.0f);
    const float tail = __fmul_rn(__fmul_rn(ratio, correction), decay);
    return x < 0.0f ? tail : __fsub_rn(1.0f, tail);
}

#endif
