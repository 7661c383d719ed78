/* SPDX-License-Identifier: Apache-2.0 */
/* From a recipe and the scales that a call brings to how its kernel quantizes rows. */
#ifndef MOE_CALL_QUANT_H
#define MOE_CALL_QUANT_H

#include "call_check.h"

/* What a call says about the quantization of the rows that it writes. */
struct moe_call_quant {
    const char *recipe_name; /* how the recipe is called in messages */
    struct moe_recipe recipe;
    int64_t width;    /* columns of a row */
    int64_t num_rows; /* rows that may get dynamic scales */
    const float *input_scales;
    int64_t num_static_rows; /* elements of input_scales with group_rows 1 */
    int32_t num_experts;     /* elements of input_scales where they belong to experts; else 0 */
    int32_t reserved;
    void *output_scales;
    int64_t output_scale_stride;
};

/* Nothing is quantized: scales must be absent. INVALID_ARGUMENT. */
int32_t moe_call_refuse_scales(const char *op, const struct moe_call_quant *quant,
                               struct moe_error *error);

/*
 * Check recipe and scales, and resolve defaults: groups no wider than the row, the final stride.
 * UNSUPPORTED for types other than fp8_e4m3 and groups of several rows; INVALID_ARGUMENT for
 * recipes and scales that do not go together.
 */
int32_t moe_call_resolve_quant(const char *op, const struct moe_plan *plan,
                               const struct moe_call_quant *quant, struct moe_op_quant *out,
                               struct moe_error *error);

/* Adds the scales that the call reads or writes. */
void moe_call_add_scales(const struct moe_call_quant *quant, const struct moe_op_quant *resolved,
                         struct moe_call_tensors *tensors);

#endif
