/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of bf16 with AVX-512: what moe_convert_load_wide and moe_convert_store_wide do with AVX2,
 * the same operations on vectors twice as long, so the same bits. */
#ifndef MOE_BF16_AVX512_H
#define MOE_BF16_AVX512_H

#include "convert.h"
#include "vec8.h"

#define BF16_HAS_AVX512 MOE_VEC8_AVX2

#if BF16_HAS_AVX512

/* Functions that only a processor with these extensions reaches; the build is for AVX2. */
#define BF16_AVX512_TARGET_ \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")))
#define BF16_AVX512_INLINE static inline __attribute__((always_inline)) BF16_AVX512_TARGET_

enum { BF16_AVX512_COLUMNS = 32 }; /* of a vector */
_Static_assert(BF16_AVX512_COLUMNS * 2 == MOE_CONVERT_LINE_BYTES, "a vector is a line");

/* Even and odd columns of 32. */
BF16_AVX512_INLINE void bf16_avx512_load(const uint16_t *from, __m512 lanes[2])
{
    const __m512i packed = _mm512_loadu_si512(from);
    lanes[0] = _mm512_castsi512_ps(_mm512_slli_epi32(packed, 16));
    lanes[1] = _mm512_castsi512_ps(_mm512_and_si512(packed, _mm512_set1_epi32((int)0xffff0000u)));
}

BF16_AVX512_INLINE __m512 bf16_avx512_canonical(__m512 a)
{
    return _mm512_mask_mov_ps(a, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q),
                              _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)));
}

/* moe_convert_bump_bf16 */
BF16_AVX512_INLINE __m512i bf16_avx512_bump(__m512 a)
{
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
}

/* moe_convert_pack_bf16 */
BF16_AVX512_INLINE __m512i bf16_avx512_pack(__m512 even, __m512 odd)
{
    if (_mm512_cmp_ps_mask(even, odd, _CMP_UNORD_Q) != 0) {
        even = bf16_avx512_canonical(even);
        odd = bf16_avx512_canonical(odd);
    }
    const __m512i low = _mm512_srli_epi32(bf16_avx512_bump(even), 16);
    return _mm512_mask_mov_epi16(low, 0xaaaaaaaau, bf16_avx512_bump(odd));
}

/* `streams`: around the caches, to the begin of a line; moe_convert_finish_streams must follow. */
BF16_AVX512_INLINE void bf16_avx512_store(uint16_t *to, __m512i packed, int streams)
{
    if (streams) {
        _mm512_stream_si512((void *)to, packed);
    } else {
        _mm512_storeu_si512(to, packed);
    }
}

#endif

#endif
