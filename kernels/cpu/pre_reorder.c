/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pre_reorder: rows[src2dst[t, j]] = tokens[t] for every slot j that has a row; optionally
 *   quantized.
 * Moves: (T + T k) * H elements (quantized rows: bytes), no arithmetic but quantize's, once per
 *   token; bound by memory bandwidth.
 * Pipeline: token by token. 1 the first copy of a token brings its row into the first-level cache;
 *   2 the other copies read it from there, so each token leaves memory once. Quantized: 1 the first
 *   row is made by quantize's steps, 2 the others are copies of it and of its scales; with a scale
 *   per expert every row is made.
 * Limits: destinations outside [0, num_rows) are skipped; two slots with one destination leave
 *   either's row whole only if they belong to one token (a destination has one route in every
 *   src2dst that ep_preprocess makes).
 */
#include "cpu_ops.h"
#include "quant.h"
#include "route_filter.h"

#include <stddef.h>

enum { LINE_BYTES = MOE_CONVERT_LINE_BYTES };

/* Destination of a slot, -1 if it has none. */
static int64_t find_row(const struct moe_op_pre_reorder *op, int64_t token, int64_t slot)
{
    const int64_t row = op->src2dst[token * op->top_k + slot];
    return row < op->num_rows ? row : -1;
}

#if MOE_VEC8_AVX2

/* A copy around the caches: whole lines are written without being read. */
static void stream_row(unsigned char *to, const unsigned char *from, size_t num_bytes)
{
    const size_t to_line = (size_t)(-(uintptr_t)to) % LINE_BYTES;
    size_t at = to_line < num_bytes ? to_line : num_bytes;
    memcpy(to, from, at);
    for (; at + LINE_BYTES <= num_bytes; at += LINE_BYTES) {
        const __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)(from + at));
        const __m256i high = _mm256_loadu_si256((const __m256i *)(const void *)(from + at + 32));
        _mm256_stream_si256((__m256i *)(void *)(to + at), low);
        _mm256_stream_si256((__m256i *)(void *)(to + at + 32), high);
    }
    memcpy(to + at, from + at, num_bytes - at);
}

#else

static void stream_row(unsigned char *to, const unsigned char *from, size_t num_bytes)
{
    memcpy(to, from, num_bytes);
}

#endif

static void copy_token(const struct moe_op_pre_reorder *op, int64_t token, const void *from)
{
    const size_t row_bytes = (size_t)(op->hidden * moe_convert_element_bytes(op->dtype));
    for (int64_t slot = 0; slot < op->top_k; slot++) {
        const int64_t row = find_row(op, token, slot);
        if (row < 0) {
            continue;
        }
        void *to = moe_convert_at_mutable(op->rows, op->dtype, row * op->row_stride);
        if (op->streams) {
            stream_row(to, from, row_bytes);
        } else {
            memcpy(to, from, row_bytes);
        }
    }
}

/* Static scales of the routes' local experts: every row of a token has codes of its own. */
static void quantize_by_expert(const struct moe_op_pre_reorder *op, int64_t token, const void *from)
{
    for (int64_t slot = 0; slot < op->top_k; slot++) {
        const int64_t row = find_row(op, token, slot);
        const int32_t expert = moe_route_filter_local_expert(
            &op->filter,
            moe_route_filter_load_id(op->topk_ids, op->ids_dtype, token * op->top_k + slot));
        if (row >= 0 && expert >= 0) {
            moe_quant_row(&op->quant, row, op->quant.static_scales[expert], from, op->dtype,
                          op->hidden, (uint8_t *)op->rows + row * op->row_stride);
        }
    }
}

static void quantize_token(const struct moe_op_pre_reorder *op, int64_t token, const void *from)
{
    int64_t first_row = -1;
    for (int64_t slot = 0; slot < op->top_k; slot++) {
        const int64_t row = find_row(op, token, slot);
        if (row < 0) {
            continue;
        }
        uint8_t *to = (uint8_t *)op->rows + row * op->row_stride;
        if (first_row < 0) {
            moe_quant_row(&op->quant, row, moe_quant_static_scale(&op->quant, token), from,
                          op->dtype, op->hidden, to);
            first_row = row;
        } else if (row != first_row) {
            memcpy(to, (const uint8_t *)op->rows + first_row * op->row_stride, (size_t)op->hidden);
            if (op->quant.is_dynamic) {
                moe_quant_copy_scales(&op->quant, op->hidden, first_row, row);
            }
        }
    }
}

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
    const int64_t end = moe_cpu_block_end(reorder->num_tokens, tile->block_size, task);
    for (int64_t token = task * tile->block_size; token < end; token++) {
        const void *from =
            moe_convert_at(reorder->tokens, reorder->dtype, token * reorder->token_stride);
        if (reorder->quant.dtype == 0) {
            copy_token(reorder, token, from);
        } else if (reorder->quant.static_per == MOE_QUANT_PER_EXPERT) {
            quantize_by_expert(reorder, token, from);
        } else {
            quantize_token(reorder, token, from);
        }
    }
    if (reorder->streams) {
        moe_convert_finish_streams();
    }
}
