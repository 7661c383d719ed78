/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the machine can do at best, measured by loops of moectl's own, on as many threads as the
 * plugin has:
 *   read  a sum over memory that no cache holds, bytes read
 *   copy  from one half of that memory to the other, past the caches, bytes read plus bytes written
 *   fma   fp32 fused multiply-adds in registers, two operations each
 * On x86 with AVX2 and FMA by those instructions, elsewhere by plain C that the compiler may
 * vectorize.
 */
#ifndef MOE_BENCH_LIMITS_H
#define MOE_BENCH_LIMITS_H

#include "bench_memory.h"
#include "bench_samples.h"
#include "bench_team.h"
#include "cli_error.h"

enum moe_bench_limit {
    MOE_BENCH_LIMIT_READ, /* bytes per second */
    MOE_BENCH_LIMIT_COPY, /* bytes per second */
    MOE_BENCH_LIMIT_FMA,  /* floating-point operations per second */
    MOE_BENCH_NUM_LIMITS
};

/* How a limit is called: on a GPU others take these places (bench_gpu.h), for the same purpose. */
struct moe_bench_limit_info {
    const char *name;
    const char *unit; /* of 1e9 per second */
    const char *key;  /* in JSON and CSV, of 1e9 per second */
};
const struct moe_bench_limit_info *moe_bench_limit_info(enum moe_bench_limit limit, int is_gpu);

struct moe_bench_limits {
    struct moe_bench_team *team; /* not owned */
    struct moe_bench_memory memory;
    struct moe_bench_samples samples[MOE_BENCH_NUM_LIMITS];
};

/* Takes memory of `num_bytes` (several times the last-level cache). Returns 0, or -1 with a
 * sentence. */
int moe_bench_limits_init(struct moe_bench_limits *limits, struct moe_bench_team *team,
                          uint64_t num_bytes, struct moe_cli_error *error);

/* Gives the memory back. A zeroed struct is legal. */
void moe_bench_limits_finish(struct moe_bench_limits *limits);

/* Adds one sample of each limit, some tens of milliseconds. */
void moe_bench_limits_measure(struct moe_bench_limits *limits);

/* The instructions that the loops use: "avx2" or "c". */
const char *moe_bench_limits_isa(void);

/* Seconds that reading the clock takes: the mean of many readings. */
double moe_bench_limits_timer_s(void);

#endif
