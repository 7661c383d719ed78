/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows to fp8 with scales, as struct moe_op_quant says: amax over a group, its scale, the scale's
 * place, and the codes. Every step is one rounding and the same in every build, so the bits are the
 * same in every instruction set.
 */
#ifndef MOE_QUANT_H
#define MOE_QUANT_H

#include "convert.h"
#include "fp8_avx512.h"
#include "ops.h"

#include <float.h>

/* The scale of a group whose largest magnitude is `amax` (not NaN). */
static inline float moe_quant_scale(const struct moe_op_quant *quant, float amax)
{
    const float finite = amax < FLT_MAX ? amax : FLT_MAX;
    const float scale = (finite > 1e-10f ? finite : 1e-10f) / MOE_FP8_MAX;
    if (quant->scale_layout != MOE_SCALE_UE8M0_PACKED) {
        return scale;
    }
    return moe_float_from_bits((moe_float_bits(scale) + 0x7fffffu) & 0x7f800000u);
}

/* Groups of a row of `width` columns. */
static inline int64_t moe_quant_num_groups(const struct moe_op_quant *quant, int64_t width)
{
    return (width + quant->group_k - 1) / quant->group_k;
}

/* Writes a dynamic scale to its place; the last group of a packed row also clears the bytes of its
 * word that no group has. */
static inline void moe_quant_store_scale(const struct moe_op_quant *quant, int64_t row,
                                         int64_t group, int64_t num_groups, float scale)
{
    if (quant->scale_layout == MOE_SCALE_ROW_MAJOR) {
        ((float *)quant->scales)[row * quant->scale_stride + group] = scale;
        return;
    }
    if (quant->scale_layout == MOE_SCALE_COLUMN_MAJOR_TMA) {
        ((float *)quant->scales)[group * quant->scale_stride + row] = scale;
        return;
    }
    uint8_t *word = (uint8_t *)quant->scales + 4 * (group / 4 * quant->scale_stride + row);
    word[group % 4] = (uint8_t)(moe_float_bits(scale) >> 23);
    for (int64_t byte = group % 4 + 1; group == num_groups - 1 && byte < 4; byte++) {
        word[byte] = 0;
    }
}

/* The scales of one row for another row that holds the same codes. */
static inline void moe_quant_copy_scales(const struct moe_op_quant *quant, int64_t width,
                                         int64_t from_row, int64_t to_row)
{
    const int64_t num_groups = moe_quant_num_groups(quant, width);
    uint32_t *words = quant->scales; /* every layout has elements of four bytes */
    if (quant->scale_layout == MOE_SCALE_ROW_MAJOR) {
        memcpy(words + to_row * quant->scale_stride, words + from_row * quant->scale_stride,
               (size_t)num_groups * sizeof(*words));
        return;
    }
    const int64_t per_row = quant->scale_layout == MOE_SCALE_UE8M0_PACKED ? 4 : 1;
    for (int64_t at = 0; at * per_row < num_groups; at++) {
        words[at * quant->scale_stride + to_row] = words[at * quant->scale_stride + from_row];
    }
}

/* Columns col .. col + 7 of a row of `dtype`, zeros beyond `width`. */
MOE_INLINE struct moe_vec8 moe_quant_load(const void *from, int32_t dtype, int64_t col,
                                          int64_t width)
{
    const void *at = moe_convert_at(from, dtype, col);
    return width - col >= MOE_VEC8_LANES ? moe_convert_load(at, dtype)
                                         : moe_convert_load_partial(at, dtype, width - col);
}

/* Largest magnitude of `width` elements and `amax`; a NaN counts as nothing. */
MOE_INLINE float moe_quant_amax(const void *from, int32_t dtype, int64_t width, float amax)
{
    if (width == 0) {
        return amax;
    }
    struct moe_vec8 largest = moe_vec8_set1(amax);
    for (int64_t col = 0; col < width; col += MOE_VEC8_LANES) {
        largest = moe_vec8_max(moe_vec8_abs(moe_quant_load(from, dtype, col, width)), largest);
    }
    float lanes[MOE_VEC8_LANES];
    moe_vec8_store(lanes, largest);
    for (int l = 0; l < MOE_VEC8_LANES; l++) {
        amax = lanes[l] > amax ? lanes[l] : amax;
    }
    return amax;
}

/* Codes of `width` elements times `inverse`. */
MOE_INLINE void moe_quant_encode(const void *from, int32_t dtype, int64_t width, float inverse,
                                 uint8_t *to)
{
    const struct moe_vec8 factor = moe_vec8_set1(inverse);
    for (int64_t col = 0; col < width; col += MOE_VEC8_LANES) {
        const struct moe_vec8 value = moe_vec8_mul(moe_quant_load(from, dtype, col, width), factor);
        if (width - col >= MOE_VEC8_LANES) {
            moe_fp8_store(to + col, value);
        } else {
            moe_convert_store_partial(to + col, MOE_DTYPE_FP8_E4M3, value, width - col);
        }
    }
}

/* Largest magnitude of a group, with AVX-512 where the row is of bf16 and the processor has it. */
MOE_INLINE float moe_quant_group_amax(const struct moe_op_quant *quant, const void *from,
                                      int32_t dtype, int64_t width)
{
    int64_t done = 0;
    float amax = 0.0f;
#if FP8_HAS_AVX512
    if (quant->has_avx512 && dtype == MOE_DTYPE_BF16) {
        done = width - width % BF16_AVX512_COLUMNS;
        amax = fp8_avx512_amax_bf16(from, done, amax);
    }
#endif
    (void)quant;
    return moe_quant_amax(moe_convert_at(from, dtype, done), dtype, width - done, amax);
}

/* Codes of a group, in the same way. */
MOE_INLINE void moe_quant_group_encode(const struct moe_op_quant *quant, const void *from,
                                       int32_t dtype, int64_t width, float inverse, uint8_t *to)
{
    int64_t done = 0;
#if FP8_HAS_AVX512
    if (quant->has_avx512 && dtype == MOE_DTYPE_BF16) {
        done = width - width % BF16_AVX512_COLUMNS;
        fp8_avx512_encode_bf16(from, done, inverse, to);
    }
#endif
    (void)quant;
    moe_quant_encode(moe_convert_at(from, dtype, done), dtype, width - done, inverse, to + done);
}

/* Scale and codes of one group that lies in memory. */
MOE_INLINE void moe_quant_group(const struct moe_op_quant *quant, int64_t row, int64_t group,
                                int64_t num_groups, const void *from, int32_t dtype, int64_t width,
                                uint8_t *to)
{
    const float scale = moe_quant_scale(quant, moe_quant_group_amax(quant, from, dtype, width));
    moe_quant_store_scale(quant, row, group, num_groups, scale);
    moe_quant_group_encode(quant, from, dtype, width, 1.0f / scale, to);
}

MOE_INLINE void moe_quant_typed_row(const struct moe_op_quant *quant, int64_t row,
                                    float static_scale, const void *from, int32_t dtype,
                                    int64_t width, uint8_t *to)
{
    if (!quant->is_dynamic) {
        moe_quant_group_encode(quant, from, dtype, width, 1.0f / static_scale, to);
        return;
    }
    const int64_t num_groups = moe_quant_num_groups(quant, width);
    for (int64_t group = 0; group < num_groups; group++) {
        const int64_t first = group * quant->group_k;
        const int64_t left = width - first;
        moe_quant_group(quant, row, group, num_groups, moe_convert_at(from, dtype, first), dtype,
                        left < quant->group_k ? left : quant->group_k, to + first);
    }
}

/* One row of fp32, fp16 or bf16 elements to codes at `to`; dynamic scales go to row `row` of
 * quant->scales, a static one is given. */
static inline void moe_quant_row(const struct moe_op_quant *quant, int64_t row, float static_scale,
                                 const void *from, int32_t dtype, int64_t width, uint8_t *to)
{
    if (dtype == MOE_DTYPE_BF16) {
        moe_quant_typed_row(quant, row, static_scale, from, MOE_DTYPE_BF16, width, to);
    } else if (dtype == MOE_DTYPE_FP16) {
        moe_quant_typed_row(quant, row, static_scale, from, MOE_DTYPE_FP16, width, to);
    } else {
        moe_quant_typed_row(quant, row, static_scale, from, MOE_DTYPE_FP32, width, to);
    }
}

/* The static scale of a row that is number `idx` of what static scales belong to; 1 when scales are
 * dynamic. */
static inline float moe_quant_static_scale(const struct moe_op_quant *quant, int64_t idx)
{
    if (quant->is_dynamic) {
        return 1.0f;
    }
    return quant->static_scales[quant->static_per == MOE_QUANT_PER_TENSOR ? 0 : idx];
}

#endif
