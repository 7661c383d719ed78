/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Eight fp32 lanes with a portable and an AVX2 + FMA body. Both give the same bits for every input:
 * each operation is one IEEE operation per lane (round to nearest even), comparisons and selections
 * are spelled out, and the one thing that hardware leaves open, sign and payload of a NaN
 * that arithmetic makes, is settled when values leave for memory (moe_vec8_canonical). Nothing here
 * reads or changes the floating-point environment, which is to be IEEE's default: the backend sets
 * it for the time of a call.
 */
#ifndef MOE_VEC8_H
#define MOE_VEC8_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define MOE_VEC8_AVX2 1
#include <immintrin.h>
#else
#define MOE_VEC8_AVX2 0
#endif

#define MOE_VEC8_LANES 8

/* A function that must become part of its caller: its arguments are constants there. */
#define MOE_INLINE static inline __attribute__((always_inline))

/* Before a loop over a few vectors that are to stay in registers: it becomes straight code. */
#define MOE_UNROLL _Pragma("GCC unroll 8")

/* 1: sums of lanes in another order than the canonical one, for a second plugin with other bits. */
#ifndef MOE_CPU_SUM_NEIGHBORS
#define MOE_CPU_SUM_NEIGHBORS 0
#endif

/* Adding this to a float of magnitude below 2^22 rounds it to an integer, which then sits in the
 * low mantissa bits. */
#define MOE_VEC8_ROUNDER 0x1.8p23f

static inline uint32_t moe_float_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static inline float moe_float_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

#if MOE_VEC8_AVX2

struct moe_vec8 {
    __m256 v;
};

/* Result of a comparison: all bits of a lane set or clear. */
struct moe_mask8 {
    __m256 v;
};

static inline struct moe_vec8 moe_vec8_set1(float value)
{
    return (struct moe_vec8){_mm256_set1_ps(value)};
}

/* Eight floats, any alignment. */
static inline struct moe_vec8 moe_vec8_load(const float *from)
{
    return (struct moe_vec8){_mm256_loadu_ps(from)};
}

/* Bits as they are, NaN included; any alignment. */
static inline void moe_vec8_store(float *to, struct moe_vec8 a)
{
    _mm256_storeu_ps(to, a.v);
}

static inline struct moe_vec8 moe_vec8_add(struct moe_vec8 a, struct moe_vec8 b)
{
    return (struct moe_vec8){_mm256_add_ps(a.v, b.v)};
}

static inline struct moe_vec8 moe_vec8_sub(struct moe_vec8 a, struct moe_vec8 b)
{
    return (struct moe_vec8){_mm256_sub_ps(a.v, b.v)};
}

static inline struct moe_vec8 moe_vec8_mul(struct moe_vec8 a, struct moe_vec8 b)
{
    return (struct moe_vec8){_mm256_mul_ps(a.v, b.v)};
}

static inline struct moe_vec8 moe_vec8_div(struct moe_vec8 a, struct moe_vec8 b)
{
    return (struct moe_vec8){_mm256_div_ps(a.v, b.v)};
}

/* a * b + c, rounded once. */
static inline struct moe_vec8 moe_vec8_fma(struct moe_vec8 a, struct moe_vec8 b, struct moe_vec8 c)
{
    return (struct moe_vec8){_mm256_fmadd_ps(a.v, b.v, c.v)};
}

/* a < b ? a : b: b if either is NaN or both are zeros. */
static inline struct moe_vec8 moe_vec8_min(struct moe_vec8 a, struct moe_vec8 b)
{
    return (struct moe_vec8){_mm256_min_ps(a.v, b.v)};
}

/* a > b ? a : b: b if either is NaN or both are zeros. */
static inline struct moe_vec8 moe_vec8_max(struct moe_vec8 a, struct moe_vec8 b)
{
    return (struct moe_vec8){_mm256_max_ps(a.v, b.v)};
}

/* Sign cleared. */
static inline struct moe_vec8 moe_vec8_abs(struct moe_vec8 a)
{
    return (struct moe_vec8){_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)};
}

/* False for NaN, as the next two. */
static inline struct moe_mask8 moe_vec8_lt(struct moe_vec8 a, struct moe_vec8 b)
{
    return (struct moe_mask8){_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)};
}

static inline struct moe_mask8 moe_vec8_le(struct moe_vec8 a, struct moe_vec8 b)
{
    return (struct moe_mask8){_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)};
}

static inline struct moe_mask8 moe_vec8_eq(struct moe_vec8 a, struct moe_vec8 b)
{
    return (struct moe_mask8){_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)};
}

static inline struct moe_mask8 moe_vec8_is_nan(struct moe_vec8 a)
{
    return (struct moe_mask8){_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)};
}

/* mask ? a : b. */
static inline struct moe_vec8 moe_vec8_select(struct moe_mask8 mask, struct moe_vec8 a,
                                              struct moe_vec8 b)
{
    return (struct moe_vec8){_mm256_blendv_ps(b.v, a.v, mask.v)};
}

/* Bit l is lane l. */
static inline uint32_t moe_mask8_bits(struct moe_mask8 mask)
{
    return (uint32_t)_mm256_movemask_ps(mask.v);
}

/* 2^n for lanes that hold n + 2^23 + 2^22, n an integer of -126 .. 127. */
static inline struct moe_vec8 moe_vec8_exp2_raised(struct moe_vec8 raised)
{
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(raised.v), 23);
    return (struct moe_vec8){
        _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(0x3f800000)))};
}

/* Lanes 0, 2, .. 14 and 1, 3, .. 15 of the sixteen in low and high. */
static inline void moe_vec8_deinterleave(struct moe_vec8 low, struct moe_vec8 high,
                                         struct moe_vec8 *even, struct moe_vec8 *odd)
{
    /* The shuffles work in halves of four lanes: the quarters come out as 0 2 1 3. */
    const __m256 evens = _mm256_shuffle_ps(low.v, high.v, 0x88);
    const __m256 odds = _mm256_shuffle_ps(low.v, high.v, 0xdd);
    even->v = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(evens), 0xd8));
    odd->v = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(odds), 0xd8));
}

/* The sum in canonical order: ((s0+s4)+(s2+s6))+((s1+s5)+(s3+s7)); neighbours first where
 * MOE_CPU_SUM_NEIGHBORS asks for other bits. */
static inline float moe_vec8_sum(struct moe_vec8 a)
{
#if MOE_CPU_SUM_NEIGHBORS
    const __m256 pairs = _mm256_hadd_ps(a.v, a.v);
    const __m256 halves = _mm256_hadd_ps(pairs, pairs);
    return _mm_cvtss_f32(
        _mm_add_ss(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
#else
    const __m128 by4 = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    const __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
    return _mm_cvtss_f32(_mm_add_ss(by2, _mm_shuffle_ps(by2, by2, 1)));
#endif
}

#else

struct moe_vec8 {
    float lane[MOE_VEC8_LANES];
};

struct moe_mask8 {
    uint32_t lane[MOE_VEC8_LANES];
};

/* Declares `name` with every lane l set to `expression`. */
#define MOE_VEC8_EACH_(type, name, expression) \
    struct type name;                          \
    for (int l = 0; l < MOE_VEC8_LANES; l++) { \
        name.lane[l] = (expression);           \
    }

static inline struct moe_vec8 moe_vec8_set1(float value)
{
    MOE_VEC8_EACH_(moe_vec8, r, value)
    return r;
}

static inline struct moe_vec8 moe_vec8_load(const float *from)
{
    struct moe_vec8 r;
    memcpy(r.lane, from, sizeof(r.lane));
    return r;
}

static inline void moe_vec8_store(float *to, struct moe_vec8 a)
{
    memcpy(to, a.lane, sizeof(a.lane));
}

static inline struct moe_vec8 moe_vec8_add(struct moe_vec8 a, struct moe_vec8 b)
{
    MOE_VEC8_EACH_(moe_vec8, r, a.lane[l] + b.lane[l])
    return r;
}

static inline struct moe_vec8 moe_vec8_sub(struct moe_vec8 a, struct moe_vec8 b)
{
    MOE_VEC8_EACH_(moe_vec8, r, a.lane[l] - b.lane[l])
    return r;
}

static inline struct moe_vec8 moe_vec8_mul(struct moe_vec8 a, struct moe_vec8 b)
{
    MOE_VEC8_EACH_(moe_vec8, r, a.lane[l] * b.lane[l])
    return r;
}

static inline struct moe_vec8 moe_vec8_div(struct moe_vec8 a, struct moe_vec8 b)
{
    MOE_VEC8_EACH_(moe_vec8, r, a.lane[l] / b.lane[l])
    return r;
}

/* fmaf is exactly rounded, whichever variant the C library picks. */
static inline struct moe_vec8 moe_vec8_fma(struct moe_vec8 a, struct moe_vec8 b, struct moe_vec8 c)
{
    MOE_VEC8_EACH_(moe_vec8, r, fmaf(a.lane[l], b.lane[l], c.lane[l]))
    return r;
}

static inline struct moe_vec8 moe_vec8_min(struct moe_vec8 a, struct moe_vec8 b)
{
    MOE_VEC8_EACH_(moe_vec8, r, a.lane[l] < b.lane[l] ? a.lane[l] : b.lane[l])
    return r;
}

static inline struct moe_vec8 moe_vec8_max(struct moe_vec8 a, struct moe_vec8 b)
{
    MOE_VEC8_EACH_(moe_vec8, r, a.lane[l] > b.lane[l] ? a.lane[l] : b.lane[l])
    return r;
}

static inline struct moe_vec8 moe_vec8_abs(struct moe_vec8 a)
{
    MOE_VEC8_EACH_(moe_vec8, r, moe_float_from_bits(moe_float_bits(a.lane[l]) & 0x7fffffffu))
    return r;
}

static inline struct moe_mask8 moe_vec8_lt(struct moe_vec8 a, struct moe_vec8 b)
{
    MOE_VEC8_EACH_(moe_mask8, r, a.lane[l] < b.lane[l] ? UINT32_MAX : 0u)
    return r;
}

static inline struct moe_mask8 moe_vec8_le(struct moe_vec8 a, struct moe_vec8 b)
{
    MOE_VEC8_EACH_(moe_mask8, r, a.lane[l] <= b.lane[l] ? UINT32_MAX : 0u)
    return r;
}

static inline struct moe_mask8 moe_vec8_eq(struct moe_vec8 a, struct moe_vec8 b)
{
    MOE_VEC8_EACH_(moe_mask8, r, a.lane[l] == b.lane[l] ? UINT32_MAX : 0u)
    return r;
}

static inline struct moe_mask8 moe_vec8_is_nan(struct moe_vec8 a)
{
    MOE_VEC8_EACH_(moe_mask8, r, a.lane[l] != a.lane[l] ? UINT32_MAX : 0u)
    return r;
}

static inline struct moe_vec8 moe_vec8_select(struct moe_mask8 mask, struct moe_vec8 a,
                                              struct moe_vec8 b)
{
    MOE_VEC8_EACH_(moe_vec8, r, mask.lane[l] ? a.lane[l] : b.lane[l])
    return r;
}

static inline uint32_t moe_mask8_bits(struct moe_mask8 mask)
{
    uint32_t bits = 0;
    for (int l = 0; l < MOE_VEC8_LANES; l++) {
        bits |= (mask.lane[l] & 1u) << l;
    }
    return bits;
}

static inline struct moe_vec8 moe_vec8_exp2_raised(struct moe_vec8 raised)
{
    MOE_VEC8_EACH_(moe_vec8, r,
                   moe_float_from_bits((moe_float_bits(raised.lane[l]) << 23) + 0x3f800000u))
    return r;
}

static inline void moe_vec8_deinterleave(struct moe_vec8 low, struct moe_vec8 high,
                                         struct moe_vec8 *even, struct moe_vec8 *odd)
{
    for (int l = 0; l < MOE_VEC8_LANES / 2; l++) {
        even->lane[l] = low.lane[2 * l];
        odd->lane[l] = low.lane[2 * l + 1];
        even->lane[l + MOE_VEC8_LANES / 2] = high.lane[2 * l];
        odd->lane[l + MOE_VEC8_LANES / 2] = high.lane[2 * l + 1];
    }
}

static inline float moe_vec8_sum(struct moe_vec8 a)
{
    const float *s = a.lane;
#if MOE_CPU_SUM_NEIGHBORS
    return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
#else
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
#endif
}

#endif

static inline struct moe_vec8 moe_vec8_zero(void)
{
    return moe_vec8_set1(0.0f);
}

/* The nearest integer, ties to even; |a| < 2^22, NaN stays NaN. */
static inline struct moe_vec8 moe_vec8_round(struct moe_vec8 a)
{
    const struct moe_vec8 rounder = moe_vec8_set1(MOE_VEC8_ROUNDER);
    return moe_vec8_sub(moe_vec8_add(a, rounder), rounder);
}

/* a * 2^n for lanes of n that hold integers -126 .. 127. */
static inline struct moe_vec8 moe_vec8_scale2(struct moe_vec8 a, struct moe_vec8 n)
{
    const struct moe_vec8 raised = moe_vec8_add(n, moe_vec8_set1(MOE_VEC8_ROUNDER));
    return moe_vec8_mul(a, moe_vec8_exp2_raised(raised));
}

/* Every NaN becomes the positive quiet NaN 0x7fc00000: which of two NaNs an operation hands on, and
 * the sign of the NaN that inf - inf makes, are the compiler's and the hardware's choice. */
static inline struct moe_vec8 moe_vec8_canonical(struct moe_vec8 a)
{
    return moe_vec8_select(moe_vec8_is_nan(a), moe_vec8_set1(moe_float_from_bits(0x7fc00000u)), a);
}

#endif
