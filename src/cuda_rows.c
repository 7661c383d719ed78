/* SPDX-License-Identifier: Apache-2.0 */
/* Geometry of the operations on rows on a GPU: it follows from the numbers and the tile; nothing is
 * read back from the device. */
#include "context.h"
#include "cuda_args.h"
#include "cuda_ops.h"
#include "plan.h"
#include "status.h"
#include "tiles.h"

#define GRID_Y_LIMIT 65535

/* Shared memory of a multiprocessor that every CTA takes beside its own. */
#define CTA_SMEM_BYTES 1024

/* pre_reorder: parts of a row at most and slots at least of its wide forms; of the tokens that are
 * resident at once, the share (1 / so much) below which LANES is faster than its wide form; and
 * tokens from which on two vectors a thread are faster than one (docs/performance-h200.md). */
enum { MAX_PARTS = 8, WIDE_MIN_SLOTS = 4, WIDE_MIN_SHARE = 3, PAIRS_MIN_TOKENS = 512 };

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

static uint32_t ceil_div(int64_t value, int64_t divisor)
{
    return (uint32_t)((value + divisor - 1) / divisor);
}

/* Scales of a row of `width` columns. */
static int32_t num_groups(const struct moe_op_quant *quant, int32_t width)
{
    return quant->is_dynamic ? (width + quant->group_k - 1) / quant->group_k : 1;
}

/* Numbers of units of 16 columns, which rows consist of: false where there are too many. */
static bool fill_units(int32_t width, int64_t num_rows, struct moe_cuda_units *units)
{
    int32_t width_log2 = 0;
    if (width % 16 != 0 || width / 16 * num_rows > INT32_MAX) {
        return false;
    }
    units->per_row = width / 16;
    while ((INT64_C(1) << width_log2) < units->per_row) {
        width_log2++;
    }
    units->row_shift = 31 + width_log2;
    units->row_magic = (uint32_t)((UINT64_C(1) << units->row_shift) / (uint64_t)units->per_row + 1);
    return true;
}

/* Do rows consist of units of 16 columns, whole groups of them shared by lanes of a warp? Then
 * `units` says how. Vectors of input and output are aligned. */
static bool is_by_lanes(const struct moe_op_quant *quant, int32_t width, int64_t num_rows,
                        bool is_aligned, struct moe_cuda_units *units)
{
    const int32_t num_lanes = quant->group_k / 16;
    if (!is_aligned || !quant->is_dynamic || quant->group_k % 16 != 0 || num_lanes > 32 ||
        (num_lanes & (num_lanes - 1)) != 0 || width % quant->group_k != 0 ||
        !fill_units(width, num_rows, units)) {
        return false;
    }
    units->lanes_log2 = 0;
    while (1 << units->lanes_log2 < num_lanes) {
        units->lanes_log2++;
    }
    return true;
}

/* Does every group begin where eight columns begin? */
static bool has_even_groups(const struct moe_op_quant *quant, int32_t width)
{
    return num_groups(quant, width) == 1 || quant->group_k % 8 == 0;
}

/* CTAs that share a row of `width` columns, eight per thread: one where it looks for scales group
 * by group. */
static uint32_t quant_ctas(const struct moe_op_quant *quant, int32_t width, int32_t num_threads)
{
    return quant->is_dynamic ? 1 : ceil_div(width, 8 * num_threads);
}

/* The grid of LANES: a thread per unit. */
static uint32_t unit_ctas(const struct moe_cuda_units *units, int64_t num_rows, int32_t num_threads)
{
    return ceil_div(num_rows * units->per_row, num_threads);
}

static void shape_copy(const struct moe_op_pre_reorder *op, struct moe_cuda_pre_reorder *args)
{
    const uintptr_t element_bytes = (uintptr_t)moe_dtype_bytes(op->dtype);
    const uintptr_t row_bytes = (uintptr_t)op->hidden * element_bytes;
    const uintptr_t values[] = {(uintptr_t)op->tokens, (uintptr_t)op->rows,
                                (uintptr_t)op->token_stride * element_bytes,
                                (uintptr_t)op->row_stride * element_bytes, row_bytes};
    const size_t num_values = sizeof(values) / sizeof(values[0]);
    args->vector_bytes = 16;
    while (!all_aligned(values, num_values, (uintptr_t)args->vector_bytes)) {
        args->vector_bytes /= args->vector_bytes == 16 ? 4 : 2; /* 4, 2, 1 */
    }
    args->row_vectors = (int32_t)(row_bytes / (uintptr_t)args->vector_bytes);
}

/* Form of a quantized pre_reorder. */
static void shape_quantized(const struct moe_op_pre_reorder *op, struct moe_cuda_pre_reorder *args,
                            struct moe_cuda_launch *launch)
{
    const uintptr_t element_bytes = (uintptr_t)moe_dtype_bytes(op->dtype);
    const uintptr_t inputs[] = {(uintptr_t)op->tokens, (uintptr_t)op->token_stride * element_bytes};
    const uintptr_t outputs[] = {(uintptr_t)op->rows, (uintptr_t)op->row_stride};
    const bool is_even = has_even_groups(&op->quant, op->hidden);
    args->vector_bytes = is_even && all_aligned(inputs, 2, 16) ? 16 : (int32_t)element_bytes;
    args->is_output_vectored = is_even && all_aligned(outputs, 2, 8);
    args->num_groups = num_groups(&op->quant, op->hidden);
    if (is_by_lanes(&op->quant, op->hidden, op->num_tokens,
                    all_aligned(inputs, 2, 16) && all_aligned(outputs, 2, 16), &args->units)) {
        const bool is_k8_bf16 =
            op->top_k == 8 && op->dtype == MOE_DTYPE_BF16 && (uintptr_t)op->src2dst % 16 == 0;
        launch->form = is_k8_bf16 ? MOE_CUDA_PRE_REORDER_LANES_K8_BF16 : MOE_CUDA_PRE_REORDER_LANES;
        return;
    }
    launch->form = MOE_CUDA_PRE_REORDER_OTHER;
}

/*
 * How a wide form shares out shared memory (reorder_wide.cuh): of the ways to divide a row the one
 * with which most tokens are resident at once, of these the one with fewest parts. Parts are
 * multiples of `group_bytes` with a scale each, or of 16 bytes where that is 0. Returns the number
 * of tokens that are resident; 0: a row does not fit.
 */
static int64_t shape_wide(const struct moe_cuda_state *state, int32_t num_threads,
                          int32_t group_bytes, struct moe_cuda_wide *wide)
{
    const int32_t alignment = group_bytes > 0 ? group_bytes : 16;
    const int32_t num_warps = num_threads / 32, most_ctas = MOE_CUDA_WIDE_THREADS / num_threads;
    int64_t most_tokens = 0;
    for (int32_t parts = 1; parts <= MAX_PARTS; parts *= 2) {
        const int32_t part = (int32_t)ceil_div(wide->row_bytes, (int64_t)parts * alignment);
        const int32_t side = group_bytes > 0 ? part * 4 : MOE_CUDA_WIDE_BARRIER_BYTES;
        const int64_t cta_bytes = (int64_t)num_warps * ((int64_t)part * alignment + side);
        const int64_t fitting = (state->smem_bytes + CTA_SMEM_BYTES) / (cta_bytes + CTA_SMEM_BYTES);
        const int64_t num_ctas = fitting < most_ctas ? fitting : most_ctas;
        const int64_t num_tokens = state->num_sms * num_ctas * num_warps / parts;
        if (num_tokens > most_tokens) {
            most_tokens = num_tokens;
            wide->num_parts = parts;
            wide->part_bytes = part * alignment;
            wide->side_bytes = side;
        }
    }
    return most_tokens;
}

/* Is a wide form faster? Where most of the work is writing, and more is written than the L2 holds,
 * reading first and writing after takes less time than both mixed (docs/performance-h200.md). */
static bool is_worth_wide(const struct moe_run *run, const struct moe_op_pre_reorder *op,
                          int64_t row_bytes)
{
    return op->top_k >= WIDE_MIN_SLOTS &&
           op->num_tokens * op->top_k * row_bytes > run->plan->context->device.l2_bytes;
}

/* Tokens of a launch that gives each multiprocessor a CTA, in parts as `wide` says. With fewer,
 * warps of large CTAs share some multiprocessors while others have nothing to do. */
static int64_t tokens_of_device(const struct moe_cuda_state *state, int32_t num_threads,
                                const struct moe_cuda_wide *wide)
{
    return ceil_div((int64_t)state->num_sms * (num_threads / 32), wide->num_parts);
}

/* Launches of as many tokens as are resident at once, where `wide` says how much, until less than
 * `min_tokens` are left, from wide.first_token on. */
static int32_t launch_wide(const struct moe_run *run, int64_t num_resident, int64_t min_tokens,
                           struct moe_cuda_pre_reorder *args, struct moe_cuda_launch *launch,
                           struct moe_error *error)
{
    const int64_t num_tokens = args->op.num_tokens;
    struct moe_cuda_wide *wide = &args->wide;
    const int32_t num_warps = (int32_t)launch->num_threads / 32;
    launch->smem_bytes = (uint32_t)(num_warps * (wide->part_bytes + wide->side_bytes));
    while (num_tokens - wide->first_token >= min_tokens) {
        const int64_t left = num_tokens - wide->first_token;
        wide->end_token = wide->first_token + (left < num_resident ? left : num_resident);
        launch->grid_x =
            ceil_div((wide->end_token - wide->first_token) * wide->num_parts, num_warps);
        MOE_TRY(moe_cuda_state_launch(moe_cuda_state_of(run), run->stream, launch, error));
        launch->is_chained = 0;
        wide->first_token = wide->end_token;
    }
    return MOE_STATUS_OK;
}

/* Can the copy engine write scales, with the parts that `wide` has? */
static bool copies_scales(const struct moe_cuda_pre_reorder *args)
{
    const struct moe_op_quant *quant = &args->op.quant;
    const uintptr_t values[] = {(uintptr_t)quant->scales, (uintptr_t)quant->scale_stride * 4,
                                (uintptr_t)args->num_groups * 4, (uintptr_t)args->wide.side_bytes};
    return quant->scale_layout == MOE_SCALE_ROW_MAJOR && all_aligned(values, 4, 16);
}

/* Groups that lanes share: wide forms, and LANES for all tokens that they leave. */
static int32_t reorder_lanes(const struct moe_run *run, struct moe_cuda_pre_reorder *args,
                             struct moe_cuda_launch *launch, struct moe_error *error)
{
    const struct moe_cuda_state *state = moe_cuda_state_of(run);
    const struct moe_op_pre_reorder *op = &args->op;
    const int32_t num_threads = (int32_t)launch->num_threads;
    const int32_t form = launch->form;
    if (is_worth_wide(run, op, op->hidden)) {
        args->wide.row_bytes = op->hidden;
        args->wide.row_stride_bytes = op->row_stride;
        const int64_t num_resident = shape_wide(state, num_threads, op->quant.group_k, &args->wide);
        if (num_resident > 0) {
            args->wide.copies_scales = copies_scales(args);
            launch->form = MOE_CUDA_PRE_REORDER_WIDE_LANES;
            const int64_t share = ceil_div(num_resident, WIDE_MIN_SHARE);
            const int64_t least = tokens_of_device(state, num_threads, &args->wide);
            MOE_TRY(
                launch_wide(run, num_resident, share > least ? share : least, args, launch, error));
        }
    }
    const int64_t num_left = op->num_tokens - args->wide.first_token;
    if (num_left == 0) {
        return MOE_STATUS_OK;
    }
    launch->form = form;
    launch->smem_bytes = 0;
    launch->grid_x = unit_ctas(&args->units, num_left, num_threads);
    return moe_cuda_state_launch(state, run->stream, launch, error);
}

static int32_t reorder_quantized(const struct moe_run *run, struct moe_cuda_pre_reorder *args,
                                 struct moe_cuda_launch *launch, struct moe_error *error)
{
    const struct moe_op_pre_reorder *op = &args->op;
    shape_quantized(op, args, launch);
    if (launch->form != MOE_CUDA_PRE_REORDER_OTHER) {
        return reorder_lanes(run, args, launch, error);
    }
    launch->grid_x = quant_ctas(&op->quant, op->hidden, (int32_t)launch->num_threads);
    launch->grid_y = grid_rows(op->num_tokens);
    return moe_cuda_state_launch(moe_cuda_state_of(run), run->stream, launch, error);
}

static int32_t reorder_copies(const struct moe_run *run, struct moe_cuda_pre_reorder *args,
                              struct moe_cuda_launch *launch, struct moe_error *error)
{
    const struct moe_cuda_state *state = moe_cuda_state_of(run);
    const struct moe_op_pre_reorder *op = &args->op;
    const int32_t num_threads = (int32_t)launch->num_threads;
    int32_t num_units = 1; /* vectors of a thread */
    shape_copy(op, args);
    launch->form = MOE_CUDA_PRE_REORDER_COPY_NARROW;
    if (args->vector_bytes == 16) {
        num_units = op->num_tokens >= PAIRS_MIN_TOKENS ? 2 : 1;
        launch->form = num_units == 2 ? MOE_CUDA_PRE_REORDER_COPY_PAIRS : MOE_CUDA_PRE_REORDER_COPY;
        args->wide.row_bytes = 16 * args->row_vectors;
        args->wide.row_stride_bytes = op->row_stride * moe_dtype_bytes(op->dtype);
        const int64_t num_resident = is_worth_wide(run, op, args->wide.row_bytes)
                                         ? shape_wide(state, num_threads, 0, &args->wide)
                                         : 0;
        if (num_resident > 0 &&
            op->num_tokens >= tokens_of_device(state, num_threads, &args->wide)) {
            launch->form = MOE_CUDA_PRE_REORDER_WIDE;
            return launch_wide(run, num_resident, 1, args, launch, error);
        }
    }
    launch->grid_x = ceil_div(args->row_vectors, num_units * num_threads);
    launch->grid_y = grid_rows(op->num_tokens);
    return moe_cuda_state_launch(state, run->stream, launch, error);
}

int32_t moe_cuda_pre_reorder(const struct moe_run *run, const struct moe_op_pre_reorder *op,
                             struct moe_error *error)
{
    const struct moe_tile *tile = moe_cuda_tile_of(run, MOE_OP_PRE_REORDER);
    struct moe_cuda_pre_reorder args = {.op = *op};
    struct moe_cuda_launch launch = {
        .tile = tile->id,
        .grid_y = 1,
        .num_threads = (uint32_t)tile->block_size,
        .is_chained = run->is_chained,
        .args = &args,
    };
    return op->quant.dtype != 0 ? reorder_quantized(run, &args, &launch, error)
                                : reorder_copies(run, &args, &launch, error);
}

int32_t moe_cuda_quantize(const struct moe_run *run, const struct moe_op_quantize *op,
                          struct moe_error *error)
{
    const struct moe_tile *tile = moe_cuda_tile_of(run, MOE_OP_QUANTIZE);
    const uintptr_t element_bytes = (uintptr_t)moe_dtype_bytes(op->dtype);
    const uintptr_t inputs[] = {(uintptr_t)op->tokens, (uintptr_t)op->token_stride * element_bytes};
    const uintptr_t outputs[] = {(uintptr_t)op->output, (uintptr_t)op->output_stride};
    const bool is_even = has_even_groups(&op->quant, op->hidden);
    struct moe_cuda_quantize args = {
        .op = *op,
        .is_vectored = is_even && all_aligned(inputs, 2, 16),
        .is_output_vectored = is_even && all_aligned(outputs, 2, 8),
        .num_groups = num_groups(&op->quant, op->hidden),
    };
    struct moe_cuda_launch launch = {
        .tile = tile->id,
        .form = MOE_CUDA_QUANTIZE_OTHER,
        .grid_x = quant_ctas(&op->quant, op->hidden, tile->block_size),
        .grid_y = grid_rows(op->num_tokens),
        .num_threads = (uint32_t)tile->block_size,
        .is_chained = run->is_chained,
        .args = &args,
    };
    if (is_by_lanes(&op->quant, op->hidden, op->num_tokens,
                    all_aligned(inputs, 2, 16) && all_aligned(outputs, 2, 16), &args.units)) {
        launch.form = MOE_CUDA_QUANTIZE_LANES;
        launch.grid_x = unit_ctas(&args.units, op->num_tokens, tile->block_size);
        launch.grid_y = 1;
    }
    return moe_cuda_state_launch(moe_cuda_state_of(run), run->stream, &launch, error);
}

/* Of what is not quantized; by lanes, as many further on. */
static int32_t activation_form(int32_t activation)
{
    if (activation == MOE_ACTIVATION_SILU) {
        return MOE_CUDA_ACTIVATION_SILU;
    }
    return activation == MOE_ACTIVATION_GELU_TANH || activation == MOE_ACTIVATION_SWIGLU_OAI
               ? MOE_CUDA_ACTIVATION_LOGISTIC
               : MOE_CUDA_ACTIVATION_OTHER;
}

/* How gate and up of eight columns can be loaded. */
static int32_t activation_load(const struct moe_op_activation *op)
{
    const uintptr_t element_bytes = (uintptr_t)moe_dtype_bytes(op->input_dtype);
    const uintptr_t values[] = {(uintptr_t)op->input, (uintptr_t)op->row_stride * element_bytes,
                                (uintptr_t)op->up_offset * element_bytes};
    const bool is_even = op->quant.dtype == 0 || has_even_groups(&op->quant, op->inter);
    if (is_even && op->col_stride == 1 && all_aligned(values, 3, 16)) {
        return MOE_CUDA_LOAD_HALVES;
    }
    const bool is_paired = !op->act.ungated && op->col_stride == 2 && op->up_offset == 1;
    return is_even && is_paired && all_aligned(values, 2, 16) ? MOE_CUDA_LOAD_PAIRS
                                                              : MOE_CUDA_LOAD_EACH;
}

static void shape_activation(const struct moe_op_activation *op, struct moe_cuda_activation *args)
{
    const bool is_quantized = op->quant.dtype != 0;
    const uintptr_t element_bytes = is_quantized ? 1 : (uintptr_t)moe_dtype_bytes(op->output_dtype);
    const uintptr_t outputs[] = {(uintptr_t)op->output,
                                 (uintptr_t)op->output_stride * element_bytes};
    const bool reads_own =
        op->col_stride == 1 && (op->act.ungated != 0 || op->up_offset >= op->inter);
    args->op = *op;
    args->load = activation_load(op);
    args->is_output_vectored = (!is_quantized || has_even_groups(&op->quant, op->inter)) &&
                               all_aligned(outputs, 2, is_quantized ? 8 : 16);
    args->num_groups = is_quantized ? num_groups(&op->quant, op->inter) : 0;
    args->is_ordered = op->output == op->input && !reads_own;
}

/* Masked layout: CTAs in y for each expert, enough for all SMs when routes are even, and a few
 * where they are not. */
static int32_t masked_rows_per_expert(const struct moe_op_activation *op, int32_t num_sms,
                                      uint32_t grid_x)
{
    const int64_t wanted = (int64_t)num_sms * 32 / ((int64_t)op->num_experts * grid_x);
    const int64_t enough = wanted < 16 ? 16 : wanted;
    return (int32_t)(enough < op->max_masked_rows ? enough : op->max_masked_rows);
}

/* What SILU_BF16 and SILU_BF16_LANES take. */
static bool is_bf16_silu(const struct moe_op_activation *op, const struct moe_cuda_activation *args)
{
    return op->act.activation == MOE_ACTIVATION_SILU && op->act.ungated == 0 &&
           op->input_dtype == MOE_DTYPE_BF16 && args->load == MOE_CUDA_LOAD_HALVES &&
           op->masked_m == NULL && !args->is_ordered;
}

/* Form and grid of a quantized activation. */
static void shape_quantized_activation(const struct moe_op_activation *op, int32_t num_threads,
                                       struct moe_cuda_activation *args,
                                       struct moe_cuda_launch *launch)
{
    const uintptr_t outputs[] = {(uintptr_t)op->output, (uintptr_t)op->output_stride};
    const bool is_aligned = args->load != MOE_CUDA_LOAD_EACH && all_aligned(outputs, 2, 16);
    const bool is_lean = is_bf16_silu(op, args);
    if (!is_by_lanes(&op->quant, op->inter, op->num_rows, is_aligned, &args->units)) {
        launch->form = MOE_CUDA_ACTIVATION_QUANTIZED;
        launch->grid_x = quant_ctas(&op->quant, op->inter, num_threads);
        return;
    }
    launch->form = is_lean ? MOE_CUDA_ACTIVATION_SILU_BF16_LANES
                           : activation_form(op->act.activation) + MOE_CUDA_ACTIVATION_SILU_LANES -
                                 MOE_CUDA_ACTIVATION_SILU;
    launch->grid_x = 1;
    if (op->masked_m == NULL) {
        launch->grid_x = unit_ctas(&args->units, op->num_rows, num_threads);
        launch->grid_y = 1;
    }
}

int32_t moe_cuda_activation(const struct moe_run *run, const struct moe_op_activation *op,
                            struct moe_error *error)
{
    const struct moe_tile *tile = moe_cuda_tile_of(run, MOE_OP_ACTIVATION);
    const struct moe_cuda_state *state = moe_cuda_state_of(run);
    struct moe_cuda_activation args = {0};
    shape_activation(op, &args);
    struct moe_cuda_launch launch = {
        .tile = tile->id,
        .form = activation_form(op->act.activation),
        .grid_x = args.is_ordered ? 1 : ceil_div(op->inter, 8 * tile->block_size),
        .grid_y = grid_rows(op->num_rows),
        .num_threads = (uint32_t)tile->block_size,
        .is_chained = run->is_chained,
        .args = &args,
    };
    if (op->quant.dtype != 0) {
        shape_quantized_activation(op, tile->block_size, &args, &launch);
    } else if (is_bf16_silu(op, &args) && op->output_dtype == MOE_DTYPE_BF16 &&
               args.is_output_vectored && fill_units(op->inter, op->num_rows, &args.units)) {
        launch.form = MOE_CUDA_ACTIVATION_SILU_BF16;
        launch.grid_x = unit_ctas(&args.units, op->num_rows, tile->block_size);
        launch.grid_y = 1;
    }
    if (op->masked_m != NULL) {
        args.rows_per_expert = masked_rows_per_expert(op, state->num_sms, launch.grid_x);
        launch.grid_y = grid_rows((int64_t)args.rows_per_expert * op->num_experts);
    }
    return moe_cuda_state_launch(state, run->stream, &launch, error);
}

struct combine_form {
    int32_t form;
    int32_t units; /* of a thread */
};

static struct combine_form combine_form(const struct moe_op_post_reorder *op, bool is_vectored)
{
    const bool is_full = op->src2dst == NULL || (op->topk_weights != NULL && op->num_rows > 0);
    if (!is_vectored) {
        return (struct combine_form){MOE_CUDA_POST_REORDER_EACH, 1};
    }
    if (op->top_k <= 2) {
        return (struct combine_form){MOE_CUDA_POST_REORDER_K2, MOE_CUDA_POST_REORDER_UNITS_K2};
    }
    if (op->top_k == 8 && is_full) {
        const bool is_plain =
            op->dtype == MOE_DTYPE_BF16 && op->shared == NULL && op->residual == NULL;
        return (struct combine_form){is_plain ? MOE_CUDA_POST_REORDER_K8_BF16
                                              : MOE_CUDA_POST_REORDER_K8,
                                     MOE_CUDA_POST_REORDER_UNITS_K8};
    }
    return (struct combine_form){MOE_CUDA_POST_REORDER_K4, MOE_CUDA_POST_REORDER_UNITS_K4};
}

int32_t moe_cuda_combine(const struct moe_run *run, int32_t op_id,
                         const struct moe_op_post_reorder *op, int32_t is_early,
                         struct moe_error *error)
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
    const size_t num_values = sizeof(values) / sizeof(values[0]);
    const int32_t vector_columns = 16 / (int32_t)element_bytes;
    const bool is_vectored =
        op->hidden % vector_columns == 0 && all_aligned(values, num_values, 16);
    const struct combine_form form = combine_form(op, is_vectored);
    struct moe_cuda_post_reorder args = {.op = *op, .is_early = is_early};
    struct moe_cuda_launch launch = {
        .tile = tile->id,
        .form = form.form,
        .grid_x = ceil_div(op->hidden,
                           (is_vectored ? vector_columns : 1) * form.units * tile->block_size),
        .grid_y = grid_rows(op->num_tokens),
        .grid_z = ceil_div(op->num_tokens, grid_rows(op->num_tokens)),
        .num_threads = (uint32_t)tile->block_size,
        .is_chained = run->is_chained,
        .args = &args,
    };
    return moe_cuda_state_launch(moe_cuda_state_of(run), run->stream, &launch, error);
}

int32_t moe_cuda_post_reorder(const struct moe_run *run, int32_t op_id,
                              const struct moe_op_post_reorder *op, struct moe_error *error)
{
    return moe_cuda_combine(run, op_id, op, 0, error);
}
