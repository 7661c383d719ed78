/* SPDX-License-Identifier: Apache-2.0 */
/* All sums of a panel by gemm_pairs.h: rows are packed once per chunk of columns, eight channels at
 * a time meet them. */
#include "gemm_pairs.h"

#include "gemm_operands.h"

#if GEMM_HAS_PAIRS

bool MOE_CPU_NAME(moe_gemm_pairs_panel_fits)(const struct moe_gemm_block *block)
{
    const struct moe_op_gemm *op = block->op;
    bool all_fit = op->has_avx512_bf16 &&
                   (op->input_dtype == MOE_DTYPE_BF16 || op->input_dtype == MOE_DTYPE_FP8_E4M3);
    for (int32_t matrix = 0; matrix < op->num_matrices; matrix++) {
        const struct moe_operand *weight = &op->weight[matrix];
        all_fit &= weight->col_stride == 1 &&
                   (weight->dtype == MOE_DTYPE_FP8_E4M3 ||
                    (weight->dtype == MOE_DTYPE_BF16 && op->input_dtype == MOE_DTYPE_BF16));
    }
    return all_fit;
}

/* The channels after [first + n, ..) of `matrix` in the order in which they are needed. */
static struct gemm_fetch after_channels(const struct moe_gemm_block *block, int32_t matrix,
                                        int64_t n, int64_t first_k, int64_t k)
{
    const struct moe_op_gemm *op = block->op;
    struct gemm_fetch fetch = {0};
    n += GEMM_CHANNELS;
    if (n >= block->count) {
        n = 0;
        matrix++;
    }
    if (matrix == op->num_matrices) {
        matrix = 0;
        first_k += k;
    }
    if (first_k >= op->k) {
        first_k = 0;
        n = block->block_n;
    }
    if (block->first + n >= op->n) {
        return fetch;
    }
    const struct moe_operand *weight = &op->weight[matrix];
    const int64_t element_bytes = moe_convert_element_bytes(weight->dtype);
    const int64_t channels_left = op->n - block->first - n;
    fetch.run = gemm_operand_at(weight, block->expert, block->first + n, first_k);
    fetch.run_bytes = (op->k - first_k < k ? op->k - first_k : k) * element_bytes;
    fetch.stride = weight->row_stride * element_bytes;
    fetch.num_runs = channels_left < GEMM_CHANNELS ? channels_left : GEMM_CHANNELS;
    return fetch;
}

/* Columns that are in the cache at a time: all of them where a few rows are not packed. */
static int64_t pairs_chunk(const struct moe_gemm_block *block,
                           const struct moe_gemm_scratch *scratch, int64_t num_rows)
{
    const int64_t room = scratch->inputs_room / num_rows - GEMM_PAIRS_PAD;
    const int64_t k_padded =
        (block->op->k + GEMM_PAIRS_COLUMNS - 1) / GEMM_PAIRS_COLUMNS * GEMM_PAIRS_COLUMNS;
    return num_rows <= GEMM_PAIRS_ROWS && k_padded <= room ? k_padded
                                                           : gemm_pairs_columns(block->op->k);
}

/* Columns [first_k, ..) of all rows; the least of their exponents. */
static int32_t pack_rows(const struct moe_gemm_block *block, const struct moe_gemm_scratch *scratch,
                         int64_t first_k, const struct gemm_pairs *pairs)
{
    const struct moe_op_gemm *op = block->op;
    uint16_t *rows = (uint16_t *)(void *)scratch->inputs;
    int32_t least = GEMM_PAIRS_NO_EXPONENT;
    for (int64_t m = 0; m < pairs->num_rows; m++) {
        const void *from = moe_convert_at(op->input, op->input_dtype,
                                          scratch->input_rows[m] * op->input_stride + first_k);
        const int32_t exponent =
            MOE_CPU_NAME(moe_gemm_pairs_pack_row)(rows + m * pairs->pitch, from, op->input_dtype,
                                                  block->scaling != GEMM_SCALE_NONE, pairs->k);
        least = exponent < least ? exponent : least;
    }
    return least;
}

bool MOE_CPU_NAME(moe_gemm_pairs_panel_run)(const struct moe_gemm_block *block,
                                            const struct moe_gemm_scratch *scratch,
                                            int64_t num_rows)
{
    const struct moe_op_gemm *op = block->op;
    const int64_t chunk = pairs_chunk(block, scratch, num_rows);
    const int32_t smallest = block->scaling != GEMM_SCALE_NONE ? GEMM_PAIRS_LEAST_WITH_FP8 : 1;
    struct gemm_pairs pairs = {.scaling = block->scaling,
                               .num_rows = num_rows,
                               .rows = (uint16_t *)(void *)scratch->inputs,
                               .pitch = chunk + GEMM_PAIRS_PAD,
                               .sums_pitch = block->block_n * MOE_VEC8_LANES,
                               .packed = (uint16_t *)(void *)scratch->weights};
    for (int64_t first_k = 0; first_k < op->k; first_k += chunk) {
        pairs.k = op->k - first_k < chunk ? op->k - first_k : chunk;
        pairs.is_first = first_k == 0;
        pairs.least_exponent = pack_rows(block, scratch, first_k, &pairs);
        if (pairs.least_exponent < smallest) {
            return false;
        }
        for (int32_t matrix = 0; matrix < op->num_matrices; matrix++) {
            const struct moe_operand *weight = &op->weight[matrix];
            pairs.dtype = weight->dtype;
            pairs.scales = gemm_scales_of(scratch, matrix, first_k);
            pairs.channels.channel_bytes =
                weight->row_stride * moe_convert_element_bytes(weight->dtype);
            for (int64_t n = 0; n < block->count; n += GEMM_CHANNELS) {
                const int64_t left = block->count - n;
                pairs.channels.from =
                    gemm_operand_at(weight, block->expert, block->first + n, first_k);
                pairs.channels.count = left < GEMM_CHANNELS ? left : GEMM_CHANNELS;
                pairs.sums =
                    gemm_rows_of(block, scratch, matrix, num_rows).acc + n * gemm_sum_floats(block);
                pairs.fetch = after_channels(block, matrix, n, first_k, pairs.k);
                if (!MOE_CPU_NAME(moe_gemm_pairs_advance)(&pairs)) {
                    return false;
                }
            }
        }
    }
    return true;
}

#endif
