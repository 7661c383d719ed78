/* SPDX-License-Identifier: Apache-2.0 */
/* Declares the functions of the kernels behind struct moe_cpu_kernels; table.c collects them, once
 * per instruction set. */
#ifndef MOE_CPU_OPS_H
#define MOE_CPU_OPS_H

#include "cpu_kernels.h"

/* The three functions of struct moe_cpu_kernel for one operation, e.g. moe_cpu_gating_run_avx2. */
#define MOE_CPU_DECLARE_KERNEL(op)                                                               \
    int64_t MOE_CPU_NAME(moe_cpu_##op##_num_tasks)(const void *op, const struct moe_tile *tile); \
    uint64_t MOE_CPU_NAME(moe_cpu_##op##_scratch_bytes)(const void *op,                          \
                                                        const struct moe_tile *tile);            \
    void MOE_CPU_NAME(moe_cpu_##op##_run)(const void *op, const struct moe_tile *tile,           \
                                          int64_t task, void *scratch);

MOE_CPU_DECLARE_KERNEL(gating)
MOE_CPU_DECLARE_KERNEL(align)
MOE_CPU_DECLARE_KERNEL(ep_preprocess)
MOE_CPU_DECLARE_KERNEL(pre_reorder)
MOE_CPU_DECLARE_KERNEL(quantize)
MOE_CPU_DECLARE_KERNEL(activation)
MOE_CPU_DECLARE_KERNEL(post_reorder)

/* Tasks of `block_size` items each. */
static inline int64_t moe_cpu_num_blocks(int64_t num_items, int32_t block_size)
{
    return (num_items + block_size - 1) / block_size;
}

/* First item after task `task`. */
static inline int64_t moe_cpu_block_end(int64_t num_items, int32_t block_size, int64_t task)
{
    const int64_t end = (task + 1) * block_size;
    return end < num_items ? end : num_items;
}

#endif
