/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quantize: tokens to fp8 rows and scales, per row or in groups of columns.
 * Moves: T * H elements in, T * H bytes and the scales out; about 20 operations per 8 columns and
 *   one division per group. Bound by the conversion for rows in the cache, by memory bandwidth for
 *   rows that come from memory.
 * Pipeline: row by row, group by group: 1 largest magnitude. 2 its scale, stored in its layout. 3
 *   times the reciprocal, 4 to fp8, store. The second reading of a group comes from the first-level
 *   cache; static scales need no first one. bf16 with AVX-512 where there is.
 * Limits: none on group_k; the last group of a row may be narrower.
 */
#include "cpu_ops.h"
#include "quant.h"

int64_t MOE_CPU_NAME(moe_cpu_quantize_num_tasks)(const void *op, const struct moe_tile *tile)
{
    const struct moe_op_quantize *quantize = op;
    return moe_cpu_num_blocks(quantize->num_tokens, tile->block_size);
}

uint64_t MOE_CPU_NAME(moe_cpu_quantize_scratch_bytes)(const void *op, const struct moe_tile *tile)
{
    (void)op;
    (void)tile;
    return 0;
}

void MOE_CPU_NAME(moe_cpu_quantize_run)(const void *op, const struct moe_tile *tile, int64_t task,
                                        void *scratch)
{
    (void)scratch;
    const struct moe_op_quantize *quantize = op;
    const int64_t end = moe_cpu_block_end(quantize->num_tokens, tile->block_size, task);
    for (int64_t token = task * tile->block_size; token < end; token++) {
        moe_quant_row(
            &quantize->quant, token, moe_quant_static_scale(&quantize->quant, token),
            moe_convert_at(quantize->tokens, quantize->dtype, token * quantize->token_stride),
            quantize->dtype, quantize->hidden,
            (uint8_t *)quantize->output + token * quantize->output_stride);
    }
}
