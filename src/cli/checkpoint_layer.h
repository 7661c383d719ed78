/* SPDX-License-Identifier: Apache-2.0 */
/* One MoE layer of a checkpoint, described as the plugin wants it: a problem, and operands that
 * point into the mapped files. No weight is copied or converted; scales and a correction bias are
 * where they are not fp32. fp8 weights meet fp8 activations (problem.intermediate), as servers run
 * them; with an intermediate of zeros they meet tokens as they are. */
#ifndef MOE_CHECKPOINT_LAYER_H
#define MOE_CHECKPOINT_LAYER_H

#include <stdint.h>

#include "cli_error.h"
#include "moe_plugin.h"

struct moe_checkpoint_layer {
    const char *model_type; /* family */
    int64_t layer_idx;
    int64_t num_layers; /* of the model */
    struct moe_problem
        problem; /* the whole layer, not split over ranks; max_tokens is the caller's */
    struct moe_weights_desc weights; /* operands, with their dtypes */
    uint64_t weight_bytes;           /* bytes of all tensors that the operands point to */
    struct moe_checkpoint_layer_memory *memory; /* files and pointer tables behind the operands */
};

/*
 * Opens layer `layer_idx` of the checkpoint in `folder`; -1 means the first MoE layer. Returns 0
 * and fills *layer, which the caller closes (the operands live until then), or -1 with a sentence
 * that names the file and the key or tensor: unknown model type, missing key, dense layer, missing
 * tensor, wrong shape, a type other than F32, F16, BF16 and, with scales, F8_E4M3.
 */
int moe_checkpoint_layer_open(const char *folder, int64_t layer_idx,
                              struct moe_checkpoint_layer *layer, struct moe_cli_error *error);

/* Closes the files. A zeroed struct is allowed. */
void moe_checkpoint_layer_close(struct moe_checkpoint_layer *layer);

/* Reads the problem from config.json alone; no weights need to be there. `layer_idx` as above.
 * `model_type` of *layer is set, weights are absent, and nothing has to be closed. */
int moe_checkpoint_layer_describe(const char *folder, int64_t layer_idx,
                                  struct moe_checkpoint_layer *layer, struct moe_cli_error *error);

#endif
