/* SPDX-License-Identifier: Apache-2.0 */
/* Compares what a layer computed with a golden file. */
#ifndef MOE_GOLDEN_CHECK_H
#define MOE_GOLDEN_CHECK_H

#include <stdint.h>

#include "checkpoint_layer.h"
#include "cli_error.h"
#include "golden_file.h"
#include "layer_run.h"

/* Largest relative error (L2 norm of the difference, by the L2 norm of what is expected) that
 * counts as right: one percent, twice what bf16 intermediates of the golden outputs cost. */
#define MOE_GOLDEN_CHECK_BOUND 1e-2

/* The same for outputs of experts whose rows are quantized to fp8, while the golden ones need not
 * be: e4m3 rounds by 2.4 percent (root mean square: 2^-3 / sqrt(12) of a power of two, which is
 * sqrt(3 / 7) of a number on average), before GEMM1 and before GEMM2: 3.4 percent. */
#define MOE_GOLDEN_CHECK_FP8_BOUND 5e-2

/* How far a tensor is off. */
struct moe_golden_check_tensor {
    int is_present; /* in the golden file, to compare with */
    int is_given;   /* routing that the layer took from the file */
    int is_right;
    double rel_l2;             /* over all compared tokens */
    double worst_token_rel_l2; /* of one token */
    int64_t worst_token;
};

/* topk_ids, compared as sets. A token whose scores leave no doubt has to have the same experts; at
 * a near tie (struct moe_golden_check_routing.num_near_ties) they may differ in the experts on the
 * border. */
struct moe_golden_check_routing {
    int64_t num_near_ties;
    int64_t
        num_differences; /* near ties that came out differently; their outputs are not compared */
    int64_t num_wrong;   /* tokens with an expert that no rounding explains */
    int64_t first_wrong; /* token; -1: none */
    char expected[160];  /* ids of the first wrong token */
    char computed[160];
};

struct moe_golden_check {
    struct moe_golden_check_tensor tensors[MOE_GOLDEN_NUM_KINDS];
    struct moe_golden_check_routing routing;
    double output_bound; /* of experts_output and block_output */
    int64_t num_tokens;  /* compared */
    int is_right;        /* all of it */
};

/* Compares the first num_tokens tokens. Returns 0, also when something is wrong, or -1 with a
 * sentence when there is no memory. */
int moe_golden_check_compare(const struct moe_golden_file *golden,
                             const struct moe_checkpoint_layer *layer, int64_t num_tokens,
                             const struct moe_layer_run_result *result,
                             struct moe_golden_check *check, struct moe_cli_error *error);

#endif
