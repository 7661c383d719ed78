/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bound weights of the CUDA backend: where each matrix is read (in place, or in the prepared form),
 * and its tensor maps, one per shape of box that the tiles of this build load.
 */
#ifndef MOE_CUDA_WEIGHTS_H
#define MOE_CUDA_WEIGHTS_H

#include "backend.h"
#include "cuda_driver.h"
#include "tiles.h"
#include "weights.h"

/* Matrices that the GEMM kernels read. */
enum {
    MOE_CUDA_GATE,
    MOE_CUDA_UP,
    MOE_CUDA_DOWN,
    MOE_CUDA_SHARED_GATE,
    MOE_CUDA_SHARED_UP,
    MOE_CUDA_SHARED_DOWN,
    MOE_CUDA_NUM_MATRICES
};

/* What one load of weights brings: rows of one matrix, and blocks of 64 columns. */
struct moe_cuda_box {
    int32_t num_rows;
    int32_t num_blocks;
};

enum { MOE_CUDA_MAX_BOXES = 8 };

struct moe_cuda_matrix {
    CUtensorMap maps[MOE_CUDA_MAX_BOXES]; /* [num_boxes] of the weights */
    struct moe_operand operand;           /* base NULL: absent; never a table */
    struct moe_operand bias;              /* likewise */
    int32_t is_k_blocked;                 /* as in struct moe_cuda_gemm */
    int32_t form;                         /* of the GEMM, the same for gate and up */
};

struct moe_cuda_weights {
    struct moe_cuda_matrix matrices[MOE_CUDA_NUM_MATRICES];
    struct moe_operand router; /* operands of one matrix, tables resolved; base NULL: absent */
    struct moe_operand router_bias;
    struct moe_operand shared_sigmoid;
    struct moe_cuda_box boxes[MOE_CUDA_MAX_BOXES];
    int32_t num_boxes;
    int32_t reserved;
};

/* The map of a matrix for the boxes of a tile (a GEMM row of tiles.def), which has a form for the
 * matrix's layout. */
const CUtensorMap *moe_cuda_weights_map(const struct moe_cuda_weights *weights, int32_t matrix,
                                        const struct moe_tile *tile);

/* Members of struct moe_backend. The prepared form holds, packed, each matrix that TMA cannot read
 * in place (a table of pointers, neither rows nor columns side by side, gate and up in different
 * ways, addresses or strides that are no multiples of 16 bytes) and each bias that comes as a
 * table. */
uint64_t moe_cuda_weights_prepared_bytes(const struct moe_problem *problem,
                                         const struct moe_weights_desc *desc);
int32_t moe_cuda_weights_prepare(const struct moe_context *context,
                                 const struct moe_problem *problem,
                                 const struct moe_weights_desc *desc, void *prepared, void *stream,
                                 struct moe_error *error);
int32_t moe_cuda_weights_bind(struct moe_weights *weights, struct moe_error *error);
void moe_cuda_weights_unbind(struct moe_weights *weights);

#endif
