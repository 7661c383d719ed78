/* SPDX-License-Identifier: Apache-2.0 */
/*
 * silu(gate) * up of bf16 columns with AVX-512: the operations of moe_vmath_ones_plus_exp_neg and
 * moe_cpu_act8_few on vectors of sixteen, so the same bits. 64 columns at a time: four exponentials
 * side by side fill the pipeline, and eight columns take 2.0 ns in the cache where AVX2 takes 3.4.
 */
#ifndef MOE_SILU_AVX512_H
#define MOE_SILU_AVX512_H

#include "bf16_avx512.h"
#include "fp8_avx512.h"

#define SILU_HAS_AVX512 BF16_HAS_AVX512

/* Where the lines lie that are needed some rows later: while columns col .. are computed, those at
 * gate and up + pace * col elements are fetched. */
struct silu_ahead {
    const char *gate;
    const char *up;
    int64_t pace;
};

#if SILU_HAS_AVX512

enum { SILU_VECTORS = 4 };
enum { SILU_COLUMNS = SILU_VECTORS / 2 * BF16_AVX512_COLUMNS };

/* x[i] = 1 + e^-x[i]; moe_vmath_ones_plus_exp_neg explains. */
BF16_AVX512_INLINE void silu_denominators(__m512 x[SILU_VECTORS])
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

/* silu(gate) * up of columns col .. col + 63: even and odd ones of the first 32, then of the
 * others. */
BF16_AVX512_INLINE void silu_group(const uint16_t *gate, const uint16_t *up, int64_t col,
                                   const struct silu_ahead *ahead, __m512 products[SILU_VECTORS])
{
    __m512 gates[SILU_VECTORS], denominators[SILU_VECTORS];
    MOE_UNROLL for (int half = 0; half < SILU_VECTORS / 2; half++)
    {
        const int64_t at = col + half * BF16_AVX512_COLUMNS;
        const int64_t ahead_bytes = ahead->pace * at * (int64_t)sizeof(*gate);
        __builtin_prefetch(ahead->gate + ahead_bytes);
        __builtin_prefetch(ahead->up + ahead_bytes);
        bf16_avx512_load(gate + at, gates + 2 * half);
        bf16_avx512_load(up + at, products + 2 * half);
    }
    MOE_UNROLL for (int i = 0; i < SILU_VECTORS; i++)
    {
        denominators[i] = gates[i];
    }
    silu_denominators(denominators);
    MOE_UNROLL for (int i = 0; i < SILU_VECTORS; i++)
    {
        products[i] = _mm512_mul_ps(_mm512_div_ps(gates[i], denominators[i]), products[i]);
    }
}

/*
 * Whole groups of 64 columns; returns how many columns. A group is read before it is written.
 * `streams`: around the caches, for an output at the begin of a line; moe_convert_finish_streams
 * must follow.
 */
BF16_AVX512_TARGET_ static int64_t silu_avx512(const uint16_t *gate, const uint16_t *up,
                                               uint16_t *output, int64_t num_columns,
                                               const struct silu_ahead *ahead, int streams)
{
    int64_t col = 0;
    for (; col + SILU_COLUMNS <= num_columns; col += SILU_COLUMNS) {
        __m512 products[SILU_VECTORS];
        __m512i packed[SILU_VECTORS / 2];
        silu_group(gate, up, col, ahead, products);
        MOE_UNROLL for (int half = 0; half < SILU_VECTORS / 2; half++)
        {
            packed[half] = bf16_avx512_pack(products[2 * half], products[2 * half + 1]);
        }
        MOE_UNROLL for (int half = 0; half < SILU_VECTORS / 2; half++)
        {
            bf16_avx512_store(output + col + half * BF16_AVX512_COLUMNS, packed[half], streams);
        }
    }
    return col;
}

/*
 * The same to fp32 values in the order of silu_group, which fp8_avx512_encode reads, for columns
 * first .. first + num_columns - 1; returns how many. *amax becomes the largest magnitude of them
 * and *amax; a NaN counts as nothing.
 */
BF16_AVX512_TARGET_ static int64_t silu_avx512_values(const uint16_t *gate, const uint16_t *up,
                                                      float *values, int64_t first,
                                                      int64_t num_columns,
                                                      const struct silu_ahead *ahead, float *amax)
{
    __m512 largest[SILU_VECTORS];
    MOE_UNROLL for (int i = 0; i < SILU_VECTORS; i++)
    {
        largest[i] = _mm512_set1_ps(*amax);
    }
    int64_t col = 0;
    for (; col + SILU_COLUMNS <= num_columns; col += SILU_COLUMNS) {
        __m512 products[SILU_VECTORS];
        silu_group(gate, up, first + col, ahead, products);
        MOE_UNROLL for (int i = 0; i < SILU_VECTORS; i++)
        {
            _mm512_storeu_ps(values + col + i * (SILU_COLUMNS / SILU_VECTORS), products[i]);
            largest[i] = fp8_avx512_larger(products[i], largest[i]);
        }
    }
    *amax = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(largest[0], largest[1]),
                                               _mm512_max_ps(largest[2], largest[3])));
    return col;
}

#endif

#endif
