/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fp8 e4m3 to and from fp32: sign, 4 bits of exponent with bias 7, 3 of mantissa, no infinities,
 * NaN 0x7f and 0xff. Decoding is exact; both NaNs give 0x7fc00000. Encoding rounds once to nearest
 * even, saturates to +-448 (infinities too), keeps subnormals and the sign of zero, and writes
 * every NaN as 0x7f. The portable and the AVX2 body give the same bits.
 *
 * Encoding: 2^E is the power of two at or below |x|, but at least 2^-6. Added to 2^(E + 20), whose
 * neighbours are 2^(E - 3) apart, |x| is rounded to k = 0..16 steps of 2^(E - 3), and the sum's
 * bits are (E + 147) * 2^23 + k. The code is 8 (E + 7) + k - 8: subnormals, which have E = -6, and
 * carries into the next exponent come out by themselves.
 */
#ifndef MOE_FP8_H
#define MOE_FP8_H

#include "vec8.h"

#include <stdint.h>
#include <string.h>

#define MOE_FP8_NAN        0x7fu
#define MOE_FP8_MAX        448.0f
#define MOE_FP8_MIN_NORMAL 0x1p-6f
/* 8 (E + 7) - 8 = 8 (E + 147) - this. */
#define MOE_FP8_CODE_OFFSET (8u * (147u - 6u))

/* ---- one element ---- */

static inline float moe_fp8_decode(uint8_t code)
{
    const uint32_t sign = (uint32_t)(code & 0x80u) << 24;
    const uint32_t magnitude = code & 0x7fu;
    if (magnitude == MOE_FP8_NAN) {
        return moe_float_from_bits(0x7fc00000u);
    }
    if (magnitude < 8) {
        return moe_float_from_bits(sign | moe_float_bits((float)magnitude * 0x1p-9f));
    }
    return moe_float_from_bits(sign | ((magnitude << 20) + (120u << 23)));
}

static inline uint8_t moe_fp8_encode(float value)
{
    const uint32_t bits = moe_float_bits(value);
    const float magnitude = moe_float_from_bits(bits & 0x7fffffffu);
    if (magnitude != magnitude) {
        return MOE_FP8_NAN;
    }
    const float small = magnitude < MOE_FP8_MAX ? magnitude : MOE_FP8_MAX;
    const float normal = small > MOE_FP8_MIN_NORMAL ? small : MOE_FP8_MIN_NORMAL;
    const uint32_t step = (moe_float_bits(normal) & 0x7f800000u) + (20u << 23);
    const uint32_t sum = moe_float_bits(small + moe_float_from_bits(step));
    return (uint8_t)(((sum >> 20) + sum - MOE_FP8_CODE_OFFSET) | ((bits >> 24) & 0x80u));
}

/* ---- eight elements ---- */

#if MOE_VEC8_AVX2

/* Codes of eight lanes that are no NaN, in the low seven bits of each; the other bits are
 * anything. */
static inline __m256i moe_fp8_encode_magnitudes(__m256 values)
{
    const __m256 magnitude =
        _mm256_and_ps(values, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)));
    const __m256 small = _mm256_min_ps(magnitude, _mm256_set1_ps(MOE_FP8_MAX));
    const __m256 normal = _mm256_max_ps(small, _mm256_set1_ps(MOE_FP8_MIN_NORMAL));
    const __m256i exponent =
        _mm256_and_si256(_mm256_castps_si256(normal), _mm256_set1_epi32(0x7f800000));
    const __m256i step = _mm256_add_epi32(exponent, _mm256_set1_epi32(20 << 23));
    const __m256i sum = _mm256_castps_si256(_mm256_add_ps(small, _mm256_castsi256_ps(step)));
    const __m256i code = _mm256_add_epi32(_mm256_srli_epi32(sum, 20), sum);
    return _mm256_sub_epi32(code, _mm256_set1_epi32((int)MOE_FP8_CODE_OFFSET));
}

static inline void moe_fp8_store(void *to, struct moe_vec8 a)
{
    const __m256i nan = _mm256_castps_si256(moe_vec8_is_nan(a).v);
    const __m256i sign =
        _mm256_and_si256(_mm256_srli_epi32(_mm256_castps_si256(a.v), 24), _mm256_set1_epi32(0x80));
    __m256i code = _mm256_and_si256(moe_fp8_encode_magnitudes(a.v), _mm256_set1_epi32(0x7f));
    code = _mm256_blendv_epi8(_mm256_or_si256(code, sign), _mm256_set1_epi32(MOE_FP8_NAN), nan);
    const __m128i words =
        _mm_packus_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
    _mm_storel_epi64((__m128i *)to, _mm_packus_epi16(words, words));
}

/* fp16 has one more bit of exponent: moved there, a code stands for its value / 2^8. */
static inline struct moe_vec8 moe_fp8_load(const void *from)
{
    const __m128i codes = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)from));
    const __m128i magnitude = _mm_and_si128(codes, _mm_set1_epi16(0x7f));
    const __m128i sign = _mm_slli_epi16(_mm_srli_epi16(codes, 7), 15);
    const __m256 scaled = _mm256_cvtph_ps(_mm_or_si128(sign, _mm_slli_epi16(magnitude, 7)));
    const __m256 values = _mm256_mul_ps(scaled, _mm256_set1_ps(256.0f));
    const __m256i nan =
        _mm256_cvtepi16_epi32(_mm_cmpeq_epi16(magnitude, _mm_set1_epi16(MOE_FP8_NAN)));
    return (struct moe_vec8){_mm256_blendv_ps(
        values, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)), _mm256_castsi256_ps(nan))};
}

#else

static inline void moe_fp8_store(void *to, struct moe_vec8 a)
{
    uint8_t codes[MOE_VEC8_LANES];
    for (int l = 0; l < MOE_VEC8_LANES; l++) {
        codes[l] = moe_fp8_encode(a.lane[l]);
    }
    memcpy(to, codes, sizeof(codes));
}

static inline struct moe_vec8 moe_fp8_load(const void *from)
{
    uint8_t codes[MOE_VEC8_LANES];
    memcpy(codes, from, sizeof(codes));
    MOE_VEC8_EACH_(moe_vec8, r, moe_fp8_decode(codes[l]))
    return r;
}

#endif

#endif
