/* SPDX-License-Identifier: Apache-2.0 */
/* Where the operands, sums and scales of a panel lie. */
#ifndef MOE_GEMM_OPERANDS_H
#define MOE_GEMM_OPERANDS_H

#include "gemm_panel.h"
#include "gemm_stream.h"

/* Element (row, column) of an expert's matrix. */
static inline const void *gemm_operand_at(const struct moe_operand *operand, int64_t expert,
                                          int64_t row, int64_t column)
{
    const void *base = operand->table ? operand->table[expert]
                                      : moe_convert_at(operand->base, operand->dtype,
                                                       expert * operand->expert_stride);
    return moe_convert_at(base, operand->dtype,
                          row * operand->row_stride + column * operand->col_stride);
}

static inline int gemm_operand_is_present(const struct moe_operand *operand)
{
    return operand->base != NULL || operand->table != NULL;
}

/* Floats of the sums of a channel. */
static inline int64_t gemm_sum_floats(const struct moe_gemm_block *block)
{
    return block->scaling == GEMM_SCALE_BLOCKS ? 1 : MOE_VEC8_LANES;
}

/* Sums of one matrix: [row][channel][lane]. */
static inline struct gemm_rows gemm_rows_of(const struct moe_gemm_block *block,
                                            const struct moe_gemm_scratch *scratch, int32_t matrix,
                                            int64_t num_rows)
{
    const int64_t acc_pitch = block->block_n * MOE_VEC8_LANES;
    return (struct gemm_rows){
        .count = num_rows,
        .a = scratch->inputs,
        .pitch = scratch->pitch,
        .acc = scratch->acc + matrix * block->block_m * acc_pitch,
        .acc_pitch = acc_pitch,
    };
}

/* Scales of the columns from first_k on. */
static inline struct gemm_scales gemm_scales_of(const struct moe_gemm_scratch *scratch,
                                                int32_t matrix, int64_t first_k)
{
    const int64_t group = first_k / GEMM_SCALE_COLUMNS;
    return (struct gemm_scales){
        .weights = scratch->weight_scales + matrix * scratch->num_scales + group,
        .inputs = scratch->input_scales + group,
        .inputs_pitch = scratch->num_scales,
    };
}

#endif
