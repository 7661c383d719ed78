/* SPDX-License-Identifier: Apache-2.0 */
/* Random weights of a layer, in several copies, bound to a context. */
#ifndef MOE_BENCH_WEIGHTS_H
#define MOE_BENCH_WEIGHTS_H

#include <stdint.h>

#include "bench_memory.h"
#include "bench_place.h"
#include "cli_error.h"
#include "moe_plugin.h"

struct moe_bench_weights {
    const struct moe_plugin_api *api;
    int64_t num_copies;
    uint64_t copy_bytes;            /* of one copy */
    struct moe_weights **bound;     /* [num_copies] */
    struct moe_bench_memory memory; /* all copies */
};

/* Bytes of one copy as a checkpoint would hold it. */
uint64_t moe_bench_weights_bytes(const struct moe_problem *problem);

/*
 * Makes and binds `num_copies` copies: matrices stacked over the experts, rows packed, normally
 * distributed with standard deviation 1 / sqrt(columns), every copy with other numbers; fp8 with
 * scales per 128x128, and then in host memory. Returns 0, or -1 with a sentence.
 */
int moe_bench_weights_init(struct moe_bench_weights *weights, const struct moe_plugin_api *api,
                           struct moe_context *context, const struct moe_problem *problem,
                           int64_t num_copies, uint64_t seed, const struct moe_bench_place *place,
                           struct moe_cli_error *error);

/* Before the context is destroyed. A zeroed struct is legal. */
void moe_bench_weights_finish(struct moe_bench_weights *weights);

#endif
