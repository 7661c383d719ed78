/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows to fp8 with AVX-512: the operations of moe_fp8_store and moe_quant_amax on vectors of
 * sixteen, so the same bits. Values come as bf16_avx512_load leaves them: the even columns of 32,
 * then the odd ones; a code of either makes 16 bits, which one conversion packs.
 */
#ifndef MOE_FP8_AVX512_H
#define MOE_FP8_AVX512_H

#include "bf16_avx512.h"
#include "fp8.h"

#define FP8_HAS_AVX512 BF16_HAS_AVX512

#if FP8_HAS_AVX512

/* The larger of |value| and `largest` in each lane; a NaN counts as nothing. */
BF16_AVX512_INLINE __m512 fp8_avx512_larger(__m512 value, __m512 largest)
{
    return _mm512_max_ps(_mm512_abs_ps(value), largest);
}

/* Codes in the low eight bits of each lane; moe_fp8_encode_magnitudes explains. */
BF16_AVX512_INLINE __m512i fp8_avx512_codes(__m512 value)
{
    const __m512 small = _mm512_min_ps(_mm512_abs_ps(value), _mm512_set1_ps(MOE_FP8_MAX));
    const __m512 normal = _mm512_max_ps(small, _mm512_set1_ps(MOE_FP8_MIN_NORMAL));
    const __m512i exponent =
        _mm512_and_si512(_mm512_castps_si512(normal), _mm512_set1_epi32(0x7f800000));
    const __m512i step = _mm512_add_epi32(exponent, _mm512_set1_epi32(20 << 23));
    const __m512i sum = _mm512_castps_si512(_mm512_add_ps(small, _mm512_castsi512_ps(step)));
    const __m512i code = _mm512_sub_epi32(_mm512_add_epi32(_mm512_srli_epi32(sum, 20), sum),
                                          _mm512_set1_epi32((int)MOE_FP8_CODE_OFFSET));
    const __m512i high = _mm512_srli_epi32(_mm512_castps_si512(value), 24);
    /* seven bits of the code, the eighth of the sign: (mask & code) | (~mask & high) */
    const __m512i both = _mm512_ternarylogic_epi32(_mm512_set1_epi32(0x7f), code, high, 0xca);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    return _mm512_mask_mov_epi32(both, is_nan, _mm512_set1_epi32(MOE_FP8_NAN));
}

/* 32 columns times `factor`. */
BF16_AVX512_INLINE void fp8_avx512_store(uint8_t *to, __m512 even, __m512 odd, __m512 factor)
{
    const __m512i low = fp8_avx512_codes(_mm512_mul_ps(even, factor));
    const __m512i high = fp8_avx512_codes(_mm512_mul_ps(odd, factor));
    /* bits above the eighth of `low` are those of value >> 24, which has eight */
    const __m512i pairs = _mm512_or_si512(low, _mm512_slli_epi32(high, 8));
    _mm256_storeu_si256((void *)to, _mm512_cvtepi32_epi16(pairs));
}

/* Codes of values that silu_avx512_values made, as many as a multiple of 32. */
BF16_AVX512_TARGET_ static inline void fp8_avx512_encode(const float *values, int64_t num_columns,
                                                         float inverse, uint8_t *to)
{
    const __m512 factor = _mm512_set1_ps(inverse);
    for (int64_t col = 0; col < num_columns; col += BF16_AVX512_COLUMNS) {
        fp8_avx512_store(to + col, _mm512_loadu_ps(values + col),
                         _mm512_loadu_ps(values + col + BF16_AVX512_COLUMNS / 2), factor);
    }
}

/* Largest magnitude of whole groups of 32 elements and `amax`. */
BF16_AVX512_TARGET_ static inline float fp8_avx512_amax_bf16(const uint16_t *from,
                                                             int64_t num_columns, float amax)
{
    __m512 largest[2] = {_mm512_set1_ps(amax), _mm512_set1_ps(amax)};
    for (int64_t col = 0; col < num_columns; col += BF16_AVX512_COLUMNS) {
        __m512 lanes[2];
        bf16_avx512_load(from + col, lanes);
        largest[0] = fp8_avx512_larger(lanes[0], largest[0]);
        largest[1] = fp8_avx512_larger(lanes[1], largest[1]);
    }
    return _mm512_reduce_max_ps(_mm512_max_ps(largest[0], largest[1]));
}

/* Codes of whole groups of 32 elements times `inverse`. */
BF16_AVX512_TARGET_ static inline void fp8_avx512_encode_bf16(const uint16_t *from,
                                                              int64_t num_columns, float inverse,
                                                              uint8_t *to)
{
    const __m512 factor = _mm512_set1_ps(inverse);
    for (int64_t col = 0; col < num_columns; col += BF16_AVX512_COLUMNS) {
        __m512 lanes[2];
        bf16_avx512_load(from + col, lanes);
        fp8_avx512_store(to + col, lanes[0], lanes[1], factor);
    }
}

#endif

#endif
