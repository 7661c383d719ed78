/* SPDX-License-Identifier: Apache-2.0 */
/* A team of threads that run one function together: for work that is spread by hand (limits of the
 * machine, filling of memory), and that lasts much longer than waking a thread. */
#ifndef MOE_BENCH_TEAM_H
#define MOE_BENCH_TEAM_H

#include "cli_error.h"

struct moe_bench_team;

/* What every thread runs; thread_idx is 0..num_threads-1, 0 being the caller. */
typedef void moe_bench_team_fn(void *self, int thread_idx, int num_threads);

/* Starts num_threads - 1 threads, which sleep until moe_bench_team_run. NULL with a sentence on
 * failure. */
struct moe_bench_team *moe_bench_team_create(int num_threads, struct moe_cli_error *error);

/* Ends the threads. NULL is legal. */
void moe_bench_team_destroy(struct moe_bench_team *team);

int moe_bench_team_num_threads(const struct moe_bench_team *team);

/* Runs `function` on all threads, the caller's included, and returns the seconds from the start of
 * the first to the end of the last. One call at a time. */
double moe_bench_team_run(struct moe_bench_team *team, moe_bench_team_fn *function, void *self);

#endif
