/* SPDX-License-Identifier: Apache-2.0 */
/*
 * silu(gate) * up of bf16 columns with AVX-512: the operations of moe_vmath_ones_plus_exp_neg and
 * moe_cpu_act8_few on vectors of sixteen, so the same bits. 64 columns at a time: four exponentials
 * side by side fill the pipeline, and eight columns take 2.0 ns in the cache where AVX2 takes 3.4.
 */
#ifndef MOE_SILU_AVX512_H
#define MOE_SILU_AVX512_H

#include "convert.h"
#include "vec8.h"

#define SILU_HAS_AVX512 MOE_VEC8_AVX2

#if SILU_HAS_AVX512

/* Functions that only a processor with these extensions reaches; the build is for AVX2. */
#define SILU_TARGET_ __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")))
#define SILU_INLINE  static inline __attribute__((always_inline)) SILU_TARGET_

enum { SILU_VECTORS = 4, SILU_COLUMNS = 64, SILU_LINE_BYTES = 64 };

/* x[i] = 1 + e^-x[i]; moe_vmath_ones_plus_exp_neg explains. */
SILU_INLINE void silu_denominators(__m512 x[SILU_VECTORS])
{
    static const float coefficients[] = {0x1.572a06p-4f, -0x1.5557aep-2f, 0x1.fffdfcp-1f, -2.0f,
                                         2.0f};
    const __m512 rounder = _mm512_set1_ps(MOE_VEC8_ROUNDER - 1.0f);
    __m512 raised[SILU_VECTORS], s[SILU_VECTORS], p[SILU_VECTORS];
    MOE_UNROLL for (int i = 0; i < SILU_VECTORS; i++)
    {
        x[i] = _mm512_max_ps(_mm512_set1_ps(-89.0f), _mm512_min_ps(_mm512_set1_ps(86.0f), x[i]));
        raised[i] = _mm512_fmadd_ps(x[i], _mm512_set1_ps(-0x1.715476p+0f), rounder);
    }
    MOE_UNROLL for (int i = 0; i < SILU_VECTORS; i++)
    {
        const __m512 n = _mm512_sub_ps(raised[i], rounder);
        s[i] = _mm512_fmadd_ps(n, _mm512_set1_ps(0x1.62e430p-1f), x[i]);
        p[i] = _mm512_set1_ps(-0x1.10627ap-6f);
    }
    MOE_UNROLL for (int c = 0; c < 5; c++)
    {
        MOE_UNROLL for (int i = 0; i < SILU_VECTORS; i++)
        {
            p[i] = _mm512_fmadd_ps(p[i], s[i], _mm512_set1_ps(coefficients[c]));
        }
    }
    MOE_UNROLL for (int i = 0; i < SILU_VECTORS; i++)
    {
        const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(raised[i]), 23);
        const __m512i power = _mm512_add_epi32(exponent, _mm512_set1_epi32(0x3f800000));
        x[i] = _mm512_fmadd_ps(p[i], _mm512_castsi512_ps(power), _mm512_set1_ps(1.0f));
    }
}

/* Even and odd columns of 32. */
SILU_INLINE void silu_load(const uint16_t *from, __m512 lanes[2])
{
    const __m512i packed = _mm512_loadu_si512(from);
    lanes[0] = _mm512_castsi512_ps(_mm512_slli_epi32(packed, 16));
    lanes[1] = _mm512_castsi512_ps(_mm512_and_si512(packed, _mm512_set1_epi32((int)0xffff0000u)));
}

SILU_INLINE __m512 silu_canonical(__m512 a)
{
    return _mm512_mask_mov_ps(a, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q),
                              _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)));
}

/* moe_convert_bump_bf16 */
SILU_INLINE __m512i silu_bump(__m512 a)
{
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
}

/* moe_convert_pack_bf16 */
SILU_INLINE __m512i silu_pack(__m512 even, __m512 odd)
{
    if (_mm512_cmp_ps_mask(even, odd, _CMP_UNORD_Q) != 0) {
        even = silu_canonical(even);
        odd = silu_canonical(odd);
    }
    const __m512i low = _mm512_srli_epi32(silu_bump(even), 16);
    return _mm512_mask_mov_epi16(low, 0xaaaaaaaau, silu_bump(odd));
}

/*
 * Whole groups of 64 columns; returns how many columns. A group is read before it is written.
 * next_bytes: from these operands to those that are needed next. `streams`: around the caches, for
 * an output at a multiple of 64 bytes; moe_convert_finish_streams must follow.
 */
SILU_TARGET_ static int64_t silu_avx512(const uint16_t *gate, const uint16_t *up, uint16_t *output,
                                        int64_t num_columns, int64_t next_bytes, int streams)
{
    int64_t col = 0;
    for (; col + SILU_COLUMNS <= num_columns; col += SILU_COLUMNS) {
        __m512 gates[SILU_VECTORS], denominators[SILU_VECTORS], ups[SILU_VECTORS];
        __m512i packed[SILU_VECTORS / 2];
        MOE_UNROLL for (int half = 0; half < SILU_VECTORS / 2; half++)
        {
            const int64_t at = col + half * (SILU_COLUMNS / 2);
            __builtin_prefetch((const char *)(gate + at) + next_bytes);
            __builtin_prefetch((const char *)(up + at) + next_bytes);
            silu_load(gate + at, gates + 2 * half);
            silu_load(up + at, ups + 2 * half);
        }
        MOE_UNROLL for (int i = 0; i < SILU_VECTORS; i++)
        {
            denominators[i] = gates[i];
        }
        silu_denominators(denominators);
        MOE_UNROLL for (int i = 0; i < SILU_VECTORS; i++)
        {
            ups[i] = _mm512_mul_ps(_mm512_div_ps(gates[i], denominators[i]), ups[i]);
        }
        MOE_UNROLL for (int half = 0; half < SILU_VECTORS / 2; half++)
        {
            packed[half] = silu_pack(ups[2 * half], ups[2 * half + 1]);
        }
        MOE_UNROLL for (int half = 0; half < SILU_VECTORS / 2; half++)
        {
            uint16_t *to = output + col + half * (SILU_COLUMNS / 2);
            if (streams) {
                _mm512_stream_si512((void *)to, packed[half]);
            } else {
                _mm512_storeu_si512(to, packed[half]);
            }
        }
    }
    return col;
}

#endif

#endif
