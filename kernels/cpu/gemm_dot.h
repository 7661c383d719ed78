/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Register tiles of the GEMM: a few rows of fp32 inputs times a few output channels, each pair its own eight-lane
 * chain over k (canonical arithmetic, see gemm.h). The shape of a register tile decides only which chains advance
 * together, never the order inside one, so every shape gives the same bits.
 *
 * 3 rows x 4 channels: 12 accumulators, 7 loads for 12 FMAs, all 16 vector registers in use. 2 x 4 and 1 x 8 keep 8
 * independent chains, enough to cover the latency of an FMA with two per cycle.
 */
#ifndef MOE_GEMM_DOT_H
#define MOE_GEMM_DOT_H

#include "convert.h"

#include <stdint.h>

#define GEMM_INLINE static inline __attribute__((always_inline))

enum {
    GEMM_CHANNELS = 8,    /* channels per call of gemm_dot_rows */
    GEMM_LINE_BYTES = 64, /* cache line */
};

/* Eight channels of weights that are contiguous along k. A channel past the end repeats the last one: its sums are not used. */
struct gemm_channels {
    const unsigned char *at[GEMM_CHANNELS];
    int64_t
        prefetch_bytes; /* distance to the data that is needed next; 0: nothing to fetch ahead */
};

struct gemm_quad {
    struct moe_vec8 c[4];
};

GEMM_INLINE struct gemm_quad gemm_quad_load(const float *from)
{
    struct gemm_quad quad;
    for (int c = 0; c < 4; c++) {
        quad.c[c] = moe_vec8_load(from + c * MOE_VEC8_LANES);
    }
    return quad;
}

GEMM_INLINE void gemm_quad_store(float *to, const struct gemm_quad *quad)
{
    for (int c = 0; c < 4; c++) {
        moe_vec8_store(to + c * MOE_VEC8_LANES, quad->c[c]);
    }
}

/* Eight elements at byte offset `offset`; the first `count` of them where that is not 8. */
GEMM_INLINE struct moe_vec8 gemm_load_weight(const unsigned char *at, int32_t dtype, int64_t offset,
                                             int64_t count)
{
    return count == MOE_VEC8_LANES ? moe_convert_load(at + offset, dtype)
                                   : moe_convert_load_partial(at + offset, dtype, count);
}

/* One step of eight columns for num_rows x 4 channels. */
GEMM_INLINE void gemm_step_4(int num_rows, int32_t dtype, const unsigned char *const w[4],
                             int64_t offset, int64_t count, const float *a, int64_t pitch,
                             struct gemm_quad *acc0, struct gemm_quad *acc1, struct gemm_quad *acc2)
{
    const struct moe_vec8 a0 = moe_vec8_load(a);
    const struct moe_vec8 a1 = num_rows > 1 ? moe_vec8_load(a + pitch) : a0;
    const struct moe_vec8 a2 = num_rows > 2 ? moe_vec8_load(a + 2 * pitch) : a0;
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        const struct moe_vec8 weight = gemm_load_weight(w[c], dtype, offset, count);
        acc0->c[c] = moe_vec8_fma(a0, weight, acc0->c[c]);
        if (num_rows > 1) {
            acc1->c[c] = moe_vec8_fma(a1, weight, acc1->c[c]);
        }
        if (num_rows > 2) {
            acc2->c[c] = moe_vec8_fma(a2, weight, acc2->c[c]);
        }
    }
}

/* Advance the chains of num_rows (2, 3) rows and 4 channels by k columns. */
GEMM_INLINE void gemm_dot_4(int num_rows, int32_t dtype, const struct gemm_channels *channels,
                            int first, int64_t k, const float *a, int64_t pitch, float *acc,
                            int64_t acc_pitch)
{
    const int64_t element_bytes = dtype == MOE_DTYPE_FP32 ? 4 : 2;
    const unsigned char *const w[4] = {channels->at[first], channels->at[first + 1],
                                       channels->at[first + 2], channels->at[first + 3]};
    struct gemm_quad acc0 = gemm_quad_load(acc);
    struct gemm_quad acc1 = gemm_quad_load(num_rows > 1 ? acc + acc_pitch : acc);
    struct gemm_quad acc2 = gemm_quad_load(num_rows > 2 ? acc + 2 * acc_pitch : acc);
    int64_t i = 0;
    for (; i + MOE_VEC8_LANES <= k; i += MOE_VEC8_LANES) {
        gemm_step_4(num_rows, dtype, w, i * element_bytes, MOE_VEC8_LANES, a + i, pitch, &acc0,
                    &acc1, &acc2);
    }
    if (i < k) {
        gemm_step_4(num_rows, dtype, w, i * element_bytes, k - i, a + i, pitch, &acc0, &acc1,
                    &acc2);
    }
    gemm_quad_store(acc, &acc0);
    if (num_rows > 1) {
        gemm_quad_store(acc + acc_pitch, &acc1);
    }
    if (num_rows > 2) {
        gemm_quad_store(acc + 2 * acc_pitch, &acc2);
    }
}

GEMM_INLINE void gemm_step_8(int32_t dtype, const struct gemm_channels *channels, int64_t offset,
                             int64_t count, const float *a, struct gemm_quad *acc0,
                             struct gemm_quad *acc1)
{
    const struct moe_vec8 a0 = moe_vec8_load(a);
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        acc0->c[c] =
            moe_vec8_fma(a0, gemm_load_weight(channels->at[c], dtype, offset, count), acc0->c[c]);
        acc1->c[c] = moe_vec8_fma(a0, gemm_load_weight(channels->at[c + 4], dtype, offset, count),
                                  acc1->c[c]);
    }
}

/* Advance the chains of one row and 8 channels by k columns. The weights come from memory: fetch the next ones ahead. */
GEMM_INLINE void gemm_dot_1x8(int32_t dtype, const struct gemm_channels *channels, int64_t k,
                              const float *a, float *acc)
{
    const int64_t element_bytes = dtype == MOE_DTYPE_FP32 ? 4 : 2;
    const int64_t line = GEMM_LINE_BYTES / element_bytes;
    struct gemm_quad acc0 = gemm_quad_load(acc);
    struct gemm_quad acc1 = gemm_quad_load(acc + 4 * MOE_VEC8_LANES);
    int64_t i = 0;
    for (; i + line <= k; i += line) {
        const int64_t offset = i * element_bytes;
        if (channels->prefetch_bytes != 0) {
            for (int c = 0; c < GEMM_CHANNELS; c++) {
                __builtin_prefetch(channels->at[c] + channels->prefetch_bytes + offset);
            }
        }
        for (int64_t j = 0; j < line; j += MOE_VEC8_LANES) {
            gemm_step_8(dtype, channels, offset + j * element_bytes, MOE_VEC8_LANES, a + i + j,
                        &acc0, &acc1);
        }
    }
    for (; i + MOE_VEC8_LANES <= k; i += MOE_VEC8_LANES) {
        gemm_step_8(dtype, channels, i * element_bytes, MOE_VEC8_LANES, a + i, &acc0, &acc1);
    }
    if (i < k) {
        gemm_step_8(dtype, channels, i * element_bytes, k - i, a + i, &acc0, &acc1);
    }
    gemm_quad_store(acc, &acc0);
    gemm_quad_store(acc + 4 * MOE_VEC8_LANES, &acc1);
}

/* All rows, with the dtype a constant. One row is left over only if it is the only one: 4 = 2 + 2, 7 = 3 + 2 + 2. */
GEMM_INLINE void gemm_dot_typed(int32_t dtype, const struct gemm_channels *channels, int64_t k,
                                const float *a, int64_t pitch, int64_t num_rows, float *acc,
                                int64_t acc_pitch)
{
    if (num_rows == 1) {
        gemm_dot_1x8(dtype, channels, k, a, acc);
        return;
    }
    for (int first = 0; first < GEMM_CHANNELS; first += 4) {
        float *quad_acc = acc + first * MOE_VEC8_LANES;
        int64_t row = 0;
        while (row < num_rows) {
            const int64_t left = num_rows - row;
            if (left == 2 || left == 4) {
                gemm_dot_4(2, dtype, channels, first, k, a + row * pitch, pitch,
                           quad_acc + row * acc_pitch, acc_pitch);
                row += 2;
            } else {
                gemm_dot_4(3, dtype, channels, first, k, a + row * pitch, pitch,
                           quad_acc + row * acc_pitch, acc_pitch);
                row += 3;
            }
        }
    }
}

/*
 * acc[row][channel][lane] += products of `k` columns: num_rows rows of fp32 `a` (pitch elements apart, zeros up to a
 * multiple of 8) and eight channels of `dtype`. acc rows are acc_pitch floats apart, channels 8.
 */
static inline void gemm_dot_rows(int32_t dtype, const struct gemm_channels *channels, int64_t k,
                                 const float *a, int64_t pitch, int64_t num_rows, float *acc,
                                 int64_t acc_pitch)
{
    if (dtype == MOE_DTYPE_BF16) {
        gemm_dot_typed(MOE_DTYPE_BF16, channels, k, a, pitch, num_rows, acc, acc_pitch);
    } else if (dtype == MOE_DTYPE_FP16) {
        gemm_dot_typed(MOE_DTYPE_FP16, channels, k, a, pitch, num_rows, acc, acc_pitch);
    } else {
        gemm_dot_typed(MOE_DTYPE_FP32, channels, k, a, pitch, num_rows, acc, acc_pitch);
    }
}

#endif
