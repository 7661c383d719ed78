/* SPDX-License-Identifier: Apache-2.0 */
/*
 * output[m, n] = act(rows[m] . weight[n]) for a panel of rows and a block of channels of one
 * expert.
 *
 * Bytes: the block's weights once (block_n * K elements), rows and outputs. FLOPs: 2 * rows *
 * block_n * K. Bound by memory up to about ten rows, by the FMA units above.
 * Pipeline, per chunk of K columns:
 *   1. rows -> fp32 in scratch (gathered)
 *   2. weights: a few rows meet them where they lie, converted in registers; for many rows they are
 *      packed as fp32 first, and meanwhile the next chunk comes into the cache
 *   3. register tiles advance the lane sums, which stay in scratch between chunks
 * After the last chunk gemm_output.c makes outputs of the sums.
 * fp8 weights and rows with their scales: gemm_stream.h. Where the processor multiplies pairs of
 * bf16, gemm_pairs.h makes all sums of a panel instead, with the same bits.
 * Limits: block_n is a multiple of 8 that divides 128, block_k a multiple of 128.
 */
#include "gemm_panel.h"

#include "gemm_blocks.h"
#include "gemm_columns.h"
#include "gemm_dot.h"
#include "gemm_operands.h"
#include "gemm_pack.h"
#include "gemm_pairs.h"
#include "gemm_stream.h"
#include "gemm_vbmi.h"

#include <stdbool.h>

/* Channels that share a scale lie in one block of channels, columns that do in one chunk. */
#define MOE_TILE_GEMM(kernel, bm, bn, bk, group_m, warps, stages)                             \
    _Static_assert(MOE_KERNEL_##kernel > MOE_KERNEL_CPU_AVX2 ||                               \
                       (bm >= 1 && bn % GEMM_CHANNELS == 0 && GEMM_SCALE_COLUMNS % bn == 0 && \
                        bk % GEMM_SCALE_COLUMNS == 0),                                        \
                   "a GEMM row of tiles.def does not fit the register tiles");
#include "tiles.def"

enum {
    ALIGNMENT = 64,
    PITCH_PAD =
        16, /* floats behind each row's chunk: rows of a power of two would share cache sets */
};

static int64_t round_up_columns(int64_t k)
{
    return (k + MOE_VEC8_LANES - 1) / MOE_VEC8_LANES * MOE_VEC8_LANES;
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static void *take(unsigned char *memory, uint64_t *used, int64_t count, int64_t element_bytes)
{
    void *at = memory ? memory + *used : NULL;
    *used += (uint64_t)(count * element_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return at;
}

uint64_t MOE_CPU_NAME(moe_gemm_panel_layout)(struct moe_gemm_scratch *scratch,
                                             const struct moe_op_gemm *op,
                                             const struct moe_tile *tile, void *memory)
{
    const int64_t k_padded = round_up_columns(op->k);
    const int64_t block_m = tile->block_m;
    const int64_t block_n = tile->block_n;
    uint64_t used = 0;
    scratch->pairs_exponent = 0;
    scratch->k_chunk = tile->block_k < k_padded ? tile->block_k : k_padded;
    scratch->pitch = scratch->k_chunk + PITCH_PAD;
    /* As fp32, or as pairs of bf16, which have chunks of their own. */
    const int64_t pairs = gemm_pairs_columns(op->k);
    scratch->inputs_room = larger(2 * block_m * scratch->pitch, block_m * (pairs + GEMM_PAIRS_PAD));
    scratch->weights_room = larger(2 * block_n * scratch->pitch, GEMM_CHANNELS * pairs);
    scratch->inputs = take(memory, &used, scratch->inputs_room, sizeof(uint16_t));
    scratch->weights = take(memory, &used, scratch->weights_room, sizeof(uint16_t));
    scratch->acc =
        take(memory, &used, op->num_matrices * block_m * block_n * MOE_VEC8_LANES, sizeof(float));
    scratch->bias = take(memory, &used, op->num_matrices * block_n, sizeof(float));
    scratch->num_scales = (op->k + GEMM_SCALE_COLUMNS - 1) / GEMM_SCALE_COLUMNS;
    scratch->weight_scales =
        take(memory, &used, op->num_matrices * scratch->num_scales, sizeof(float));
    scratch->input_scales = take(memory, &used, block_m * scratch->num_scales, sizeof(float));
    scratch->input_rows = take(memory, &used, block_m, sizeof(int64_t));
    scratch->output_rows = take(memory, &used, block_m, sizeof(int64_t));
    scratch->row_weights = take(memory, &used, block_m, sizeof(float));
    return used;
}

/* One of enum gemm_scaling. */
static int32_t scaling_of(const struct moe_op_gemm *op)
{
    if (op->weight[0].dtype != MOE_DTYPE_FP8_E4M3) {
        return GEMM_SCALE_NONE;
    }
    const bool has_row_groups =
        op->input_dtype == MOE_DTYPE_FP8_E4M3 && op->input_scales.group_k < op->k;
    return op->weight_group_k < op->k || has_row_groups ? GEMM_SCALE_BLOCKS : GEMM_SCALE_WHOLE;
}

/* The scales of a block's channels: one per 128 columns, whatever the groups are. */
static void load_weight_scales(const struct moe_gemm_block *block,
                               const struct moe_gemm_scratch *scratch)
{
    const struct moe_op_gemm *op = block->op;
    for (int32_t matrix = 0; matrix < op->num_matrices; matrix++) {
        const struct moe_operand *scale = &op->weight_scale[matrix];
        for (int64_t g = 0; g < scratch->num_scales; g++) {
            const int64_t group = g * GEMM_SCALE_COLUMNS / op->weight_group_k;
            scratch->weight_scales[matrix * scratch->num_scales + g] = moe_convert_load_scalar(
                gemm_operand_at(scale, block->expert, block->first / op->weight_group_rows, group),
                MOE_DTYPE_FP32);
        }
    }
}

void MOE_CPU_NAME(moe_gemm_panel_begin_block)(struct moe_gemm_block *block,
                                              const struct moe_gemm_scratch *scratch)
{
    for (int32_t matrix = 0; matrix < block->op->num_matrices; matrix++) {
        const struct moe_operand *bias = &block->op->bias[matrix];
        if (!gemm_operand_is_present(bias)) {
            continue;
        }
        float *to = scratch->bias + matrix * block->block_n;
        for (int64_t n = 0; n < block->count; n += MOE_VEC8_LANES) {
            const int64_t left = block->count - n;
            const int64_t count = left < MOE_VEC8_LANES ? left : MOE_VEC8_LANES;
            moe_vec8_store(to + n, moe_convert_load_strided(
                                       gemm_operand_at(bias, block->expert, block->first + n, 0),
                                       bias->dtype, bias->row_stride, count));
        }
    }
    block->scaling = scaling_of(block->op);
    if (block->scaling != GEMM_SCALE_NONE) {
        load_weight_scales(block, scratch);
    }
}

/* Scale of columns [128 g, ..) of an input row, by the layout of struct moe_recipe. */
static float input_scale_at(const struct moe_op_scales *scales, int64_t row, int64_t g)
{
    const int64_t group = g * GEMM_SCALE_COLUMNS / scales->group_k;
    if (!scales->per_row) {
        row = 0;
    }
    if (scales->scale_layout == MOE_SCALE_UE8M0_PACKED) {
        const uint32_t *word = (const uint32_t *)scales->base + group / 4 * scales->stride + row;
        return moe_convert_from_ue8m0((uint8_t)(*word >> (8 * (group % 4))));
    }
    const float *base = scales->base;
    return scales->scale_layout == MOE_SCALE_COLUMN_MAJOR_TMA ? base[group * scales->stride + row]
                                                              : base[row * scales->stride + group];
}

/* Rows that are not fp8 are as if they had scales of 1. */
static void load_input_scales(const struct moe_op_gemm *op, const struct moe_gemm_scratch *scratch,
                              int64_t num_rows)
{
    const bool is_quantized = op->input_dtype == MOE_DTYPE_FP8_E4M3;
    for (int64_t m = 0; m < num_rows; m++) {
        for (int64_t g = 0; g < scratch->num_scales; g++) {
            scratch->input_scales[m * scratch->num_scales + g] =
                is_quantized ? input_scale_at(&op->input_scales, scratch->input_rows[m], g) : 1.0f;
        }
    }
}

/* Are fp8 weights streamed with AVX-512? One answer for all matrices, which share rows. */
static bool is_vbmi(const struct moe_gemm_block *block, int64_t num_rows)
{
    bool all_contiguous = true;
    for (int32_t matrix = 0; matrix < block->op->num_matrices; matrix++) {
        all_contiguous &= block->op->weight[matrix].col_stride == 1;
    }
    return GEMM_HAS_VBMI && block->op->has_avx512_vbmi && block->scaling != GEMM_SCALE_NONE &&
           num_rows <= GEMM_STREAM_ROWS && all_contiguous;
}

static void pack_inputs(const struct moe_gemm_block *block, const struct moe_gemm_scratch *scratch,
                        int64_t num_rows, int64_t first_k, int64_t k)
{
    const struct moe_op_gemm *op = block->op;
    for (int64_t m = 0; m < num_rows; m++) {
        const void *from = moe_convert_at(op->input, op->input_dtype,
                                          scratch->input_rows[m] * op->input_stride + first_k);
        float *to = scratch->inputs + m * scratch->pitch;
        if (block->scaling != GEMM_SCALE_NONE) {
            gemm_pack_fp8_row(to, from, op->input_dtype, k);
#if GEMM_HAS_VBMI
            if (is_vbmi(block, num_rows)) {
                gemm_vbmi_order(to, k);
            }
#endif
        } else {
            gemm_pack_row(to, from, op->input_dtype, k);
        }
    }
}

/*
 * What is packed after the chunk [first_k, first_k + k) of `matrix`: the same columns of the other
 * matrix, the next columns, or the first ones of the next block. Nothing (num_runs 0) where the
 * strides leave no contiguous runs.
 */
static struct gemm_fetch plan_fetch(const struct moe_gemm_block *block,
                                    const struct moe_gemm_scratch *scratch, int32_t matrix,
                                    int64_t num_rows, int64_t first_k, int64_t k)
{
    const struct moe_op_gemm *op = block->op;
    struct gemm_fetch fetch = {0};
    int64_t channel = block->first;
    if (matrix + 1 < op->num_matrices) {
        matrix++;
    } else {
        matrix = 0;
        first_k += k;
    }
    if (first_k >= op->k) {
        first_k = 0;
        channel += block->block_n;
    }
    if (channel >= op->n) {
        return fetch;
    }
    const struct moe_operand *weight = &op->weight[matrix];
    const int64_t element_bytes = moe_convert_element_bytes(weight->dtype);
    const int64_t num_channels =
        op->n - channel < block->block_n ? op->n - channel : block->block_n;
    const int64_t num_columns =
        op->k - first_k < scratch->k_chunk ? op->k - first_k : scratch->k_chunk;
    fetch.run = gemm_operand_at(weight, block->expert, channel, first_k);
    if (weight->col_stride == 1) {
        fetch.num_runs = num_channels;
        fetch.stride = weight->row_stride * element_bytes;
        fetch.run_bytes = num_columns * element_bytes;
    } else if (weight->row_stride == 1 || weight->row_stride == 2) {
        fetch.num_runs = num_columns;
        fetch.stride = weight->col_stride * element_bytes;
        fetch.run_bytes = num_channels * weight->row_stride * element_bytes;
    }
    const int64_t num_lines = fetch.num_runs * (fetch.run_bytes / GEMM_LINE_BYTES + 1);
    const int64_t num_tiles = ((num_rows + 2) / 3) * ((block->count + 3) / 4);
    fetch.lines_per_tile = num_lines / num_tiles + 1;
    return fetch;
}

/* ---------------------------------------------------------------- one chunk of one matrix */

/* How weights meet the rows. The choice changes no bit. */
enum method {
    METHOD_STREAMED, /* contiguous along k, few rows: converted in registers */
    METHOD_COLUMNS,  /* contiguous along channels, one or two rows: likewise */
    METHOD_IN_PLACE, /* fp32, contiguous along k, many rows */
    METHOD_PACKED,   /* all else: fp32 in scratch first */
};

static enum method choose_method(const struct moe_gemm_block *block, int32_t matrix,
                                 int64_t num_rows)
{
    const struct moe_operand *weight = &block->op->weight[matrix];
    if (block->scaling != GEMM_SCALE_NONE) {
        return weight->col_stride == 1 && num_rows <= GEMM_STREAM_ROWS ? METHOD_STREAMED
                                                                       : METHOD_PACKED;
    }
    if (weight->col_stride == 1) {
        return num_rows <= GEMM_STREAM_ROWS      ? METHOD_STREAMED
               : weight->dtype == MOE_DTYPE_FP32 ? METHOD_IN_PLACE
                                                 : METHOD_PACKED;
    }
    return num_rows <= GEMM_COLUMNS_ROWS && gemm_columns_fit(weight->row_stride, block->count)
               ? METHOD_COLUMNS
               : METHOD_PACKED;
}

/* What follows the last channels of a block of `matrix`: the other matrix, or the next block. */
static const unsigned char *after_block(const struct moe_gemm_block *block, int32_t matrix,
                                        int64_t first_k)
{
    const struct moe_op_gemm *op = block->op;
    const bool is_last = matrix + 1 == op->num_matrices;
    const int64_t channel = is_last ? block->first + block->block_n : block->first;
    return channel + GEMM_CHANNELS > op->n ? NULL
                                           : gemm_operand_at(&op->weight[is_last ? 0 : matrix + 1],
                                                             block->expert, channel, first_k);
}

static void advance_streamed(const struct moe_gemm_block *block, int32_t matrix, int64_t first_k,
                             const struct gemm_weight_block *weights, struct gemm_rows rows,
                             const struct gemm_scales *scales)
{
    const bool has_vbmi = is_vbmi(block, rows.count);
    const int64_t channel_bytes = weights->row_stride * moe_convert_element_bytes(weights->dtype);
    for (int64_t n = 0; n < block->count; n += GEMM_CHANNELS) {
        const int64_t left = block->count - n;
        const unsigned char *from = (const unsigned char *)weights->from + n * channel_bytes;
        const struct gemm_channels channels = {
            .from = from,
            .channel_bytes = channel_bytes,
            .count = left < GEMM_CHANNELS ? left : GEMM_CHANNELS,
            .next = left > GEMM_CHANNELS ? from + GEMM_CHANNELS * channel_bytes
                                         : after_block(block, matrix, first_k),
            .next_bytes = channel_bytes, /* matrices of a layer are laid out alike */
        };
        const enum gemm_scaling scaling = (enum gemm_scaling)block->scaling;
#if GEMM_HAS_VBMI
        if (has_vbmi) {
            gemm_vbmi_streamed(scaling, &channels, weights->k, &rows, scales);
        }
#endif
        if (!has_vbmi) {
            gemm_streamed(weights->dtype, scaling, &channels, weights->k, &rows, scales);
        }
        rows.acc += GEMM_CHANNELS * gemm_sum_floats(block);
    }
}

/* fp32 weights, contiguous along k. */
static void advance_cached(const struct moe_gemm_block *block, const float *from, int64_t pitch,
                           int64_t k, struct gemm_rows rows, struct gemm_fetch *fetch,
                           const struct gemm_scales *scales)
{
    for (int64_t n = 0; n < block->count; n += GEMM_CHANNELS) {
        const int64_t left = block->count - n;
        const struct gemm_channels channels = {
            .from = (const unsigned char *)(from + n * pitch),
            .channel_bytes = pitch * (int64_t)sizeof(float),
            .count = left < GEMM_CHANNELS ? left : GEMM_CHANNELS,
        };
        if (block->scaling == GEMM_SCALE_BLOCKS) {
            gemm_blocks_cached(&channels, k, &rows, fetch, scales);
        } else {
            gemm_dot_cached(&channels, k, &rows, fetch);
        }
        rows.acc += GEMM_CHANNELS * gemm_sum_floats(block);
    }
}

/* Advance the sums of one matrix by the columns [first_k, first_k + k). */
static void advance_matrix(const struct moe_gemm_block *block,
                           const struct moe_gemm_scratch *scratch, int32_t matrix, int64_t num_rows,
                           int64_t first_k, int64_t k)
{
    const struct moe_operand *weight = &block->op->weight[matrix];
    const struct gemm_rows rows = gemm_rows_of(block, scratch, matrix, num_rows);
    const struct gemm_weight_block weights = {
        .from = gemm_operand_at(weight, block->expert, block->first, first_k),
        .dtype = weight->dtype,
        .row_stride = weight->row_stride,
        .col_stride = weight->col_stride,
        .num_channels = block->count,
        .k = k,
    };
    const struct gemm_scales scales = gemm_scales_of(scratch, matrix, first_k);
    struct gemm_fetch fetch = {0};
    switch (choose_method(block, matrix, num_rows)) {
    case METHOD_STREAMED:
        advance_streamed(block, matrix, first_k, &weights, rows, &scales);
        break;
    case METHOD_COLUMNS:
        for (int64_t m = 0; m < num_rows; m++) {
            gemm_columns_row(&weights, rows.a + m * rows.pitch, rows.acc + m * rows.acc_pitch);
        }
        break;
    case METHOD_IN_PLACE:
        advance_cached(block, weights.from, weights.row_stride, k, rows, NULL, &scales);
        break;
    case METHOD_PACKED:
        gemm_pack_weights(scratch->weights, scratch->pitch, &weights);
        fetch = plan_fetch(block, scratch, matrix, num_rows, first_k, k);
        /* Packed rows end in zeros. */
        advance_cached(block, scratch->weights, scratch->pitch, round_up_columns(k), rows, &fetch,
                       &scales);
        break;
    }
}

/*
 * Few rows leave room for longer chunks, and weights that are not packed are best read from end to
 * end.
 */
static void lengthen_chunk(const struct moe_gemm_block *block, struct moe_gemm_scratch *scratch,
                           int64_t num_rows)
{
    for (int32_t matrix = 0; matrix < block->op->num_matrices; matrix++) {
        const enum method method = choose_method(block, matrix, num_rows);
        if (method != METHOD_STREAMED && method != METHOD_COLUMNS) {
            return;
        }
    }
    /* At least the chunk that the tile has: whole groups of columns, unless it is all of k. */
    const int64_t room = block->block_m * scratch->pitch / num_rows - PITCH_PAD;
    const int64_t k_padded = round_up_columns(block->op->k);
    scratch->k_chunk = room < k_padded ? room / GEMM_SCALE_COLUMNS * GEMM_SCALE_COLUMNS : k_padded;
    scratch->pitch = scratch->k_chunk + PITCH_PAD;
}

static void finish_columns(const struct moe_gemm_block *block,
                           const struct moe_gemm_scratch *scratch, int64_t num_rows)
{
    for (int32_t matrix = 0; matrix < block->op->num_matrices; matrix++) {
        if (choose_method(block, matrix, num_rows) != METHOD_COLUMNS) {
            continue;
        }
        const struct gemm_rows rows = gemm_rows_of(block, scratch, matrix, num_rows);
        for (int64_t m = 0; m < num_rows; m++) {
            gemm_columns_finish(block->count, block->op->k, rows.acc + m * rows.acc_pitch);
        }
    }
}

static void clear_sums(const struct moe_gemm_block *block, const struct moe_gemm_scratch *scratch,
                       int64_t num_rows)
{
    const int64_t acc_floats = block->block_n * MOE_VEC8_LANES;
    for (int32_t matrix = 0; matrix < block->op->num_matrices; matrix++) {
        memset(scratch->acc + matrix * block->block_m * acc_floats, 0,
               (size_t)(num_rows * acc_floats) * sizeof(float));
    }
}

/* Advance the sums of all matrices by all columns, chunk by chunk. */
static void run_chunks(const struct moe_gemm_block *block,
                       const struct moe_gemm_scratch *thread_scratch, int64_t num_rows)
{
    const struct moe_op_gemm *op = block->op;
    struct moe_gemm_scratch scratch = *thread_scratch;
    lengthen_chunk(block, &scratch, num_rows);
    for (int64_t first_k = 0; first_k < op->k; first_k += scratch.k_chunk) {
        const int64_t left = op->k - first_k;
        const int64_t k = left < scratch.k_chunk ? left : scratch.k_chunk;
        pack_inputs(block, &scratch, num_rows, first_k, k);
        for (int32_t matrix = 0; matrix < op->num_matrices; matrix++) {
            advance_matrix(block, &scratch, matrix, num_rows, first_k, k);
        }
    }
    finish_columns(block, &scratch, num_rows);
}

/* By dot products of pairs, where that is possible. */
static bool run_pairs(const struct moe_gemm_block *block, struct moe_gemm_scratch *scratch,
                      int64_t num_rows)
{
    bool is_done = false;
#if GEMM_HAS_PAIRS
    if (MOE_CPU_NAME(moe_gemm_pairs_panel_fits)(block)) {
        if (block->scaling == GEMM_SCALE_BLOCKS) {
            clear_sums(block, scratch, num_rows);
        }
        is_done = MOE_CPU_NAME(moe_gemm_pairs_panel_run)(block, scratch, num_rows);
    }
#else
    (void)block;
    (void)num_rows;
#endif
    if (!is_done) {
        scratch->pairs_exponent = 0;
    }
    return is_done;
}

void MOE_CPU_NAME(moe_gemm_panel_run)(const struct moe_gemm_block *block,
                                      struct moe_gemm_scratch *thread_scratch, int64_t num_rows)
{
    const struct moe_op_gemm *op = block->op;
    if (block->scaling != GEMM_SCALE_NONE && thread_scratch->pairs_exponent == 0) {
        load_input_scales(op, thread_scratch, num_rows);
    }
    if (!run_pairs(block, thread_scratch, num_rows)) {
        clear_sums(block, thread_scratch, num_rows);
        run_chunks(block, thread_scratch, num_rows);
    }
    MOE_CPU_NAME(moe_gemm_output_write)(block, thread_scratch, num_rows);
}
