/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CPU kernels of one instruction set. Every kernels/cpu/<op>.c is compiled once per instruction
 * set (MOE_CPU_ISA = c11, avx2) and registers its functions in the table of that build. The same
 * source through the same vec8 operations gives the same bits in both.
 *
 * An operation is cut into tasks that touch disjoint outputs, so any number of threads may run them
 * in any order with the same result. A task gets scratch of its own thread. Nothing here allocates,
 * fails or calls the system. Operations whose neighbouring tasks share work have run_tasks as well.
 */
#ifndef MOE_CPU_KERNELS_H
#define MOE_CPU_KERNELS_H

#include "cpu_tasks.h"
#include "ops.h"
#include "tile.h"

#include <stdint.h>

/* `op` is the struct moe_op_* that the table's member names; `tile` a row of tiles.def for that
 * operation. */
struct moe_cpu_kernel {
    int64_t (*num_tasks)(const void *op, const struct moe_tile *tile);
    uint64_t (*scratch_bytes)(const void *op, const struct moe_tile *tile); /* per thread, 64-byte
                                                                              aligned; depends on
                                                                              dimensions and tile
                                                                              only, not on pointers
                                                                              or num_tokens */
    void (*run)(const void *op, const struct moe_tile *tile, int64_t task, void *scratch);
    /* Runs all of `tasks` in order, with the bits of `run` one by one; NULL: callers loop. */
    void (*run_tasks)(const void *op, const struct moe_tile *tile,
                      const struct moe_cpu_tasks *tasks, void *scratch);
};

struct moe_cpu_kernels {
    const char *isa;
    struct moe_cpu_kernel router;        /* moe_op_router */
    struct moe_cpu_kernel gating;        /* moe_op_gating */
    struct moe_cpu_kernel align;         /* moe_op_align: one task */
    struct moe_cpu_kernel ep_preprocess; /* moe_op_ep_preprocess: one task */
    struct moe_cpu_kernel pre_reorder;   /* moe_op_pre_reorder */
    struct moe_cpu_kernel quantize;      /* moe_op_quantize */
    struct moe_cpu_kernel activation;    /* moe_op_activation */
    struct moe_cpu_kernel gemm;          /* moe_op_gemm */
    struct moe_cpu_kernel post_reorder;  /* moe_op_post_reorder; sum_reduce is its case without
                                            src2dst and weights */
};

#define MOE_CPU_PASTE2_(name, isa) name##_##isa
#define MOE_CPU_PASTE_(name, isa)  MOE_CPU_PASTE2_(name, isa)
/* The name of a function of this build: MOE_CPU_NAME(moe_cpu_gemm_run) is moe_cpu_gemm_run_avx2. */
#define MOE_CPU_NAME(name) MOE_CPU_PASTE_(name, MOE_CPU_ISA)

extern const struct moe_cpu_kernels moe_cpu_kernels_c11;
#if MOE_HAVE_AVX2
extern const struct moe_cpu_kernels moe_cpu_kernels_avx2;

/* Does this processor's VDPBF16PS make sums of these bits (gemm_pairs.h)? Only where cpuid names
 * AVX512_BF16 and VBMI. */
int32_t moe_gemm_pairs_probe_avx2(void);
#endif

#endif
