/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows of inputs and channels of weights, whatever their type and strides, as fp32 rows that are contiguous along k.
 * Conversion is exact, so a packed operand gives the bits of the operand itself. Rows are filled with zeros up
 * to a multiple of eight columns.
 */
#ifndef MOE_GEMM_PACK_H
#define MOE_GEMM_PACK_H

#include "convert.h"

#include <stdint.h>

/* to[0..k) = from[0..k), contiguous. */
static inline void gemm_pack_row(float *to, const void *from, int32_t dtype, int64_t k)
{
    int64_t i = 0;
    for (; i + MOE_VEC8_LANES <= k; i += MOE_VEC8_LANES) {
        moe_vec8_store(to + i, moe_convert_load(moe_convert_at(from, dtype, i), dtype));
    }
    if (i < k) {
        moe_vec8_store(to + i,
                       moe_convert_load_partial(moe_convert_at(from, dtype, i), dtype, k - i));
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

/* Elements 0, 2, .. 14 of sixteen, all of them readable. */
static inline struct moe_vec8 gemm_load_even(const void *from, int32_t dtype)
{
#if MOE_VEC8_AVX2
    if (dtype == MOE_DTYPE_FP32) {
        const __m256 low = _mm256_loadu_ps((const float *)from);
        const __m256 high = _mm256_loadu_ps((const float *)from + MOE_VEC8_LANES);
        const __m256d even = _mm256_castps_pd(_mm256_shuffle_ps(low, high, 0x88));
        return (struct moe_vec8){_mm256_castpd_ps(_mm256_permute4x64_pd(even, 0xd8))};
    }
    const __m256i words = _mm256_loadu_si256((const __m256i *)from);
    if (dtype == MOE_DTYPE_BF16) {
        return (struct moe_vec8){_mm256_castsi256_ps(_mm256_slli_epi32(words, 16))};
    }
    const __m256i even = _mm256_and_si256(words, _mm256_set1_epi32(0xffff));
    const __m128i packed =
        _mm_packus_epi32(_mm256_castsi256_si128(even), _mm256_extracti128_si256(even, 1));
    return (struct moe_vec8){_mm256_cvtph_ps(packed)};
#else
    return moe_convert_load_strided(from, dtype, 2, MOE_VEC8_LANES);
#endif
}

/* `count` (1..8) elements at distance `stride`, the other lanes 0; wide loads where nothing beyond the last one is read. */
static inline struct moe_vec8 gemm_load_strided(const void *from, int32_t dtype, int64_t stride,
                                                int64_t count, int64_t num_readable)
{
    if (stride == 1 && count == MOE_VEC8_LANES) {
        return moe_convert_load(from, dtype);
    }
    if (stride == 2 && count == MOE_VEC8_LANES && num_readable >= 2 * MOE_VEC8_LANES) {
        return gemm_load_even(from, dtype);
    }
    return moe_convert_load_strided(from, dtype, stride, count);
}

/* A block of weights: element (channel c, column i) lies c * row_stride + i * col_stride elements after `from`. */
struct gemm_weight_block {
    const void *from;
    int32_t dtype;
    int64_t row_stride;
    int64_t col_stride;
    int64_t num_channels;
    int64_t num_readable_channels; /* at least num_channels: how many the matrix has from here on */
    int64_t k;
};

enum {
    GEMM_PACK_AHEAD = 32
}; /* columns of transposed weights that are fetched ahead: the strides are too long for hardware */

/* to[c * pitch + i] = element (c, i), reading along the dimension with the shorter stride. */
static inline void gemm_pack_weights(float *to, int64_t pitch,
                                     const struct gemm_weight_block *block)
{
    const int32_t dtype = block->dtype;
    if (block->col_stride == 1) {
        for (int64_t c = 0; c < block->num_channels; c++) {
            gemm_pack_row(to + c * pitch, moe_convert_at(block->from, dtype, c * block->row_stride),
                          dtype, block->k);
        }
        return;
    }
    const int64_t row_reach = block->row_stride < 0 ? -block->row_stride : block->row_stride;
    const int64_t col_reach = block->col_stride < 0 ? -block->col_stride : block->col_stride;
    const int along_channels = row_reach <= col_reach;
    for (int64_t i = 0; i < block->k; i += MOE_VEC8_LANES) {
        const int64_t num_columns = block->k - i < MOE_VEC8_LANES ? block->k - i : MOE_VEC8_LANES;
        for (int64_t c = 0; c < block->num_channels; c += MOE_VEC8_LANES) {
            const int64_t left = block->num_channels - c;
            const int64_t num_channels = left < MOE_VEC8_LANES ? left : MOE_VEC8_LANES;
            struct moe_vec8 v[MOE_VEC8_LANES];
            if (along_channels) {
                /* Beyond the last channel of the matrix nothing may be readable. */
                const int64_t num_readable =
                    (block->num_readable_channels - c - 1) * block->row_stride + 1;
                for (int64_t j = 0; j < num_columns; j++) {
                    const int64_t element = c * block->row_stride + (i + j) * block->col_stride;
                    v[j] = gemm_load_strided(moe_convert_at(block->from, dtype, element), dtype,
                                             block->row_stride, num_channels, num_readable);
                    if (i + j + GEMM_PACK_AHEAD < block->k) {
                        __builtin_prefetch(moe_convert_at(
                            block->from, dtype, element + GEMM_PACK_AHEAD * block->col_stride));
                    }
                }
                for (int64_t j = num_columns; j < MOE_VEC8_LANES; j++) {
                    v[j] = moe_vec8_zero();
                }
                gemm_transpose8(v);
            } else {
                const int64_t num_readable = (block->k - i - 1) * block->col_stride + 1;
                for (int64_t j = 0; j < num_channels; j++) {
                    const int64_t element = (c + j) * block->row_stride + i * block->col_stride;
                    v[j] = gemm_load_strided(moe_convert_at(block->from, dtype, element), dtype,
                                             block->col_stride, num_columns, num_readable);
                }
            }
            for (int64_t j = 0; j < num_channels; j++) {
                moe_vec8_store(to + (c + j) * pitch + i, v[j]);
            }
        }
    }
}

#endif
