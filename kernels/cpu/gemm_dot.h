/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Register tiles of the GEMM: a few rows of fp32 inputs times a few output channels, each pair its
 * own eight-lane chain over k (canonical arithmetic, see gemm.h). The shape of a register tile
 * decides only which chains advance together, never the order inside one, so every shape gives the
 * same bits.
 *
 * Streaming, for weights that come from memory and meet few rows: gemm_stream.h.
 * Cached, for fp32 weights that meet many rows: 3 rows x 4 channels, 12 accumulators and 7 loads
 * for 12 FMAs in 16 registers.
 */
#ifndef MOE_GEMM_DOT_H
#define MOE_GEMM_DOT_H

#include "convert.h"
#include "gemm_pack.h"

#include <stdint.h>

enum {
    GEMM_CHANNELS = 8, /* channels per call of gemm_dot_rows */
    GEMM_LINE_BYTES = MOE_CONVERT_LINE_BYTES,
    GEMM_FETCH_LINES = GEMM_CHANNELS, /* of gemm_fetch_many: one per channel */
    GEMM_STREAM_ROWS = 12, /* up to that many rows are streamed: converting again beats packing */
};

/* Up to eight channels of weights, each contiguous along k. */
struct gemm_channels {
    const unsigned char *from;
    int64_t channel_bytes;     /* from one channel to the next */
    int64_t count;             /* 1..8; the sums of channels past them hold anything */
    const unsigned char *next; /* as many channels that are needed later; NULL: none known */
    int64_t next_bytes;        /* from one of them to the next */
};

/*
 * Rows of fp32 inputs, `pitch` floats apart, and their sums: eight lanes per channel, rows
 * acc_pitch floats apart.
 */
struct gemm_rows {
    int64_t count;
    const float *a;
    int64_t pitch;
    float *acc;
    int64_t acc_pitch;
};

/* A channel past the end repeats the last one. */
static inline const unsigned char *gemm_channel_at(const struct gemm_channels *channels,
                                                   int64_t channel)
{
    return channels->from +
           (channel < channels->count ? channel : channels->count - 1) * channels->channel_bytes;
}

/*
 * Memory that is needed soon: num_runs runs of run_bytes, `stride` bytes apart. It is fetched into
 * the second level cache a few lines per register tile, so that the arithmetic of one chunk hides
 * the reads of the next.
 */
struct gemm_fetch {
    const unsigned char *run;
    int64_t run_bytes;
    int64_t stride;
    int64_t num_runs;
    int64_t offset; /* within the run */
    int64_t lines_per_tile;
};

static inline void gemm_fetch_lines(struct gemm_fetch *fetch)
{
    for (int64_t line = 0; line < fetch->lines_per_tile && fetch->num_runs > 0; line++) {
        __builtin_prefetch(fetch->run + fetch->offset, 0, MOE_CONVERT_HINT_L2);
        fetch->offset += GEMM_LINE_BYTES;
        if (fetch->offset >= fetch->run_bytes) {
            fetch->offset = 0;
            fetch->run += fetch->stride;
            fetch->num_runs--;
        }
    }
}

/* The next GEMM_FETCH_LINES lines, without a test for each where they are of one run. */
static inline void gemm_fetch_many(struct gemm_fetch *fetch)
{
    const int64_t bytes = GEMM_FETCH_LINES * GEMM_LINE_BYTES;
    if (fetch->num_runs <= 0) {
        return;
    }
    if (fetch->run_bytes - fetch->offset < bytes) {
        fetch->lines_per_tile = GEMM_FETCH_LINES;
        gemm_fetch_lines(fetch);
        return;
    }
    const unsigned char *from = fetch->run + fetch->offset;
#pragma GCC unroll 8
    for (int line = 0; line < GEMM_FETCH_LINES; line++) {
        __builtin_prefetch(from + line * GEMM_LINE_BYTES, 0, MOE_CONVERT_HINT_L2);
    }
    fetch->offset += bytes;
    if (fetch->offset >= fetch->run_bytes) {
        fetch->offset = 0;
        fetch->run += fetch->stride;
        fetch->num_runs--;
    }
}

/*
 * Rows of the next register tile: 4 = 2 + 2, so that one row is left over only if it is the only
 * one.
 */
static inline int64_t gemm_next_rows(int64_t num_left)
{
    return num_left == 4 ? 2 : num_left < 3 ? num_left : 3;
}

/* ---- cached ---- */

struct gemm_quad {
    struct moe_vec8 c0, c1, c2, c3;
};

GEMM_INLINE struct gemm_quad gemm_quad_load(const float *from)
{
    return (struct gemm_quad){moe_vec8_load(from), moe_vec8_load(from + MOE_VEC8_LANES),
                              moe_vec8_load(from + 2 * MOE_VEC8_LANES),
                              moe_vec8_load(from + 3 * MOE_VEC8_LANES)};
}

GEMM_INLINE void gemm_quad_store(float *to, const struct gemm_quad *quad)
{
    moe_vec8_store(to, quad->c0);
    moe_vec8_store(to + MOE_VEC8_LANES, quad->c1);
    moe_vec8_store(to + 2 * MOE_VEC8_LANES, quad->c2);
    moe_vec8_store(to + 3 * MOE_VEC8_LANES, quad->c3);
}

/* The columns [first, end) of num_rows (1..3) x 4 channels of fp32, a multiple of 8 of them. */
GEMM_INLINE void gemm_quad_advance(int num_rows, const float *const w[4], int64_t first,
                                   int64_t end, const float *a, int64_t pitch,
                                   struct gemm_quad *acc0, struct gemm_quad *acc1,
                                   struct gemm_quad *acc2)
{
    const float *w0 = w[0], *w1 = w[1], *w2 = w[2], *w3 = w[3];
    const float *a1 = num_rows > 1 ? a + pitch : a;
    const float *a2 = num_rows > 2 ? a + 2 * pitch : a;
    for (int64_t i = first; i < end; i += MOE_VEC8_LANES) {
        const struct moe_vec8 row0 = moe_vec8_load(a + i);
        const struct moe_vec8 row1 = moe_vec8_load(a1 + i);
        const struct moe_vec8 row2 = moe_vec8_load(a2 + i);
#define GEMM_CHANNEL_(channel)                                               \
    do {                                                                     \
        const struct moe_vec8 weight = moe_vec8_load(w##channel + i);        \
        acc0->c##channel = moe_vec8_fma(row0, weight, acc0->c##channel);     \
        if (num_rows > 1) {                                                  \
            acc1->c##channel = moe_vec8_fma(row1, weight, acc1->c##channel); \
        }                                                                    \
        if (num_rows > 2) {                                                  \
            acc2->c##channel = moe_vec8_fma(row2, weight, acc2->c##channel); \
        }                                                                    \
    } while (0)
        GEMM_CHANNEL_(0);
        GEMM_CHANNEL_(1);
        GEMM_CHANNEL_(2);
        GEMM_CHANNEL_(3);
#undef GEMM_CHANNEL_
    }
}

/* num_rows (1..3) x 4 channels of fp32, `k` a multiple of 8. */
GEMM_INLINE void gemm_cached_tile(int num_rows, const float *const w[4], int64_t k, const float *a,
                                  int64_t pitch, float *acc, int64_t acc_pitch)
{
    struct gemm_quad acc0 = gemm_quad_load(acc);
    struct gemm_quad acc1 = num_rows > 1 ? gemm_quad_load(acc + acc_pitch) : acc0;
    struct gemm_quad acc2 = num_rows > 2 ? gemm_quad_load(acc + 2 * acc_pitch) : acc0;
    gemm_quad_advance(num_rows, w, 0, k, a, pitch, &acc0, &acc1, &acc2);
    gemm_quad_store(acc, &acc0);
    if (num_rows > 1) {
        gemm_quad_store(acc + acc_pitch, &acc1);
    }
    if (num_rows > 2) {
        gemm_quad_store(acc + 2 * acc_pitch, &acc2);
    }
}

static inline void gemm_cached(const struct gemm_channels *channels, int64_t k,
                               const struct gemm_rows *rows, struct gemm_fetch *fetch)
{
    for (int64_t channel = 0; channel < channels->count; channel += 4) {
        const float *w[4];
        for (int c = 0; c < 4; c++) {
            w[c] = (const float *)(const void *)gemm_channel_at(channels, channel + c);
        }
        for (int64_t row = 0; row < rows->count;) {
            const int64_t num_rows = gemm_next_rows(rows->count - row);
            const float *a = rows->a + row * rows->pitch;
            float *acc = rows->acc + row * rows->acc_pitch + channel * MOE_VEC8_LANES;
            if (num_rows == 1) {
                gemm_cached_tile(1, w, k, a, rows->pitch, acc, rows->acc_pitch);
            } else if (num_rows == 2) {
                gemm_cached_tile(2, w, k, a, rows->pitch, acc, rows->acc_pitch);
            } else {
                gemm_cached_tile(3, w, k, a, rows->pitch, acc, rows->acc_pitch);
            }
            if (fetch) {
                gemm_fetch_lines(fetch);
            }
            row += num_rows;
        }
    }
}

/* ---- with the last columns ---- */

/* The columns from `whole` to k as a step of eight with zeros behind them. */
static inline void gemm_dot_last(const struct gemm_channels *channels, int64_t whole, int64_t k,
                                 const struct gemm_rows *rows)
{
    float last[GEMM_CHANNELS * MOE_VEC8_LANES];
    for (int64_t c = 0; c < channels->count; c++) {
        const unsigned char *at = gemm_channel_at(channels, c) + whole * (int64_t)sizeof(float);
        moe_vec8_store(last + c * MOE_VEC8_LANES,
                       moe_convert_load_partial(at, MOE_DTYPE_FP32, k - whole));
    }
    const struct gemm_channels step = {(const unsigned char *)last, MOE_VEC8_LANES * sizeof(float),
                                       channels->count, NULL, 0};
    struct gemm_rows rest = *rows;
    rest.a += whole;
    gemm_cached(&step, MOE_VEC8_LANES, &rest, NULL);
}

/*
 * acc[row][channel][lane] += products of `k` columns, for fp32 weights that are in the cache, or
 * come there by `fetch` (NULL: nothing to fetch). The inputs hold zeros up to a multiple of 8
 * columns; nothing is read beyond column k of a channel.
 */
static inline void gemm_dot_cached(const struct gemm_channels *channels, int64_t k,
                                   const struct gemm_rows *rows, struct gemm_fetch *fetch)
{
    const int64_t whole = k / MOE_VEC8_LANES * MOE_VEC8_LANES;
    gemm_cached(channels, whole, rows, fetch);
    if (whole < k) {
        gemm_dot_last(channels, whole, k, rows);
    }
}

#endif
