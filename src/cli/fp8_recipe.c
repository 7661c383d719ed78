/* SPDX-License-Identifier: Apache-2.0 */
#include "fp8_recipe.h"

int64_t moe_fp8_num_blocks(int64_t num)
{
    return (num + MOE_FP8_BLOCK - 1) / MOE_FP8_BLOCK;
}

struct moe_recipe moe_fp8_weights(void)
{
    return (struct moe_recipe){.dtype = MOE_DTYPE_FP8_E4M3,
                               .scale_dtype = MOE_DTYPE_FP32,
                               .scale_layout = MOE_SCALE_ROW_MAJOR,
                               .group_rows = MOE_FP8_BLOCK,
                               .group_k = MOE_FP8_BLOCK};
}

struct moe_recipe moe_fp8_rows(void)
{
    return (struct moe_recipe){.dtype = MOE_DTYPE_FP8_E4M3,
                               .scale_dtype = MOE_DTYPE_FP32,
                               .scale_layout = MOE_SCALE_ROW_MAJOR,
                               .group_rows = 1,
                               .group_k = MOE_FP8_BLOCK,
                               .dynamic = 1};
}
