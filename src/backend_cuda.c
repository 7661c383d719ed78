/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA backend: support rules, and single operations as one launch each. Geometry follows from
 * the operation's numbers and the tile; nothing is read back from the device. */
#include "backend.h"
#include "cuda_args.h"
#include "cuda_state.h"
#include "plan.h"
#include "status.h"
#include "tiles.h"
#include "weights.h"

#include <string.h>

#define GRID_Y_LIMIT 65535

static int32_t cuda_probe(int32_t ordinal, struct moe_device *out, struct moe_error *error)
{
    struct moe_cuda_driver driver;
    MOE_TRY(moe_cuda_driver_open(&driver, error));
    int32_t status = moe_cuda_state_describe(&driver, ordinal, out, error);
    moe_cuda_driver_close(&driver);
    return status;
}

static int32_t cuda_state_create(const struct moe_memory *memory,
                                 const struct moe_context_options *options,
                                 struct moe_device *device, void **out, struct moe_error *error)
{
    struct moe_cuda_state *state = NULL;
    if (options->num_threads != 0) {
        return moe_error_set(
            error, MOE_STATUS_INVALID_ARGUMENT,
            "context options: num_threads is %d, but the cuda backend has no threads",
            options->num_threads);
    }
    MOE_TRY(moe_cuda_state_create(memory, options->ordinal, device, &state, error));
    *out = state;
    return MOE_STATUS_OK;
}

static void cuda_state_destroy(const struct moe_memory *memory, void *state)
{
    moe_cuda_state_destroy(memory, state);
}

static int32_t check_dtype(const char *name, const struct moe_recipe *recipe,
                           struct moe_error *error)
{
    struct moe_recipe plain;
    memset(&plain, 0, sizeof(plain));
    plain.dtype = recipe->dtype;
    bool known = recipe->dtype == 0 || recipe->dtype == MOE_DTYPE_FP32 ||
                 recipe->dtype == MOE_DTYPE_FP16 || recipe->dtype == MOE_DTYPE_BF16;
    if (!known || memcmp(&plain, recipe, sizeof(plain)) != 0) {
        return moe_error_set(
            error, MOE_STATUS_UNSUPPORTED,
            "problem.%s: the cuda backend of this version implements plain fp32, fp16 and bf16",
            name);
    }
    return MOE_STATUS_OK;
}

static int32_t cuda_supports(const struct moe_device *device, const struct moe_problem *problem,
                             uint64_t ops, struct moe_error *error)
{
    const uint64_t known = MOE_OP_BIT(MOE_OP_ALIGN_BLOCK_SIZE) | MOE_OP_BIT(MOE_OP_EP_PREPROCESS) |
                           MOE_OP_BIT(MOE_OP_PRE_REORDER) | MOE_OP_BIT(MOE_OP_POST_REORDER) |
                           MOE_OP_BIT(MOE_OP_SUM_REDUCE);
    struct moe_recipe output = {.dtype = problem->output_dtype};
    if ((ops & ~known) != 0) {
        int32_t op = 0;
        while ((ops & ~known & MOE_OP_BIT(op)) == 0) {
            op++;
        }
        return moe_error_set(
            error, MOE_STATUS_UNSUPPORTED,
            "%s has no cuda kernel in this version; align_block_size, ep_preprocess, pre_reorder, "
            "post_reorder and sum_reduce have (moe_plan_options.ops)",
            moe_tiles_op_name(op));
    }
    if ((ops & (MOE_OP_BIT(MOE_OP_ALIGN_BLOCK_SIZE) | MOE_OP_BIT(MOE_OP_EP_PREPROCESS))) != 0 &&
        MOE_CUDA_SORT_SMEM_BYTES(1, problem->num_experts + 1) > device->smem_bytes) {
        return moe_error_set(
            error, MOE_STATUS_UNSUPPORTED,
            "problem.num_experts %d: the sort keeps four words per expert in %d bytes of shared "
            "memory",
            problem->num_experts, device->smem_bytes);
    }
    MOE_TRY(check_dtype("tokens", &problem->tokens, error));
    return check_dtype("output_dtype", &output, error);
}

static uint64_t cuda_op_workspace(const struct moe_plan *plan,
                                  const struct moe_dispatch_bucket *bucket, int32_t op,
                                  int64_t num_tokens)
{
    (void)plan;
    (void)bucket;
    (void)op;
    (void)num_tokens;
    return 0; /* the sorts keep everything in shared memory */
}

static uint64_t cuda_weights_prepared_bytes(const struct moe_problem *problem,
                                            const struct moe_weights_desc *desc)
{
    (void)problem;
    (void)desc;
    return 0;
}

static int32_t cuda_weights_bind(struct moe_weights *weights, struct moe_error *error)
{
    (void)weights;
    (void)error;
    return MOE_STATUS_OK;
}

static const struct moe_cuda_state *state_of(const struct moe_run *run)
{
    return run->plan->context->state;
}

static const struct moe_tile *tile_of(const struct moe_run *run, int32_t op)
{
    return &moe_tiles[run->bucket->choices[op].tile];
}

/* Counting warps per CTA and their stretches: no more warps than have routes, since every one costs
 * a turn of the sum, and no more than shared memory has counters for. */
static struct moe_cuda_sort_shape shape_sort(const struct moe_cuda_state *state,
                                             const struct moe_tile *tile, int64_t num_routes,
                                             int32_t num_buckets)
{
    const int64_t num_ctas = tile->block_size / MOE_CUDA_SORT_THREADS;
    const int64_t useful_warps = (num_routes + num_ctas * 32 - 1) / (num_ctas * 32);
    int32_t num_warps = useful_warps < 1 ? 1 : useful_warps < 32 ? (int32_t)useful_warps : 32;
    while (num_warps > 1 && MOE_CUDA_SORT_SMEM_BYTES(num_warps, num_buckets) > state->smem_bytes) {
        num_warps--;
    }
    const int64_t routes_per_warp =
        (num_routes + num_ctas * num_warps - 1) / (num_ctas * num_warps);
    struct moe_cuda_sort_shape shape = {
        .num_warps = num_warps,
        .routes_per_warp = (int32_t)((routes_per_warp + 31) / 32 * 32),
        .smem_bytes = MOE_CUDA_SORT_SMEM_BYTES(num_warps, num_buckets),
    };
    const int64_t kept_bytes = (int64_t)num_warps * shape.routes_per_warp * 2;
    if (shape.smem_bytes + kept_bytes <= state->smem_bytes && num_buckets < INT16_MAX) {
        shape.keeps_buckets = 1;
        shape.smem_bytes += (int32_t)kept_bytes;
    }
    return shape;
}

static int32_t launch_sort(const struct moe_run *run, int32_t op, const void *args,
                           int32_t smem_bytes, struct moe_error *error)
{
    const struct moe_tile *tile = tile_of(run, op);
    const uint32_t num_ctas = (uint32_t)(tile->block_size / MOE_CUDA_SORT_THREADS);
    struct moe_cuda_launch launch = {
        .tile = tile->id,
        .grid_x = num_ctas,
        .grid_y = 1,
        .num_threads = MOE_CUDA_SORT_THREADS,
        .cluster = num_ctas,
        .smem_bytes = (uint32_t)smem_bytes,
        .args = args,
    };
    return moe_cuda_state_launch(state_of(run), run->stream, &launch, error);
}

static int32_t cuda_align(const struct moe_run *run, const struct moe_op_align *op,
                          struct moe_error *error)
{
    const int32_t num_buckets = op->filter.num_experts + (op->filter_mode == MOE_FILTER_KEEP);
    struct moe_cuda_align args = {
        .op = *op,
        .shape = shape_sort(state_of(run), tile_of(run, MOE_OP_ALIGN_BLOCK_SIZE), op->num_routes,
                            num_buckets),
    };
    return launch_sort(run, MOE_OP_ALIGN_BLOCK_SIZE, &args, args.shape.smem_bytes, error);
}

static int32_t cuda_ep_preprocess(const struct moe_run *run, const struct moe_op_ep_preprocess *op,
                                  struct moe_error *error)
{
    const int32_t num_buckets = op->filter.num_experts;
    struct moe_cuda_ep_preprocess args = {
        .op = *op,
        .shape = shape_sort(state_of(run), tile_of(run, MOE_OP_EP_PREPROCESS), op->num_routes,
                            num_buckets),
    };
    return launch_sort(run, MOE_OP_EP_PREPROCESS, &args, args.shape.smem_bytes, error);
}

/* Do all of these addresses and distances in bytes divide by `bytes`? */
static bool all_aligned(const uintptr_t *values, size_t num_values, uintptr_t bytes)
{
    for (size_t i = 0; i < num_values; i++) {
        if (values[i] % bytes != 0) {
            return false;
        }
    }
    return true;
}

static uint32_t grid_rows(int64_t num_tokens)
{
    return (uint32_t)(num_tokens < GRID_Y_LIMIT ? num_tokens : GRID_Y_LIMIT);
}

static int32_t cuda_pre_reorder(const struct moe_run *run, const struct moe_op_pre_reorder *op,
                                struct moe_error *error)
{
    const struct moe_tile *tile = tile_of(run, MOE_OP_PRE_REORDER);
    const uintptr_t element_bytes = (uintptr_t)moe_dtype_bytes(op->dtype);
    const uintptr_t row_bytes = (uintptr_t)op->hidden * element_bytes;
    const uintptr_t values[] = {(uintptr_t)op->tokens, (uintptr_t)op->rows,
                                (uintptr_t)op->token_stride * element_bytes,
                                (uintptr_t)op->row_stride * element_bytes, row_bytes};
    const size_t num_values = sizeof(values) / sizeof(values[0]);
    int32_t vector_bytes = all_aligned(values, num_values, 16)  ? 16
                           : all_aligned(values, num_values, 4) ? 4
                                                                : 2;
    struct moe_cuda_pre_reorder args = {
        .op = *op,
        .vector_bytes = vector_bytes,
        .row_vectors = (int32_t)(row_bytes / (uintptr_t)vector_bytes),
    };
    struct moe_cuda_launch launch = {
        .tile = tile->id,
        .grid_x = (uint32_t)((args.row_vectors + tile->block_size - 1) / tile->block_size),
        .grid_y = grid_rows(op->num_tokens),
        .num_threads = (uint32_t)tile->block_size,
        .args = &args,
    };
    return moe_cuda_state_launch(state_of(run), run->stream, &launch, error);
}

static int32_t cuda_post_reorder(const struct moe_run *run, int32_t op_id,
                                 const struct moe_op_post_reorder *op, struct moe_error *error)
{
    const struct moe_tile *tile = tile_of(run, op_id);
    const uintptr_t element_bytes = (uintptr_t)moe_dtype_bytes(op->dtype);
    const uintptr_t values[] = {(uintptr_t)op->rows,
                                (uintptr_t)op->shared,
                                (uintptr_t)op->residual,
                                (uintptr_t)op->output,
                                (uintptr_t)op->row_stride * element_bytes,
                                (uintptr_t)op->token_stride * element_bytes,
                                (uintptr_t)op->shared_stride * element_bytes,
                                (uintptr_t)op->residual_stride * element_bytes,
                                (uintptr_t)op->output_stride * element_bytes};
    const int32_t columns_per_cta = tile->block_size * 8;
    struct moe_cuda_post_reorder args = {
        .op = *op,
        .is_vectored =
            op->hidden % 8 == 0 && all_aligned(values, sizeof(values) / sizeof(values[0]), 16),
    };
    struct moe_cuda_launch launch = {
        .tile = tile->id,
        .grid_x = (uint32_t)((op->hidden + columns_per_cta - 1) / columns_per_cta),
        .grid_y = grid_rows(op->num_tokens),
        .num_threads = (uint32_t)tile->block_size,
        .args = &args,
    };
    return moe_cuda_state_launch(state_of(run), run->stream, &launch, error);
}

/* supports refuses plans with the operations that are NULL here. */
const struct moe_backend moe_backend_cuda = {
    .id = MOE_BACKEND_CUDA,
    .name = "cuda",
    .min_driver = MOE_CUDA_MIN_DRIVER,
    .workspace_alignment = 256,
    .probe = cuda_probe,
    .state_create = cuda_state_create,
    .state_destroy = cuda_state_destroy,
    .supports = cuda_supports,
    .op_workspace = cuda_op_workspace,
    .weights_prepared_bytes = cuda_weights_prepared_bytes,
    .weights_bind = cuda_weights_bind,
    .align = cuda_align,
    .ep_preprocess = cuda_ep_preprocess,
    .pre_reorder = cuda_pre_reorder,
    .post_reorder = cuda_post_reorder,
};
