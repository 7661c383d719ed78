/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fp8 e4m3 weights in the GEMM, contiguous along k: a few rows of inputs meet them where they lie.
 *
 * Decoding: the seven low bits of an e4m3 are exponent and mantissa of an fp16 with a bias of 15
 * instead of 7, so one shift and one conversion give the value * 2^-8, subnormals included, and no
 * value is lost on the way. Inputs that are fp8 themselves are packed as value * 2^8, which makes
 * products exact; a weight's scale takes the 2^8 along where inputs are not quantized. NaN (0x7f,
 * 0xff) is the one code that this gets wrong: a channel is searched for it after it was used, and
 * its sums become NaN, whatever they were.
 *
 * What becomes of the eight lane sums of a channel (gemm.h):
 *   GEMM_SCALE_WEIGHTS  weights are value * scale, rounded to fp32; one sum over all k
 *   GEMM_SCALE_WHOLE    values as they are, one sum over all k; scaled when it is finished
 *   GEMM_SCALE_BLOCKS   a sum per 128 columns; total = fma(sum, input scale * weight scale, total)
 */
#ifndef MOE_GEMM_FP8_H
#define MOE_GEMM_FP8_H

#include "gemm_dot.h"

enum gemm_scaling {
    GEMM_SCALE_NONE, /* weights are not fp8 */
    GEMM_SCALE_WEIGHTS,
    GEMM_SCALE_WHOLE,
    GEMM_SCALE_BLOCKS,
};

/* Scales of the columns of a chunk, one per 128. */
struct gemm_scales {
    const float *weights; /* of the channels at hand, which all share them */
    const float *inputs;  /* [row][inputs_pitch] */
    int64_t inputs_pitch;
};

/* Does one of `count` bytes hold NaN? */
static inline int gemm_fp8_has_nan(const unsigned char *from, int64_t count)
{
    int64_t i = 0;
    int found = 0;
#if MOE_VEC8_AVX2
    const __m256i magnitude = _mm256_set1_epi8(0x7f);
    __m256i most = _mm256_setzero_si256();
    for (; i + 32 <= count; i += 32) {
        const __m256i codes = _mm256_loadu_si256((const __m256i *)(const void *)(from + i));
        most = _mm256_max_epu8(most, _mm256_and_si256(codes, magnitude));
    }
    found = _mm256_movemask_epi8(_mm256_cmpeq_epi8(most, magnitude));
#endif
    for (; i < count; i++) {
        found |= (from[i] & 0x7f) == 0x7f;
    }
    return found != 0;
}

GEMM_INLINE void gemm_fp8_step(struct gemm_pair *acc, const float *a, struct gemm_pair w,
                               int64_t pitch, int num_rows)
{
    gemm_pair_fma(&acc[0], a, w);
    if (num_rows > 1) {
        gemm_pair_fma(&acc[1], a + pitch, w);
    }
    if (num_rows > 2) {
        gemm_pair_fma(&acc[2], a + 2 * pitch, w);
    }
}

GEMM_INLINE struct gemm_pair gemm_fp8_load(enum gemm_scaling scaling, const unsigned char *w0,
                                           const unsigned char *w1, struct moe_vec8 scale)
{
    struct gemm_pair w = {gemm_fp8_decode(w0), gemm_fp8_decode(w1)};
    if (scaling == GEMM_SCALE_WEIGHTS) {
        w.c0 = moe_vec8_mul(w.c0, scale);
        w.c1 = moe_vec8_mul(w.c1, scale);
    }
    return w;
}

/* num_rows (1..3) x 2 channels over `k` columns. `acc` holds lanes, or totals for BLOCKS. */
GEMM_INLINE void gemm_fp8_tile(enum gemm_scaling scaling, int num_rows, const unsigned char *w0,
                               const unsigned char *w1, int64_t prefetch_bytes, int64_t k,
                               const float *a, int64_t pitch, float *to, int64_t to_pitch,
                               const struct gemm_scales *scales)
{
    struct gemm_pair acc[3];
    struct moe_vec8 scale = moe_vec8_zero();
#pragma GCC unroll 3
    for (int row = 0; row < num_rows; row++) {
        acc[row] = scaling == GEMM_SCALE_BLOCKS
                       ? (struct gemm_pair){moe_vec8_zero(), moe_vec8_zero()}
                       : gemm_pair_load(to + row * to_pitch);
    }
    for (int64_t first = 0; first < k; first += GEMM_SCALE_COLUMNS) {
        const int64_t end = k - first < GEMM_SCALE_COLUMNS ? k : first + GEMM_SCALE_COLUMNS;
        const int64_t whole = end / MOE_VEC8_LANES * MOE_VEC8_LANES;
        if (scaling == GEMM_SCALE_WEIGHTS) {
            scale = moe_vec8_set1(scales->weights[first / GEMM_SCALE_COLUMNS] * GEMM_FP8_UNIT);
        }
        for (int64_t i = first; i < end && prefetch_bytes != 0; i += GEMM_LINE_BYTES) {
            __builtin_prefetch(w0 + prefetch_bytes + i, 0, GEMM_PREFETCH_L2);
            __builtin_prefetch(w1 + prefetch_bytes + i, 0, GEMM_PREFETCH_L2);
        }
#pragma GCC unroll 4
        for (int64_t i = first; i < whole; i += MOE_VEC8_LANES) {
            gemm_fp8_step(acc, a + i, gemm_fp8_load(scaling, w0 + i, w1 + i, scale), pitch,
                          num_rows);
        }
        if (whole < end) {
            unsigned char last[2][MOE_VEC8_LANES] = {{0}, {0}};
            memcpy(last[0], w0 + whole, (size_t)(end - whole));
            memcpy(last[1], w1 + whole, (size_t)(end - whole));
            gemm_fp8_step(acc, a + whole, gemm_fp8_load(scaling, last[0], last[1], scale), pitch,
                          num_rows);
        }
#pragma GCC unroll 3
        for (int row = 0; scaling == GEMM_SCALE_BLOCKS && row < num_rows; row++) {
            const float factor =
                scales->inputs[row * scales->inputs_pitch + first / GEMM_SCALE_COLUMNS] *
                scales->weights[first / GEMM_SCALE_COLUMNS];
            float *total = to + row * to_pitch;
            total[0] = gemm_fma(moe_vec8_sum(acc[row].c0), factor, total[0]);
            total[1] = gemm_fma(moe_vec8_sum(acc[row].c1), factor, total[1]);
            acc[row] = (struct gemm_pair){moe_vec8_zero(), moe_vec8_zero()};
        }
    }
#pragma GCC unroll 3
    for (int row = 0; scaling != GEMM_SCALE_BLOCKS && row < num_rows; row++) {
        gemm_pair_store(to + row * to_pitch, acc[row]);
    }
}

/* The sums of a channel with a NaN: one lane of each row, or its total. */
static inline void gemm_fp8_spoil(float *to, const struct gemm_rows *rows)
{
    for (int64_t row = 0; row < rows->count; row++) {
        to[row * rows->acc_pitch] = moe_float_from_bits(0x7fc00000u);
    }
}

GEMM_INLINE void gemm_fp8_stream_scaled(enum gemm_scaling scaling,
                                        const struct gemm_channels *channels, int64_t k,
                                        const struct gemm_rows *rows,
                                        const struct gemm_scales *scales)
{
    const int64_t step = scaling == GEMM_SCALE_BLOCKS ? 1 : MOE_VEC8_LANES; /* floats a channel */
    for (int64_t channel = 0; channel < channels->count; channel += 2) {
        const unsigned char *w0 = gemm_channel_at(channels, channel);
        const unsigned char *w1 = gemm_channel_at(channels, channel + 1);
        int64_t prefetch_bytes = channels->prefetch_bytes;
        float *to = rows->acc + channel * step;
        for (int64_t row = 0; row < rows->count;) {
            const int64_t num_rows = gemm_next_rows(rows->count - row);
            const float *a = rows->a + row * rows->pitch;
            float *at = to + row * rows->acc_pitch;
            struct gemm_scales here = *scales;
            here.inputs += row * scales->inputs_pitch;
            if (num_rows == 1) {
                gemm_fp8_tile(scaling, 1, w0, w1, prefetch_bytes, k, a, rows->pitch, at,
                              rows->acc_pitch, &here);
            } else if (num_rows == 2) {
                gemm_fp8_tile(scaling, 2, w0, w1, prefetch_bytes, k, a, rows->pitch, at,
                              rows->acc_pitch, &here);
            } else {
                gemm_fp8_tile(scaling, 3, w0, w1, prefetch_bytes, k, a, rows->pitch, at,
                              rows->acc_pitch, &here);
            }
            row += num_rows;
            prefetch_bytes = 0;
        }
        if (gemm_fp8_has_nan(w0, k)) {
            gemm_fp8_spoil(to, rows);
        }
        if (gemm_fp8_has_nan(w1, k)) {
            gemm_fp8_spoil(to + step, rows);
        }
    }
}

/* Sums of up to eight channels advance by `k` columns, the first of which begins 128 of them. */
static inline void gemm_fp8_streamed(enum gemm_scaling scaling,
                                     const struct gemm_channels *channels, int64_t k,
                                     const struct gemm_rows *rows, const struct gemm_scales *scales)
{
    if (scaling == GEMM_SCALE_BLOCKS) {
        gemm_fp8_stream_scaled(GEMM_SCALE_BLOCKS, channels, k, rows, scales);
    } else if (scaling == GEMM_SCALE_WHOLE) {
        gemm_fp8_stream_scaled(GEMM_SCALE_WHOLE, channels, k, rows, scales);
    } else {
        gemm_fp8_stream_scaled(GEMM_SCALE_WEIGHTS, channels, k, rows, scales);
    }
}

/* ---- many rows, weights packed as fp32 ---- */

/* totals[c] = fma(sum of lanes of channel c, factor, totals[c]) for four channels. */
static inline void gemm_fold_quad(const struct gemm_quad *acc, float factor, float *totals)
{
#if MOE_VEC8_AVX2 && !MOE_CPU_SUM_NEIGHBORS
    /* Halves of a vector are channels from here on: [c0 | c1] and [c2 | c3]. */
    const __m256 low = _mm256_add_ps(_mm256_permute2f128_ps(acc->c0.v, acc->c1.v, 0x20),
                                     _mm256_permute2f128_ps(acc->c0.v, acc->c1.v, 0x31));
    const __m256 high = _mm256_add_ps(_mm256_permute2f128_ps(acc->c2.v, acc->c3.v, 0x20),
                                      _mm256_permute2f128_ps(acc->c2.v, acc->c3.v, 0x31));
    const __m256 by2 =
        _mm256_add_ps(_mm256_shuffle_ps(low, high, 0x44), _mm256_shuffle_ps(low, high, 0xee));
    const __m256 sums = _mm256_hadd_ps(by2, by2); /* [c0 c2 .. | c1 c3 ..] */
    const __m128 quad =
        _mm_unpacklo_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
    _mm_storeu_ps(totals, _mm_fmadd_ps(quad, _mm_set1_ps(factor), _mm_loadu_ps(totals)));
#else
    totals[0] = gemm_fma(moe_vec8_sum(acc->c0), factor, totals[0]);
    totals[1] = gemm_fma(moe_vec8_sum(acc->c1), factor, totals[1]);
    totals[2] = gemm_fma(moe_vec8_sum(acc->c2), factor, totals[2]);
    totals[3] = gemm_fma(moe_vec8_sum(acc->c3), factor, totals[3]);
#endif
}

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
            gemm_fold_quad(&acc[row], factor, to + row * to_pitch);
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
