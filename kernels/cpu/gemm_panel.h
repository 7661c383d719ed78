/* SPDX-License-Identifier: Apache-2.0 */
/* One panel of the GEMM: up to block_m rows times up to block_n output channels of one expert. */
#ifndef MOE_GEMM_PANEL_H
#define MOE_GEMM_PANEL_H

#include "cpu_kernels.h"

/* Scratch of one thread, carved out of one piece of memory. */
struct moe_gemm_scratch {
    int64_t k_chunk;     /* columns that are in the cache at a time, a multiple of 8 */
    int64_t pitch;       /* floats between rows of inputs and weights */
    int64_t inputs_room; /* elements of two bytes in the next two */
    int64_t weights_room;
    float *inputs;        /* [block_m][pitch] */
    float *weights;       /* [block_n][pitch], where weights are packed */
    float *acc;           /* [num_matrices][block_m][block_n][8]: the lanes of each output; with
                            scales per 128 columns its first block_n are the outputs' totals */
    float *bias;          /* [num_matrices][block_n] */
    int64_t num_scales;   /* groups of 128 columns in k */
    float *weight_scales; /* [num_matrices][num_scales], of fp8 weights */
    float *input_scales;  /* [block_m][num_scales], of rows that meet fp8 weights */
    int64_t *input_rows;  /* [block_m], and so on: the rows of the panel */
    int64_t *output_rows;
    float *row_weights;
    /* Not 0: the panel that is run next has the rows that lie packed in `inputs` (gemm_pairs.h),
     * all columns of them, with their scales; this is their least exponent. */
    int32_t pairs_exponent;
};

/* Output channels [first, first + count) of one expert's matrices. */
struct moe_gemm_block {
    const struct moe_op_gemm *op;
    int64_t block_m;
    int64_t block_n;
    int64_t expert;
    int64_t first;
    int64_t count;
    int64_t next_expert; /* of the block that the thread computes next; -1: not known */
    int64_t next_first;  /* its first channel */
    int32_t scaling;     /* enum gemm_scaling; set by begin_block */
};

/*
 * Lay out scratch for `tile` at `memory` (64-byte aligned; NULL: only count). Returns the bytes
 * needed.
 */
uint64_t MOE_CPU_NAME(moe_gemm_panel_layout)(struct moe_gemm_scratch *scratch,
                                             const struct moe_op_gemm *op,
                                             const struct moe_tile *tile, void *memory);

/* Load what all panels of a block share: bias and scales of the weights. */
void MOE_CPU_NAME(moe_gemm_panel_begin_block)(struct moe_gemm_block *block,
                                              const struct moe_gemm_scratch *scratch);

/*
 * Compute the num_rows (1..block_m) rows listed in scratch and write their outputs. Rows that are
 * packed already (pairs_exponent) are taken as they are, and left so where that is possible.
 */
void MOE_CPU_NAME(moe_gemm_panel_run)(const struct moe_gemm_block *block,
                                      struct moe_gemm_scratch *scratch, int64_t num_rows);

/* gemm_output.c: write the outputs of the listed rows from their sums, or zeros. */
void MOE_CPU_NAME(moe_gemm_output_write)(const struct moe_gemm_block *block,
                                         const struct moe_gemm_scratch *scratch, int64_t num_rows);
void MOE_CPU_NAME(moe_gemm_output_zero)(const struct moe_gemm_block *block,
                                        const struct moe_gemm_scratch *scratch, int64_t num_rows);

#endif
