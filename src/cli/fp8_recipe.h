/* SPDX-License-Identifier: Apache-2.0 */
/* fp8 e4m3 as checkpoints are published with it (DeepSeek-V3 and those after it): weights with an
 * fp32 scale per block of 128 x 128, activations quantized when they are made, 128 columns at a
 * time. */
#ifndef MOE_FP8_RECIPE_H
#define MOE_FP8_RECIPE_H

#include "moe_plugin.h"

enum { MOE_FP8_BLOCK = 128 }; /* rows and columns that share a scale */

/* Blocks that `num` rows or columns lie in; the last may be smaller. */
int64_t moe_fp8_num_blocks(int64_t num);

struct moe_recipe moe_fp8_weights(void);
struct moe_recipe moe_fp8_rows(void);

#endif
