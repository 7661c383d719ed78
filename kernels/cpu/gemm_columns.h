/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One row of inputs times weights whose channels are contiguous, or every other one ([K, N]
 * matrices, halves or interleaved).
 *
 * Here the lanes of a vector are eight channels, and the eight sums of canonical arithmetic
 * (gemm.h) are eight vectors: the vector of lane l meets the columns k = l (mod 8). Each chain is
 * the same as in gemm_dot.h, so the bits are. The columns of two lanes are passed over at a time,
 * 32 channels wide, so that each cache line is used up when it is touched: columns are often a
 * power of two apart and would not stay in the cache together.
 *
 * Sums lie as [channel / 8][lane][channel % 8] until gemm_columns_finish turns them to the order of
 * gemm_dot.h.
 */
#ifndef MOE_GEMM_COLUMNS_H
#define MOE_GEMM_COLUMNS_H

#include "gemm_dot.h"
#include "gemm_pack.h"

enum {
    GEMM_COLUMNS_ROWS = 2, /* up to that many rows, converting weights for each row beats packing */
    GEMM_COLUMNS_AHEAD = 256, /* columns fetched ahead: too far apart for hardware prefetchers */
    GEMM_COLUMNS_GROUPS = 4,  /* groups of eight channels that are passed over together */
};

/* num_lanes (1, 2) columns from `at` on, num_groups (1..4) groups of eight channels. */
GEMM_INLINE void gemm_columns_step(int num_lanes, int num_groups, int32_t dtype, int64_t row_stride,
                                   int64_t col_bytes, const unsigned char *at, const float *a,
                                   struct moe_vec8 acc[2][GEMM_COLUMNS_GROUPS])
{
    const int64_t group_bytes = MOE_VEC8_LANES * row_stride * (dtype == MOE_DTYPE_FP32 ? 4 : 2);
#pragma GCC unroll 2
    for (int lane = 0; lane < num_lanes; lane++) {
        const struct moe_vec8 row = moe_vec8_set1(a[lane]);
#pragma GCC unroll 4
        for (int g = 0; g < num_groups; g++) {
            const struct moe_vec8 weight = gemm_load_strided(
                at + lane * col_bytes + g * group_bytes, dtype, row_stride, MOE_VEC8_LANES);
            acc[lane][g] = moe_vec8_fma(row, weight, acc[lane][g]);
        }
    }
}

/* The sums of two lanes advance over all columns of theirs below k. */
GEMM_INLINE void gemm_columns_pass(int num_groups, int32_t dtype, int64_t row_stride,
                                   int64_t col_bytes, const unsigned char *from, int64_t k,
                                   int64_t first_lane, const float *a, float *sums)
{
    struct moe_vec8 acc[2][GEMM_COLUMNS_GROUPS];
    float *to = sums + first_lane * MOE_VEC8_LANES;
    const int64_t group_floats = MOE_VEC8_LANES * MOE_VEC8_LANES;
#pragma GCC unroll 4
    for (int g = 0; g < num_groups; g++) {
        acc[0][g] = moe_vec8_load(to + g * group_floats);
        acc[1][g] = moe_vec8_load(to + g * group_floats + MOE_VEC8_LANES);
    }
    const int64_t width_bytes =
        num_groups * MOE_VEC8_LANES * row_stride * (dtype == MOE_DTYPE_FP32 ? 4 : 2);
    int64_t i = first_lane;
    for (; i + 1 < k; i += MOE_VEC8_LANES) {
        const unsigned char *at = from + i * col_bytes;
        if (i + 1 + GEMM_COLUMNS_AHEAD < k) {
            for (int64_t offset = 0; offset < width_bytes; offset += GEMM_LINE_BYTES) {
                __builtin_prefetch(at + GEMM_COLUMNS_AHEAD * col_bytes + offset, 0,
                                   MOE_CONVERT_HINT_L2);
                __builtin_prefetch(at + (GEMM_COLUMNS_AHEAD + 1) * col_bytes + offset, 0,
                                   MOE_CONVERT_HINT_L2);
            }
        }
        gemm_columns_step(2, num_groups, dtype, row_stride, col_bytes, at, a + i, acc);
    }
    if (i < k) {
        gemm_columns_step(1, num_groups, dtype, row_stride, col_bytes, from + i * col_bytes, a + i,
                          acc);
    }
#pragma GCC unroll 4
    for (int g = 0; g < num_groups; g++) {
        moe_vec8_store(to + g * group_floats, acc[0][g]);
        moe_vec8_store(to + g * group_floats + MOE_VEC8_LANES, acc[1][g]);
    }
}

GEMM_INLINE void gemm_columns_typed(int32_t dtype, int64_t row_stride,
                                    const struct gemm_weight_block *block, const float *a,
                                    float *sums)
{
    const int64_t element_bytes = dtype == MOE_DTYPE_FP32 ? 4 : 2;
    const int64_t col_bytes = block->col_stride * element_bytes;
    const int64_t wide = GEMM_COLUMNS_GROUPS * MOE_VEC8_LANES;
    for (int64_t c = 0; c < block->num_channels;) {
        const unsigned char *from =
            (const unsigned char *)block->from + c * row_stride * element_bytes;
        const int is_wide = block->num_channels - c >= wide;
        for (int64_t lane = 0; lane < MOE_VEC8_LANES; lane += 2) {
            if (is_wide) {
                gemm_columns_pass(GEMM_COLUMNS_GROUPS, dtype, row_stride, col_bytes, from, block->k,
                                  lane, a, sums + c * MOE_VEC8_LANES);
            } else {
                gemm_columns_pass(1, dtype, row_stride, col_bytes, from, block->k, lane, a,
                                  sums + c * MOE_VEC8_LANES);
            }
        }
        c += is_wide ? wide : MOE_VEC8_LANES;
    }
}

/* Can gemm_columns_row take these weights? */
static inline int gemm_columns_fit(int64_t row_stride, int64_t num_channels)
{
    return (row_stride == 1 || row_stride == 2) && num_channels % MOE_VEC8_LANES == 0;
}

/* Advance the sums of one row by the columns of `block`, whose channels are a multiple of 8. */
static inline void gemm_columns_row(const struct gemm_weight_block *block, const float *a,
                                    float *sums)
{
    const int is_dense = block->row_stride == 1;
    if (block->dtype == MOE_DTYPE_BF16) {
        is_dense ? gemm_columns_typed(MOE_DTYPE_BF16, 1, block, a, sums)
                 : gemm_columns_typed(MOE_DTYPE_BF16, 2, block, a, sums);
    } else if (block->dtype == MOE_DTYPE_FP16) {
        is_dense ? gemm_columns_typed(MOE_DTYPE_FP16, 1, block, a, sums)
                 : gemm_columns_typed(MOE_DTYPE_FP16, 2, block, a, sums);
    } else {
        is_dense ? gemm_columns_typed(MOE_DTYPE_FP32, 1, block, a, sums)
                 : gemm_columns_typed(MOE_DTYPE_FP32, 2, block, a, sums);
    }
}

/*
 * After all k columns: the zero products of the lanes that the last eight lack, and the order of
 * gemm_dot.h.
 */
static inline void gemm_columns_finish(int64_t num_channels, int64_t k, float *sums)
{
    const int64_t last = k % MOE_VEC8_LANES;
    for (int64_t c = 0; c < num_channels; c += MOE_VEC8_LANES) {
        struct moe_vec8 v[MOE_VEC8_LANES];
        float *at = sums + c * MOE_VEC8_LANES;
        for (int64_t lane = 0; lane < MOE_VEC8_LANES; lane++) {
            v[lane] = moe_vec8_load(at + lane * MOE_VEC8_LANES);
            if (last != 0 && lane >= last) {
                v[lane] = moe_vec8_fma(moe_vec8_zero(), moe_vec8_zero(), v[lane]);
            }
        }
        gemm_transpose8(v);
        for (int64_t lane = 0; lane < MOE_VEC8_LANES; lane++) {
            moe_vec8_store(at + lane * MOE_VEC8_LANES, v[lane]);
        }
    }
}

#endif
