/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of a layer that one rank holds under tensor and expert parallelism: a problem of its
 * own, and operands that point into the whole layer's. No weight is copied.
 */
#ifndef MOE_RANK_SHARE_H
#define MOE_RANK_SHARE_H

#include <stdint.h>

#include "checkpoint_layer.h"
#include "cli_error.h"
#include "moe_plugin.h"

/* Ranks are numbered ep_idx * tp + tp_idx. */
struct moe_rank_split {
    int64_t tp; /* each holds inter / tp channels of its experts, and of the shared expert */
    int64_t ep; /* each holds a contiguous range of experts */
};

enum { MOE_RANK_SHARE_MAX_TABLES = 9 }; /* gate, up, down, their biases and scales */

struct moe_rank_share {
    struct moe_problem problem;
    struct moe_weights_desc weights;
    struct moe_route_filter filter; /* the experts that are held */
    const void **tables[MOE_RANK_SHARE_MAX_TABLES];
    int num_tables;
};

/* Checks that the layer can be split so: inter and shared_inter divide by tp (into whole groups of
 * scales where weights have them), and ep is at most the number of experts. Returns 0, or -1 with a
 * sentence. */
int moe_rank_split_check(const struct moe_problem *problem, const struct moe_rank_split *split,
                         struct moe_cli_error *error);

/* The problem of rank `rank_idx`, but for max_tokens, and the experts that it holds. The split has
 * been checked. */
void moe_rank_split_take(const struct moe_problem *whole, const struct moe_rank_split *split,
                         int64_t rank_idx, struct moe_problem *problem,
                         struct moe_route_filter *filter);

/*
 * The share of rank `rank_idx` of `layer`, which must outlive it. The bias of down is added by the
 * first TP rank of an expert only; the shared expert belongs to the TP ranks of the first EP rank;
 * every rank holds the whole router. with_shared 0: routed experts only. Returns 0 and a share for
 * the caller to finish, or -1 with a sentence (out of memory).
 */
int moe_rank_share_init(const struct moe_checkpoint_layer *layer,
                        const struct moe_rank_split *split, int64_t rank_idx, int with_shared,
                        struct moe_rank_share *share, struct moe_cli_error *error);

/* A zeroed struct is allowed. */
void moe_rank_share_finish(struct moe_rank_share *share);

#endif
