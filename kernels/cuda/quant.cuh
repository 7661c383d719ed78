/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quantizing rows while they are written, for pre_reorder, quantize and activation. `Rows` says
 * where values come from and go to:
 *   enter(row)                                  before any other, where rows need it
 *   load_unit(row, unit, values)                16 columns to fp32, all there and aligned
 *   store_unit(row, unit, bytes)                16 bytes
 *   load(row, column, count, values)            eight columns, 0 beyond `count`
 *   store(row, column, count, values, inverse)  fp8(value * inverse)
 *   store_scale(row, group, scale, lane, num_lanes)  called by num_lanes lanes, numbered
 *   inverse(row)                                1 / scale, static
 * Three ways: lanes of a warp share a group and find its scale by shuffles; a CTA does, group by
 * group; or scales are given. Every thread of a CTA takes part, also beyond the width.
 */
#ifndef MOE_QUANT_CUH
#define MOE_QUANT_CUH

#include "cuda_args.h"
#include "fp8.cuh"

template <typename Rows>
static __device__ __forceinline__ void moe_quant_static(const Rows &rows, int64_t row,
                                                        int32_t width)
{
    const int32_t step = static_cast<int32_t>(gridDim.x * blockDim.x) * MOE_ROWS_COLUMNS;
    int32_t column = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x) * MOE_ROWS_COLUMNS;
    for (; column < width; column += step) {
        const int32_t count = moe_rows_count(column, width);
        float values[MOE_ROWS_COLUMNS];
        rows.load(row, column, count, values);
        rows.store(row, column, count, values, rows.inverse(row));
    }
}

/* One unit of 16 columns; is_there: this thread has one. Called by whole warps, of which the lanes
 * of a group are neighbours that all have a unit of it or none. */
template <typename Rows>
static __device__ __forceinline__ void moe_quant_unit(const Rows &rows,
                                                      const struct moe_cuda_units &units,
                                                      int32_t scale_layout, int64_t row,
                                                      int32_t unit, bool is_there)
{
    float values[2 * MOE_ROWS_COLUMNS] = {};
    if (is_there) {
        rows.load_unit(row, unit, values);
    }
    const float own = fmaxf(moe_fp8_amax8(values), moe_fp8_amax8(values + MOE_ROWS_COLUMNS));
    const float scale = moe_fp8_scale(moe_fp8_amax_lanes(own, units.lanes_log2), scale_layout);
    if (is_there) {
        const int32_t num_lanes = 1 << units.lanes_log2;
        rows.store_unit(row, unit, moe_fp8_pack16(values, moe_fp8_inverse(scale)));
        rows.store_scale(row, unit >> units.lanes_log2, scale, unit & (num_lanes - 1), num_lanes);
    }
}

/* Row and unit of a thread of a grid with a thread per unit. */
static __device__ __forceinline__ uint32_t moe_quant_find_unit(const struct moe_cuda_units &units,
                                                               int32_t *unit)
{
    const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t row =
        static_cast<uint32_t>(static_cast<uint64_t>(thread) * units.row_magic >> units.row_shift);
    *unit = static_cast<int32_t>(thread - row * static_cast<uint32_t>(units.per_row));
    return row;
}

/* The units of rows 0 .. num_rows - 1, one per thread of the grid. */
template <typename Rows>
static __device__ __forceinline__ void moe_quant_units(Rows &rows,
                                                       const struct moe_cuda_units &units,
                                                       int32_t scale_layout, int64_t num_rows)
{
    int32_t unit;
    const uint32_t row = moe_quant_find_unit(units, &unit);
    const bool is_there = row < num_rows;
    if (is_there) {
        rows.enter(row);
    }
    moe_quant_unit(rows, units, scale_layout, row, unit, is_there);
}

/* Any group_k; gridDim.x is 1. What one sweep of the CTA holds is not loaded twice. */
template <typename Rows>
static __device__ __forceinline__ void moe_quant_cta(const Rows &rows,
                                                     const struct moe_op_quant &quant, int64_t row,
                                                     int32_t width, float *scratch)
{
    const int32_t cta_columns = static_cast<int32_t>(blockDim.x) * MOE_ROWS_COLUMNS;
    for (int32_t group = 0; group * static_cast<int64_t>(quant.group_k) < width; group++) {
        const int32_t begin = group * quant.group_k + static_cast<int32_t>(threadIdx.x) * 8;
        const int32_t left = width - group * quant.group_k;
        const int32_t end = group * quant.group_k + (left < quant.group_k ? left : quant.group_k);
        const bool is_held = end - group * quant.group_k <= cta_columns;
        float values[MOE_ROWS_COLUMNS];
        float amax = 0.0f;
        for (int32_t column = begin; column < end; column += cta_columns) {
            rows.load(row, column, moe_rows_count(column, end), values);
            amax = fmaxf(amax, moe_fp8_amax8(values));
        }
        const float scale = moe_fp8_scale(moe_fp8_amax_cta(amax, scratch), quant.scale_layout);
        const float inverse = moe_fp8_inverse(scale);
        for (int32_t column = begin; column < end; column += cta_columns) {
            const int32_t count = moe_rows_count(column, end);
            if (!is_held) {
                rows.load(row, column, count, values);
            }
            rows.store(row, column, count, values, inverse);
        }
        rows.store_scale(row, group, scale, static_cast<int32_t>(threadIdx.x),
                         static_cast<int32_t>(blockDim.x));
    }
}

/* Scales are given, or a CTA finds them. */
template <typename Rows>
static __device__ __forceinline__ void moe_quant_other(const Rows &rows,
                                                       const struct moe_op_quant &quant,
                                                       int64_t row, int32_t width, float *scratch)
{
    if (quant.is_dynamic) {
        moe_quant_cta(rows, quant, row, width, scratch);
    } else {
        moe_quant_static(rows, row, width);
    }
}

#endif
