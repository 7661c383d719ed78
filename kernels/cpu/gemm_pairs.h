/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The GEMM's sums by AVX-512's dot products of bf16 pairs, with the bits of gemm.h.
 *
 * VDPBF16PS adds two products to each fp32 lane, one after the other, each by a fused multiply-add
 * that rounds to nearest even: the odd element of a pair first, then the even one. With columns l
 * and l + 8 of each sixteen as the pair of lane l this is the chain of gemm.h, at twice the rate of
 * fp32. One thing differs: it takes subnormals for zeros, operands and results. So the elements are
 * looked at while they are packed. An element of exponent e is a multiple of 2^(e - 7); where the
 * smallest exponents of weights and rows add up to -112 or more, all products are multiples of
 * 2^-126, hence so are all sums, rounded or not: no sum is subnormal, and none is -0, so that zeros
 * behind the last column change nothing. fp8 weights, times 2^-8, are multiples of 2^-17; rows,
 * times 2^8, can meet any of them from an exponent of -102 on. Where an element is smaller, the
 * functions below say so and the panel goes the ordinary way.
 */
#ifndef MOE_GEMM_PAIRS_H
#define MOE_GEMM_PAIRS_H

#include "gemm_panel.h"
#include "gemm_stream.h"

#include <stdbool.h>

/* Compilers that know the instruction. */
#if defined(__clang__)
#define GEMM_KNOWS_PAIRS_ (__clang_major__ >= 9)
#else
#define GEMM_KNOWS_PAIRS_ (__GNUC__ >= 10)
#endif
#define GEMM_HAS_PAIRS (MOE_VEC8_AVX2 && GEMM_KNOWS_PAIRS_ && !MOE_CPU_SUM_NEIGHBORS)

enum {
    GEMM_PAIRS_COLUMNS = 64, /* rows are packed to a multiple of that many columns */
    GEMM_PAIRS_PAD = 32,     /* elements between rows, for the sets of the cache */
    GEMM_PAIRS_ROWS = 6,     /* of a register tile */
    GEMM_PAIRS_CHUNK = 2048, /* columns of eight packed channels that stay near */
    /* Exponents as bf16 stores them: 0 is a subnormal. */
    GEMM_PAIRS_NO_EXPONENT = 256,   /* all elements are zeros */
    GEMM_PAIRS_LEAST_SUM = 142,     /* -112, and the bias of both */
    GEMM_PAIRS_LEAST_WITH_FP8 = 25, /* -102 */
};

/* Up to eight channels, and all rows of a panel. */
struct gemm_pairs {
    struct gemm_channels channels;
    int32_t dtype;          /* bf16 or fp8 e4m3 */
    int32_t scaling;        /* enum gemm_scaling */
    bool is_first;          /* the sums, not totals, start from zero, whatever they are */
    int32_t least_exponent; /* of all rows, by moe_gemm_pairs_pack_row; at least 1, and
                               GEMM_PAIRS_LEAST_WITH_FP8 where they meet fp8 weights */
    int64_t k;
    int64_t num_rows;
    const uint16_t *rows; /* as moe_gemm_pairs_pack_row leaves them */
    int64_t pitch;        /* elements from row to row */
    float *sums;          /* [row][channel][8], or [row][channel] totals with GEMM_SCALE_BLOCKS */
    int64_t sums_pitch;   /* floats from row to row */
    struct gemm_scales scales;
    uint16_t *packed;        /* room for 8 channels of k columns, k rounded up to 64 */
    struct gemm_fetch fetch; /* what is needed next; lines_per_tile is set here */
};

/* Columns of pairs for which there is room, however many rows a panel has. */
static inline int64_t gemm_pairs_columns(int64_t k)
{
    const int64_t columns = GEMM_PAIRS_COLUMNS;
    const int64_t k_padded = (k + columns - 1) / columns * columns;
    return k_padded < GEMM_PAIRS_CHUNK ? k_padded : GEMM_PAIRS_CHUNK;
}

#if GEMM_HAS_PAIRS

/*
 * Pack k columns of a row (bf16 or fp8 e4m3; 64 * ceil(k / 64) elements, zeros behind k) times 2^8
 * if it is to meet fp8 weights. Returns the exponent of the smallest element as packed, zeros left
 * out, plus 127: 0 where there are subnormals.
 */
int32_t MOE_CPU_NAME(moe_gemm_pairs_pack_row)(uint16_t *to, const void *from, int32_t dtype,
                                              bool meets_fp8, int64_t k);

/* Are the operands of a block of the types and layout, and is the processor? */
bool MOE_CPU_NAME(moe_gemm_pairs_panel_fits)(const struct moe_gemm_block *block);

/* Make all sums of the num_rows rows listed in scratch. Totals (GEMM_SCALE_BLOCKS) start from what
 * they are. False where an element is too small; the sums are of no use then, nor packed rows. */
bool MOE_CPU_NAME(moe_gemm_pairs_panel_run)(const struct moe_gemm_block *block,
                                            struct moe_gemm_scratch *scratch, int64_t num_rows);

/* Advance the sums by k columns. False if a weight is too small; the sums are of no use then. */
bool MOE_CPU_NAME(moe_gemm_pairs_advance)(struct gemm_pairs *pairs);

#endif

#endif
