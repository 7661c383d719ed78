/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/tiles.def as a table that decisions are made from. */
#ifndef MOE_TILES_H
#define MOE_TILES_H

#include "tile.h"

#include <stdbool.h>

struct moe_kernel {
    const char *name;
    int32_t backend; /* MOE_BACKEND_* */
    const char *isa;
    int32_t min_sm;
    bool built;
};

extern const struct moe_kernel moe_kernels[MOE_NUM_KERNELS];
extern const struct moe_tile moe_tiles[MOE_NUM_TILES];

/* The operation whose keys the rows of `op` have: MOE_OP_GEMM1 for router, gemm1, gemm2; else
 * `op`. */
int32_t moe_tiles_row_op(int32_t op);

/* Is this row one of `op`'s? Rows of the GEMMs are the router's too on a CPU; on a GPU it has rows
 * of its own. */
bool moe_tiles_runs(const struct moe_tile *tile, int32_t op);

/* CTAs of a cluster of a tile's kernel; 1: it has none. */
int32_t moe_tiles_cluster_ctas(const struct moe_tile *tile);

/* Operations that have rows of their own: all but experts and layer, which are made of the
 * others. */
bool moe_tiles_op_has_tiles(int32_t op);

/*
 * Can `tile` run on `device` in this build? If not, and `reason` is given, why: "not built", "needs
 * avx2", ... A row does not need its kernel to be built to be known.
 */
bool moe_tiles_fits(const struct moe_tile *tile, const struct moe_device *device,
                    const char **reason);

/* Name of an operation of MOE_OP_LIST, and back; -1 when there is none of that name. */
const char *moe_tiles_op_name(int32_t op);
int32_t moe_tiles_find_op(const char *name);

#endif
