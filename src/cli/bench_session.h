/* SPDX-License-Identifier: Apache-2.0 */
/* A run of `moectl bench`: everything that is measured, in turns, and the numbers that came out. */
#ifndef MOE_BENCH_SESSION_H
#define MOE_BENCH_SESSION_H

#include <stdint.h>

#include "bench_case.h"
#include "bench_data.h"
#include "bench_gpu.h"
#include "bench_limits.h"
#include "bench_options.h"
#include "plugin_host.h"

/* An operation that was asked for and is not measured. */
struct moe_bench_refusal {
    int32_t op;
    char reason[sizeof(((struct moe_error *)0)->message)];
};

/* What an operation costs without any work, as a host sees it. */
struct moe_bench_overhead {
    int32_t op;
    struct moe_bench_summary
        lookup_s; /* plan_op_info: the lookup in the plan, and filling in struct moe_choice */
    struct moe_bench_summary call_s; /* a call with no token: checks, one lookup, nothing else */
};

struct moe_bench_result {
    const struct moe_bench_case *bench_case;
    struct moe_bench_summary seconds; /* per call */
    struct moe_bench_summary host_s;  /* GPU: of the host, per call without a graph */
    double bytes_per_s;
    double flop_per_s;
    enum moe_bench_limit bound;      /* what takes longest at its limit */
    double floor_s;                  /* how long that takes */
    double ratio;                    /* floor_s to the median: 1 is the limit */
    struct moe_bench_summary paired; /* CPU: the same of each round alone, by the mean of the limits
                                        measured right before and right after; rounds that are over
                                        MOE_BENCH_LIMIT_INTERVAL_S after the last limits share
                                        those */
};

/* Seconds for which limits of a CPU hold; measuring them takes as long. */
#define MOE_BENCH_LIMIT_INTERVAL_S 0.05

struct moe_bench_session {
    const struct moe_bench_options *options;
    struct moe_plugin_host host;
    struct moe_bench_team *team;
    struct moe_gpu *gpu;            /* NULL: the CPU backend */
    struct moe_bench_gpu gpu_bench; /* of it */
    struct moe_bench_limits limits; /* samples of a GPU too */
    struct moe_bench_data data;
    double limits_s; /* when they were measured last */
    double timer_s;
    /* Rates. The limit is the 90th percentile: what the machine reaches when nobody else uses it,
     * whereas the median would shrink with every neighbour and flatter the operations. */
    struct moe_bench_summary limit_summaries[MOE_BENCH_NUM_LIMITS];

    int32_t num_ops; /* that are measured */
    int32_t ops[MOE_NUM_OPS];
    int32_t num_refusals;
    struct moe_bench_refusal refusals[MOE_NUM_OPS];

    size_t num_routes; /* one for no token, then one per number of tokens */
    struct moe_bench_routes *routes;
    size_t num_cases; /* by operation, then by number of tokens; after them num_ops cases of no
                      token */
    struct moe_bench_case *cases;
    struct moe_bench_result *results;       /* [num_cases] */
    struct moe_bench_samples *host_samples; /* GPU: [num_cases], of host_s */
    struct moe_bench_samples *paired;       /* CPU: [num_cases], a ratio per round */
    int64_t num_paired_rounds;              /* CPU: of all cases */
    int64_t num_shared_limits; /* CPU: of those, that were too short for limits after them */
    struct moe_bench_overhead overheads[MOE_NUM_OPS]; /* [num_ops] */
};

/* Loads the plugin, makes plan, weights and data. Returns 0, or -1 with a sentence; finish either
 * way. `options` must outlive the session. */
int moe_bench_session_init(struct moe_bench_session *session,
                           const struct moe_bench_options *options, struct moe_cli_error *error);

/* Measures. Returns 0, or -1 with the sentence of a call that failed. */
int moe_bench_session_run(struct moe_bench_session *session, struct moe_cli_error *error);

void moe_bench_session_finish(struct moe_bench_session *session);

#endif
