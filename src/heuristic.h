/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cost model that chooses a tile where no rule names one. Closed: a function of device, problem
 * and number of tokens, so every process and rank with the same inputs makes the same choice. It
 * orders tiles; it does not predict times.
 *
 * Costs are processor cycles of one operation. The model of the CPU:
 *
 *   routes      R = T * k * E / E_global routes meet A = E * (1 - (1 - k / E_global)^T) experts
 *               (uniform routing), so m = R / A rows per active expert. The router is one "expert"
 *               with m = T.
 *   panels      P = m / BLOCK_SIZE_M per expert, the last one half empty on average since m varies
 *               (the router's and the shared expert's m does not: ceil), and B = ceil(n /
 *               BLOCK_SIZE_N) blocks of channels; partly filled ones cost as much as full ones.
 *   compute     per panel, block and column of k: bm * bn / (multiply-adds per cycle) + bn *
 *               (cycles to load and widen a weight) + bm * (cycles to load an activation); per
 *               panel and block also ceil(K / BLOCK_SIZE_K) spills of bm * bn accumulators.
 *   memory      weights once per task when one block's working set fits a thread's share of the
 *               last-level cache, else once per panel; activations once per block of channels, out
 *               of the cache.
 *   tasks       one expert's rows (256 at most) and one block of channels; ceil(tasks / threads)
 *               waves, each with a fixed overhead.
 *   total       the larger of compute (divided by threads, times the imbalance of the last wave)
 *               and memory, plus a quarter of the smaller, since the two overlap only in part.
 *   others      ceil(tasks / threads) waves of tasks of BLOCK_SIZE tokens (activation: rows), each
 *               with the same fixed overhead.
 *
 * The constants are orders of magnitude of present x86 cores, not measurements; they stand in
 * heuristic.c.
 */
#ifndef MOE_HEURISTIC_H
#define MOE_HEURISTIC_H

#include "tile.h"

/*
 * Cycles that `op` takes with `tile` for `num_tokens` tokens (at least 1); positive and finite.
 * Members of the problem that are zero count as 1.
 */
double moe_heuristic_cost(const struct moe_tile *tile, int32_t op, const struct moe_device *device,
                          const struct moe_problem *problem, int64_t num_tokens);

/*
 * The number of tokens that stands for `num_tokens` when costs are compared: the next power of two,
 * at least 1. It bounds the number of buckets of a plan, and does not depend on the plan's
 * max_tokens.
 */
int64_t moe_heuristic_round_tokens(int64_t num_tokens);

/* What it costs that the second GEMM has another tile than the first: on a GPU its CTAs do not
 * begin where those of its own kernel end. */
double moe_heuristic_edge_cost(const struct moe_tile *gemm1, const struct moe_tile *gemm2);

#endif
