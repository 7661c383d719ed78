/* SPDX-License-Identifier: Apache-2.0 */
/*
 * activation: output[r, i] = act(gate[r, i], up[r, i]) in fp32, rounded once to the output's type;
 * optionally quantized to fp8, from the fp32 values.
 * Moves: 2 elements in and 1 out per column (ungated: 1 and 1); about 20 (silu) to 45 (gelu)
 *   operations per column. Bound by memory bandwidth for rows that come from memory, by the
 *   exponential for rows in the cache.
 * Pipeline: row by row. Columns next to each other, one type: 32 at a time, 1 load and widen,
 *   2 activation, 3 round, store. Anything else eight at a time: interleaved pairs with one
 *   deinterleaving step, other strides gather, the last columns go through a padded group of eight.
 *   Quantized: 1 a group's values to a buffer, 2 their scale, 3 their codes; a group that exceeds
 *   the buffer is computed twice. silu of bf16 with AVX-512 where there is, both ways.
 * Limits: a group is read before it is written, so output may be input as long as output column i
 *   lies at or before whatever later groups read, as it does for halves and for interleaved pairs.
 */
#include "act.h"
#include "cpu_ops.h"
#include "quant.h"
#include "silu_avx512.h"

/* fp32 values of a row that wait for their scale. */
enum {
    BUFFER_COLUMNS = 1024,
    HALF_COLUMNS = 2 * MOE_VEC8_LANES,
    WIDE_COLUMNS = 2 * HALF_COLUMNS,
    STREAM_BYTES = 32,
    AHEAD_BYTES = 8192 /* of input between what is computed and what is hinted, about */
};
_Static_assert(BUFFER_COLUMNS % MOE_VEC8_LANES == 0, "chunks of a group are whole vectors");

struct row {
    const void *gate; /* ungated: not used */
    const void *up;
    void *output;
    int64_t idx;
    struct silu_ahead ahead;
};

/*
 * What to hint while a row is computed. Where gate and up are the halves of a row, memory is read
 * fastest when the hints go through both in the order of their addresses, two lines at a time;
 * one line of either half in turns is as slow as no hint. Elsewhere each operand has its own.
 */
static struct silu_ahead find_ahead(const struct moe_op_activation *op, const struct row *row)
{
    const int64_t row_bytes = op->row_stride * moe_convert_element_bytes(op->input_dtype);
    const int64_t num_rows = row_bytes > 0 && row_bytes < AHEAD_BYTES ? AHEAD_BYTES / row_bytes : 1;
    const int64_t distance = row->idx + num_rows < op->num_rows ? num_rows * row_bytes : 0;
    struct silu_ahead ahead = {.gate = (const char *)row->gate + distance,
                               .up = (const char *)row->up + distance,
                               .pace = 1};
    if (!op->act.ungated && op->up_offset == op->inter) {
        ahead.up = ahead.gate + MOE_CONVERT_LINE_BYTES;
        ahead.pace = 2;
    }
    return ahead;
}

static struct row find_row(const struct moe_op_activation *op, int64_t row_idx)
{
    const int64_t first = row_idx * op->row_stride;
    struct row row;
    row.gate = moe_convert_at(op->input, op->input_dtype, first);
    row.up = moe_convert_at(op->input, op->input_dtype, first + op->up_offset);
    row.output = moe_convert_at_mutable(op->output, op->output_dtype, row_idx * op->output_stride);
    row.idx = row_idx;
    row.ahead = find_ahead(op, &row);
    return row;
}

/* ---------------------------------------------------------------- any layout, eight columns */

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

/* The values of columns first .. end - 1, rounded to `dtype`, from `output` on. */
static void activate_columns(const struct moe_op_activation *op, const struct row *row,
                             int64_t first, int64_t end, void *output, int32_t dtype)
{
    const int paired = !op->act.ungated && op->col_stride == 2 && op->up_offset == 1;
    for (int64_t col = first; col < end; col += MOE_VEC8_LANES) {
        const int64_t left = end - col;
        const int64_t count = left < MOE_VEC8_LANES ? left : MOE_VEC8_LANES;
        struct moe_vec8 gate = moe_vec8_zero();
        struct moe_vec8 up;
        if (paired && count == MOE_VEC8_LANES) {
            load_pairs(op, row->gate, col, &gate, &up);
        } else {
            up = load_columns(op, row->up, col, count);
            gate = op->act.ungated ? gate : load_columns(op, row->gate, col, count);
        }
        const struct moe_vec8 result = moe_cpu_act8(&op->act, gate, up);
        void *to = moe_convert_at_mutable(output, dtype, col - first);
        if (count == MOE_VEC8_LANES) {
            moe_convert_store(to, dtype, result);
        } else {
            moe_convert_store_partial(to, dtype, result, count);
        }
    }
}

/* ---------------------------------------------------------------- one type, 32 columns */

/* Columns col .. col + 15 of an operand, and a hint for what comes later. */
MOE_INLINE void load_ahead(const void *operand, int32_t dtype, int64_t col, const char *ahead,
                           int64_t pace, struct moe_vec8 lanes[2])
{
    __builtin_prefetch(moe_convert_at(ahead, dtype, pace * col));
    moe_convert_load_wide(moe_convert_at(operand, dtype, col), dtype, lanes);
}

/* As many times 32 columns as there are; returns how many. All but op, row and ungated are
 * constants. */
MOE_INLINE int64_t activate_wide(const struct moe_op_activation *op, const struct row *row,
                                 int32_t dtype, int32_t activation, int ungated)
{
    struct moe_op_act act = op->act;
    act.activation = activation;
    act.ungated = ungated;
    const int streams = op->streams && (uintptr_t)row->output % STREAM_BYTES == 0;
    int64_t col = 0;
    for (; col + WIDE_COLUMNS <= op->inter; col += WIDE_COLUMNS) {
        struct moe_vec8 gate[4];
        struct moe_vec8 up[4];
        MOE_UNROLL for (int half = 0; half < 2; half++)
        {
            const int64_t at = col + half * HALF_COLUMNS;
            gate[2 * half] = gate[2 * half + 1] = moe_vec8_zero();
            if (!ungated) {
                load_ahead(row->gate, dtype, at, row->ahead.gate, row->ahead.pace, gate + 2 * half);
            }
            load_ahead(row->up, dtype, at, row->ahead.up, row->ahead.pace, up + 2 * half);
        }
        moe_cpu_act8_few(&act, gate, up, 4);
        MOE_UNROLL for (int half = 0; half < 2; half++)
        {
            void *to = moe_convert_at_mutable(row->output, dtype, col + half * HALF_COLUMNS);
            if (streams) {
                moe_convert_stream_wide(to, dtype, up + 2 * half);
            } else {
                moe_convert_store_wide(to, dtype, up + 2 * half);
            }
        }
    }
    return col;
}

#define ACTIVATE_WIDE(activation)                                             \
    case activation:                                                          \
        return op->act.ungated ? activate_wide(op, row, dtype, activation, 1) \
                               : activate_wide(op, row, dtype, activation, 0);

MOE_INLINE int64_t activate_typed(const struct moe_op_activation *op, const struct row *row,
                                  int32_t dtype)
{
    switch (op->act.activation) {
        ACTIVATE_WIDE(MOE_ACTIVATION_SILU)
        ACTIVATE_WIDE(MOE_ACTIVATION_GELU)
        ACTIVATE_WIDE(MOE_ACTIVATION_GELU_TANH)
        ACTIVATE_WIDE(MOE_ACTIVATION_RELU2)
    case MOE_ACTIVATION_SWIGLU_OAI:
        return activate_wide(op, row, dtype, MOE_ACTIVATION_SWIGLU_OAI, 0);
    default:
        return 0; /* identity: two loads, one product and a store are no matter of speed */
    }
}

#if SILU_HAS_AVX512

/* What runs with AVX-512 where the processor has it. */
static int is_silu_avx512(const struct moe_op_activation *op)
{
    return op->has_avx512 && op->input_dtype == MOE_DTYPE_BF16 && !op->act.ungated &&
           op->act.activation == MOE_ACTIVATION_SILU;
}

#endif

/* Whole groups of columns from the first on, where the layout is plain; returns how many columns
 * that were. */
static int64_t activate_plain(const struct moe_op_activation *op, const struct row *row)
{
    if (op->col_stride != 1 || op->input_dtype != op->output_dtype) {
        return 0;
    }
#if SILU_HAS_AVX512
    if (is_silu_avx512(op) &&
        (!op->streams || (uintptr_t)row->output % MOE_CONVERT_LINE_BYTES == 0)) {
        return silu_avx512(row->gate, row->up, row->output, op->inter, &row->ahead, op->streams);
    }
#endif
    if (op->input_dtype == MOE_DTYPE_BF16) {
        return activate_typed(op, row, MOE_DTYPE_BF16);
    }
    return op->input_dtype == MOE_DTYPE_FP16 ? activate_typed(op, row, MOE_DTYPE_FP16)
                                             : activate_typed(op, row, MOE_DTYPE_FP32);
}

/* ---------------------------------------------------------------- quantized */

/* The values of columns first .. end - 1, and their largest magnitude where scales are dynamic.
 * Returns how many of them are in the order of fp8_avx512_encode. */
static int64_t fill_buffer(const struct moe_op_activation *op, const struct row *row, int64_t first,
                           int64_t end, float *buffer, float *amax)
{
    int64_t num_wide = 0;
#if SILU_HAS_AVX512
    if (op->col_stride == 1 && is_silu_avx512(op)) {
        num_wide =
            silu_avx512_values(row->gate, row->up, buffer, first, end - first, &row->ahead, amax);
    }
#endif
    activate_columns(op, row, first + num_wide, end, buffer + num_wide, MOE_DTYPE_FP32);
    if (op->quant.is_dynamic) {
        *amax = moe_quant_amax(buffer + num_wide, MOE_DTYPE_FP32, end - first - num_wide, *amax);
    }
    return num_wide;
}

/* Codes of `width` values, the first num_wide in the order of fp8_avx512_encode. */
static void encode_buffer(const float *buffer, int64_t num_wide, int64_t width, float inverse,
                          uint8_t *to)
{
#if SILU_HAS_AVX512
    if (num_wide > 0) {
        fp8_avx512_encode(buffer, num_wide, inverse, to);
    }
#endif
    moe_quant_encode(buffer + num_wide, MOE_DTYPE_FP32, width - num_wide, inverse, to + num_wide);
}

/* Scale and codes of columns first .. first + width - 1, which are one group. */
static void quantize_group(const struct moe_op_activation *op, const struct row *row, int64_t first,
                           int64_t width, float *buffer)
{
    int64_t num_wide = 0;
    const struct moe_op_quant *quant = &op->quant;
    const int64_t end = first + width;
    float inverse = 1.0f / moe_quant_static_scale(quant, row->idx);
    if (quant->is_dynamic) {
        float amax = 0.0f;
        for (int64_t col = first; col < end; col += BUFFER_COLUMNS) {
            const int64_t stop = end - col < BUFFER_COLUMNS ? end : col + BUFFER_COLUMNS;
            num_wide = fill_buffer(op, row, col, stop, buffer, &amax);
        }
        const float scale = moe_quant_scale(quant, amax);
        moe_quant_store_scale(quant, row->idx, first / quant->group_k,
                              moe_quant_num_groups(quant, op->inter), scale);
        inverse = 1.0f / scale;
    }
    for (int64_t col = first; col < end; col += BUFFER_COLUMNS) {
        const int64_t stop = end - col < BUFFER_COLUMNS ? end : col + BUFFER_COLUMNS;
        if (!quant->is_dynamic || width > BUFFER_COLUMNS) {
            float ignored = 0.0f;
            num_wide = fill_buffer(op, row, col, stop, buffer, &ignored);
        }
        encode_buffer(buffer, num_wide, stop - col, inverse, (uint8_t *)row->output + col);
    }
}

static void quantize_row(const struct moe_op_activation *op, const struct row *row)
{
    float buffer[BUFFER_COLUMNS];
    const int64_t group = op->quant.is_dynamic ? op->quant.group_k : op->inter;
    for (int64_t first = 0; first < op->inter; first += group) {
        const int64_t left = op->inter - first;
        quantize_group(op, row, first, left < group ? left : group, buffer);
    }
}

/* ---------------------------------------------------------------- rows */

/* Masked layout: is this one of its expert's rows in use? */
static int is_used(const struct moe_op_activation *op, int64_t row_idx)
{
    return op->masked_m == NULL ||
           row_idx % op->max_masked_rows < op->masked_m[row_idx / op->max_masked_rows];
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
    for (int64_t row_idx = task * tile->block_size; row_idx < end; row_idx++) {
        if (!is_used(activation, row_idx)) {
            continue;
        }
        const struct row row = find_row(activation, row_idx);
        if (activation->quant.dtype != 0) {
            quantize_row(activation, &row);
            continue;
        }
        const int64_t first = activate_plain(activation, &row);
        activate_columns(activation, &row, first, activation->inter,
                         moe_convert_at_mutable(row.output, activation->output_dtype, first),
                         activation->output_dtype);
    }
    if (activation->streams) {
        moe_convert_finish_streams();
    }
}
