/* SPDX-License-Identifier: Apache-2.0 */
/* What the measured calls work on: a plan, weights, and memory for inputs and outputs that calls
 * walk through in turn, so that a call does not find in a cache what the one before left there. */
#ifndef MOE_BENCH_DATA_H
#define MOE_BENCH_DATA_H

#include <stdint.h>

#include "bench_memory.h"
#include "bench_options.h"
#include "bench_place.h"
#include "bench_routing.h"
#include "bench_weights.h"
#include "plugin_host.h"

struct moe_bench_case;

struct moe_bench_data {
    const struct moe_plugin_api *api;
    const struct moe_problem *problem; /* with all dtypes and num_experts_global set */
    struct moe_plan *plan;
    struct moe_plan_info plan_info;
    struct moe_bench_place place;
    void *stream;          /* of calls; NULL: none is needed */
    uint64_t cache_bytes;  /* of the last level */
    uint64_t cold_bytes;   /* that inputs, and outputs, are rotated through at least */
    uint64_t weight_bytes; /* that calls are rotated through at least, if memory allows */
    struct moe_bench_weights weights; /* no copies when no operation needs them */
    struct moe_bench_memory inputs;   /* of tokens.dtype */
    struct moe_bench_memory logits;   /* of logits_dtype */
    struct moe_bench_memory outputs;
    struct moe_bench_memory workspace;
    struct moe_bench_memory correction_bias; /* fp32 [num_experts_global]; none: bytes is NULL */
};

/* Makes the plan for the operations in `ops`, which the plugin supports. Then moe_bench_data_fill.
 * Returns 0, or -1 with a sentence; finish either way. */
int moe_bench_data_init(struct moe_bench_data *data, const struct moe_plugin_host *host,
                        const struct moe_bench_options *options, uint64_t ops,
                        const struct moe_bench_place *place, struct moe_cli_error *error);

/* Takes and fills memory for these cases. Returns 0, or -1 with a sentence: there may be too little
 * memory. */
int moe_bench_data_fill(struct moe_bench_data *data, const struct moe_plugin_host *host,
                        const struct moe_bench_case *cases, size_t num_cases, uint64_t seed,
                        struct moe_cli_error *error);

/* Before the host is finished. A zeroed struct is legal. */
void moe_bench_data_finish(struct moe_bench_data *data);

#endif
