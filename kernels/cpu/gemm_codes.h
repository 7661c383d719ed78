/* SPDX-License-Identifier: Apache-2.0 */
/* fp8 codes to bf16 by tables of bytes, for processors with AVX-512 VBMI. */
#ifndef MOE_GEMM_CODES_H
#define MOE_GEMM_CODES_H

#include "vec8.h"

#define GEMM_HAS_VBMI (MOE_VEC8_AVX2 && !MOE_CPU_SUM_NEIGHBORS)

#if GEMM_HAS_VBMI

/* Functions that only a processor with these extensions reaches; the build is for AVX2. */
#define GEMM_VBMI_TARGET_ \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")))
#define GEMM_VBMI_INLINE static inline __attribute__((always_inline)) GEMM_VBMI_TARGET_

/*
 * value * 2^-8 of the codes 0..127 as bf16. From code 8 on exponent and mantissa of a code are
 * those of a bf16 with another bias; below are subnormals, and the last is NaN.
 */
#define GEMM_VBMI_NORMAL_(code) (((code) << 4) + ((127 - 7 - 8) << 7))
#define GEMM_VBMI_EIGHT_(BYTE, code)                                              \
    BYTE(GEMM_VBMI_NORMAL_(code)), BYTE(GEMM_VBMI_NORMAL_((code) + 1)),           \
        BYTE(GEMM_VBMI_NORMAL_((code) + 2)), BYTE(GEMM_VBMI_NORMAL_((code) + 3)), \
        BYTE(GEMM_VBMI_NORMAL_((code) + 4)), BYTE(GEMM_VBMI_NORMAL_((code) + 5)), \
        BYTE(GEMM_VBMI_NORMAL_((code) + 6))
#define GEMM_VBMI_ROW_(BYTE, code) GEMM_VBMI_EIGHT_(BYTE, code), BYTE(GEMM_VBMI_NORMAL_((code) + 7))
#define GEMM_VBMI_TABLE_(BYTE)                                                              \
    {                                                                                       \
        BYTE(0), BYTE(0x3700), BYTE(0x3780), BYTE(0x37c0), BYTE(0x3800), BYTE(0x3820),      \
            BYTE(0x3840), BYTE(0x3860), GEMM_VBMI_ROW_(BYTE, 8), GEMM_VBMI_ROW_(BYTE, 16),  \
            GEMM_VBMI_ROW_(BYTE, 24), GEMM_VBMI_ROW_(BYTE, 32), GEMM_VBMI_ROW_(BYTE, 40),   \
            GEMM_VBMI_ROW_(BYTE, 48), GEMM_VBMI_ROW_(BYTE, 56), GEMM_VBMI_ROW_(BYTE, 64),   \
            GEMM_VBMI_ROW_(BYTE, 72), GEMM_VBMI_ROW_(BYTE, 80), GEMM_VBMI_ROW_(BYTE, 88),   \
            GEMM_VBMI_ROW_(BYTE, 96), GEMM_VBMI_ROW_(BYTE, 104), GEMM_VBMI_ROW_(BYTE, 112), \
            GEMM_VBMI_EIGHT_(BYTE, 120), BYTE(0x7fc0)                                       \
    }
#define GEMM_VBMI_UPPER_(bits) ((bits) >> 8)
#define GEMM_VBMI_LOWER_(bits) ((bits)&0xff)

struct gemm_vbmi_tables {
    __m512i upper[2], lower[2];
};

GEMM_VBMI_INLINE struct gemm_vbmi_tables gemm_vbmi_tables(void)
{
    static const unsigned char upper[128] = GEMM_VBMI_TABLE_(GEMM_VBMI_UPPER_);
    static const unsigned char lower[128] = GEMM_VBMI_TABLE_(GEMM_VBMI_LOWER_);
    return (struct gemm_vbmi_tables){
        {_mm512_loadu_si512(upper), _mm512_loadu_si512(upper + 64)},
        {_mm512_loadu_si512(lower), _mm512_loadu_si512(lower + 64)},
    };
}

/* Upper and lower bytes of the bf16 that 64 codes stand for. */
GEMM_VBMI_INLINE __m512i gemm_vbmi_upper(const struct gemm_vbmi_tables *tables, __m512i codes)
{
    return _mm512_ternarylogic_epi32(
        _mm512_permutex2var_epi8(tables->upper[0], codes, tables->upper[1]), codes,
        _mm512_set1_epi8((char)0x80), 0xf8); /* upper | (codes & sign) */
}

GEMM_VBMI_INLINE __m512i gemm_vbmi_lower(const struct gemm_vbmi_tables *tables, __m512i codes)
{
    return _mm512_permutex2var_epi8(tables->lower[0], codes, tables->lower[1]);
}

#endif

#endif
