/* SPDX-License-Identifier: Apache-2.0 */
/* The arguments input_scales and input_scale_stride of calls whose rows may be fp8. */
#ifndef MOE_CALL_SCALES_H
#define MOE_CALL_SCALES_H

#include "call_check.h"
#include "recipe.h"

/* Scales of a call's rows as its argument struct has them. */
struct moe_call_scales {
    const char *rows_name;           /* what they belong to: "tokens", "rows", "input" */
    const struct moe_recipe *recipe; /* of the rows */
    const void *base;                /* input_scales */
    int64_t stride;                  /* input_scale_stride; final after reading */
    int64_t num_rows;
    int64_t width; /* columns of a row */
};

/* Check them, resolve the stride, fill what a GEMM takes. Plain rows: both members must be zero. */
int32_t moe_call_read_scales(const char *op, struct moe_call_scales *scales,
                             struct moe_op_scales *out, struct moe_error *error);

/* For overlap checks, after reading. */
struct moe_call_tensor moe_call_scales_tensor(const struct moe_call_scales *scales);

#endif
