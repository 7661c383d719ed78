/* SPDX-License-Identifier: Apache-2.0 */
/* Arguments of the CUDA kernels: the operation's struct and what the host has worked out for it. */
#ifndef MOE_CUDA_ARGS_H
#define MOE_CUDA_ARGS_H

#include "ops.h"

/* Threads of one CTA of the sort kernels; a cluster has BLOCK_SIZE / this many CTAs. */
#define MOE_CUDA_SORT_THREADS 1024

/* Shared memory of a sort kernel: the scratch of the scan, four words per bucket (own count, first
 * position with and without padding, first position of the CTA), counters of `num_warps` warps. */
#define MOE_CUDA_SORT_SMEM_BYTES(num_warps, num_buckets) \
    (((num_warps) + 4) * ((num_buckets) + 1) * 4 + 64 * 4)

/* Warps of each CTA that count; fewer when the buckets do not fit 32 times into shared memory. */
struct moe_cuda_sort_shape {
    int32_t num_warps;
    int32_t routes_per_warp; /* a multiple of 32 */
    int32_t keeps_buckets;   /* 1: two bytes per route of the CTA lie behind the counters */
    int32_t smem_bytes;
};

struct moe_cuda_align {
    struct moe_op_align op;
    struct moe_cuda_sort_shape shape;
};

struct moe_cuda_ep_preprocess {
    struct moe_op_ep_preprocess op;
    struct moe_cuda_sort_shape shape;
};

/* `vector_bytes` (16, 4 or 2) divides every base address, stride and row. */
struct moe_cuda_pre_reorder {
    struct moe_op_pre_reorder op;
    int32_t vector_bytes;
    int32_t row_vectors; /* vectors of a row */
};

/* `is_vectored`: eight columns at a time are 16-byte (fp32: 32-byte) aligned everywhere. */
struct moe_cuda_post_reorder {
    struct moe_op_post_reorder op;
    int32_t is_vectored;
    int32_t reserved;
};

#endif
