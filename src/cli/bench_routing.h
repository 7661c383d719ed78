/* SPDX-License-Identifier: Apache-2.0 */
/* Routes for benchmarks: ids drawn by a rule, and what an expert-parallel host derives from them by
 * one stable sort. */
#ifndef MOE_BENCH_ROUTING_H
#define MOE_BENCH_ROUTING_H

#include <stdint.h>

#include "bench_place.h"
#include "bench_random.h"
#include "cli_error.h"

enum moe_bench_routing_kind {
    MOE_BENCH_ROUTING_UNIFORM, /* top_k distinct experts, each equally likely */
    MOE_BENCH_ROUTING_ZIPF, /* expert of rank r (ranks are drawn anew for each set) with weight 1 /
                               (r + 1)^exponent */
    MOE_BENCH_ROUTING_HOT /* one expert of the set gets every token, the other slots are uniform */
};

struct moe_bench_routing {
    enum moe_bench_routing_kind kind;
    double exponent;    /* zipf */
    int64_t num_active; /* experts that get a route, exactly; 0: as the rule gives it */
};

/* Reads "uniform", "hot" or "zipf:EXPONENT" into kind and exponent. Returns 0, or -1 with a
 * sentence. */
int moe_bench_routing_parse(const char *text, struct moe_bench_routing *routing,
                            struct moe_cli_error *error);

/* Can num_active be had with this many tokens? Returns 0, or -1 with a sentence that says what
 * can. */
int moe_bench_routing_check(const struct moe_bench_routing *routing, int64_t num_tokens,
                            int64_t top_k, int64_t num_experts, struct moe_cli_error *error);

/* Several independent draws of the routes of one number of tokens. Rows are routes sorted by
 * expert. */
struct moe_bench_routes {
    int64_t num_sets;
    int64_t num_tokens;
    int64_t num_routes; /* num_tokens * top_k */
    double mean_active; /* experts with a route, the mean over the sets */
    int64_t num_experts;
    int32_t *topk_ids;   /* [num_sets, num_routes] */
    float *topk_weights; /* [num_sets, num_routes], those of a token add up to 1 */
    int32_t *src2dst;    /* [num_sets, num_routes] row of each route */
    float *row_weights;  /* [num_sets, num_routes] weight of each row */
    int64_t *seg_indptr; /* [num_sets, num_experts + 1] first row of each expert */
    struct moe_gpu *gpu; /* in whose memory the arrays are; NULL: on the heap */
};

/* Draws `num_sets` sets. Returns 0, or -1 with a sentence. */
int moe_bench_routes_init(struct moe_bench_routes *routes, const struct moe_bench_routing *routing,
                          int64_t num_sets, int64_t num_tokens, int64_t top_k, int64_t num_experts,
                          uint64_t seed, struct moe_cli_error *error);

/* Moves the arrays to where the backend reads them. Returns 0, or -1 with a sentence; finish either
 * way. */
int moe_bench_routes_move(struct moe_bench_routes *routes, const struct moe_bench_place *place,
                          struct moe_cli_error *error);

/* A zeroed struct is legal. */
void moe_bench_routes_finish(struct moe_bench_routes *routes);

#endif
