/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the four recipes of a problem mean for its GEMMs.
 *
 *   tokens  gate_up  intermediate   GEMM1
 *   plain   plain    plain          plain
 *   fp8     fp8      any            fp8 rows (given with their scales) meet fp8 weights
 *   plain   fp8      fp8            the same, and layer and experts quantize their tokens first, by
 *                                   the intermediate's recipe
 *   plain   fp8      plain          weight-only: as fp8 rows with scales of 1
 *
 * GEMM2 likewise, with the intermediate as its rows and down as its weights. fp8 rows and plain
 * weights are refused.
 */
#ifndef MOE_RECIPE_H
#define MOE_RECIPE_H

#include "moe_plugin.h"
#include "ops.h"

#include <stdbool.h>

bool moe_recipe_is_fp8(const struct moe_recipe *recipe);

/* All but dtype zero, and dtype fp32, fp16, bf16 or 0. */
bool moe_recipe_is_plain(const struct moe_recipe *recipe);

/* Are recipes that the operations `ops` (expanded) use whole in themselves and with each other?
 * Types other than fp32, fp16, bf16 and fp8 pass: backends refuse them. INVALID_ARGUMENT,
 * UNSUPPORTED. */
int32_t moe_recipe_check(const struct moe_problem *problem, uint64_t ops, struct moe_error *error);

/* Do layer and experts quantize plain tokens for GEMM1? */
bool moe_recipe_quantizes_tokens(const struct moe_problem *problem);

/* Recipe of GEMM1's rows when they meet the weights: tokens' or intermediate's. */
const struct moe_recipe *moe_recipe_gemm1_rows(const struct moe_problem *problem);

/* Scales of rows of `width` columns: groups of a row; stride of packed rows; bytes of `num_rows`
 * rows with a stride, in the layout of the recipe. */
int64_t moe_recipe_num_groups(const struct moe_recipe *recipe, int64_t width);
int64_t moe_recipe_packed_stride(const struct moe_recipe *recipe, int64_t num_rows, int64_t width);
int64_t moe_recipe_scale_bytes(const struct moe_recipe *recipe, int64_t num_rows, int64_t width,
                               int64_t stride);

/* Bytes from the scales of a row to those of row `row`. */
int64_t moe_recipe_scale_offset(const struct moe_recipe *recipe, int64_t row, int64_t stride);

/* Scales at `base` as a GEMM's argument; `stride` is final. Plain recipes: none. */
struct moe_op_scales moe_recipe_scales(const struct moe_recipe *recipe, const void *base,
                                       int64_t width, int64_t stride);

/* Groups of a weight's scales; `n` and `k` where one scale covers all. */
void moe_recipe_weight_groups(const struct moe_recipe *recipe, struct moe_op_gemm *gemm);

#endif
