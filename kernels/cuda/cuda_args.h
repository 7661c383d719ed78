/* SPDX-License-Identifier: Apache-2.0 */
/* Arguments of the CUDA kernels: the operation's struct and what the host has worked out for it. */
#ifndef MOE_CUDA_ARGS_H
#define MOE_CUDA_ARGS_H

#include "ops.h"

#include <cuda.h>

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

/* Warps of a CTA of the router kernels; they share the columns of k. */
#define MOE_CUDA_ROUTER_WARPS 8

/* `applies_sigmoid`: the results are 1 / (1 + exp(-logit)), for the factor of a shared expert. */
struct moe_cuda_router {
    struct moe_op_router op;
    int32_t applies_sigmoid;
    int32_t reserved;
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

/*
 * The grouped GEMM of sm90.gemm. A tile's numbers (struct moe_tile, a row of tiles.def):
 *   block_m     tokens of a work unit at most; a unit takes its expert's rows in steps of 8
 *   block_n     weight rows of a work unit, gate and up together: block_n / num_matrices channels
 *   block_k     columns of one stage of the ring
 *   group_m     blocks of tokens that share a weight block before the next weight block is taken
 *   num_warps   warps of a CTA: 8 with one consumer warpgroup, 12 with two
 *   num_stages  stages of the ring
 * Launch: grid (num_sms, 1), 32 * num_warps threads, no cluster, dynamic shared memory of
 * MOE_CUDA_GEMM_FIXED_BYTES + MOE_CUDA_GEMM_SEGMENT_BYTES. Any grid gives the same bits.
 */

/* Two slabs of weight rows per consumer warpgroup; a slab is what one box brings. */
#define MOE_CUDA_GEMM_NUM_CONSUMERS(num_warps) ((num_warps) / 4 - 1)
#define MOE_CUDA_GEMM_SLAB_ROWS(block_n, num_warps) \
    ((block_n) / (2 * MOE_CUDA_GEMM_NUM_CONSUMERS(num_warps)))

/* Channels of the inner dimension of a box: 128 bytes of 16-bit weights, one swizzled row. */
#define MOE_CUDA_GEMM_BOX_K 64

/* Per consumer warpgroup, where a unit's output is transposed: 32 tokens x 64 channels x 16 bits,
 * for two slabs. */
#define MOE_CUDA_GEMM_STAGING_BYTES 8192

#define MOE_CUDA_GEMM_STAGE_BYTES(block_m, block_n, block_k) (((block_m) + (block_n)) * (block_k)*2)

/* Shared memory of a CTA: alignment, ring, staging, two barriers per stage, scratch of the scan,
 * three words per segment (first tile, first position, positions). Segments: num_segments, with
 * expert_ids 0. */
#define MOE_CUDA_GEMM_FIXED_BYTES(block_m, block_n, block_k, num_warps, num_stages) \
    (1024 + (num_stages)*MOE_CUDA_GEMM_STAGE_BYTES(block_m, block_n, block_k) +     \
     MOE_CUDA_GEMM_NUM_CONSUMERS(num_warps) * MOE_CUDA_GEMM_STAGING_BYTES + (num_stages)*16 + 256)
#define MOE_CUDA_GEMM_SEGMENT_BYTES(num_segments) (12 * ((int32_t)(num_segments) + 1))

/*
 * weight[i], i below op.num_matrices (a second map that is not used: anything): op.weight[i] as a
 * map of four dimensions, 16-bit type of op.input_dtype, CU_TENSOR_MAP_SWIZZLE_128B, no
 * interleave, zero fill, element strides 1, L2 promotion 256 bytes. Bytes below are
 * 2 * the operand's strides; each must be a multiple of 16, as must the base. col_stride is 1.
 *   op.k % 64 == 0, is_k_blocked 1:  dims (64, n, k / 64, E), strides (row, 128, expert)
 *   else            is_k_blocked 0:  dims (k, n, 1, E), strides (row, row, expert)
 *   box                              (64, slab rows, is_k_blocked ? block_k / 64 : 1, 1)
 * Halves of [E, 2I, H], separate tensors, padded and interleaved rows are all base and strides.
 *
 * op: as documented in ops.h, with these limits. input base and 2 * input_stride divide by 16; k
 * and n divide by 8; weight dtype is input_dtype, bf16 or fp16; output bf16, fp16 or fp32; biases
 * have a base, not a table; no scales, no output_quant. has_activation: num_matrices 2, or 1 with
 * act.ungated. Exactly one of seg_indptr, masked_m, expert_ids; row_ids with either. Segments of
 * seg_indptr are experts, num_segments = num_experts, as are those of masked_m.
 */
struct moe_cuda_gemm {
    CUtensorMap weight[2];
    struct moe_op_gemm op;
    int32_t is_k_blocked;
    int32_t is_output_vectored; /* 1: output base and stride divide by 16 bytes; else element-wise
                                   stores */
    int32_t is_early; /* 1: what tells the work (seg_indptr, masked_m, expert_ids, num_tokens_
                         post_pad) was written before the node in front of this one, which waited
                         for it: weights are fetched before the wait. 0: by that node, or unknown */
    int32_t reserved;
};

#endif
