/* SPDX-License-Identifier: Apache-2.0 */
/* One operation at one number of tokens: what a call moves and computes, and the call itself. */
#ifndef MOE_BENCH_CASE_H
#define MOE_BENCH_CASE_H

#include <stdint.h>

#include "bench_data.h"
#include "bench_limits.h"
#include "bench_routing.h"
#include "bench_samples.h"

/* Block size of align_block_size and of the ids that it makes. */
enum { MOE_BENCH_ALIGN_BLOCK_SIZE = 64 };

struct moe_bench_cost {
    uint64_t input_bytes;  /* of one call's part of data.inputs or data.logits */
    uint64_t output_bytes; /* of one call's part of data.outputs */
    double
        moved_bytes; /* least traffic: operands read once, results written once, weights of active
                        experts only */
    double flops;    /* multiply and add are two; 0 where the operation is none of GEMM's */
};

struct moe_bench_case {
    int32_t op;
    int64_t num_tokens;
    const struct moe_bench_routes *routes; /* of num_tokens */
    struct moe_bench_cost cost;
    uint64_t num_places; /* in the inputs and outputs, that calls take in turn */
    uint64_t num_calls;  /* so far */
    uint64_t calls_per_sample;
    struct moe_bench_samples samples; /* seconds per call */
    struct moe_choice choice;         /* strings live as long as the plan */
};

/* Does the plugin's table have the function of this operation? */
int moe_bench_case_is_offered(const struct moe_plugin_api *api, int32_t op);

int moe_bench_case_uses_weights(int32_t op);

/* Does it read data.logits (and not data.inputs)? */
int moe_bench_case_reads_logits(int32_t op);

/* Which bandwidth bounds the operation from below: that of copying for those that only move
 * rows. */
enum moe_bench_limit moe_bench_case_bandwidth(int32_t op);

/* Fills all but the samples. Returns 0, or -1 with a sentence. */
int moe_bench_case_init(struct moe_bench_case *bench_case, const struct moe_bench_data *data,
                        int32_t op, const struct moe_bench_routes *routes,
                        struct moe_cli_error *error);

/* The next call, on the next place, weights and routes. Returns a status of the plugin. */
int32_t moe_bench_case_call(struct moe_bench_case *bench_case, const struct moe_bench_data *data,
                            struct moe_error *error);

#endif
