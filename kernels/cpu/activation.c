/* SPDX-License-Identifier: Apache-2.0 */
/*
 * activation: output[r, i] = act(gate[r, i], up[r, i]) in fp32, rounded once to the output's type.
 * Moves: 2 elements in and 1 out per column (ungated: 1 and 1); about 20 (silu) to 45 (gelu)
 *   operations per column. Bound by memory bandwidth for rows that come from memory, by the
 *   exponential for rows in the cache.
 * Pipeline: row by row, eight columns at a time: 1 load and widen, with one deinterleaving step for
 *   interleaved pairs. 2 activation. 3 round, store. 4 the last columns through a padded group of
 *   eight. 5 other strides gather.
 * Limits: a group is read before it is written, so output may be input as long as output column i
 *   lies at or before whatever later groups read, as it does for halves and for interleaved pairs.
 */
#include "act.h"
#include "convert.h"
#include "cpu_ops.h"

struct row {
    const void *gate; /* ungated: not used */
    const void *up;
    void *output;
};

static struct row find_row(const struct moe_op_activation *op, int64_t row_idx)
{
    const int64_t first = row_idx * op->row_stride;
    struct row row;
    row.gate = moe_convert_at(op->input, op->input_dtype, first);
    row.up = moe_convert_at(op->input, op->input_dtype, first + op->up_offset);
    row.output = moe_convert_at_mutable(op->output, op->output_dtype, row_idx * op->output_stride);
    return row;
}

/* Columns col .. col + count - 1 of one operand, count 1..8. */
static struct moe_vec8 load_columns(const struct moe_op_activation *op, const void *operand,
                                    int64_t col, int64_t count)
{
    const void *from = moe_convert_at(operand, op->input_dtype, col * op->col_stride);
    if (op->col_stride != 1) {
        return moe_convert_load_strided(from, op->input_dtype, op->col_stride, count);
    }
    if (count < MOE_VEC8_LANES) {
        return moe_convert_load_partial(from, op->input_dtype, count);
    }
    return moe_convert_load(from, op->input_dtype);
}

/* Interleaved pairs (gate, up) of eight columns. */
static void load_pairs(const struct moe_op_activation *op, const void *gates, int64_t col,
                       struct moe_vec8 *gate, struct moe_vec8 *up)
{
    const int32_t dtype = op->input_dtype;
    const struct moe_vec8 low = moe_convert_load(moe_convert_at(gates, dtype, 2 * col), dtype);
    const struct moe_vec8 high =
        moe_convert_load(moe_convert_at(gates, dtype, 2 * col + MOE_VEC8_LANES), dtype);
    moe_vec8_deinterleave(low, high, gate, up);
}

static void activate_row(const struct moe_op_activation *op, struct row row)
{
    const int paired = !op->act.ungated && op->col_stride == 2 && op->up_offset == 1;
    for (int64_t col = 0; col < op->inter; col += MOE_VEC8_LANES) {
        const int64_t left = op->inter - col;
        const int64_t count = left < MOE_VEC8_LANES ? left : MOE_VEC8_LANES;
        struct moe_vec8 gate = moe_vec8_zero();
        struct moe_vec8 up;
        if (paired && count == MOE_VEC8_LANES) {
            load_pairs(op, row.gate, col, &gate, &up);
        } else {
            up = load_columns(op, row.up, col, count);
            gate = op->act.ungated ? gate : load_columns(op, row.gate, col, count);
        }
        const struct moe_vec8 result = moe_cpu_act8(&op->act, gate, up);
        void *to = moe_convert_at_mutable(row.output, op->output_dtype, col);
        if (count == MOE_VEC8_LANES) {
            moe_convert_store(to, op->output_dtype, result);
        } else {
            moe_convert_store_partial(to, op->output_dtype, result, count);
        }
    }
}

int64_t MOE_CPU_NAME(moe_cpu_activation_num_tasks)(const void *op, const struct moe_tile *tile)
{
    const struct moe_op_activation *activation = op;
    return moe_cpu_num_blocks(activation->num_rows, tile->block_size);
}

uint64_t MOE_CPU_NAME(moe_cpu_activation_scratch_bytes)(const void *op, const struct moe_tile *tile)
{
    (void)op;
    (void)tile;
    return 0;
}

void MOE_CPU_NAME(moe_cpu_activation_run)(const void *op, const struct moe_tile *tile, int64_t task,
                                          void *scratch)
{
    (void)scratch;
    const struct moe_op_activation *activation = op;
    const int64_t end = moe_cpu_block_end(activation->num_rows, tile->block_size, task);
    for (int64_t row = task * tile->block_size; row < end; row++) {
        activate_row(activation, find_row(activation, row));
    }
}
