/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From the sums of a panel to its outputs: lanes -> sum -> scale, row weight, bias, activation ->
 * rounding and store, in the order and with the roundings of gemm.h.
 *
 * Bytes: 32 a sum and matrix from scratch, an element out. About ten operations an output with
 * silu; a few per cent of a panel's time from some hundred columns on.
 * Pipeline: row by row, 32 channels: eight sums at a time by a transposing tree, then four vectors
 * of activations side by side, then stores.
 * Limits: scratch holds the sums of a multiple of eight channels.
 */
#include "act.h"
#include "gemm_operands.h"

enum { WIDE = 4 }; /* vectors of eight channels */

/* The sums in canonical order of the lanes of eight channels. */
static inline struct moe_vec8 sum_lanes(const float *lanes)
{
#if MOE_VEC8_AVX2 && !MOE_CPU_SUM_NEIGHBORS
    __m256 pairs[4]; /* of channels: lanes 0 + 4, 1 + 5, 2 + 6, 3 + 7 of each */
    MOE_UNROLL for (int i = 0; i < 4; i++)
    {
        const __m256 a = _mm256_loadu_ps(lanes + 2 * i * MOE_VEC8_LANES);
        const __m256 b = _mm256_loadu_ps(lanes + (2 * i + 1) * MOE_VEC8_LANES);
        pairs[i] =
            _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    }
    const __m256 low = _mm256_add_ps(_mm256_shuffle_ps(pairs[0], pairs[1], 0x44),
                                     _mm256_shuffle_ps(pairs[0], pairs[1], 0xee));
    const __m256 high = _mm256_add_ps(_mm256_shuffle_ps(pairs[2], pairs[3], 0x44),
                                      _mm256_shuffle_ps(pairs[2], pairs[3], 0xee));
    const __m256 sums = _mm256_hadd_ps(low, high); /* channels 0 2 4 6, 1 3 5 7 */
    return (struct moe_vec8){
        _mm256_permutevar8x32_ps(sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))};
#else
    float sums[MOE_VEC8_LANES];
    for (int c = 0; c < MOE_VEC8_LANES; c++) {
        sums[c] = moe_vec8_sum(moe_vec8_load(lanes + c * MOE_VEC8_LANES));
    }
    return moe_vec8_load(sums);
#endif
}

/* What becomes of the sums of one matrix in one row. */
struct finish {
    const float *sums;
    const float *bias;       /* NULL: none */
    const float *row_weight; /* NULL: none */
    float factor;            /* of whole sums that are scaled */
    int32_t scaling;         /* enum gemm_scaling */
};

static struct finish finish_of(const struct moe_gemm_block *block,
                               const struct moe_gemm_scratch *scratch, int32_t matrix, int64_t m)
{
    const struct moe_op_gemm *op = block->op;
    struct finish finish = {.scaling = block->scaling, .factor = 1.0f};
    finish.sums = scratch->acc + (matrix * block->block_m + m) * block->block_n * MOE_VEC8_LANES;
    if (gemm_operand_is_present(&op->bias[matrix])) {
        finish.bias = scratch->bias + matrix * block->block_n;
    }
    if (op->row_weights) {
        finish.row_weight = scratch->row_weights + m;
    }
    if (block->scaling == GEMM_SCALE_WHOLE) {
        finish.factor = scratch->input_scales[m * scratch->num_scales] *
                        scratch->weight_scales[matrix * scratch->num_scales];
    }
    return finish;
}

/* Channels [n, n + 8) before the activation. */
static inline struct moe_vec8 finish_sums(const struct finish *finish, int64_t n)
{
    struct moe_vec8 value = finish->scaling == GEMM_SCALE_BLOCKS
                                ? moe_vec8_load(finish->sums + n)
                                : sum_lanes(finish->sums + n * MOE_VEC8_LANES);
    if (finish->scaling == GEMM_SCALE_WHOLE) {
        value = moe_vec8_mul(value, moe_vec8_set1(finish->factor));
    }
    if (finish->row_weight) {
        value = moe_vec8_mul(value, moe_vec8_set1(*finish->row_weight));
    }
    return finish->bias ? moe_vec8_add(value, moe_vec8_load(finish->bias + n)) : value;
}

/* act(gate, up) in the place of up. */
static inline void activate(const struct moe_op_act *act, const struct moe_vec8 gate[WIDE],
                            struct moe_vec8 up[WIDE], int count)
{
    if (act->activation == MOE_ACTIVATION_SILU && !act->ungated && count == WIDE) {
        const struct moe_op_act silu = {.activation = MOE_ACTIVATION_SILU};
        moe_cpu_act8_few(&silu, gate, up, WIDE);
        return;
    }
    for (int i = 0; i < count; i++) {
        up[i] = moe_cpu_act8(act, gate[i], up[i]);
    }
}

static void store_outputs(const struct moe_op_gemm *op, int64_t row, int64_t column,
                          struct moe_vec8 value, int64_t count)
{
    void *to =
        moe_convert_at_mutable(op->output, op->output_dtype, row * op->output_stride + column);
    if (count == MOE_VEC8_LANES) {
        moe_convert_store(to, op->output_dtype, value);
    } else {
        moe_convert_store_partial(to, op->output_dtype, value, count);
    }
}

static void write_row(const struct moe_gemm_block *block, const struct moe_gemm_scratch *scratch,
                      int64_t m)
{
    const struct moe_op_gemm *op = block->op;
    const int64_t row = scratch->output_rows[m];
    struct finish finish[2];
    for (int32_t matrix = 0; matrix < op->num_matrices; matrix++) {
        finish[matrix] = finish_of(block, scratch, matrix, m);
    }
    for (int64_t n = 0; n < block->count;) {
        const int64_t left = block->count - n;
        const int count = left >= WIDE * MOE_VEC8_LANES ? WIDE : 1;
        struct moe_vec8 values[2][WIDE];
        for (int32_t matrix = 0; matrix < op->num_matrices; matrix++) {
            for (int i = 0; i < count; i++) {
                values[matrix][i] = finish_sums(&finish[matrix], n + i * MOE_VEC8_LANES);
            }
        }
        struct moe_vec8 *first = values[0];
        if (op->has_activation) {
            first = values[op->num_matrices - 1];
            activate(&op->act, values[0], first, count);
        }
        for (int i = 0; i < count; i++) {
            const int64_t at = n + i * MOE_VEC8_LANES;
            const int64_t num_left = block->count - at;
            const int64_t num = num_left < MOE_VEC8_LANES ? num_left : MOE_VEC8_LANES;
            store_outputs(op, row, block->first + at, first[i], num);
            if (op->num_matrices == 2 && !op->has_activation) {
                store_outputs(op, row, op->n + block->first + at, values[1][i], num);
            }
        }
        n += count * MOE_VEC8_LANES;
    }
}

void MOE_CPU_NAME(moe_gemm_output_write)(const struct moe_gemm_block *block,
                                         const struct moe_gemm_scratch *scratch, int64_t num_rows)
{
    for (int64_t m = 0; m < num_rows; m++) {
        write_row(block, scratch, m);
    }
}

void MOE_CPU_NAME(moe_gemm_output_zero)(const struct moe_gemm_block *block,
                                        const struct moe_gemm_scratch *scratch, int64_t num_rows)
{
    const struct moe_op_gemm *op = block->op;
    const int64_t bytes = block->count * moe_convert_element_bytes(op->output_dtype);
    const int32_t num_halves = op->has_activation ? 1 : op->num_matrices;
    for (int64_t m = 0; m < num_rows; m++) {
        for (int32_t half = 0; half < num_halves; half++) {
            const int64_t column = (int64_t)half * op->n + block->first;
            memset(moe_convert_at_mutable(op->output, op->output_dtype,
                                          scratch->output_rows[m] * op->output_stride + column),
                   0, (size_t)bytes);
        }
    }
}
