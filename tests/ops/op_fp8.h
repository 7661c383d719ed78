/* SPDX-License-Identifier: Apache-2.0 */
/* fp8 operands of random problems: what rows stand for once they are quantized, how far a quantized
 * row may be off when the row itself is, and scales in every layout. */
#ifndef MOE_TESTS_OP_FP8_H
#define MOE_TESTS_OP_FP8_H

#include "op_data.h"

enum { OP_FP8_BLOCK = 128 };

/* Codes are drawn with this standard deviation; scales bring them to the size of plain values. */
#define OP_FP8_CODES 40.0

static inline bool op_is_fp8(const struct moe_recipe *recipe)
{
    return recipe->dtype == MOE_DTYPE_FP8_E4M3;
}

static inline int64_t op_num_groups(int64_t width, int64_t group)
{
    return group == 0 ? 1 : (width + group - 1) / group;
}

/* problem.intermediate where it is left out. */
static inline struct moe_recipe op_inter_recipe(const struct moe_problem *problem)
{
    const struct moe_recipe unset = {0};
    struct moe_recipe recipe = problem->intermediate;
    if (memcmp(&recipe, &unset, sizeof(unset)) == 0) {
        recipe = problem->tokens;
        recipe.dynamic |= op_is_fp8(&recipe) && recipe.group_rows == 1;
    } else if (recipe.dtype == 0) {
        recipe.dtype = problem->tokens.dtype;
    }
    return recipe;
}

/* Plain tokens that layer and experts quantize before GEMM1. */
static inline bool op_quantizes_tokens(const struct moe_problem *problem)
{
    const struct moe_recipe inter = op_inter_recipe(problem);
    return !op_is_fp8(&problem->tokens) && op_is_fp8(&problem->gate_up) && op_is_fp8(&inter);
}

/* ---------------------------------------------------------------- quantized rows */

static inline bool op_rounds_up(const struct moe_recipe *recipe)
{
    return recipe->scale_dtype == MOE_DTYPE_UE8M0;
}

/* Replaces a row by what its quantization stands for; exact. */
static inline void op_quantize_row(const struct moe_recipe *recipe, int64_t width, double *row)
{
    const int64_t group = recipe->group_k == 0 ? width : recipe->group_k;
    double *codes = op_array(width, sizeof(double));
    double *scales = op_array(op_num_groups(width, recipe->group_k), sizeof(double));
    ref_quantize(row, 1, width, recipe->group_k, op_rounds_up(recipe), codes, scales);
    for (int64_t i = 0; i < width; i++) {
        row[i] = codes[i] * scales[i / group];
    }
    free(scales);
    free(codes);
}

static inline double op_scale_of(const struct moe_recipe *recipe, double amax)
{
    double code, scale;
    ref_quantize(&amax, 1, 1, 0, op_rounds_up(recipe), &code, &scale);
    return scale;
}

/* One end of what a value in [.., x] or [x, ..] may stand for, with a scale between two bounds.
 * Quantizing is monotone in the value and in the scale, so the ends are at the ends. */
static inline double op_dequantized_end(double x, const double scales[2], bool is_upper)
{
    double code;
    ref_quantize_static(&x, 1, scales[(x >= 0.0) != is_upper], &code);
    return code * scales[(code >= 0.0) == is_upper];
}

/* Replaces values by what their quantization may stand for: the middle, and half the width. */
static inline void op_expect_quantized(const struct moe_recipe *recipe, int64_t width,
                                       double *values, double *tolerance)
{
    const int64_t group = recipe->group_k == 0 ? width : recipe->group_k;
    for (int64_t begin = 0; begin < width; begin += group) {
        const int64_t end = begin + group < width ? begin + group : width;
        double amax[2] = {0.0, 0.0};
        for (int64_t i = begin; i < end; i++) {
            amax[0] = fmax(amax[0], fabs(values[i]) - tolerance[i]);
            amax[1] = fmax(amax[1], fabs(values[i]) + tolerance[i]);
        }
        const double scales[2] = {op_scale_of(recipe, amax[0]), op_scale_of(recipe, amax[1])};
        for (int64_t i = begin; i < end; i++) {
            const double low = op_dequantized_end(values[i] - tolerance[i], scales, false);
            const double high = op_dequantized_end(values[i] + tolerance[i], scales, true);
            values[i] = 0.5 * (low + high);
            tolerance[i] = 0.5 * (high - low) + 0x1p-50 * fabs(values[i]);
        }
    }
}

/* ---------------------------------------------------------------- scales */

/* Scales of rows as the plugin reads them. */
struct op_scales {
    struct support_guard memory;
    int64_t stride;
};

/* From [num_rows][groups]; one for all rows: from the first. */
static inline void op_scales_init(struct op_scales *scales, const struct moe_recipe *recipe,
                                  const double *values, int64_t num_rows, int64_t width,
                                  int64_t padding)
{
    const bool is_row_major = recipe->scale_layout == MOE_SCALE_ROW_MAJOR;
    const bool is_packed = recipe->scale_layout == MOE_SCALE_UE8M0_PACKED;
    const int64_t groups = op_num_groups(width, recipe->group_k);
    const int64_t lines = is_packed ? (groups + 3) / 4 : groups;
    const int64_t num_lines = recipe->group_rows == 0 ? 1 : is_row_major ? num_rows : lines;
    const int64_t line = is_row_major ? groups : num_rows;
    const enum ref_scale_layout layout = is_row_major ? REF_SCALE_ROW_MAJOR
                                         : is_packed  ? REF_SCALE_PACKED
                                                      : REF_SCALE_COLUMN_MAJOR;
    scales->stride = (is_row_major ? groups : (num_rows + 3) / 4 * 4) + 4 * padding;
    const int64_t count = num_rows > 0 ? (num_lines - 1) * scales->stride + line : 0;
    scales->memory = op_input(NULL, count * 4, 4);
    for (int64_t row = 0; row < (recipe->group_rows == 0 ? num_rows > 0 : num_rows); row++) {
        ref_store_scales(layout, values + row * groups, groups, row, scales->stride,
                         scales->memory.data);
    }
}

/* The scales from a row on. */
static inline const void *op_scales_from(const struct op_scales *scales,
                                         const struct moe_recipe *recipe, int64_t row)
{
    const bool is_row_major = recipe->scale_layout == MOE_SCALE_ROW_MAJOR;
    const int64_t at = recipe->group_rows == 0 ? 0 : is_row_major ? row * scales->stride : row;
    return scales->memory.data + at * 4;
}

/* A scale that brings codes to about `size`; a power of two where the type has no others. */
static inline double op_draw_scale(struct support_random *random, bool is_power_of_two, double size)
{
    const double scale = size / OP_FP8_CODES * (0.5 + support_random_uniform(random));
    return is_power_of_two ? ldexp(1.0, ilogb(scale)) : ref_round(REF_F32, scale);
}

/* Turns a tensor of codes into one of quantized rows: draws their scales, and multiplies the values
 * by them. */
static inline void op_tensor_scale(const struct op_tensor *tensor, struct op_scales *scales,
                                   struct support_random *random, const struct moe_recipe *recipe,
                                   int64_t padding)
{
    const int64_t groups = op_num_groups(tensor->width, recipe->group_k);
    const int64_t group = recipe->group_k == 0 ? tensor->width : recipe->group_k;
    double *values = op_array(tensor->num_rows * groups, sizeof(double));
    for (int64_t i = 0; i < tensor->num_rows * groups; i++) {
        values[i] = recipe->group_rows == 0 && i > 0
                        ? values[0]
                        : op_draw_scale(random, op_rounds_up(recipe), 1.0);
    }
    for (int64_t r = 0; r < tensor->num_rows; r++) {
        for (int64_t c = 0; c < tensor->width; c++) {
            tensor->values[r * tensor->width + c] *= values[r * groups + c / group];
        }
    }
    op_scales_init(scales, recipe, values, tensor->num_rows, tensor->width, padding);
    free(values);
}

/* ---------------------------------------------------------------- recipes */

/* Quantized weights: a scale per tensor or expert, or per 128 x 128. */
static inline struct moe_recipe op_draw_weights_recipe(struct support_random *random)
{
    const int32_t group = support_random_below(random, 2) == 0 ? 0 : OP_FP8_BLOCK;
    return (struct moe_recipe){.dtype = MOE_DTYPE_FP8_E4M3,
                               .scale_dtype = MOE_DTYPE_FP32,
                               .scale_layout = MOE_SCALE_ROW_MAJOR,
                               .group_rows = group,
                               .group_k = group};
}

/* Quantized rows, with scales from the data (dynamic) or given; only those may be one for all. */
static inline struct moe_recipe op_draw_rows_recipe(struct support_random *random, bool is_dynamic)
{
    static const int32_t layouts[] = {MOE_SCALE_ROW_MAJOR, MOE_SCALE_COLUMN_MAJOR_TMA,
                                      MOE_SCALE_UE8M0_PACKED};
    const int32_t layout = layouts[support_random_below(random, OP_COUNT(layouts))];
    struct moe_recipe recipe = {.dtype = MOE_DTYPE_FP8_E4M3,
                                .scale_dtype = layout == MOE_SCALE_UE8M0_PACKED ? MOE_DTYPE_UE8M0
                                                                                : MOE_DTYPE_FP32,
                                .scale_layout = layout,
                                .group_rows = 1,
                                .group_k = support_random_below(random, 2) == 0 ? 0 : OP_FP8_BLOCK,
                                .dynamic = is_dynamic};
    if (!is_dynamic && layout == MOE_SCALE_ROW_MAJOR && support_random_below(random, 2) == 0) {
        recipe.group_rows = recipe.group_k = 0;
    }
    return recipe;
}

/*
 * Makes some operands of a problem fp8, of the combinations that run: weights only, weights and
 * rows with the tokens plain, tokens that come quantized, and the second weights only. Layers and
 * experts have no argument for given scales of the intermediate, so those are dynamic.
 */
static inline void op_draw_fp8(struct support_random *random, struct moe_problem *problem)
{
    enum { WEIGHTS_ONLY, PLAIN_TOKENS, FP8_TOKENS, SECOND_ONLY, NUM_KINDS };
    const uint64_t kind = support_random_below(random, NUM_KINDS);
    const bool coin = support_random_below(random, 2) == 0;
    const struct moe_recipe plain = problem->down;
    const struct moe_recipe rows = op_draw_rows_recipe(random, true);
    problem->gate_up = kind == SECOND_ONLY ? problem->gate_up : op_draw_weights_recipe(random);
    problem->down = op_draw_weights_recipe(random);
    if (kind == WEIGHTS_ONLY) {
        problem->down = coin ? problem->down : plain;
    } else if (kind == PLAIN_TOKENS || (kind == SECOND_ONLY && coin)) {
        problem->intermediate = rows;
    } else if (kind == FP8_TOKENS) {
        const uint64_t intermediate = support_random_below(random, 3);
        problem->tokens = op_draw_rows_recipe(random, coin);
        if (intermediate == 0) {
            problem->intermediate = rows;
        } else if (intermediate == 1 && problem->tokens.group_rows == 1) {
            problem->intermediate = (struct moe_recipe){0};
        } else {
            problem->down = coin ? problem->down : plain;
        }
        problem->flags &= ~MOE_PROBLEM_SHARED_SIGMOID;
    }
}

#endif
