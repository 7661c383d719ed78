/* SPDX-License-Identifier: Apache-2.0 */
/*
 * post_reorder: output[t] = scaling * sum over slots j of weight[t, j] * rows[src2dst[t, j]], +
 * factor[t] * shared[t], + residual[t]; sum_reduce is its case without src2dst and weights: rows
 * lie by token and slot. Moves: T (k + 1) H elements (+ T H each for shared and residual), 2 T k H
 * FLOPs; bound by memory bandwidth. Pipeline: token by token. 1 list the rows that exist, with
 *   weights. 2 for 32 columns at a time one chain of fused multiply-adds over the list, in slot
 *   order, in registers, while lines further on in the rows, and in the next token's, are fetched.
 *   3 scaling. 4 shared, residual. 5 one rounding.
 * Limits: none on k; rows outside [0, num_rows) count as missing. Output may be residual or shared:
 *   a group of columns is read before it is written.
 */
#include "bf16_avx512.h"
#include "convert.h"
#include "cpu_ops.h"

#include <stddef.h>

enum { WIDE_COLUMNS = 4 * MOE_VEC8_LANES };
/* How far hints run ahead, summed over the rows of a token. With half of it the operation loses up
 * to 2 % of copy, with twice of it 1 to 4 %. */
enum { AHEAD_BYTES = 16384 };

struct term {
    const void *row;
    const void *next; /* row of the same slot of the next token; `row` where there is none */
    float weight;
};

struct token {
    const struct term *terms;
    int64_t num_terms;
    const void *shared;   /* or NULL */
    const void *residual; /* or NULL */
    void *output;
    int64_t row_bytes;
    int64_t ahead_bytes; /* in each row, between what is summed and what is hinted */
    float shared_factor;
    int streams; /* the output is written around the caches */
};

/* Where the row of a slot lies, NULL if it has none. */
static const void *find_row(const struct moe_op_post_reorder *op, int64_t token, int64_t slot)
{
    if (op->src2dst == NULL) {
        return moe_convert_at(op->rows, op->dtype,
                              token * op->token_stride + slot * op->row_stride);
    }
    const int64_t row = op->src2dst[token * op->top_k + slot];
    const int exists = row >= 0 && row < op->num_rows;
    return exists ? moe_convert_at(op->rows, op->dtype, row * op->row_stride) : NULL;
}

static int64_t list_terms(const struct moe_op_post_reorder *op, int64_t token, struct term *terms)
{
    int64_t num_terms = 0;
    for (int64_t slot = 0; slot < op->top_k; slot++) {
        const void *row = find_row(op, token, slot);
        if (row != NULL) {
            const int64_t route = token * op->top_k + slot;
            const void *next = token + 1 < op->num_tokens ? find_row(op, token + 1, slot) : NULL;
            terms[num_terms].row = row;
            terms[num_terms].next = next != NULL ? next : row;
            terms[num_terms].weight = op->topk_weights != NULL ? op->topk_weights[route] : 1.0f;
            num_terms++;
        }
    }
    return num_terms;
}

static struct token find_token(const struct moe_op_post_reorder *op, int64_t idx,
                               struct term *terms)
{
    struct token token;
    token.terms = terms;
    token.num_terms = list_terms(op, idx, terms);
    token.shared =
        op->shared != NULL ? moe_convert_at(op->shared, op->dtype, idx * op->shared_stride) : NULL;
    token.residual = op->residual != NULL
                         ? moe_convert_at(op->residual, op->dtype, idx * op->residual_stride)
                         : NULL;
    token.output = moe_convert_at_mutable(op->output, op->dtype, idx * op->output_stride);
    token.row_bytes = op->hidden * moe_convert_element_bytes(op->dtype);
    const int64_t ahead_bytes = token.num_terms > 0 ? AHEAD_BYTES / token.num_terms : 0;
    token.ahead_bytes = ahead_bytes < token.row_bytes ? ahead_bytes : token.row_bytes;
    token.shared_factor = op->shared_factor != NULL ? op->shared_factor[idx] : 1.0f;
    token.streams = op->streams && (uintptr_t)token.output % MOE_CONVERT_LINE_BYTES == 0;
    return token;
}

/* Hints what lies ahead_bytes after WIDE_COLUMNS columns from `col`: in this row or, past its end,
 * in the next token's. */
MOE_INLINE void hint_term(const struct token *token, const struct term *term, int32_t dtype,
                          int64_t col)
{
    const int64_t element_bytes = moe_convert_element_bytes(dtype);
    for (int64_t line = 0; line < WIDE_COLUMNS * element_bytes; line += MOE_CONVERT_LINE_BYTES) {
        const int64_t at = col * element_bytes + line + token->ahead_bytes;
        const char *row = term->row;
        const char *next = term->next;
        __builtin_prefetch(at < token->row_bytes ? row + at : next + (at - token->row_bytes), 0,
                           MOE_CONVERT_HINT_L2);
    }
}

/* Eight columns of a row, or the first `count`. */
static inline struct moe_vec8 load_columns(const void *row, int32_t dtype, int64_t col,
                                           int64_t count)
{
    const void *from = moe_convert_at(row, dtype, col);
    return count == MOE_VEC8_LANES ? moe_convert_load(from, dtype)
                                   : moe_convert_load_partial(from, dtype, count);
}

/* Everything after the chain over slots, for `count` columns. */
static inline void finish_columns(const struct token *token, int32_t dtype, float scaling,
                                  int64_t col, int64_t count, struct moe_vec8 sum)
{
    sum = moe_vec8_mul(sum, moe_vec8_set1(scaling));
    if (token->shared != NULL) {
        sum = moe_vec8_fma(moe_vec8_set1(token->shared_factor),
                           load_columns(token->shared, dtype, col, count), sum);
    }
    if (token->residual != NULL) {
        sum = moe_vec8_add(sum, load_columns(token->residual, dtype, col, count));
    }
    void *to = moe_convert_at_mutable(token->output, dtype, col);
    if (count == MOE_VEC8_LANES) {
        moe_convert_store(to, dtype, sum);
    } else {
        moe_convert_store_partial(to, dtype, sum, count);
    }
}

/* finish_columns for sixteen columns in the lanes of moe_convert_load_wide. */
MOE_INLINE void finish_wide(const struct token *token, int32_t dtype, float scaling, int64_t col,
                            struct moe_vec8 sum0, struct moe_vec8 sum1)
{
    struct moe_vec8 sums[2] = {moe_vec8_mul(sum0, moe_vec8_set1(scaling)),
                               moe_vec8_mul(sum1, moe_vec8_set1(scaling))};
    struct moe_vec8 other[2];
    if (token->shared != NULL) {
        const struct moe_vec8 factor = moe_vec8_set1(token->shared_factor);
        moe_convert_load_wide(moe_convert_at(token->shared, dtype, col), dtype, other);
        sums[0] = moe_vec8_fma(factor, other[0], sums[0]);
        sums[1] = moe_vec8_fma(factor, other[1], sums[1]);
    }
    if (token->residual != NULL) {
        moe_convert_load_wide(moe_convert_at(token->residual, dtype, col), dtype, other);
        sums[0] = moe_vec8_add(sums[0], other[0]);
        sums[1] = moe_vec8_add(sums[1], other[1]);
    }
    void *to = moe_convert_at_mutable(token->output, dtype, col);
    if (token->streams) {
        moe_convert_stream_wide(to, dtype, sums);
    } else {
        moe_convert_store_wide(to, dtype, sums);
    }
}

/* Four groups by name: compilers keep an array of sums in memory unless they unroll the loops over
 * it. */
MOE_INLINE void combine_wide(const struct token *token, int32_t dtype, float scaling, int64_t col)
{
    struct moe_vec8 sum0 = moe_vec8_zero();
    struct moe_vec8 sum1 = sum0;
    struct moe_vec8 sum2 = sum0;
    struct moe_vec8 sum3 = sum0;
    for (int64_t j = 0; j < token->num_terms; j++) {
        const struct moe_vec8 weight = moe_vec8_set1(token->terms[j].weight);
        const void *row = token->terms[j].row;
        struct moe_vec8 low[2];
        struct moe_vec8 high[2];
        hint_term(token, &token->terms[j], dtype, col);
        moe_convert_load_wide(moe_convert_at(row, dtype, col), dtype, low);
        moe_convert_load_wide(moe_convert_at(row, dtype, col + 16), dtype, high);
        sum0 = moe_vec8_fma(weight, low[0], sum0);
        sum1 = moe_vec8_fma(weight, low[1], sum1);
        sum2 = moe_vec8_fma(weight, high[0], sum2);
        sum3 = moe_vec8_fma(weight, high[1], sum3);
    }
    finish_wide(token, dtype, scaling, col, sum0, sum1);
    finish_wide(token, dtype, scaling, col + 16, sum2, sum3);
}

static inline void combine_narrow(const struct token *token, int32_t dtype, float scaling,
                                  int64_t col, int64_t count)
{
    struct moe_vec8 sum = moe_vec8_zero();
    for (int64_t j = 0; j < token->num_terms; j++) {
        sum = moe_vec8_fma(moe_vec8_set1(token->terms[j].weight),
                           load_columns(token->terms[j].row, dtype, col, count), sum);
    }
    finish_columns(token, dtype, scaling, col, count, sum);
}

#if BF16_HAS_AVX512

/* Whole groups of 32 bf16 columns with AVX-512: the operations of combine_wide, in half as many
 * instructions, so that more lines of the rows are on their way at a time. Returns how many columns
 * that were. */
BF16_AVX512_TARGET_ static int64_t combine_avx512(const struct token *token, float scaling,
                                                  int64_t hidden)
{
    int64_t col = 0;
    for (; col + BF16_AVX512_COLUMNS <= hidden; col += BF16_AVX512_COLUMNS) {
        __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        __m512 lanes[2];
        for (int64_t j = 0; j < token->num_terms; j++) {
            const __m512 weight = _mm512_set1_ps(token->terms[j].weight);
            hint_term(token, &token->terms[j], MOE_DTYPE_BF16, col);
            bf16_avx512_load((const uint16_t *)token->terms[j].row + col, lanes);
            sums[0] = _mm512_fmadd_ps(weight, lanes[0], sums[0]);
            sums[1] = _mm512_fmadd_ps(weight, lanes[1], sums[1]);
        }
        sums[0] = _mm512_mul_ps(sums[0], _mm512_set1_ps(scaling));
        sums[1] = _mm512_mul_ps(sums[1], _mm512_set1_ps(scaling));
        if (token->shared != NULL) {
            const __m512 factor = _mm512_set1_ps(token->shared_factor);
            bf16_avx512_load((const uint16_t *)token->shared + col, lanes);
            sums[0] = _mm512_fmadd_ps(factor, lanes[0], sums[0]);
            sums[1] = _mm512_fmadd_ps(factor, lanes[1], sums[1]);
        }
        if (token->residual != NULL) {
            bf16_avx512_load((const uint16_t *)token->residual + col, lanes);
            sums[0] = _mm512_add_ps(sums[0], lanes[0]);
            sums[1] = _mm512_add_ps(sums[1], lanes[1]);
        }
        bf16_avx512_store((uint16_t *)token->output + col, bf16_avx512_pack(sums[0], sums[1]),
                          token->streams);
    }
    return col;
}

static int64_t combine_bf16(const struct token *token, int32_t has_avx512, float scaling,
                            int64_t hidden)
{
    return has_avx512 ? combine_avx512(token, scaling, hidden) : 0;
}

#else

static int64_t combine_bf16(const struct token *token, int32_t has_avx512, float scaling,
                            int64_t hidden)
{
    (void)token, (void)has_avx512, (void)scaling, (void)hidden;
    return 0;
}

#endif

/* Columns from `col` on; `dtype` is a constant at each call. */
static inline void combine_token(const struct token *token, int32_t dtype, float scaling,
                                 int64_t hidden, int64_t col)
{
    for (; col + WIDE_COLUMNS <= hidden; col += WIDE_COLUMNS) {
        combine_wide(token, dtype, scaling, col);
    }
    for (; col < hidden; col += MOE_VEC8_LANES) {
        const int64_t left = hidden - col;
        combine_narrow(token, dtype, scaling, col, left < MOE_VEC8_LANES ? left : MOE_VEC8_LANES);
    }
}

int64_t MOE_CPU_NAME(moe_cpu_post_reorder_num_tasks)(const void *op, const struct moe_tile *tile)
{
    const struct moe_op_post_reorder *reorder = op;
    return moe_cpu_num_blocks(reorder->num_tokens, tile->block_size);
}

uint64_t MOE_CPU_NAME(moe_cpu_post_reorder_scratch_bytes)(const void *op,
                                                          const struct moe_tile *tile)
{
    (void)tile;
    const struct moe_op_post_reorder *reorder = op;
    return (uint64_t)reorder->top_k * sizeof(struct term);
}

void MOE_CPU_NAME(moe_cpu_post_reorder_run)(const void *op, const struct moe_tile *tile,
                                            int64_t task, void *scratch)
{
    const struct moe_op_post_reorder *reorder = op;
    const int64_t end = moe_cpu_block_end(reorder->num_tokens, tile->block_size, task);
    for (int64_t idx = task * tile->block_size; idx < end; idx++) {
        const struct token token = find_token(reorder, idx, scratch);
        if (reorder->dtype == MOE_DTYPE_BF16) {
            combine_token(
                &token, MOE_DTYPE_BF16, reorder->scaling, reorder->hidden,
                combine_bf16(&token, reorder->has_avx512, reorder->scaling, reorder->hidden));
        } else if (reorder->dtype == MOE_DTYPE_FP16) {
            combine_token(&token, MOE_DTYPE_FP16, reorder->scaling, reorder->hidden, 0);
        } else {
            combine_token(&token, MOE_DTYPE_FP32, reorder->scaling, reorder->hidden, 0);
        }
    }
    if (reorder->streams) {
        moe_convert_finish_streams();
    }
}
