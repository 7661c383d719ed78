/* SPDX-License-Identifier: Apache-2.0 */
#include "recipe.h"

#include "problem.h"
#include "status.h"

#include <string.h>

enum {
    GROUP_COLUMNS = 128, /* of a block of scales, in rows and in columns */
    TMA_ROWS = 4,        /* rows of column-major scales are padded to this */
};

bool moe_recipe_is_fp8(const struct moe_recipe *recipe)
{
    return recipe->dtype == MOE_DTYPE_FP8_E4M3;
}

bool moe_recipe_is_plain(const struct moe_recipe *recipe)
{
    const struct moe_recipe plain = {.dtype = recipe->dtype};
    const bool known = recipe->dtype == 0 || recipe->dtype == MOE_DTYPE_FP32 ||
                       recipe->dtype == MOE_DTYPE_FP16 || recipe->dtype == MOE_DTYPE_BF16;
    return known && memcmp(&plain, recipe, sizeof(plain)) == 0;
}

/* What activations and weights have in common. */
static int32_t check_fp8(const char *name, const struct moe_recipe *recipe, struct moe_error *error)
{
    if (recipe->zero_point != 0 || recipe->packing != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "problem.%s has zero_point %d and packing %d; fp8_e4m3 has neither",
                             name, recipe->zero_point, recipe->packing);
    }
    if (recipe->scale_dtype != MOE_DTYPE_FP32 && recipe->scale_dtype != MOE_DTYPE_UE8M0) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "problem.%s is fp8_e4m3 with scale_dtype %s; scales are fp32, or ue8m0 of rows", name,
            recipe->scale_dtype == 0 ? "0" : moe_dtype_name(recipe->scale_dtype));
    }
    return MOE_STATUS_OK;
}

/* tokens and intermediate. */
static int32_t check_rows(const char *name, const struct moe_recipe *recipe,
                          struct moe_error *error)
{
    if (!moe_recipe_is_fp8(recipe)) {
        return MOE_STATUS_OK;
    }
    MOE_TRY(check_fp8(name, recipe, error));
    const bool is_packed = recipe->scale_layout == MOE_SCALE_UE8M0_PACKED;
    const bool is_fp32 = recipe->scale_layout == MOE_SCALE_ROW_MAJOR ||
                         recipe->scale_layout == MOE_SCALE_COLUMN_MAJOR_TMA;
    if (recipe->scale_dtype == MOE_DTYPE_UE8M0 ? !is_packed : !is_fp32) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "problem.%s has scale_layout %d with scale_dtype %s; fp32 scales lie "
                             "row_major (%d) or column_major_tma (%d), ue8m0 ones ue8m0_packed "
                             "(%d)",
                             name, recipe->scale_layout, moe_dtype_name(recipe->scale_dtype),
                             MOE_SCALE_ROW_MAJOR, MOE_SCALE_COLUMN_MAJOR_TMA,
                             MOE_SCALE_UE8M0_PACKED);
    }
    const bool per_tensor = recipe->group_rows == 0 && recipe->group_k == 0;
    const bool per_row =
        recipe->group_rows == 1 && (recipe->group_k == 0 || recipe->group_k == GROUP_COLUMNS);
    if (!per_tensor && !per_row) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "problem.%s has group_rows %d and group_k %d; implemented are 0 and 0 "
                             "(one scale), 1 and 0 (per row), 1 and %d",
                             name, recipe->group_rows, recipe->group_k, GROUP_COLUMNS);
    }
    if ((recipe->dynamic != 0 && recipe->dynamic != 1) ||
        (per_tensor && (recipe->dynamic != 0 || recipe->scale_layout != MOE_SCALE_ROW_MAJOR))) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "problem.%s has dynamic %d and scale_layout %d; dynamic is 0 or 1, "
                             "and one scale for all rows is static and row_major",
                             name, recipe->dynamic, recipe->scale_layout);
    }
    return MOE_STATUS_OK;
}

/* gate_up and down. */
static int32_t check_weights(const char *name, const struct moe_recipe *recipe,
                             struct moe_error *error)
{
    if (!moe_recipe_is_fp8(recipe)) {
        return MOE_STATUS_OK;
    }
    MOE_TRY(check_fp8(name, recipe, error));
    if (recipe->scale_dtype != MOE_DTYPE_FP32 || recipe->scale_layout != MOE_SCALE_ROW_MAJOR ||
        recipe->dynamic != 0) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "problem.%s has scales of type %s, layout %d, dynamic %d; weights "
                             "have static fp32 scales, row_major (%d), placed by the strides of "
                             "their operand",
                             name, moe_dtype_name(recipe->scale_dtype), recipe->scale_layout,
                             recipe->dynamic, MOE_SCALE_ROW_MAJOR);
    }
    if (recipe->group_rows != recipe->group_k ||
        (recipe->group_k != 0 && recipe->group_k != GROUP_COLUMNS)) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "problem.%s has group_rows %d and group_k %d; implemented are 0 and 0 "
                             "(per tensor or per expert) and %d and %d",
                             name, recipe->group_rows, recipe->group_k, GROUP_COLUMNS,
                             GROUP_COLUMNS);
    }
    return MOE_STATUS_OK;
}

/* Rows of a GEMM and its weights. */
static int32_t check_pair(const char *rows_name, const struct moe_recipe *rows,
                          const char *weights_name, const struct moe_recipe *weights,
                          struct moe_error *error)
{
    if (!moe_recipe_is_fp8(rows) || moe_recipe_is_fp8(weights)) {
        return MOE_STATUS_OK;
    }
    return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                         "problem.%s is fp8_e4m3, but problem.%s is %s: fp8 rows meet fp8 weights",
                         rows_name, weights_name, moe_dtype_name(weights->dtype));
}

int32_t moe_recipe_check(const struct moe_problem *problem, uint64_t ops, struct moe_error *error)
{
    const uint64_t gemm1 = MOE_OP_BIT(MOE_OP_GEMM1), gemm2 = MOE_OP_BIT(MOE_OP_GEMM2);
    const uint64_t reduces = MOE_OP_BIT(MOE_OP_POST_REORDER) | MOE_OP_BIT(MOE_OP_SUM_REDUCE);
    const uint64_t chains = MOE_OP_BIT(MOE_OP_EXPERTS) | MOE_OP_BIT(MOE_OP_LAYER);
    MOE_TRY(check_rows("tokens", &problem->tokens, error));
    MOE_TRY(check_rows("intermediate", &problem->intermediate, error));
    /* The activation's input is of the output's type where tokens are fp8. */
    const bool activates =
        (ops & MOE_OP_BIT(MOE_OP_ACTIVATION)) != 0 && moe_recipe_is_fp8(&problem->tokens);
    if (((ops & (gemm1 | gemm2 | reduces)) != 0 || activates) &&
        problem->output_dtype == MOE_DTYPE_FP8_E4M3) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "problem.output_dtype is fp8_e4m3 (0 takes the type of tokens); set "
                             "it to fp32, fp16 or bf16");
    }
    if ((ops & gemm1) != 0) {
        MOE_TRY(check_weights("gate_up", &problem->gate_up, error));
        MOE_TRY(check_pair("tokens", &problem->tokens, "gate_up", &problem->gate_up, error));
    }
    if ((ops & gemm2) != 0) {
        MOE_TRY(check_weights("down", &problem->down, error));
        MOE_TRY(check_pair("intermediate", &problem->intermediate, "down", &problem->down, error));
    }
    if ((ops & chains) != 0 && moe_recipe_is_fp8(&problem->intermediate) &&
        problem->intermediate.dynamic == 0) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "problem.intermediate has static scales, which experts and layer have "
                             "no argument for; set dynamic to 1, or chain grouped_gemm and "
                             "activation");
    }
    if ((ops & MOE_OP_BIT(MOE_OP_LAYER)) != 0 && moe_recipe_is_fp8(&problem->tokens) &&
        (problem->flags & MOE_PROBLEM_SHARED_SIGMOID) != 0) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "MOE_PROBLEM_SHARED_SIGMOID reads the tokens, which are fp8_e4m3 "
                             "here; give plain tokens and an fp8 intermediate, and the layer "
                             "quantizes them");
    }
    return MOE_STATUS_OK;
}

bool moe_recipe_quantizes_tokens(const struct moe_problem *problem)
{
    return !moe_recipe_is_fp8(&problem->tokens) && moe_recipe_is_fp8(&problem->gate_up) &&
           moe_recipe_is_fp8(&problem->intermediate);
}

const struct moe_recipe *moe_recipe_gemm1_rows(const struct moe_problem *problem)
{
    return moe_recipe_quantizes_tokens(problem) ? &problem->intermediate : &problem->tokens;
}

int64_t moe_recipe_num_groups(const struct moe_recipe *recipe, int64_t width)
{
    return recipe->group_k == 0 ? 1 : (width + recipe->group_k - 1) / recipe->group_k;
}

int64_t moe_recipe_packed_stride(const struct moe_recipe *recipe, int64_t num_rows, int64_t width)
{
    return recipe->scale_layout == MOE_SCALE_ROW_MAJOR
               ? moe_recipe_num_groups(recipe, width)
               : (num_rows + TMA_ROWS - 1) / TMA_ROWS * TMA_ROWS;
}

int64_t moe_recipe_scale_bytes(const struct moe_recipe *recipe, int64_t num_rows, int64_t width,
                               int64_t stride)
{
    const int64_t groups = moe_recipe_num_groups(recipe, width);
    int64_t lines = recipe->group_rows == 0 ? 1 : num_rows, width_of_line = groups;
    if (recipe->scale_layout != MOE_SCALE_ROW_MAJOR) {
        lines = recipe->scale_layout == MOE_SCALE_UE8M0_PACKED ? (groups + 3) / 4 : groups;
        width_of_line = num_rows;
    }
    return num_rows == 0 ? 0 : ((lines - 1) * stride + width_of_line) * (int64_t)sizeof(float);
}

int64_t moe_recipe_scale_offset(const struct moe_recipe *recipe, int64_t row, int64_t stride)
{
    if (recipe->group_rows == 0) {
        return 0;
    }
    return (recipe->scale_layout == MOE_SCALE_ROW_MAJOR ? row * stride : row) *
           (int64_t)sizeof(float);
}

struct moe_op_scales moe_recipe_scales(const struct moe_recipe *recipe, const void *base,
                                       int64_t width, int64_t stride)
{
    struct moe_op_scales scales = {.base = NULL};
    if (moe_recipe_is_fp8(recipe)) {
        scales.base = base;
        scales.scale_layout = recipe->scale_layout;
        scales.group_k = recipe->group_k != 0 ? recipe->group_k : (int32_t)width;
        scales.per_row = recipe->group_rows == 1;
        scales.stride = stride;
    }
    return scales;
}

void moe_recipe_weight_groups(const struct moe_recipe *recipe, struct moe_op_gemm *gemm)
{
    gemm->weight_group_rows = recipe->group_rows != 0 ? recipe->group_rows : gemm->n;
    gemm->weight_group_k = recipe->group_k != 0 ? recipe->group_k : gemm->k;
}
