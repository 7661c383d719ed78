/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Grouped GEMM on a CPU (gemm.c walks segments, gemm_panel.c computes) and the router, which is a
 * GEMM with one segment.
 *
 * Canonical arithmetic of one output: lane l of eight sums k = l, l + 8, ... in ascending order by
 * fused multiply-add, from +0, with zero products in the lanes that the last eight columns lack;
 * then ((s0+s4)+(s2+s6)) + ((s1+s5)+(s3+s7)), times the row's weight, plus the bias, the
 * activation, one rounding. fp8 weights and rows come as their values; the input scale of rows that
 * are not fp8 is 1 (and such rows are infinite from 2^120 on). With scales for all of k the sum is
 * multiplied by input scale * weight scale (a rounded product) before all else; with scales per 128
 * columns each 128 make a sum of their own, and total = fma(sum, input scale * weight scale,
 * total), from +0 in ascending order. Nothing else enters: instruction set, tile, weight layout,
 * segment and thread never change a bit.
 */
#ifndef MOE_GEMM_H
#define MOE_GEMM_H

#include "cpu_kernels.h"

/*
 * Members of moe_cpu_kernels.gemm; `op` is a struct moe_op_gemm. num_tasks reads the segments
 * (seg_indptr, or expert_ids and num_tokens_post_pad): call it when they are final, and run tasks
 * before they change.
 */
int64_t MOE_CPU_NAME(moe_cpu_gemm_num_tasks)(const void *op, const struct moe_tile *tile);
uint64_t MOE_CPU_NAME(moe_cpu_gemm_scratch_bytes)(const void *op, const struct moe_tile *tile);
void MOE_CPU_NAME(moe_cpu_gemm_run)(const void *op, const struct moe_tile *tile, int64_t task,
                                    void *scratch);
void MOE_CPU_NAME(moe_cpu_gemm_run_tasks)(const void *op, const struct moe_tile *tile,
                                          const struct moe_cpu_tasks *tasks, void *scratch);

/* Members of moe_cpu_kernels.router; `op` is a struct moe_op_router. */
int64_t MOE_CPU_NAME(moe_cpu_router_num_tasks)(const void *op, const struct moe_tile *tile);
uint64_t MOE_CPU_NAME(moe_cpu_router_scratch_bytes)(const void *op, const struct moe_tile *tile);
void MOE_CPU_NAME(moe_cpu_router_run)(const void *op, const struct moe_tile *tile, int64_t task,
                                      void *scratch);

#endif
