/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fp8 weights that are streamed (gemm_stream.h), with AVX-512 VBMI: 1 to 3 rows x 8 channels. The
 * chains are those of gemm_stream.h, so the bits are; a vector holds half the lanes of four
 * channels, the even ones or the odd ones.
 *
 * Sixteen codes of four channels are 64 bytes, and a table of 128 bytes gives each code the upper
 * byte of its value as bf16, another one the lower: subnormals and NaN need no care. Eleven
 * operations decode 64 codes where gemm_stream.h takes nine for 16.
 *
 * Limits: the rows come with the columns of each eight in the order of gemm_vbmi_order.
 */
#ifndef MOE_GEMM_VBMI_H
#define MOE_GEMM_VBMI_H

#include "gemm_codes.h"
#include "gemm_stream.h"

#if GEMM_HAS_VBMI

enum { GEMM_VBMI_GROUPS = 2 }; /* of four channels */

/* Even lanes and odd lanes of each eight columns, in place. */
static inline void gemm_vbmi_order(float *row, int64_t k)
{
    const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    for (int64_t i = 0; i < k; i += MOE_VEC8_LANES) {
        _mm256_storeu_ps(row + i, _mm256_permutevar8x32_ps(_mm256_loadu_ps(row + i), order));
    }
}

/* Lanes of four channels: [channel][0 2 4 6] and [channel][1 3 5 7]. */
struct gemm_vbmi_lanes {
    __m512 even, odd;
};

GEMM_VBMI_INLINE struct gemm_vbmi_lanes gemm_vbmi_load_lanes(const float *from)
{
    float even[16], odd[16];
    const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    for (int c = 0; c < 4; c++) {
        const __m256 lanes =
            _mm256_permutevar8x32_ps(_mm256_loadu_ps(from + c * MOE_VEC8_LANES), order);
        _mm_storeu_ps(even + 4 * c, _mm256_castps256_ps128(lanes));
        _mm_storeu_ps(odd + 4 * c, _mm256_extractf128_ps(lanes, 1));
    }
    return (struct gemm_vbmi_lanes){_mm512_loadu_ps(even), _mm512_loadu_ps(odd)};
}

GEMM_VBMI_INLINE void gemm_vbmi_store_lanes(float *to, struct gemm_vbmi_lanes lanes)
{
    float even[16], odd[16];
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm512_storeu_ps(even, lanes.even);
    _mm512_storeu_ps(odd, lanes.odd);
    for (int c = 0; c < 4; c++) {
        const __m256 both = _mm256_set_m128(_mm_loadu_ps(odd + 4 * c), _mm_loadu_ps(even + 4 * c));
        _mm256_storeu_ps(to + c * MOE_VEC8_LANES, _mm256_permutevar8x32_ps(both, order));
    }
}

/* Sixteen codes of each of four channels. */
GEMM_VBMI_INLINE __m512i gemm_vbmi_codes(const unsigned char *const w[4], int64_t offset)
{
    __m512i codes = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(w[0] + offset)));
    codes = _mm512_inserti32x4(codes, _mm_loadu_si128((const __m128i *)(w[1] + offset)), 1);
    codes = _mm512_inserti32x4(codes, _mm_loadu_si128((const __m128i *)(w[2] + offset)), 2);
    return _mm512_inserti32x4(codes, _mm_loadu_si128((const __m128i *)(w[3] + offset)), 3);
}

/* Four columns of a row, for each of four channels. */
GEMM_VBMI_INLINE __m512 gemm_vbmi_row(const float *from)
{
    return _mm512_broadcast_f32x4(_mm_loadu_ps(from));
}

/* num_halves (1, 2) times eight columns of four channels and num_rows rows. */
GEMM_VBMI_INLINE void gemm_vbmi_step(const struct gemm_vbmi_tables *tables, __m512i codes,
                                     int num_halves, int num_rows, const float *a, int64_t pitch,
                                     struct gemm_vbmi_lanes acc[3])
{
    const __m512i lower = gemm_vbmi_lower(tables, codes);
    const __m512i upper = gemm_vbmi_upper(tables, codes);
    const __m512i odd_bits = _mm512_set1_epi32((int)0xffff0000u);
#pragma GCC unroll 2
    for (int half = 0; half < num_halves; half++) {
        const __m512i words =
            half == 0 ? _mm512_unpacklo_epi8(lower, upper) : _mm512_unpackhi_epi8(lower, upper);
        const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
        const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(words, odd_bits));
#pragma GCC unroll 3
        for (int row = 0; row < num_rows; row++) {
            const float *at = a + row * pitch + half * MOE_VEC8_LANES;
            acc[row].even = _mm512_fmadd_ps(gemm_vbmi_row(at), even, acc[row].even);
            acc[row].odd = _mm512_fmadd_ps(gemm_vbmi_row(at + 4), odd, acc[row].odd);
        }
    }
}

/* The last `count` (1..15) columns, with zeros behind them. */
GEMM_VBMI_INLINE void gemm_vbmi_last(const struct gemm_vbmi_tables *tables,
                                     const unsigned char *const w[4], int64_t offset, int64_t count,
                                     int num_rows, const float *a, int64_t pitch,
                                     struct gemm_vbmi_lanes acc[3])
{
    unsigned char codes[4][16] = {{0}};
    for (int c = 0; c < 4; c++) {
        memcpy(codes[c], w[c] + offset, (size_t)count);
    }
    const __m512i all = _mm512_loadu_si512(codes);
    if (count <= MOE_VEC8_LANES) {
        gemm_vbmi_step(tables, all, 1, num_rows, a, pitch, acc);
    } else {
        gemm_vbmi_step(tables, all, 2, num_rows, a, pitch, acc);
    }
}

/* fma(sum of lanes in canonical order, factor, total) for four channels; every number stands in
 * all four lanes of its channel. */
GEMM_VBMI_INLINE __m512 gemm_vbmi_fold(struct gemm_vbmi_lanes acc, float factor, __m512 total)
{
    const __m512 by4 = _mm512_add_ps(_mm512_shuffle_ps(acc.even, acc.odd, 0x44),
                                     _mm512_shuffle_ps(acc.even, acc.odd, 0xee));
    const __m512 by2 = _mm512_add_ps(by4, _mm512_permute_ps(by4, 0xb1));
    const __m512 sum = _mm512_add_ps(by2, _mm512_permute_ps(by2, 0x4e));
    return _mm512_fmadd_ps(sum, _mm512_set1_ps(factor), total);
}

GEMM_VBMI_INLINE __m512 gemm_vbmi_load_totals(const float *from)
{
    const __m512i spread = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutexvar_ps(spread, _mm512_castps128_ps512(_mm_loadu_ps(from)));
}

GEMM_VBMI_INLINE void gemm_vbmi_store_totals(float *to, __m512 totals)
{
    const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    _mm_storeu_ps(to, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, totals)));
}

/* gemm_stream_tile for fp8 and eight channels. */
GEMM_VBMI_INLINE void gemm_vbmi_tile(enum gemm_scaling scaling, int num_rows,
                                     const struct gemm_vbmi_tables *tables,
                                     const unsigned char *const w[4 * GEMM_VBMI_GROUPS],
                                     struct gemm_fetch *fetch, int64_t k, const float *a,
                                     int64_t pitch, float *to, int64_t to_pitch,
                                     const struct gemm_scales *scales)
{
    const int64_t step = 2 * MOE_VEC8_LANES;
    const int64_t group_floats = 4 * (scaling == GEMM_SCALE_BLOCKS ? 1 : MOE_VEC8_LANES);
    const struct gemm_vbmi_lanes none = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    struct gemm_vbmi_lanes acc[GEMM_VBMI_GROUPS][3];
    __m512 totals[GEMM_VBMI_GROUPS][3];
#pragma GCC unroll 2
    for (int g = 0; g < GEMM_VBMI_GROUPS; g++) {
#pragma GCC unroll 3
        for (int row = 0; row < num_rows; row++) {
            const float *from = to + row * to_pitch + g * group_floats;
            acc[g][row] = none;
            totals[g][row] = _mm512_setzero_ps();
            if (scaling == GEMM_SCALE_BLOCKS) {
                totals[g][row] = gemm_vbmi_load_totals(from);
            } else {
                acc[g][row] = gemm_vbmi_load_lanes(from);
            }
        }
    }
    for (int64_t first = 0; first < k; first += GEMM_SCALE_COLUMNS) {
        const int64_t end = k - first < GEMM_SCALE_COLUMNS ? k : first + GEMM_SCALE_COLUMNS;
        int64_t i = first;
        for (int64_t at = first; at < end; at += GEMM_LINE_BYTES) {
            const int64_t line_end = end - at < GEMM_LINE_BYTES ? end : at + GEMM_LINE_BYTES;
            gemm_fetch_lines(fetch);
            for (; i + step <= line_end; i += step) {
#pragma GCC unroll 2
                for (int g = 0; g < GEMM_VBMI_GROUPS; g++) {
                    gemm_vbmi_step(tables, gemm_vbmi_codes(w + 4 * g, i), 2, num_rows, a + i, pitch,
                                   acc[g]);
                }
            }
        }
#pragma GCC unroll 2
        for (int g = 0; g < GEMM_VBMI_GROUPS; g++) {
            if (i < end) {
                gemm_vbmi_last(tables, w + 4 * g, i, end - i, num_rows, a + i, pitch, acc[g]);
            }
#pragma GCC unroll 3
            for (int row = 0; scaling == GEMM_SCALE_BLOCKS && row < num_rows; row++) {
                const int64_t group = first / GEMM_SCALE_COLUMNS;
                const float factor =
                    scales->inputs[row * scales->inputs_pitch + group] * scales->weights[group];
                totals[g][row] = gemm_vbmi_fold(acc[g][row], factor, totals[g][row]);
                acc[g][row] = none;
            }
        }
    }
#pragma GCC unroll 2
    for (int g = 0; g < GEMM_VBMI_GROUPS; g++) {
#pragma GCC unroll 3
        for (int row = 0; row < num_rows; row++) {
            float *at = to + row * to_pitch + g * group_floats;
            if (scaling == GEMM_SCALE_BLOCKS) {
                gemm_vbmi_store_totals(at, totals[g][row]);
            } else {
                gemm_vbmi_store_lanes(at, acc[g][row]);
            }
        }
    }
}

GEMM_VBMI_INLINE void gemm_vbmi_scaled(enum gemm_scaling scaling,
                                       const struct gemm_channels *channels, int64_t k,
                                       const struct gemm_rows *rows,
                                       const struct gemm_scales *scales)
{
    const struct gemm_vbmi_tables tables = gemm_vbmi_tables();
    const unsigned char *w[4 * GEMM_VBMI_GROUPS];
    for (int c = 0; c < 4 * GEMM_VBMI_GROUPS; c++) {
        w[c] = gemm_channel_at(channels, c);
    }
    /* From end to end, so that memory is read in order. */
    struct gemm_fetch fetch = {
        .run = channels->next,
        .run_bytes = k,
        .stride = channels->next_bytes,
        .num_runs = channels->next != NULL ? 4 * GEMM_VBMI_GROUPS : 0,
        .lines_per_tile = 4 * GEMM_VBMI_GROUPS,
    };
    for (int64_t row = 0; row < rows->count;) {
        const int64_t num_rows = gemm_next_rows(rows->count - row);
        const float *a = rows->a + row * rows->pitch;
        float *to = rows->acc + row * rows->acc_pitch;
        struct gemm_scales here = *scales;
        here.inputs += row * scales->inputs_pitch;
        if (num_rows == 1) {
            gemm_vbmi_tile(scaling, 1, &tables, w, &fetch, k, a, rows->pitch, to, rows->acc_pitch,
                           &here);
        } else if (num_rows == 2) {
            gemm_vbmi_tile(scaling, 2, &tables, w, &fetch, k, a, rows->pitch, to, rows->acc_pitch,
                           &here);
        } else {
            gemm_vbmi_tile(scaling, 3, &tables, w, &fetch, k, a, rows->pitch, to, rows->acc_pitch,
                           &here);
        }
        row += num_rows;
    }
}

/* gemm_streamed for fp8 weights. */
GEMM_VBMI_TARGET_ static void gemm_vbmi_streamed(enum gemm_scaling scaling,
                                                 const struct gemm_channels *channels, int64_t k,
                                                 const struct gemm_rows *rows,
                                                 const struct gemm_scales *scales)
{
    if (scaling == GEMM_SCALE_BLOCKS) {
        gemm_vbmi_scaled(GEMM_SCALE_BLOCKS, channels, k, rows, scales);
    } else {
        gemm_vbmi_scaled(GEMM_SCALE_WHOLE, channels, k, rows, scales);
    }
}

#endif

#endif
