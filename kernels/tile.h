/* SPDX-License-Identifier: Apache-2.0 */
/* Ids of kernels and tiles, expanded from tiles.def, and the numbers of a tile as kernels read
 * them. */
#ifndef MOE_TILE_H
#define MOE_TILE_H

#include "moe_plugin.h"

#include <stdint.h>

#if !defined(MOE_HAVE_AVX2) || !defined(MOE_HAVE_CUDA)
#error "the build defines MOE_HAVE_AVX2 and MOE_HAVE_CUDA as 0 or 1"
#endif

/* MOE_KERNEL_CPU_C11, ... , MOE_NUM_KERNELS */
enum {
#define MOE_KERNEL(id, name, backend, isa, min_sm, built) MOE_KERNEL_##id,
#include "tiles.def"
    MOE_NUM_KERNELS
};

/* MOE_TILE_GEMM_CPU_AVX2_4_32_2048_..., ... in the order of the file, MOE_NUM_TILES. A row that
 * stands twice is an error here. */
enum {
#define MOE_TILE_GEMM(kernel, bm, bn, bk, group_m, warps, stages) \
    MOE_TILE_GEMM_##kernel##_##bm##_##bn##_##bk##_##group_m##_##warps##_##stages,
#define MOE_TILE_ROUTER(kernel, bm, bn, bk, group_m, warps, stages) \
    MOE_TILE_ROUTER_##kernel##_##bm##_##bn##_##bk##_##group_m##_##warps##_##stages,
#define MOE_TILE_BLOCK(op, kernel, block_size) MOE_TILE_##op##_##kernel##_##block_size,
#include "tiles.def"
    MOE_NUM_TILES
};

/* Routes of a chunk of the CUDA sorts at most, and of one launch of cuda.sort: numbers of routes
 * have 16 bits, and a route takes two words of shared memory. */
#define MOE_CUDA_SORT_MAX_CHUNK 8192

/* One row of tiles.def. */
struct moe_tile {
    int32_t id;      /* index in the table, as tile_info counts */
    int32_t op;      /* MOE_OP_*; MOE_OP_GEMM1 stands for gemm1, gemm2 and, on a CPU, router */
    int32_t kernel;  /* MOE_KERNEL_* */
    int32_t block_m; /* GEMM only, else 0 */
    int32_t block_n;
    int32_t block_k;
    int32_t group_m;
    int32_t num_warps;
    int32_t num_stages;
    int32_t block_size; /* not GEMM, else 0 */
    int32_t smem_bytes; /* CUDA */
    const char *name;   /* kernel and numbers in words, as shown to users */
};

/*
 * Rows that a task of the CPU's GEMM takes at most (a multiple of block_m), so that one expert with
 * all rows still gives work to all threads. Reading the weights again once per that many rows costs
 * nothing against the arithmetic.
 */
#define MOE_CPU_GEMM_ROWS_PER_TASK 256

#endif
