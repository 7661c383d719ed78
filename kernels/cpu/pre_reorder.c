/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pre_reorder: rows[src2dst[t, j]] = tokens[t] for every slot j that has a row.
 * Moves: (T + T k) * H elements, no arithmetic; bound by memory bandwidth.
 * Pipeline: token by token. 1 the first copy of a token brings its row into the first-level cache;
 *   2 the other copies read it from there, so each token leaves memory once.
 * Limits: destinations outside [0, num_rows) are skipped; two slots with one destination leave
 *   either's row whole only if they belong to one token (a destination has one route in every
 *   src2dst that ep_preprocess makes).
 */
#include "convert.h"
#include "cpu_ops.h"

#include <stddef.h>
#include <string.h>

int64_t MOE_CPU_NAME(moe_cpu_pre_reorder_num_tasks)(const void *op, const struct moe_tile *tile)
{
    const struct moe_op_pre_reorder *reorder = op;
    return moe_cpu_num_blocks(reorder->num_tokens, tile->block_size);
}

uint64_t MOE_CPU_NAME(moe_cpu_pre_reorder_scratch_bytes)(const void *op,
                                                         const struct moe_tile *tile)
{
    (void)op;
    (void)tile;
    return 0;
}

void MOE_CPU_NAME(moe_cpu_pre_reorder_run)(const void *op, const struct moe_tile *tile,
                                           int64_t task, void *scratch)
{
    (void)scratch;
    const struct moe_op_pre_reorder *reorder = op;
    const size_t row_bytes = (size_t)(reorder->hidden * moe_convert_element_bytes(reorder->dtype));
    const int64_t end = moe_cpu_block_end(reorder->num_tokens, tile->block_size, task);

    for (int64_t token = task * tile->block_size; token < end; token++) {
        const void *from =
            moe_convert_at(reorder->tokens, reorder->dtype, token * reorder->token_stride);
        for (int64_t slot = 0; slot < reorder->top_k; slot++) {
            const int64_t row = reorder->src2dst[token * reorder->top_k + slot];
            if (row >= 0 && row < reorder->num_rows) {
                memcpy(moe_convert_at_mutable(reorder->rows, reorder->dtype,
                                              row * reorder->row_stride),
                       from, row_bytes);
            }
        }
    }
}
