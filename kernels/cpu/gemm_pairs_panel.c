/* SPDX-License-Identifier: Apache-2.0 */
/* All sums of a panel by gemm_pairs.h: rows are packed once per chunk of columns, or were by the
 * block before; eight channels at a time meet them. */
#include "gemm_pairs.h"

#include "gemm_operands.h"

#if GEMM_HAS_PAIRS

/*
 * How far before their use lines of fp8 weights are fetched, at least. Decoded at 30 GB/s, eight
 * channels of 768 columns would be there 0.2 us ahead, which is less than memory takes when it is
 * busy. bf16 comes eight channels ahead, of which there are twice the bytes.
 */
enum { FP8_AHEAD_BYTES = 24 * 1024, FP8_MOST_AHEAD = 8 /* times eight channels */ };

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

/* Eight channels of a matrix and a chunk of their columns. */
struct position {
    bool is_next; /* in the block that the thread computes next */
    int64_t expert;
    int64_t first; /* channel of the block they are in */
    int32_t matrix;
    int64_t n; /* channel in the block */
    int64_t first_k;
};

/* Move to what is needed next, in this block or the next one. False where that is not known. */
static bool next_position(const struct moe_gemm_block *block, int64_t chunk,
                          struct position *position)
{
    const struct moe_op_gemm *op = block->op;
    const int64_t left = op->n - position->first;
    position->n += GEMM_CHANNELS;
    if (position->n < (left < block->block_n ? left : block->block_n)) {
        return true;
    }
    position->n = 0;
    position->matrix++;
    if (position->matrix < op->num_matrices) {
        return true;
    }
    position->matrix = 0;
    position->first_k += chunk;
    if (position->first_k < op->k) {
        return true;
    }
    if (position->is_next) {
        return false;
    }
    *position = (struct position){
        .is_next = true, .expert = block->next_expert, .first = block->next_first};
    return block->next_expert >= 0;
}

static int64_t run_bytes_at(const struct moe_gemm_block *block, int64_t chunk,
                            const struct position *position)
{
    const int64_t left = block->op->k - position->first_k;
    return (left < chunk ? left : chunk) *
           moe_convert_element_bytes(block->op->weight[position->matrix].dtype);
}

/* The first channels that a panel fetches: those before were, by the block before or nobody. */
static bool begin_ahead(const struct moe_gemm_block *block, int64_t chunk,
                        struct position *position)
{
    const bool is_fp8 = block->op->weight[0].dtype == MOE_DTYPE_FP8_E4M3;
    const int most = is_fp8 ? FP8_MOST_AHEAD : 1;
    bool is_known = true;
    int64_t bytes = 0;
    *position = (struct position){.expert = block->expert, .first = block->first};
    for (int i = 0; is_known && !position->is_next && i < most && bytes < FP8_AHEAD_BYTES; i++) {
        bytes += GEMM_CHANNELS * run_bytes_at(block, chunk, position);
        is_known = next_position(block, chunk, position);
    }
    return is_known;
}

static struct gemm_fetch fetch_at(const struct moe_gemm_block *block, int64_t chunk,
                                  const struct position *position)
{
    const struct moe_op_gemm *op = block->op;
    const struct moe_operand *weight = &op->weight[position->matrix];
    const int64_t channel = position->first + position->n;
    struct gemm_fetch fetch = {
        .run = gemm_operand_at(weight, position->expert, channel, position->first_k),
        .run_bytes = run_bytes_at(block, chunk, position),
        .stride = weight->row_stride * moe_convert_element_bytes(weight->dtype),
        .num_runs = op->n - channel < GEMM_CHANNELS ? op->n - channel : GEMM_CHANNELS,
    };
    if (fetch.stride == fetch.run_bytes) {
        fetch.run_bytes *= fetch.num_runs;
        fetch.num_runs = 1;
    }
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
                                            struct moe_gemm_scratch *scratch, int64_t num_rows)
{
    const struct moe_op_gemm *op = block->op;
    const int64_t chunk = pairs_chunk(block, scratch, num_rows);
    const int32_t smallest = block->scaling != GEMM_SCALE_NONE ? GEMM_PAIRS_LEAST_WITH_FP8 : 1;
    const int32_t packed = scratch->pairs_exponent;
    struct gemm_pairs pairs = {.scaling = block->scaling,
                               .num_rows = num_rows,
                               .rows = (uint16_t *)(void *)scratch->inputs,
                               .pitch = chunk + GEMM_PAIRS_PAD,
                               .sums_pitch = block->block_n * MOE_VEC8_LANES,
                               .packed = (uint16_t *)(void *)scratch->weights};
    struct position ahead;
    bool has_ahead = begin_ahead(block, chunk, &ahead);
    for (int64_t first_k = 0; first_k < op->k; first_k += chunk) {
        pairs.k = op->k - first_k < chunk ? op->k - first_k : chunk;
        pairs.is_first = first_k == 0;
        pairs.least_exponent = packed != 0 ? packed : pack_rows(block, scratch, first_k, &pairs);
        if (pairs.least_exponent < smallest) {
            return false;
        }
        scratch->pairs_exponent = chunk >= op->k ? pairs.least_exponent : 0;
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
                pairs.fetch = has_ahead ? fetch_at(block, chunk, &ahead) : (struct gemm_fetch){0};
                has_ahead = has_ahead && next_position(block, chunk, &ahead);
                if (!MOE_CPU_NAME(moe_gemm_pairs_advance)(&pairs)) {
                    return false;
                }
            }
        }
    }
    return true;
}

#endif
