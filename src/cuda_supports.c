/* SPDX-License-Identifier: Apache-2.0 */
/* Which problems the multiplying operations of the CUDA backend run, a sentence for each that they
 * do not. */
#include "cuda_args.h"
#include "cuda_ops.h"
#include "problem.h"
#include "status.h"
#include "tiles.h"

#include <string.h>

enum { GEMM_SM = 90, COLUMNS_OF_16_BYTES = 8 };

static bool is_half(int32_t dtype)
{
    return dtype == MOE_DTYPE_BF16 || dtype == MOE_DTYPE_FP16;
}

/* A recipe of plain elements of the tokens' type. */
static int32_t check_recipe(const char *name, const struct moe_recipe *recipe,
                            const struct moe_problem *problem, struct moe_error *error)
{
    struct moe_recipe plain;
    memset(&plain, 0, sizeof(plain));
    plain.dtype = recipe->dtype;
    if (memcmp(&plain, recipe, sizeof(plain)) != 0) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "problem.%s has scales, groups or a packing; the GEMMs of the cuda "
                             "backend of this version take plain bf16 and fp16",
                             name);
    }
    if (!is_half(recipe->dtype) || recipe->dtype != problem->tokens.dtype) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "problem.%s is %s and problem.tokens is %s; the GEMMs of the cuda "
                             "backend of this version take bf16 or fp16, one of them for all",
                             name, moe_dtype_name(recipe->dtype),
                             moe_dtype_name(problem->tokens.dtype));
    }
    return MOE_STATUS_OK;
}

static int32_t check_width(const char *name, int32_t width, struct moe_error *error)
{
    if (width % COLUMNS_OF_16_BYTES != 0) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "problem.%s is %d; the cuda backend loads rows 16 bytes at a time, so "
                             "it must be a multiple of %d",
                             name, width, COLUMNS_OF_16_BYTES);
    }
    return MOE_STATUS_OK;
}

/* Every GEMM tile keeps three words per expert beside its ring. */
static int32_t check_experts(const struct moe_device *device, const struct moe_problem *problem,
                             struct moe_error *error)
{
    for (int32_t id = 0; id < MOE_NUM_TILES; id++) {
        const struct moe_tile *tile = &moe_tiles[id];
        if (tile->op != MOE_OP_GEMM1 || moe_kernels[tile->kernel].backend != MOE_BACKEND_CUDA) {
            continue;
        }
        if (moe_cuda_gemm_smem_bytes(tile, problem->num_experts) > device->smem_bytes) {
            return moe_error_set(
                error, MOE_STATUS_UNSUPPORTED,
                "problem.num_experts %d: %s needs %lld bytes of shared memory; a block of the "
                "device has %d",
                problem->num_experts, tile->name,
                (long long)moe_cuda_gemm_smem_bytes(tile, problem->num_experts),
                device->smem_bytes);
        }
    }
    return MOE_STATUS_OK;
}

static int32_t check_router(const struct moe_problem *problem, struct moe_error *error)
{
    struct moe_recipe plain;
    memset(&plain, 0, sizeof(plain));
    plain.dtype = problem->tokens.dtype;
    if (memcmp(&plain, &problem->tokens, sizeof(plain)) != 0 ||
        (!is_half(plain.dtype) && plain.dtype != MOE_DTYPE_FP32)) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "problem.tokens is %s%s; the router of the cuda backend takes plain "
                             "bf16, fp16 and fp32",
                             moe_dtype_name(plain.dtype),
                             is_half(plain.dtype) || plain.dtype == MOE_DTYPE_FP32
                                 ? " with scales, groups or a packing"
                                 : "");
    }
    return check_width("hidden", problem->hidden, error);
}

static int32_t check_gemms(const struct moe_device *device, const struct moe_problem *problem,
                           struct moe_error *error)
{
    if (device->sm != GEMM_SM) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "the GEMMs of the cuda backend of this version are for sm_%d; the "
                             "device is sm_%d",
                             GEMM_SM, device->sm);
    }
    MOE_TRY(check_recipe("tokens", &problem->tokens, problem, error));
    MOE_TRY(check_recipe("gate_up", &problem->gate_up, problem, error));
    MOE_TRY(check_recipe("intermediate", &problem->intermediate, problem, error));
    MOE_TRY(check_recipe("down", &problem->down, problem, error));
    if (!is_half(problem->output_dtype) && problem->output_dtype != MOE_DTYPE_FP32) {
        return moe_error_set(error, MOE_STATUS_UNSUPPORTED,
                             "problem.output_dtype is %s; the cuda backend writes bf16, fp16 and "
                             "fp32",
                             moe_dtype_name(problem->output_dtype));
    }
    MOE_TRY(check_width("hidden", problem->hidden, error));
    MOE_TRY(check_width("inter", problem->inter, error));
    MOE_TRY(check_width("shared_inter", problem->shared_inter, error));
    return check_experts(device, problem, error);
}

int32_t moe_cuda_supports_gemms(const struct moe_device *device, const struct moe_problem *problem,
                                uint64_t ops, struct moe_error *error)
{
    if ((ops & (MOE_OP_BIT(MOE_OP_GEMM1) | MOE_OP_BIT(MOE_OP_GEMM2))) != 0) {
        MOE_TRY(check_gemms(device, problem, error));
    }
    if ((ops & MOE_OP_BIT(MOE_OP_ROUTER)) != 0) {
        MOE_TRY(check_router(problem, error));
    }
    return MOE_STATUS_OK;
}

bool moe_cuda_runs_layer(const struct moe_device *device)
{
    return device->sm == GEMM_SM;
}
