/* SPDX-License-Identifier: Apache-2.0 */
/* Emits form `MOE_GEMM_FORM` of the grouped GEMM, TRANSPOSED or PAIRED, for the rows of tiles.def
 * that have it. */
#include "gemm.cuh"

#define MOE_EMIT_GEMM(symbol, bm, bn, bk, group_m, warps, stages, ctas)                        \
    static_assert(MOE_CUDA_GEMM_HAS_FORM(MOE_GEMM_FORM, bm, bn, warps), "a row without it");   \
    extern "C" __global__ void __cluster_dims__(ctas, 1, 1) __launch_bounds__(32 * (warps), 1) \
        symbol(const __grid_constant__ struct moe_cuda_gemm args)                              \
    {                                                                                          \
        moe_gemm_run<moe_gemm_tile<bm, bn, bk, group_m, warps, stages, ctas, MOE_GEMM_FORM>>(  \
            args);                                                                             \
    }
#define MOE_EMIT_NO_GEMM(symbol, bm, bn, bk, group_m, warps, stages, ctas) \
    static_assert(!MOE_CUDA_GEMM_HAS_FORM(MOE_GEMM_FORM, bm, bn, warps), "a row that has it");
/* By block_m: HAS_FORM or not. A row of another kind has to be listed here. */
#if MOE_GEMM_FORM == MOE_CUDA_GEMM_TRANSPOSED
#define MOE_EMIT_ROWS_184(...) MOE_EMIT_GEMM(__VA_ARGS__)
#else
#define MOE_EMIT_ROWS_184(...) MOE_EMIT_NO_GEMM(__VA_ARGS__)
#endif
#define MOE_EMIT_ROWS_144(...) MOE_EMIT_GEMM(__VA_ARGS__)
#define MOE_EMIT_ROWS_64(...)  MOE_EMIT_GEMM(__VA_ARGS__)
#define MOE_EMIT_ROWS_32(...)  MOE_EMIT_GEMM(__VA_ARGS__)
#define MOE_EMIT_ROWS_16(...)  MOE_EMIT_NO_GEMM(__VA_ARGS__)
#define MOE_EMIT_ROWS_8(...)   MOE_EMIT_NO_GEMM(__VA_ARGS__)
#define MOE_EMIT_GEMM_SM90_GEMM(symbol, bm, bn, bk, group_m, warps, stages) \
    MOE_EMIT_ROWS_##bm(MOE_FORM(MOE_GEMM_FORM, symbol), bm, bn, bk, group_m, warps, stages, 1)
#define MOE_EMIT_GEMM_SM90_PAIR(symbol, bm, bn, bk, group_m, warps, stages)                 \
    MOE_EMIT_ROWS_##bm(MOE_FORM(MOE_GEMM_FORM, symbol), bm, bn, bk, group_m, warps, stages, \
                       MOE_KERNEL_CTAS_SM90_PAIR)
#include "instantiate.cuh"
