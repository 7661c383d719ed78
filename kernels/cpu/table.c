/* SPDX-License-Identifier: Apache-2.0 */
/* The table of this instruction set's kernels. */
#include "cpu_ops.h"
#include "gemm.h"

#include <stddef.h>

#define MOE_CPU_TEXT_(isa) #isa
#define MOE_CPU_TEXT(isa)  MOE_CPU_TEXT_(isa)
#define MOE_CPU_KERNEL(op)                                                                  \
    {                                                                                       \
        MOE_CPU_NAME(moe_cpu_##op##_num_tasks), MOE_CPU_NAME(moe_cpu_##op##_scratch_bytes), \
            MOE_CPU_NAME(moe_cpu_##op##_run), NULL                                          \
    }
#define MOE_CPU_KERNEL_OF_TASKS(op)                                                         \
    {                                                                                       \
        MOE_CPU_NAME(moe_cpu_##op##_num_tasks), MOE_CPU_NAME(moe_cpu_##op##_scratch_bytes), \
            MOE_CPU_NAME(moe_cpu_##op##_run), MOE_CPU_NAME(moe_cpu_##op##_run_tasks)        \
    }

const struct moe_cpu_kernels MOE_CPU_NAME(moe_cpu_kernels) = {
    .isa = MOE_CPU_TEXT(MOE_CPU_ISA),
    .router = MOE_CPU_KERNEL(router),
    .gating = MOE_CPU_KERNEL(gating),
    .align = MOE_CPU_KERNEL(align),
    .ep_preprocess = MOE_CPU_KERNEL(ep_preprocess),
    .pre_reorder = MOE_CPU_KERNEL(pre_reorder),
    .quantize = MOE_CPU_KERNEL(quantize),
    .activation = MOE_CPU_KERNEL(activation),
    .gemm = MOE_CPU_KERNEL_OF_TASKS(gemm),
    .post_reorder = MOE_CPU_KERNEL(post_reorder),
};
