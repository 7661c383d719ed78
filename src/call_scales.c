/* SPDX-License-Identifier: Apache-2.0 */
#include "call_scales.h"

#include "status.h"

int32_t moe_call_read_scales(const char *op, struct moe_call_scales *scales,
                             struct moe_op_scales *out, struct moe_error *error)
{
    const struct moe_recipe *recipe = scales->recipe;
    if (!moe_recipe_is_fp8(recipe)) {
        *out = (struct moe_op_scales){.base = NULL};
        if (scales->base == NULL && scales->stride == 0) {
            return MOE_STATUS_OK;
        }
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: input_scales or input_scale_stride is set, but %s is of type %s; "
                             "leave both zero",
                             op, scales->rows_name, moe_dtype_name(recipe->dtype));
    }
    MOE_TRY(moe_call_check_array(op, "input_scales", scales->base, sizeof(float), scales->num_rows,
                                 error));
    const int64_t packed = moe_recipe_packed_stride(recipe, scales->num_rows, scales->width);
    const bool by_rows = recipe->scale_layout == MOE_SCALE_ROW_MAJOR;
    const int64_t least = by_rows ? packed : scales->num_rows;
    if (scales->stride == 0) {
        scales->stride = packed;
    }
    if (scales->stride < least || scales->stride > INT64_MAX / 16 / INT32_MAX) {
        return moe_error_set(error, MOE_STATUS_INVALID_ARGUMENT,
                             "%s: input_scale_stride is %lld; %s have %lld, and 0 stands for %lld",
                             op, (long long)scales->stride,
                             by_rows ? "the scales of a row" : "the rows of a group",
                             (long long)least, (long long)packed);
    }
    *out = moe_recipe_scales(recipe, scales->base, scales->width, scales->stride);
    return MOE_STATUS_OK;
}

struct moe_call_tensor moe_call_scales_tensor(const struct moe_call_scales *scales)
{
    const int64_t bytes = moe_recipe_is_fp8(scales->recipe)
                              ? moe_recipe_scale_bytes(scales->recipe, scales->num_rows,
                                                       scales->width, scales->stride)
                              : 0;
    return moe_call_array("input_scales", scales->base, bytes, 1);
}
