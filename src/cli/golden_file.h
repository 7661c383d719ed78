/* SPDX-License-Identifier: Apache-2.0 */
/* Reads a golden.safetensors: the input of a layer, and what another implementation computed from
 * it. */
#ifndef MOE_GOLDEN_FILE_H
#define MOE_GOLDEN_FILE_H

#include <stdint.h>

#include "cli_error.h"
#include "moe_plugin.h"
#include "safetensors.h"

/* Tensors that results are compared with. X(constant, name, last dimension as a member of
 * moe_problem, what it is). The first dimension of each is the number of tokens. */
#define MOE_GOLDEN_KINDS(X)                                                       \
    X(MOE_GOLDEN_ROUTER_LOGITS, "router_logits", num_experts,                     \
      "output of the router, before any score function")                          \
    X(MOE_GOLDEN_TOPK_IDS, "topk_ids", top_k, "chosen experts")                   \
    X(MOE_GOLDEN_TOPK_WEIGHTS, "topk_weights", top_k, "their weights")            \
    X(MOE_GOLDEN_EXPERTS_OUTPUT, "experts_output", hidden, "routed experts only") \
    X(MOE_GOLDEN_BLOCK_OUTPUT, "block_output", hidden, "with shared experts")
enum moe_golden_kind {
#define MOE_GOLDEN_CONSTANT(constant, name, width, text) constant,
    MOE_GOLDEN_KINDS(MOE_GOLDEN_CONSTANT)
#undef MOE_GOLDEN_CONSTANT
        MOE_GOLDEN_NUM_KINDS
};

struct moe_golden_file {
    struct moe_safetensors *file;
    int64_t num_tokens;
    const struct moe_safetensors_tensor *hidden_states;                 /* [T, H] */
    const struct moe_safetensors_tensor *tensors[MOE_GOLDEN_NUM_KINDS]; /* NULL: not in the file */
};

/* Opens a file for a layer with this problem, and checks types and shapes. Returns 0, or -1 with a
 * sentence: also for a tensor that this list does not have, or when there is nothing to compare. */
int moe_golden_file_open(const char *path, const struct moe_problem *problem,
                         struct moe_golden_file *golden, struct moe_cli_error *error);

/* A zeroed struct is allowed. */
void moe_golden_file_close(struct moe_golden_file *golden);

const char *moe_golden_kind_name(enum moe_golden_kind kind);

/* Element `idx` of a floating-point tensor, and of topk_ids. */
float moe_golden_file_load(const struct moe_safetensors_tensor *tensor, int64_t idx);
int64_t moe_golden_file_load_id(const struct moe_safetensors_tensor *tensor, int64_t idx);

#endif
