/* SPDX-License-Identifier: Apache-2.0 */
/* Geometry of the grouped GEMM on a GPU: one CTA per multiprocessor, tensor maps of the bound
 * weights, shared memory for the ring and the segments. */
#include "cuda_args.h"
#include "cuda_ops.h"
#include "cuda_weights.h"
#include "plan.h"
#include "status.h"

#include <string.h>

enum { TMA_BYTES = 16 };

int64_t moe_cuda_gemm_smem_bytes(const struct moe_tile *tile, int64_t num_segments)
{
    return MOE_CUDA_GEMM_FIXED_BYTES(tile->block_m, tile->block_n, tile->block_k, tile->num_warps,
                                     tile->num_stages) +
           MOE_CUDA_GEMM_SEGMENT_BYTES(num_segments);
}

static bool is_aligned(const void *base, int64_t stride, int32_t dtype)
{
    return ((uintptr_t)base | (uintptr_t)(stride * moe_dtype_bytes(dtype))) % TMA_BYTES == 0;
}

int32_t moe_cuda_check_rows(const char *name, const void *rows, int64_t stride, int32_t dtype,
                            struct moe_error *error)
{
    if (is_aligned(rows, stride, dtype)) {
        return MOE_STATUS_OK;
    }
    return moe_error_set(
        error, MOE_STATUS_UNSUPPORTED,
        "%s at %p with a stride of %lld elements: the cuda backend reads rows that "
        "begin at multiples of 16 bytes",
        name, rows, (long long)stride);
}

static bool gathers(const struct moe_op_gemm *op)
{
    return op->row_ids != NULL && op->row_ids_div != 0;
}

/* Do a layer's GEMMs gain from units of 256 channels because gate and up are transposed halves?
 * Those read 256 bytes of a column of each half, units of 128 channels 128, which memory delivers
 * slower (record 0017). The second GEMM gains nothing, but a chain of two tiles loses. With few
 * rows more units count for more; op->num_rows is what there may be, of all ranks' experts. */
static bool is_faster_wide(const struct moe_run *run, int32_t matrix, const struct moe_tile *tile,
                           const struct moe_op_gemm *op)
{
    const struct moe_cuda_weights *weights = run->weights->backend_data;
    const bool is_shared = matrix >= MOE_CUDA_SHARED_GATE;
    const struct moe_cuda_matrix *gate =
        &weights->matrices[is_shared ? MOE_CUDA_SHARED_GATE : MOE_CUDA_GATE];
    const int64_t num_experts = is_shared ? 1 : run->weights->problem.num_experts_global;
    return gate->operand.base != NULL && gate->form == MOE_CUDA_GEMM_TRANSPOSED &&
           tile->block_n < 256 && op->num_rows >= 2 * num_experts;
}

/* The tile of a launch: the plan's, but for rows that are gathered, and for weights that do not lie
 * row by row, one that can, or reads them faster; with the same bits. */
static const struct moe_tile *launched_tile(const struct moe_run *run,
                                            const struct moe_tile *chosen, int32_t matrix,
                                            const struct moe_op_gemm *op, int32_t form)
{
    const bool is_large = chosen->block_m > MOE_CUDA_GEMM_GATHERED_BLOCK_M;
    const bool has_form = moe_cuda_has_form(chosen, form);
    if (is_faster_wide(run, matrix, chosen, op)) {
        return &moe_tiles[MOE_TILE_GEMM_SM90_GEMM_64_256_64_8_12_5];
    }
    if (has_form && !(is_large && gathers(op))) {
        return chosen;
    }
    return &moe_tiles[is_large ? MOE_TILE_GEMM_SM90_PAIR_144_256_64_4_12_4
                               : MOE_TILE_GEMM_SM90_GEMM_32_128_64_8_8_10];
}

/* sm90.pair brings tokens in boxes where they lie in order. */
static int32_t encode_tokens(const struct moe_cuda_state *state, const struct moe_tile *tile,
                             struct moe_cuda_gemm *args, struct moe_error *error)
{
    const cuuint32_t box_rows = (cuuint32_t)MOE_CUDA_GEMM_TOKEN_BOX_ROWS(tile->block_m);
    const struct moe_op_gemm *op = &args->op;
    const cuuint64_t row_bytes = 2 * (cuuint64_t)op->input_stride;
    const cuuint64_t dims[4] = {(cuuint64_t)op->k, (cuuint64_t)op->num_rows, 1, 1};
    const cuuint64_t strides[3] = {row_bytes, row_bytes, row_bytes};
    const cuuint32_t box[4] = {MOE_CUDA_GEMM_BOX_K, box_rows, 1, 1};
    const cuuint32_t ones[4] = {1, 1, 1, 1};
    const CUresult result = state->driver.cuTensorMapEncodeTiled(
        &args->tokens,
        op->input_dtype == MOE_DTYPE_FP16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                          : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        4, (void *)(uintptr_t)op->input, dims, strides, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
        CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    args->token_box_rows = (int32_t)box_rows;
    return result == CUDA_SUCCESS
               ? MOE_STATUS_OK
               : moe_cuda_driver_error(&state->driver, result, "cuda: a map of the rows", error);
}

/* Of op->weight[i]. Without gate up is the first. */
static int32_t matrix_of(int32_t op_id, const struct moe_op_gemm *op, int32_t first_matrix,
                         int32_t i)
{
    return first_matrix + (op_id == MOE_OP_GEMM1 && op->num_matrices == 1 ? 1 : i);
}
_Static_assert(MOE_CUDA_UP == MOE_CUDA_GATE + 1 && MOE_CUDA_SHARED_UP == MOE_CUDA_SHARED_GATE + 1,
               "up follows gate");

/* The tile of a launch and the form of its weights. */
static const struct moe_tile *find_tile(const struct moe_run *run, int32_t op_id,
                                        const struct moe_op_gemm *op, int32_t first_matrix,
                                        int32_t *form)
{
    const struct moe_cuda_weights *weights = run->weights->backend_data;
    const int32_t matrix = matrix_of(op_id, op, first_matrix, 0);
    *form = weights->matrices[matrix].form;
    return launched_tile(run, moe_cuda_tile_of(run, op_id), matrix, op, *form);
}

/* More routes every CTA would sort in longer than a launch in front of it takes (record 0018); its
 * limit is MOE_CUDA_GEMM_MAX_SORTED. */
enum { MAX_GAINING_ROUTES = 512 };
_Static_assert(MAX_GAINING_ROUTES <= MOE_CUDA_GEMM_MAX_SORTED, "what the kernel can");

bool moe_cuda_gemm_sorts(const struct moe_run *run, int32_t op_id, const struct moe_op_gemm *op,
                         int32_t first_matrix, int64_t num_routes)
{
    int32_t form;
    const struct moe_tile *tile = find_tile(run, op_id, op, first_matrix, &form);
    const int64_t staging_bytes =
        MOE_CUDA_GEMM_NUM_CONSUMERS(tile->num_warps) * MOE_CUDA_GEMM_STAGING_BYTES;
    return moe_tiles_cluster_ctas(tile) == 1 && op->row_weights == NULL &&
           num_routes <= MAX_GAINING_ROUTES &&
           MOE_CUDA_GEMM_SORT_BYTES(num_routes, op->num_segments) <= staging_bytes &&
           moe_cuda_gemm_smem_bytes(tile, op->num_segments) +
                   MOE_CUDA_GEMM_ORDER_BYTES(num_routes) <=
               moe_cuda_state_of(run)->smem_bytes;
}

int32_t moe_cuda_gemm(const struct moe_run *run, int32_t op_id, const struct moe_op_gemm *op,
                      int32_t first_matrix, int32_t is_early,
                      const struct moe_cuda_gemm_routes *routes, struct moe_error *error)
{
    const struct moe_cuda_state *state = moe_cuda_state_of(run);
    const struct moe_cuda_weights *weights = run->weights->backend_data;
    int32_t form;
    const struct moe_tile *tile = find_tile(run, op_id, op, first_matrix, &form);
    int64_t smem_bytes =
        moe_cuda_gemm_smem_bytes(tile, op->expert_ids != NULL ? 0 : op->num_segments);
    struct moe_cuda_gemm args;
    memset(&args, 0, sizeof(args));
    args.op = *op;
    for (int32_t i = 0; i < 2 && i < op->num_matrices; i++) {
        const int32_t id = matrix_of(op_id, op, first_matrix, i);
        const struct moe_cuda_matrix *matrix = &weights->matrices[id];
        args.weight[i] = *moe_cuda_weights_map(weights, id, tile);
        args.op.weight[i] = matrix->operand;
        args.op.bias[i] = matrix->bias;
        args.is_k_blocked = matrix->is_k_blocked;
    }
    args.is_output_vectored = is_aligned(op->output, op->output_stride, op->output_dtype);
    args.is_early = is_early;
    if (routes != NULL) {
        args.routes = *routes;
        smem_bytes += routes->src2dst != NULL ? MOE_CUDA_GEMM_ORDER_BYTES(routes->num_routes) : 0;
    }
    const int32_t cluster_ctas = moe_tiles_cluster_ctas(tile);
    if (cluster_ctas > 1 && !gathers(op) && op->num_rows > 0) {
        MOE_TRY(encode_tokens(state, tile, &args, error));
    }
    struct moe_cuda_launch launch = {
        .tile = tile->id,
        .form = form,
        .grid_x = (uint32_t)(state->num_sms - state->num_sms % cluster_ctas),
        .grid_y = 1,
        .num_threads = (uint32_t)tile->num_warps * 32,
        .smem_bytes = (uint32_t)smem_bytes,
        .is_chained = run->is_chained,
        .args = &args,
    };
    return moe_cuda_state_launch(state, run->stream, &launch, error);
}

int32_t moe_cuda_grouped_gemm(const struct moe_run *run, int32_t op_id,
                              const struct moe_op_gemm *op, struct moe_error *error)
{
    MOE_TRY(moe_cuda_check_rows("grouped_gemm: input", op->input, op->input_stride, op->input_dtype,
                                error));
    return moe_cuda_gemm(run, op_id, op, op_id == MOE_OP_GEMM2 ? MOE_CUDA_DOWN : MOE_CUDA_GATE, 0,
                         NULL, error);
}
