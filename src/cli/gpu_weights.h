/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The weights of a layer in the memory of a GPU, laid out as the files have them: what operands
 * share stays shared (gate and up may be halves or every other row of one tensor), and every tensor
 * begins at a multiple of 256 bytes, as allocators of servers have it.
 */
#ifndef MOE_GPU_WEIGHTS_H
#define MOE_GPU_WEIGHTS_H

#include "cli_error.h"
#include "gpu.h"
#include "moe_plugin.h"

enum { MOE_GPU_WEIGHTS_NUM_OPERANDS = 19 }; /* of struct moe_weights_desc */

struct moe_gpu_weights {
    struct moe_gpu *gpu;          /* not owned */
    struct moe_weights_desc desc; /* with addresses of the device; tables are host memory */
    void *memory;
    uint64_t num_bytes;
    const void **tables[MOE_GPU_WEIGHTS_NUM_OPERANDS];
};

/* Sends every operand of `desc`, which `problem` describes. Returns 0, or -1 with a sentence;
 * finish either way. */
int moe_gpu_weights_init(struct moe_gpu_weights *weights, struct moe_gpu *gpu,
                         const struct moe_problem *problem, const struct moe_weights_desc *desc,
                         struct moe_cli_error *error);

/* A zeroed struct is legal. */
void moe_gpu_weights_finish(struct moe_gpu_weights *weights);

#endif
