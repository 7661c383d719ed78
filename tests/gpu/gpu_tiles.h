/* SPDX-License-Identifier: Apache-2.0 */
/* The rows of kernels/tiles.def that a machine can run, configurations that force them, and what
 * became of a forced one: a plan takes it or is refused, but a launch may have another in its
 * place (src/cuda_gemm.c), which only the captured kernels tell. */
#ifndef MOE_GPU_TILES_H
#define MOE_GPU_TILES_H

#include "gpu_host.h"

enum { GPU_MAX_TILES = 32 };

/* Tiles of gemm1 and gemm2; gemm2's BLOCK_SIZE_M is gemm1's. */
struct gpu_gemm_tiles {
    struct moe_tile_info gemm1, gemm2;
};

/* Rows of an operation that are built and run on the host's device; how many. */
int gpu_list_tiles(const struct gpu_host *host, int32_t op, struct moe_tile_info *tiles);

/* All legal pairs of those of the GEMMs; how many. */
enum { GPU_MAX_PAIRS = 64 };
int gpu_list_gemm_tiles(const struct gpu_host *host, struct gpu_gemm_tiles *pairs);

/* Plans that are made from now on use this row of the tile table for its operation; NULL: the
 * built-in configuration again. */
void gpu_force_tile(const struct gpu_host *host, const struct moe_tile_info *tile,
                    const char *op_name);

/* The same for both GEMMs. */
void gpu_force_gemm_tiles(const struct gpu_host *host, const struct gpu_gemm_tiles *tiles);

/* 1 if a plan has the tiles for so many tokens; else a line says what it has. `gemms`: bit 0
 * GEMM1, bit 1 GEMM2. */
int gpu_has_gemm_tiles(const struct gpu_host *host, const struct moe_plan *plan, int gemms,
                       const struct gpu_gemm_tiles *tiles, int64_t num_tokens);

/* GEMM kernels of a call, and how many of them are of neither tile. */
struct gpu_launched {
    const struct gpu_gemm_tiles *tiles;
    int num_gemms, num_replaced;
    char other[128]; /* the last of those */
};
/* Captures what `record` queues on the host's stream; nothing without a device. */
void gpu_count_launched(const struct gpu_host *host, gpu_record_fn *record, void *self,
                        struct gpu_launched *launched);

#endif
