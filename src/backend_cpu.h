/* SPDX-License-Identifier: Apache-2.0 */
/* Between the two halves of the CPU backend: single kernels (backend_cpu.c) and the layer that
 * chains them (cpu_layer.c). */
#ifndef MOE_BACKEND_CPU_H
#define MOE_BACKEND_CPU_H

#include "backend.h"
#include "cpu_kernels.h"
#include "cpu_pool.h"

#define MOE_CPU_ALIGNMENT 64u

/* One call that runs kernels one after the other with the same threads and scratch. */
struct moe_cpu_run {
    struct moe_cpu_session session;
    char *scratch;           /* num_threads blocks */
    uint64_t scratch_stride; /* bytes of one block */
};

/* Kernels of the instruction set that `tile` was compiled for. */
const struct moe_cpu_kernels *moe_cpu_kernels_of(const struct moe_tile *tile);

/* Run all tasks of `kernel` on `op`; scratch must hold kernel->scratch_bytes per thread. */
void moe_cpu_run_kernel(struct moe_cpu_run *run, const struct moe_cpu_kernel *kernel,
                        const void *op, const struct moe_tile *tile);

/* `bytes` rounded up to MOE_CPU_ALIGNMENT. */
static inline uint64_t moe_cpu_align(uint64_t bytes)
{
    return (bytes + MOE_CPU_ALIGNMENT - 1) / MOE_CPU_ALIGNMENT * MOE_CPU_ALIGNMENT;
}

/* Threads of the pool behind a plan, and the pool. */
struct moe_cpu_pool *moe_cpu_plan_pool(const struct moe_plan *plan);

/* What only a CPU decides about a post_reorder: instructions, and whether its output is written
 * around the caches. */
void moe_cpu_prepare_post_reorder(const struct moe_run *run, struct moe_op_post_reorder *op);

/* Scratch per thread of one tiled operation with a tile; dimensions come from the plan's
 * problem. */
uint64_t moe_cpu_op_scratch(const struct moe_plan *plan, int32_t op, const struct moe_tile *tile);

/* Workspace of layer and experts, and running them (cpu_layer.c). */
uint64_t moe_cpu_layer_workspace(const struct moe_plan *plan,
                                 const struct moe_dispatch_bucket *bucket, int64_t num_tokens);
uint64_t moe_cpu_experts_workspace(const struct moe_plan *plan,
                                   const struct moe_dispatch_bucket *bucket, int64_t num_tokens);
int32_t moe_cpu_layer(const struct moe_run *run, const struct moe_op_layer *op,
                      struct moe_error *error);
int32_t moe_cpu_experts(const struct moe_run *run, const struct moe_op_experts *op,
                        struct moe_error *error);

#endif
