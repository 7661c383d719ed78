/* SPDX-License-Identifier: Apache-2.0 */
/* The layers that swap-demo serves: problems of several sizes and types with random weights, tokens
 * to ask about, and what each of the two plugins answers. Host memory only. */
#ifndef MOE_SWAP_LAYERS_H
#define MOE_SWAP_LAYERS_H

#include "cli_error.h"
#include "moe_loader.h"

#include <stddef.h>
#include <stdint.h>

enum {
    MOE_SWAP_NUM_PLUGINS = 2,
    MOE_SWAP_NUM_LAYERS = 3,
    MOE_SWAP_NUM_TOKENS = 192, /* per layer; a request asks about some in a row */
    MOE_SWAP_WORKSPACE_BYTES = 4 << 20,
    MOE_SWAP_WORKSPACE_ALIGNMENT = 256
};

struct moe_swap_layer {
    struct moe_problem problem;
    struct moe_weights_desc weights;
    struct moe_loader_slot *slot;                 /* the session's */
    size_t row_bytes;                             /* of a token, and of an output */
    unsigned char *tokens;                        /* [MOE_SWAP_NUM_TOKENS, hidden] */
    unsigned char *answers[MOE_SWAP_NUM_PLUGINS]; /* [MOE_SWAP_NUM_TOKENS, hidden] by plugin */
    void *elements[4];                            /* of the weights */
};

/* Makes all layers; the answers are filled by the caller. The same numbers every time. Returns 0,
 * or -1 with a sentence; finish the layers either way. */
int moe_swap_layers_init(struct moe_swap_layer layers[MOE_SWAP_NUM_LAYERS],
                         struct moe_cli_error *error);
/* Frees everything but the slots. Zeroed layers are allowed. */
void moe_swap_layers_finish(struct moe_swap_layer layers[MOE_SWAP_NUM_LAYERS]);

/* Bytes of the largest output of a request. */
size_t moe_swap_layers_output_bytes(const struct moe_swap_layer layers[MOE_SWAP_NUM_LAYERS]);

/* 1 when `output` has the bits that `plugin` answers for num_tokens tokens from first_token on. A
 * token's bits do not depend on the batch around it (determinism level 0 of the ABI). */
int moe_swap_layer_is_answer(const struct moe_swap_layer *layer, int plugin, int64_t first_token,
                             int64_t num_tokens, const void *output);

#endif
