/* SPDX-License-Identifier: Apache-2.0 */
/* Runs one layer of a checkpoint through the plugin, on one rank or on several, one after the
 * other, whose outputs are summed in fp32 as an all-reduce would. */
#ifndef MOE_LAYER_RUN_H
#define MOE_LAYER_RUN_H

#include <stdint.h>

#include "checkpoint_layer.h"
#include "cli_error.h"
#include "moe_plugin.h"
#include "plugin_host.h"
#include "rank_share.h"

struct moe_layer_run_request {
    const struct moe_checkpoint_layer *layer;
    struct moe_rank_split split;
    int64_t num_tokens;
    const void *tokens; /* [T, H] of the problem's tokens.dtype */
    const int32_t
        *topk_ids; /* [T, k] with topk_weights, where the problem has no gating; or NULL */
    const float *topk_weights;
    int wants_experts_output; /* also routed experts alone, from the ids and weights of the first
                                 run */
};

/* What chose the tile of one operation on rank 0. */
struct moe_layer_run_choice {
    int32_t op;
    int is_rule;
    int64_t min_tokens, max_tokens; /* of the bucket */
    int32_t line;
    char *tile, *rule, *file; /* heap */
};

struct moe_layer_run_result {
    float *logits;         /* [T, E], of rank 0: all ranks run the same router */
    int32_t *topk_ids;     /* [T, k] */
    float *topk_weights;   /* [T, k] */
    float *block_output;   /* [T, H], summed over ranks */
    float *experts_output; /* [T, H], likewise; NULL when it was not asked for */
    struct moe_layer_run_choice choices[MOE_NUM_OPS];
    int num_choices;
    uint64_t workspace_bytes; /* of the rank that needs most */
    double first_s;      /* first call of the slowest rank: it also reads the weights from disk */
    double median_s;     /* later calls of the slowest rank */
    int num_timed_calls; /* per rank */
};

/* Returns 0 and a result for the caller to finish, or -1 with a sentence. */
int moe_layer_run(struct moe_plugin_host *host, const struct moe_layer_run_request *request,
                  struct moe_layer_run_result *result, struct moe_cli_error *error);

/* A zeroed struct is allowed. */
void moe_layer_run_finish(struct moe_layer_run_result *result);

#endif
