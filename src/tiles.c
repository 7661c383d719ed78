/* SPDX-License-Identifier: Apache-2.0 */
#include "tiles.h"

#include <stddef.h>
#include <string.h>

const struct moe_kernel moe_kernels[MOE_NUM_KERNELS] = {
#define MOE_KERNEL(id, name, backend, isa, min_sm, built) \
    {name, backend, isa, min_sm, (built) != 0},
#include "tiles.def"
};

const struct moe_tile moe_tiles[MOE_NUM_TILES] = {
#define MULTIPLYING_TILE(op_id, row, kernel_id, bm, bn, bk, group, warps, stages)            \
    {.id = MOE_TILE_##row##_##kernel_id##_##bm##_##bn##_##bk##_##group##_##warps##_##stages, \
     .op = MOE_OP_##op_id,                                                                   \
     .kernel = MOE_KERNEL_##kernel_id,                                                       \
     .block_m = (bm),                                                                        \
     .block_n = (bn),                                                                        \
     .block_k = (bk),                                                                        \
     .group_m = (group),                                                                     \
     .num_warps = (warps),                                                                   \
     .num_stages = (stages),                                                                 \
     .name = MOE_KERNEL_NAME_##kernel_id " BLOCK_SIZE_M " #bm " BLOCK_SIZE_N " #bn           \
                                         " BLOCK_SIZE_K " #bk " GROUP_SIZE_M " #group        \
                                         " num_warps " #warps " num_stages " #stages},
#define MOE_TILE_GEMM(kernel_id, bm, bn, bk, group, warps, stages) \
    MULTIPLYING_TILE(GEMM1, GEMM, kernel_id, bm, bn, bk, group, warps, stages)
#define MOE_TILE_ROUTER(kernel_id, bm, bn, bk, group, warps, stages) \
    MULTIPLYING_TILE(ROUTER, ROUTER, kernel_id, bm, bn, bk, group, warps, stages)
#define MOE_TILE_BLOCK(op_id, kernel_id, size)      \
    {.id = MOE_TILE_##op_id##_##kernel_id##_##size, \
     .op = MOE_OP_##op_id,                          \
     .kernel = MOE_KERNEL_##kernel_id,              \
     .block_size = (size),                          \
     .name = MOE_KERNEL_NAME_##kernel_id " BLOCK_SIZE " #size},
#include "tiles.def"
};

int32_t moe_tiles_row_op(int32_t op)
{
    return op == MOE_OP_ROUTER || op == MOE_OP_GEMM2 ? MOE_OP_GEMM1 : op;
}

bool moe_tiles_runs(const struct moe_tile *tile, int32_t op)
{
    if (tile->op == op) {
        return true;
    }
    return tile->op == MOE_OP_GEMM1 &&
           (op == MOE_OP_GEMM2 ||
            (op == MOE_OP_ROUTER && moe_kernels[tile->kernel].backend == MOE_BACKEND_CPU));
}

int32_t moe_tiles_cluster_ctas(const struct moe_tile *tile)
{
    return tile->kernel == MOE_KERNEL_SM90_PAIR ? MOE_KERNEL_CTAS_SM90_PAIR : 1;
}

bool moe_tiles_op_has_tiles(int32_t op)
{
    return op != MOE_OP_EXPERTS && op != MOE_OP_LAYER;
}

bool moe_tiles_fits(const struct moe_tile *tile, const struct moe_device *device,
                    const char **reason)
{
    const struct moe_kernel *kernel = &moe_kernels[tile->kernel];
    const char *why = NULL;
    if (kernel->backend != device->backend) {
        why = "its kernel belongs to another backend";
    } else if (!kernel->built) {
        why = "this build does not contain its kernel";
    } else if (device->backend == MOE_BACKEND_CPU && strcmp(kernel->isa, "avx2") == 0 &&
               strcmp(device->isa, "avx2") != 0) {
        why = "the processor lacks AVX2, FMA or F16C";
    } else if (device->backend == MOE_BACKEND_CUDA && device->sm < kernel->min_sm) {
        why = "the device's compute capability is too low";
    } else if (device->backend == MOE_BACKEND_CUDA && kernel->isa[0] != '\0' &&
               device->sm != kernel->min_sm) {
        why = "its instructions exist on an older compute capability only";
    } else if (tile->smem_bytes > device->smem_bytes) {
        why = "it needs more shared memory than the device has";
    }
    if (reason != NULL) {
        *reason = why;
    }
    return why == NULL;
}

const char *moe_tiles_op_name(int32_t op)
{
    switch (op) {
#define OP_NAME(name, value, text) \
    case value:                    \
        return text;
        MOE_OP_LIST(OP_NAME)
#undef OP_NAME
    default:
        return "unknown operation";
    }
}

int32_t moe_tiles_find_op(const char *name)
{
    for (int32_t op = 0; op < MOE_NUM_OPS; op++) {
        if (strcmp(moe_tiles_op_name(op), name) == 0) {
            return op;
        }
    }
    return -1;
}
