/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows of inputs and channels of weights, whatever their type and strides, as fp32 rows that are
 * contiguous along k. Conversion is exact, so a packed operand gives the bits of the operand
 * itself. Rows are filled with zeros up to a multiple of eight columns.
 */
#ifndef MOE_GEMM_PACK_H
#define MOE_GEMM_PACK_H

#include "convert.h"

#include <stdint.h>

#define GEMM_INLINE static inline __attribute__((always_inline))

enum { GEMM_SCALE_COLUMNS = 128 }; /* columns that share a scale of an fp8 operand in blocks */

/*
 * fp8 weights are decoded as value * 2^-8 (gemm_stream.h), the rows that meet them packed as
 * value * 2^8: their products are those of the values, and rows from 2^120 on are infinite.
 */
#define GEMM_FP8_UNIT 0x1p+8f

/* a * b + c, rounded once. */
GEMM_INLINE float gemm_fma(float a, float b, float c)
{
#if MOE_VEC8_AVX2
    return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
#else
    return fmaf(a, b, c);
#endif
}

/* Eight e4m3 as value * 2^-8; NaN becomes +-1.875. Bits 6..0 move to the exponent and mantissa of
 * an fp16, bit 7 to its sign. */
GEMM_INLINE struct moe_vec8 gemm_fp8_decode(const void *from)
{
#if MOE_VEC8_AVX2
    const __m128i codes = _mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i *)from));
    const __m128i halves = _mm_and_si128(_mm_slli_epi16(codes, 7), _mm_set1_epi16((short)0xbf80u));
    return (struct moe_vec8){_mm256_cvtph_ps(halves)};
#else
    unsigned char codes[MOE_VEC8_LANES];
    memcpy(codes, from, sizeof(codes));
    MOE_VEC8_EACH_(moe_vec8, r,
                   moe_convert_from_fp16(
                       (uint16_t)((codes[l] & 0x80u) << 8 | (uint32_t)(codes[l] & 0x7fu) << 7)))
    return r;
#endif
}

/* The same with NaN as NaN. */
static inline struct moe_vec8 gemm_fp8_decode_nan(const void *from)
{
    const struct moe_vec8 value = gemm_fp8_decode(from);
    const struct moe_mask8 is_nan =
        moe_vec8_eq(moe_vec8_abs(value), moe_vec8_set1(1.875f)); /* no other code is that large */
    return moe_vec8_select(is_nan, moe_vec8_set1(moe_float_from_bits(0x7fc00000u)), value);
}

/* Eight elements, fp8 as value * 2^-8. */
GEMM_INLINE struct moe_vec8 gemm_load(const void *from, int32_t dtype)
{
    return dtype == MOE_DTYPE_FP8_E4M3 ? gemm_fp8_decode_nan(from) : moe_convert_load(from, dtype);
}

/* The first `count` (0..8) of eight elements, the other lanes 0; reads nothing beyond them. */
static inline struct moe_vec8 gemm_load_partial(const void *from, int32_t dtype, int64_t count)
{
    unsigned char codes[MOE_VEC8_LANES] = {0};
    if (dtype != MOE_DTYPE_FP8_E4M3) {
        return moe_convert_load_partial(from, dtype, count);
    }
    memcpy(codes, from, (size_t)count);
    return gemm_fp8_decode_nan(codes);
}

/* `unit`: what each element is multiplied by; NULL: nothing. */
GEMM_INLINE void gemm_pack_row_typed(float *to, const void *from, int32_t dtype, int64_t k,
                                     const float *unit)
{
    const struct moe_vec8 factor = moe_vec8_set1(unit != NULL ? *unit : 1.0f);
    for (int64_t i = 0; i < k; i += MOE_VEC8_LANES) {
        const void *at = moe_convert_at(from, dtype, i);
        const struct moe_vec8 value =
            i + MOE_VEC8_LANES <= k ? gemm_load(at, dtype) : gemm_load_partial(at, dtype, k - i);
        moe_vec8_store(to + i, unit != NULL ? moe_vec8_mul(value, factor) : value);
    }
}

/* to[0..k) = from[0..k), contiguous; fp8 * 2^-8. */
static inline void gemm_pack_row(float *to, const void *from, int32_t dtype, int64_t k)
{
    if (dtype == MOE_DTYPE_FP8_E4M3) {
        gemm_pack_row_typed(to, from, MOE_DTYPE_FP8_E4M3, k, NULL);
    } else if (dtype == MOE_DTYPE_BF16) {
        gemm_pack_row_typed(to, from, MOE_DTYPE_BF16, k, NULL);
    } else if (dtype == MOE_DTYPE_FP16) {
        gemm_pack_row_typed(to, from, MOE_DTYPE_FP16, k, NULL);
    } else {
        gemm_pack_row_typed(to, from, MOE_DTYPE_FP32, k, NULL);
    }
}

/* A row that meets fp8 weights, as value * 2^8. */
static inline void gemm_pack_fp8_row(float *to, const void *from, int32_t dtype, int64_t k)
{
    static const float plain = GEMM_FP8_UNIT, decoded = GEMM_FP8_UNIT * GEMM_FP8_UNIT;
    if (dtype == MOE_DTYPE_FP8_E4M3) {
        gemm_pack_row_typed(to, from, MOE_DTYPE_FP8_E4M3, k, &decoded);
    } else if (dtype == MOE_DTYPE_BF16) {
        gemm_pack_row_typed(to, from, MOE_DTYPE_BF16, k, &plain);
    } else if (dtype == MOE_DTYPE_FP16) {
        gemm_pack_row_typed(to, from, MOE_DTYPE_FP16, k, &plain);
    } else {
        gemm_pack_row_typed(to, from, MOE_DTYPE_FP32, k, &plain);
    }
}

/* Lane j of v[i] and lane i of v[j] change places. */
static inline void gemm_transpose8(struct moe_vec8 v[MOE_VEC8_LANES])
{
#if MOE_VEC8_AVX2
    __m256 pairs[8], quads[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(v[i].v, v[i + 1].v);
        pairs[i + 1] = _mm256_unpackhi_ps(v[i].v, v[i + 1].v);
    }
    for (int i = 0; i < 8; i += 4) {
        quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
        quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
        quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
        quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        v[i].v = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
        v[i + 4].v = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
    }
#else
    for (int i = 0; i < MOE_VEC8_LANES; i++) {
        for (int j = i + 1; j < MOE_VEC8_LANES; j++) {
            const float swapped = v[i].lane[j];
            v[i].lane[j] = v[j].lane[i];
            v[j].lane[i] = swapped;
        }
    }
#endif
}

/* Elements 0, 2, .. 14; nothing behind element 14 is read. */
static inline struct moe_vec8 gemm_load_even(const void *from, int32_t dtype)
{
#if MOE_VEC8_AVX2
    const void *second =
        moe_convert_at(from, dtype, 7); /* elements 8, 10, .. are odd ones from here */
    if (dtype == MOE_DTYPE_FP32) {
        const __m256 low = _mm256_loadu_ps((const float *)from);
        const __m256 high = _mm256_loadu_ps((const float *)second);
        const __m256d even = _mm256_castps_pd(_mm256_shuffle_ps(low, high, 0xd8));
        return (struct moe_vec8){_mm256_castpd_ps(_mm256_permute4x64_pd(even, 0xd8))};
    }
    const __m128i low = _mm_loadu_si128((const __m128i *)from);
    const __m128i high = _mm_loadu_si128((const __m128i *)second);
    if (dtype == MOE_DTYPE_BF16) {
        const __m128i first_half = _mm_slli_epi32(low, 16);
        const __m128i second_half = _mm_and_si128(high, _mm_set1_epi32((int)0xffff0000u));
        return (struct moe_vec8){_mm256_castsi256_ps(_mm256_set_m128i(second_half, first_half))};
    }
    const __m128i first_half = _mm_and_si128(low, _mm_set1_epi32(0xffff));
    return (struct moe_vec8){
        _mm256_cvtph_ps(_mm_packus_epi32(first_half, _mm_srli_epi32(high, 16)))};
#else
    return moe_convert_load_strided(from, dtype, 2, MOE_VEC8_LANES);
#endif
}

/*
 * The first `count` (1..8) elements at distance `stride`, the other lanes 0; nothing behind the
 * last one is read.
 */
GEMM_INLINE struct moe_vec8 gemm_load_strided(const void *from, int32_t dtype, int64_t stride,
                                              int64_t count)
{
    if (dtype == MOE_DTYPE_FP8_E4M3) {
        unsigned char codes[MOE_VEC8_LANES] = {0};
        for (int64_t l = 0; l < count; l++) {
            codes[l] = ((const unsigned char *)from)[l * stride];
        }
        return gemm_fp8_decode_nan(codes);
    }
    if (stride == 1 && count == MOE_VEC8_LANES) {
        return moe_convert_load(from, dtype);
    }
    if (stride == 2 && count == MOE_VEC8_LANES) {
        return gemm_load_even(from, dtype);
    }
    return moe_convert_load_strided(from, dtype, stride, count);
}

/*
 * A block of weights: element (channel c, column i) lies c * row_stride + i * col_stride elements
 * after `from`.
 */
struct gemm_weight_block {
    const void *from;
    int32_t dtype;
    int64_t row_stride;
    int64_t col_stride;
    int64_t num_channels;
    int64_t k;
};

/*
 * Eight columns of up to eight channels, from (channel c, column i) on: to[0..8) of each channel.
 */
GEMM_INLINE void gemm_pack_square(float *to, int64_t pitch, const struct gemm_weight_block *block,
                                  int32_t dtype, int64_t row_stride, int64_t c, int64_t i)
{
    const int64_t channels_left = block->num_channels - c;
    const int64_t columns_left = block->k - i;
    const int64_t num_channels = channels_left < MOE_VEC8_LANES ? channels_left : MOE_VEC8_LANES;
    const int64_t num_columns = columns_left < MOE_VEC8_LANES ? columns_left : MOE_VEC8_LANES;
    struct moe_vec8 v[MOE_VEC8_LANES];
    for (int64_t j = 0; j < MOE_VEC8_LANES; j++) {
        const int64_t element = c * row_stride + (i + j) * block->col_stride;
        v[j] = j < num_columns ? gemm_load_strided(moe_convert_at(block->from, dtype, element),
                                                   dtype, row_stride, num_channels)
                               : moe_vec8_zero();
    }
    gemm_transpose8(v);
    for (int64_t j = 0; j < num_channels; j++) {
        moe_vec8_store(to + j * pitch, v[j]);
    }
}

/* Channels are nearer to each other than columns: read along them. */
GEMM_INLINE void gemm_pack_transposed(float *to, int64_t pitch,
                                      const struct gemm_weight_block *block, int32_t dtype,
                                      int64_t row_stride)
{
    for (int64_t i = 0; i < block->k; i += MOE_VEC8_LANES) {
        for (int64_t c = 0; c < block->num_channels; c += MOE_VEC8_LANES) {
            gemm_pack_square(to + c * pitch + i, pitch, block, dtype, row_stride, c, i);
        }
    }
}

static inline void gemm_pack_transposed_typed(float *to, int64_t pitch,
                                              const struct gemm_weight_block *block, int32_t dtype)
{
    if (block->row_stride == 1) {
        gemm_pack_transposed(to, pitch, block, dtype, 1);
    } else if (block->row_stride == 2) {
        gemm_pack_transposed(to, pitch, block, dtype, 2);
    } else {
        gemm_pack_transposed(to, pitch, block, dtype, block->row_stride);
    }
}

/* Columns are nearer: read along them, one channel after the other. */
static inline void gemm_pack_strided(float *to, int64_t pitch,
                                     const struct gemm_weight_block *block)
{
    for (int64_t c = 0; c < block->num_channels; c++) {
        for (int64_t i = 0; i < block->k; i += MOE_VEC8_LANES) {
            const int64_t left = block->k - i;
            const int64_t element = c * block->row_stride + i * block->col_stride;
            moe_vec8_store(to + c * pitch + i,
                           gemm_load_strided(moe_convert_at(block->from, block->dtype, element),
                                             block->dtype, block->col_stride,
                                             left < MOE_VEC8_LANES ? left : MOE_VEC8_LANES));
        }
    }
}

/* to[c * pitch + i] = element (c, i). */
static inline void gemm_pack_weights(float *to, int64_t pitch,
                                     const struct gemm_weight_block *block)
{
    const int64_t row_reach = block->row_stride < 0 ? -block->row_stride : block->row_stride;
    const int64_t col_reach = block->col_stride < 0 ? -block->col_stride : block->col_stride;
    if (block->col_stride == 1) {
        for (int64_t c = 0; c < block->num_channels; c++) {
            gemm_pack_row(to + c * pitch,
                          moe_convert_at(block->from, block->dtype, c * block->row_stride),
                          block->dtype, block->k);
        }
    } else if (row_reach > col_reach) {
        gemm_pack_strided(to, pitch, block);
    } else if (block->dtype == MOE_DTYPE_FP8_E4M3) {
        gemm_pack_transposed_typed(to, pitch, block, MOE_DTYPE_FP8_E4M3);
    } else if (block->dtype == MOE_DTYPE_BF16) {
        gemm_pack_transposed_typed(to, pitch, block, MOE_DTYPE_BF16);
    } else if (block->dtype == MOE_DTYPE_FP16) {
        gemm_pack_transposed_typed(to, pitch, block, MOE_DTYPE_FP16);
    } else {
        gemm_pack_transposed_typed(to, pitch, block, MOE_DTYPE_FP32);
    }
}

#endif
