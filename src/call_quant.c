/* SPDX-License-Identifier: Apache-2.0 */
#include "call_quant.h"

#include "recipe.h"
#include "status.h"

int32_t moe_call_refuse_scales(const char *op, const struct moe_call_quant *quant,
                               struct moe_error *error)
{
    const char *name = quant->input_scales != NULL       ? "input_scales"
                       : quant->output_scales != NULL    ? "output_scales"
                       : quant->output_scale_stride != 0 ? "output_scale_stride"
                                                         : NULL;
    if (name == NULL) {
        return MOE_STATUS_OK;
    }
    return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                         "%s: %s is given, but the output is not quantized; leave it 0, or give a "
                         "recipe with dtype fp8_e4m3",
                         op, name);
}

/* What static and dynamic scales have in common. */
static int32_t check_elements(const char *op, const struct moe_call_quant *quant,
                              struct moe_error *error)
{
    const struct moe_recipe *recipe = &quant->recipe;
    const char *name = quant->recipe_name;
    if (!moe_recipe_is_fp8(recipe)) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "%s: %s.dtype is %s (%d); rows are quantized to fp8_e4m3 (%d)", op,
                             name, moe_dtype_name(recipe->dtype), recipe->dtype,
                             MOE_DTYPE_FP8_E4M3);
    }
    if (recipe->zero_point != 0 || recipe->packing != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: %s has zero_point %d and packing %d; fp8_e4m3 has neither", op,
                             name, recipe->zero_point, recipe->packing);
    }
    if ((recipe->dynamic != 0 && recipe->dynamic != 1) || recipe->group_k < 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: %s has dynamic %d and group_k %d; dynamic is 0 or 1, and group_k "
                             "at least 0",
                             op, name, recipe->dynamic, recipe->group_k);
    }
    if (recipe->group_rows != 1 && (recipe->group_rows != 0 || recipe->dynamic)) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "%s: %s.group_rows is %d; implemented are 1, and with static scales 0",
                             op, name, recipe->group_rows);
    }
    return MOE_STATUS_OK;
}

static int32_t check_dynamic(const char *op, const struct moe_call_quant *quant,
                             struct moe_error *error)
{
    const struct moe_recipe *recipe = &quant->recipe;
    const bool is_packed = recipe->scale_layout == MOE_SCALE_UE8M0_PACKED;
    const bool is_fp32 = recipe->scale_layout == MOE_SCALE_ROW_MAJOR ||
                         recipe->scale_layout == MOE_SCALE_COLUMN_MAJOR_TMA;
    if (!(recipe->scale_dtype == MOE_DTYPE_FP32 && is_fp32) &&
        !(recipe->scale_dtype == MOE_DTYPE_UE8M0 && is_packed)) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: %s has scale_dtype %d and scale_layout %d; dynamic scales are "
                             "fp32 (%d) and row_major (%d) or column_major_tma (%d), or ue8m0 (%d) "
                             "and ue8m0_packed (%d)",
                             op, quant->recipe_name, recipe->scale_dtype, recipe->scale_layout,
                             MOE_DTYPE_FP32, MOE_SCALE_ROW_MAJOR, MOE_SCALE_COLUMN_MAJOR_TMA,
                             MOE_DTYPE_UE8M0, MOE_SCALE_UE8M0_PACKED);
    }
    if (quant->input_scales != NULL || quant->num_experts != 0) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "%s: %s is dynamic, so scales follow from the data; leave input_scales "
            "and topk_ids NULL",
            op, quant->recipe_name);
    }
    return moe_call_check_array(op, "output_scales", quant->output_scales, sizeof(float),
                                quant->num_rows, error);
}

static int32_t check_static(const char *op, const struct moe_call_quant *quant,
                            struct moe_error *error)
{
    const struct moe_recipe *recipe = &quant->recipe;
    if (recipe->scale_dtype != MOE_DTYPE_FP32 || recipe->group_k != 0 ||
        (recipe->scale_layout != MOE_SCALE_NONE && recipe->scale_layout != MOE_SCALE_ROW_MAJOR)) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "%s: %s has scale_dtype %d, scale_layout %d and group_k %d; static "
            "scales are fp32 (%d), none (%d) or row_major (%d), and one covers all "
            "columns (0)",
            op, quant->recipe_name, recipe->scale_dtype, recipe->scale_layout, recipe->group_k,
            MOE_DTYPE_FP32, MOE_SCALE_NONE, MOE_SCALE_ROW_MAJOR);
    }
    if (quant->output_scales != NULL || quant->output_scale_stride != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: %s is static, so no scales are written; leave output_scales and "
                             "output_scale_stride 0",
                             op, quant->recipe_name);
    }
    if (quant->num_experts != 0 && recipe->group_rows != 0) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: topk_ids are given for a scale per expert, but %s.group_rows is "
                             "%d, a scale per token",
                             op, quant->recipe_name, recipe->group_rows);
    }
    const int64_t num_scales =
        recipe->group_rows == 1 ? quant->num_static_rows : quant->num_static_rows > 0;
    return moe_call_check_array(op, "input_scales", quant->input_scales, sizeof(float), num_scales,
                                error);
}

int32_t moe_call_resolve_quant(const char *op, const struct moe_plan *plan,
                               const struct moe_call_quant *quant, struct moe_op_quant *out,
                               struct moe_error *error)
{
    const struct moe_recipe *recipe = &quant->recipe;
    MOE_TRY(check_elements(op, quant, error));
    if (plan->backend->quantize == NULL) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "%s: the %s backend of this version does not quantize", op,
                             plan->backend->name);
    }
    *out = (struct moe_op_quant){
        .dtype = recipe->dtype,
        .is_dynamic = recipe->dynamic,
        .group_k = recipe->group_k == 0 || recipe->group_k > quant->width ? (int32_t)quant->width
                                                                          : recipe->group_k,
    };
    if (!recipe->dynamic) {
        MOE_TRY(check_static(op, quant, error));
        out->static_scales = quant->input_scales;
        out->static_per = quant->num_experts != 0   ? MOE_QUANT_PER_EXPERT
                          : recipe->group_rows == 1 ? MOE_QUANT_PER_ROW
                                                    : MOE_QUANT_PER_TENSOR;
        return MOE_STATUS_OK;
    }
    MOE_TRY(check_dynamic(op, quant, error));
    out->scale_layout = recipe->scale_layout;
    out->scales = quant->output_scales;
    out->scale_stride = quant->output_scale_stride;
    if (out->scale_stride == 0) {
        out->scale_stride = moe_recipe_packed_stride(recipe, quant->num_rows, quant->width);
    }
    const int64_t least = recipe->scale_layout == MOE_SCALE_ROW_MAJOR
                              ? moe_recipe_num_groups(recipe, quant->width)
                              : quant->num_rows;
    return moe_call_resolve_stride(op, "output_scale_stride", &out->scale_stride, least, error);
}

void moe_call_add_scales(const struct moe_call_quant *quant, const struct moe_op_quant *resolved,
                         struct moe_call_tensors *tensors)
{
    int64_t num_static = 1;
    if (resolved->static_per == MOE_QUANT_PER_ROW) {
        num_static = quant->num_static_rows;
    } else if (resolved->static_per == MOE_QUANT_PER_EXPERT) {
        num_static = quant->num_experts;
    }
    if (resolved->dtype == 0) {
        return;
    }
    if (resolved->is_dynamic) {
        moe_call_add_output(
            tensors, moe_call_array("output_scales", resolved->scales,
                                    moe_recipe_scale_bytes(&quant->recipe, quant->num_rows,
                                                           quant->width, resolved->scale_stride),
                                    1));
    } else {
        moe_call_add_input(tensors, moe_call_array("input_scales", resolved->static_scales,
                                                   num_static, sizeof(float)));
    }
}
