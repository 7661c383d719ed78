/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Weights that come from memory, contiguous along k, and meet few rows where they lie: 1 to 3 rows
 * x 4 channels, converted in registers. Four channels are four chains of multiply-adds
 * for one row, which hide the latency of an addition; their lines further on are fetched into the
 * second level cache (fetched into the first level they would evict each other: rows of 4 KiB share
 * its sets).
 *
 * fp8 e4m3: the seven low bits of a code are exponent and mantissa of an fp16 with a bias of 15
 * instead of 7, so one shift and one conversion give the value * 2^-8, subnormals included, and
 * nothing is lost on the way. The rows are packed as value * 2^8, so that products are those of the
 * values. Placing a code's bits in an fp32 takes fewer operations, but subnormal codes are then
 * subnormals of fp32, for which some processors need a hundred cycles each. NaN (0x7f, 0xff) is the
 * one code that this gets wrong: a channel is searched for it after it was used, and its sums
 * become NaN, whatever they were.
 *
 * What becomes of the eight lane sums of a channel (gemm.h):
 *   GEMM_SCALE_NONE     plain weights, one sum over all k
 *   GEMM_SCALE_WHOLE    fp8 values as they are, one sum over all k; scaled when it is finished
 *   GEMM_SCALE_BLOCKS   a sum per 128 columns; total = fma(sum, input scale * weight scale, total)
 */
#ifndef MOE_GEMM_STREAM_H
#define MOE_GEMM_STREAM_H

#include "gemm_dot.h"

enum gemm_scaling {
    GEMM_SCALE_NONE, /* weights are not fp8 */
    GEMM_SCALE_WHOLE,
    GEMM_SCALE_BLOCKS,
};

enum { GEMM_STREAM_CHANNELS = 4 };

/* Scales of the columns of a chunk, one per 128. */
struct gemm_scales {
    const float *weights; /* of the channels at hand, which all share them */
    const float *inputs;  /* [row][inputs_pitch]; 1 for rows that are not fp8 */
    int64_t inputs_pitch;
};

/* Does one of `count` bytes hold NaN? */
static inline int gemm_fp8_has_nan(const unsigned char *from, int64_t count)
{
    int64_t i = 0;
    int found = 0;
#if MOE_VEC8_AVX2
    /* Twice a code, carry lost, is 0xfe for both NaNs and less for all else. */
    __m256i most[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                       _mm256_setzero_si256()};
    for (; i + 128 <= count; i += 128) {
#pragma GCC unroll 4
        for (int part = 0; part < 4; part++) {
            const __m256i codes =
                _mm256_loadu_si256((const __m256i *)(const void *)(from + i + 32 * part));
            most[part] = _mm256_max_epu8(most[part], _mm256_add_epi8(codes, codes));
        }
    }
    const __m256i both =
        _mm256_max_epu8(_mm256_max_epu8(most[0], most[1]), _mm256_max_epu8(most[2], most[3]));
    found = _mm256_movemask_epi8(_mm256_cmpeq_epi8(both, _mm256_set1_epi8((char)0xfe)));
#endif
    for (; i < count; i++) {
        found |= (from[i] & MOE_FP8_NAN) == MOE_FP8_NAN;
    }
    return found != 0;
}

/* Two neighbouring vectors of one channel. */
struct gemm_pair {
    struct moe_vec8 low, high;
};

GEMM_INLINE struct gemm_pair gemm_load_pair(const unsigned char *from, int32_t dtype)
{
#if MOE_VEC8_AVX2
    if (dtype == MOE_DTYPE_FP8_E4M3) {
        const __m256i codes = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)from));
        const __m256i halves =
            _mm256_and_si256(_mm256_slli_epi16(codes, 7), _mm256_set1_epi16((short)0xbf80u));
        return (struct gemm_pair){{_mm256_cvtph_ps(_mm256_castsi256_si128(halves))},
                                  {_mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))}};
    }
#endif
    if (dtype == MOE_DTYPE_FP8_E4M3) {
        return (struct gemm_pair){gemm_fp8_decode(from), gemm_fp8_decode(from + MOE_VEC8_LANES)};
    }
    return (struct gemm_pair){moe_convert_load(from, dtype),
                              moe_convert_load(moe_convert_at(from, dtype, MOE_VEC8_LANES), dtype)};
}

/* Sixteen columns of four channels. */
GEMM_INLINE void gemm_stream_step(int32_t dtype, int num_rows,
                                  const unsigned char *const w[GEMM_STREAM_CHANNELS],
                                  int64_t offset, const float *a, int64_t pitch,
                                  struct moe_vec8 acc[3][GEMM_STREAM_CHANNELS])
{
#pragma GCC unroll 4
    for (int c = 0; c < GEMM_STREAM_CHANNELS; c++) {
        const struct gemm_pair weight = gemm_load_pair(w[c] + offset, dtype);
#pragma GCC unroll 3
        for (int row = 0; row < num_rows; row++) {
            acc[row][c] = moe_vec8_fma(moe_vec8_load(a + row * pitch), weight.low, acc[row][c]);
            acc[row][c] = moe_vec8_fma(moe_vec8_load(a + row * pitch + MOE_VEC8_LANES), weight.high,
                                       acc[row][c]);
        }
    }
}

/* The last `count` (1..15) columns: a step of eight, or two, with zeros behind them. */
GEMM_INLINE void gemm_stream_last(int32_t dtype, int num_rows,
                                  const unsigned char *const w[GEMM_STREAM_CHANNELS],
                                  int64_t offset, int64_t count, const float *a, int64_t pitch,
                                  struct moe_vec8 acc[3][GEMM_STREAM_CHANNELS])
{
    for (int64_t i = 0; i < count; i += MOE_VEC8_LANES) {
        const int64_t left = count - i < MOE_VEC8_LANES ? count - i : MOE_VEC8_LANES;
#pragma GCC unroll 4
        for (int c = 0; c < GEMM_STREAM_CHANNELS; c++) {
            const struct moe_vec8 weight =
                gemm_load_partial(moe_convert_at(w[c] + offset, dtype, i), dtype, left);
#pragma GCC unroll 3
            for (int row = 0; row < num_rows; row++) {
                acc[row][c] = moe_vec8_fma(moe_vec8_load(a + row * pitch + i), weight, acc[row][c]);
            }
        }
    }
}

/* totals[c] = fma(sum of lanes of channel c, factor, totals[c]) for four channels. */
static inline void gemm_fold_quad(const struct moe_vec8 acc[4], float factor, float *totals)
{
#if MOE_VEC8_AVX2 && !MOE_CPU_SUM_NEIGHBORS
    /* Halves of a vector are channels from here on: [c0 | c1] and [c2 | c3]. */
    const __m256 low = _mm256_add_ps(_mm256_permute2f128_ps(acc[0].v, acc[1].v, 0x20),
                                     _mm256_permute2f128_ps(acc[0].v, acc[1].v, 0x31));
    const __m256 high = _mm256_add_ps(_mm256_permute2f128_ps(acc[2].v, acc[3].v, 0x20),
                                      _mm256_permute2f128_ps(acc[2].v, acc[3].v, 0x31));
    const __m256 by2 =
        _mm256_add_ps(_mm256_shuffle_ps(low, high, 0x44), _mm256_shuffle_ps(low, high, 0xee));
    const __m256 sums = _mm256_hadd_ps(by2, by2); /* [c0 c2 .. | c1 c3 ..] */
    const __m128 quad =
        _mm_unpacklo_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
    _mm_storeu_ps(totals, _mm_fmadd_ps(quad, _mm_set1_ps(factor), _mm_loadu_ps(totals)));
#else
    totals[0] = gemm_fma(moe_vec8_sum(acc[0]), factor, totals[0]);
    totals[1] = gemm_fma(moe_vec8_sum(acc[1]), factor, totals[1]);
    totals[2] = gemm_fma(moe_vec8_sum(acc[2]), factor, totals[2]);
    totals[3] = gemm_fma(moe_vec8_sum(acc[3]), factor, totals[3]);
#endif
}

/*
 * num_rows (1..3) x 4 channels over `k` columns, the first of which begins 128 of them. `to` holds
 * eight lanes a channel, or a total with GEMM_SCALE_BLOCKS. The inputs hold zeros up to a multiple
 * of 8 columns; nothing is read beyond column k of a channel.
 */
GEMM_INLINE void gemm_stream_tile(int32_t dtype, enum gemm_scaling scaling, int num_rows,
                                  const unsigned char *const w[GEMM_STREAM_CHANNELS],
                                  struct gemm_fetch *fetch, int64_t k, const float *a,
                                  int64_t pitch, float *to, int64_t to_pitch,
                                  const struct gemm_scales *scales)
{
    const int64_t element_bytes = moe_convert_element_bytes(dtype);
    const int64_t line = GEMM_LINE_BYTES / element_bytes;
    const int64_t step = 2 * MOE_VEC8_LANES;
    struct moe_vec8 acc[3][GEMM_STREAM_CHANNELS];
#pragma GCC unroll 3
    for (int row = 0; row < num_rows; row++) {
#pragma GCC unroll 4
        for (int c = 0; c < GEMM_STREAM_CHANNELS; c++) {
            acc[row][c] = scaling == GEMM_SCALE_BLOCKS
                              ? moe_vec8_zero()
                              : moe_vec8_load(to + row * to_pitch + c * MOE_VEC8_LANES);
        }
    }
    for (int64_t first = 0; first < k; first += GEMM_SCALE_COLUMNS) {
        const int64_t end = k - first < GEMM_SCALE_COLUMNS ? k : first + GEMM_SCALE_COLUMNS;
        const int64_t group = first / GEMM_SCALE_COLUMNS;
        int64_t i = first;
        for (int64_t at = first; at < end; at += line) {
            const int64_t line_end = end - at < line ? end : at + line;
            gemm_fetch_lines(fetch);
#pragma GCC unroll 2
            for (; i + step <= line_end; i += step) {
                gemm_stream_step(dtype, num_rows, w, i * element_bytes, a + i, pitch, acc);
            }
        }
        if (i < end) {
            gemm_stream_last(dtype, num_rows, w, i * element_bytes, end - i, a + i, pitch, acc);
        }
#pragma GCC unroll 3
        for (int row = 0; scaling == GEMM_SCALE_BLOCKS && row < num_rows; row++) {
            const float factor =
                scales->inputs[row * scales->inputs_pitch + group] * scales->weights[group];
            gemm_fold_quad(acc[row], factor, to + row * to_pitch);
#pragma GCC unroll 4
            for (int c = 0; c < GEMM_STREAM_CHANNELS; c++) {
                acc[row][c] = moe_vec8_zero();
            }
        }
    }
#pragma GCC unroll 3
    for (int row = 0; scaling != GEMM_SCALE_BLOCKS && row < num_rows; row++) {
#pragma GCC unroll 4
        for (int c = 0; c < GEMM_STREAM_CHANNELS; c++) {
            moe_vec8_store(to + row * to_pitch + c * MOE_VEC8_LANES, acc[row][c]);
        }
    }
}

/* The sums of a channel with a NaN: one lane of each row, or its total. */
static inline void gemm_fp8_spoil(float *to, const struct gemm_rows *rows)
{
    for (int64_t row = 0; row < rows->count; row++) {
        to[row * rows->acc_pitch] = moe_float_from_bits(0x7fc00000u);
    }
}

GEMM_INLINE void gemm_stream_typed(int32_t dtype, enum gemm_scaling scaling,
                                   const struct gemm_channels *channels, int64_t k,
                                   const struct gemm_rows *rows, const struct gemm_scales *scales)
{
    const int64_t floats = scaling == GEMM_SCALE_BLOCKS ? 1 : MOE_VEC8_LANES; /* of a channel */
    for (int64_t channel = 0; channel < channels->count; channel += GEMM_STREAM_CHANNELS) {
        const unsigned char *w[GEMM_STREAM_CHANNELS];
        for (int c = 0; c < GEMM_STREAM_CHANNELS; c++) {
            w[c] = gemm_channel_at(channels, channel + c);
        }
        /* From end to end, so that memory is read in order. */
        struct gemm_fetch fetch = {
            .run = channels->next != NULL ? channels->next + channel * channels->next_bytes : NULL,
            .run_bytes = k * moe_convert_element_bytes(dtype),
            .stride = channels->next_bytes,
            .num_runs = channels->next != NULL ? GEMM_STREAM_CHANNELS : 0,
            .lines_per_tile = GEMM_STREAM_CHANNELS,
        };
        float *to = rows->acc + channel * floats;
        for (int64_t row = 0; row < rows->count;) {
            const int64_t num_rows = gemm_next_rows(rows->count - row);
            const float *a = rows->a + row * rows->pitch;
            float *at = to + row * rows->acc_pitch;
            struct gemm_scales here = *scales;
            here.inputs += row * scales->inputs_pitch;
            if (num_rows == 1) {
                gemm_stream_tile(dtype, scaling, 1, w, &fetch, k, a, rows->pitch, at,
                                 rows->acc_pitch, &here);
            } else if (num_rows == 2) {
                gemm_stream_tile(dtype, scaling, 2, w, &fetch, k, a, rows->pitch, at,
                                 rows->acc_pitch, &here);
            } else {
                gemm_stream_tile(dtype, scaling, 3, w, &fetch, k, a, rows->pitch, at,
                                 rows->acc_pitch, &here);
            }
            row += num_rows;
        }
        for (int c = 0; dtype == MOE_DTYPE_FP8_E4M3 && c < GEMM_STREAM_CHANNELS; c++) {
            if (gemm_fp8_has_nan(w[c], k)) {
                gemm_fp8_spoil(to + c * floats, rows);
            }
        }
    }
}

/* Sums of up to eight channels advance by `k` columns of weights of any type. */
static inline void gemm_streamed(int32_t dtype, enum gemm_scaling scaling,
                                 const struct gemm_channels *channels, int64_t k,
                                 const struct gemm_rows *rows, const struct gemm_scales *scales)
{
    if (scaling == GEMM_SCALE_BLOCKS) {
        gemm_stream_typed(MOE_DTYPE_FP8_E4M3, GEMM_SCALE_BLOCKS, channels, k, rows, scales);
    } else if (scaling == GEMM_SCALE_WHOLE) {
        gemm_stream_typed(MOE_DTYPE_FP8_E4M3, GEMM_SCALE_WHOLE, channels, k, rows, scales);
    } else if (dtype == MOE_DTYPE_BF16) {
        gemm_stream_typed(MOE_DTYPE_BF16, GEMM_SCALE_NONE, channels, k, rows, scales);
    } else if (dtype == MOE_DTYPE_FP16) {
        gemm_stream_typed(MOE_DTYPE_FP16, GEMM_SCALE_NONE, channels, k, rows, scales);
    } else {
        gemm_stream_typed(MOE_DTYPE_FP32, GEMM_SCALE_NONE, channels, k, rows, scales);
    }
}

#endif
