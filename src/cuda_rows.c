/* SPDX-License-Identifier: Apache-2.0 */
/* Geometry of the operations on rows on a GPU: it follows from the numbers and the tile; nothing is
 * read back from the device. */
#include "cuda_args.h"
#include "cuda_ops.h"
#include "plan.h"
#include "status.h"
#include "tiles.h"

#define GRID_Y_LIMIT 65535

/* Do all of these addresses and distances in bytes divide by `bytes`? */
static bool all_aligned(const uintptr_t *values, size_t num_values, uintptr_t bytes)
{
    for (size_t i = 0; i < num_values; i++) {
        if (values[i] % bytes != 0) {
            return false;
        }
    }
    return true;
}

static uint32_t grid_rows(int64_t num_tokens)
{
    return (uint32_t)(num_tokens < GRID_Y_LIMIT ? num_tokens : GRID_Y_LIMIT);
}

int32_t moe_cuda_pre_reorder(const struct moe_run *run, const struct moe_op_pre_reorder *op,
                             struct moe_error *error)
{
    const struct moe_tile *tile = moe_cuda_tile_of(run, MOE_OP_PRE_REORDER);
    const uintptr_t element_bytes = (uintptr_t)moe_dtype_bytes(op->dtype);
    const uintptr_t row_bytes = (uintptr_t)op->hidden * element_bytes;
    const uintptr_t values[] = {(uintptr_t)op->tokens, (uintptr_t)op->rows,
                                (uintptr_t)op->token_stride * element_bytes,
                                (uintptr_t)op->row_stride * element_bytes, row_bytes};
    const size_t num_values = sizeof(values) / sizeof(values[0]);
    int32_t vector_bytes = all_aligned(values, num_values, 16)  ? 16
                           : all_aligned(values, num_values, 4) ? 4
                                                                : 2;
    struct moe_cuda_pre_reorder args = {
        .op = *op,
        .vector_bytes = vector_bytes,
        .row_vectors = (int32_t)(row_bytes / (uintptr_t)vector_bytes),
    };
    struct moe_cuda_launch launch = {
        .tile = tile->id,
        .grid_x = (uint32_t)((args.row_vectors + tile->block_size - 1) / tile->block_size),
        .grid_y = grid_rows(op->num_tokens),
        .num_threads = (uint32_t)tile->block_size,
        .is_chained = run->is_chained,
        .args = &args,
    };
    return moe_cuda_state_launch(moe_cuda_state_of(run), run->stream, &launch, error);
}

int32_t moe_cuda_post_reorder(const struct moe_run *run, int32_t op_id,
                              const struct moe_op_post_reorder *op, struct moe_error *error)
{
    const struct moe_tile *tile = moe_cuda_tile_of(run, op_id);
    const uintptr_t element_bytes = (uintptr_t)moe_dtype_bytes(op->dtype);
    const uintptr_t values[] = {(uintptr_t)op->rows,
                                (uintptr_t)op->shared,
                                (uintptr_t)op->residual,
                                (uintptr_t)op->output,
                                (uintptr_t)op->row_stride * element_bytes,
                                (uintptr_t)op->token_stride * element_bytes,
                                (uintptr_t)op->shared_stride * element_bytes,
                                (uintptr_t)op->residual_stride * element_bytes,
                                (uintptr_t)op->output_stride * element_bytes};
    const int32_t columns_per_cta = tile->block_size * 8;
    struct moe_cuda_post_reorder args = {
        .op = *op,
        .is_vectored =
            op->hidden % 8 == 0 && all_aligned(values, sizeof(values) / sizeof(values[0]), 16),
    };
    struct moe_cuda_launch launch = {
        .tile = tile->id,
        .grid_x = (uint32_t)((op->hidden + columns_per_cta - 1) / columns_per_cta),
        .grid_y = grid_rows(op->num_tokens),
        .num_threads = (uint32_t)tile->block_size,
        .is_chained = run->is_chained,
        .args = &args,
    };
    return moe_cuda_state_launch(moe_cuda_state_of(run), run->stream, &launch, error);
}
