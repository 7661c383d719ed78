/* SPDX-License-Identifier: Apache-2.0 */
/* fp8 weights with scales per 128 columns and many rows: packed as fp32, they are in the cache, and
 * a register tile makes a sum of each 128 columns (GEMM_SCALE_BLOCKS of gemm_stream.h). */
#ifndef MOE_GEMM_BLOCKS_H
#define MOE_GEMM_BLOCKS_H

#include "gemm_stream.h"

/* num_rows (1..3) x 4 channels of fp32 over 128-column blocks; `k` a multiple of 8. */
GEMM_INLINE void gemm_blocks_tile(int num_rows, const float *const w[4], int64_t k, const float *a,
                                  int64_t pitch, float *to, int64_t to_pitch,
                                  const struct gemm_scales *scales)
{
    const struct moe_vec8 zero = moe_vec8_zero();
    for (int64_t first = 0; first < k; first += GEMM_SCALE_COLUMNS) {
        const int64_t end = k - first < GEMM_SCALE_COLUMNS ? k : first + GEMM_SCALE_COLUMNS;
        struct gemm_quad acc[3] = {
            {zero, zero, zero, zero}, {zero, zero, zero, zero}, {zero, zero, zero, zero}};
        gemm_quad_advance(num_rows, w, first, end, a, pitch, &acc[0], &acc[1], &acc[2]);
#pragma GCC unroll 3
        for (int row = 0; row < num_rows; row++) {
            const float factor =
                scales->inputs[row * scales->inputs_pitch + first / GEMM_SCALE_COLUMNS] *
                scales->weights[first / GEMM_SCALE_COLUMNS];
            const struct moe_vec8 sums[4] = {acc[row].c0, acc[row].c1, acc[row].c2, acc[row].c3};
            gemm_fold_quad(sums, factor, to + row * to_pitch);
        }
    }
}

/* gemm_dot_cached for GEMM_SCALE_BLOCKS; packed rows end in zeros up to a multiple of 8. */
static inline void gemm_blocks_cached(const struct gemm_channels *channels, int64_t k,
                                      const struct gemm_rows *rows, struct gemm_fetch *fetch,
                                      const struct gemm_scales *scales)
{
    for (int64_t channel = 0; channel < channels->count; channel += 4) {
        const float *w[4];
        for (int c = 0; c < 4; c++) {
            w[c] = (const float *)(const void *)gemm_channel_at(channels, channel + c);
        }
        for (int64_t row = 0; row < rows->count;) {
            const int64_t num_rows = gemm_next_rows(rows->count - row);
            const float *a = rows->a + row * rows->pitch;
            float *to = rows->acc + row * rows->acc_pitch + channel;
            struct gemm_scales here = *scales;
            here.inputs += row * scales->inputs_pitch;
            if (num_rows == 1) {
                gemm_blocks_tile(1, w, k, a, rows->pitch, to, rows->acc_pitch, &here);
            } else if (num_rows == 2) {
                gemm_blocks_tile(2, w, k, a, rows->pitch, to, rows->acc_pitch, &here);
            } else {
                gemm_blocks_tile(3, w, k, a, rows->pitch, to, rows->acc_pitch, &here);
            }
            gemm_fetch_lines(fetch);
            row += num_rows;
        }
    }
}

#endif
