/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Grouped GEMM on sm_90a: output[m, n] = epilogue(sum over k of input[row(m), k] * weight[e(m), n,
 * k]), gate and up in one pass where there are two matrices.
 * Moves: E' * num_matrices * n * k weights of the E' experts that have rows, once each while an
 *   expert's rows fit a few units; rows * k inputs per block of channels out of the L2, rows * n
 *   outputs. 2 * rows * num_matrices * n * k FLOPs.
 * Bound: weight bytes below about 180 rows per expert, tensor cores above.
 * sm90.pair: clusters of two CTAs that multiply the same weights with two blocks of tokens; each
 *   brings half of the weights to both, so that the L2 delivers 35 KB per step instead of 50.
 * Pipeline: persistent CTAs. 1 every CTA lists the work from seg_indptr, masked_m or expert_ids. 2
 *   one thread brings weight boxes by TMA into a ring of stages, three warps gather token rows by
 *   cp.async (sm90.pair: or the thread brings them too, where they lie in order). 3 one or two
 *   warpgroups multiply: weights are the 64 rows of wgmma, tokens its columns, in steps of 8. 4 row
 *   weight, bias and activation on registers, gate and up of a channel being in the same thread. 5
 *   transposed through shared memory to whole pieces of rows. The ring runs on from unit to unit.
 * Arithmetic: each output is one chain over k in steps of 16, so the bits depend on neither tile
 *   nor neighbours.
 * Limits: those of struct moe_cuda_gemm.
 */
#if __CUDA_ARCH__ == 900
#include "gemm.cuh"

#define MOE_EMIT_GEMM(symbol, bm, bn, bk, group_m, warps, stages, ctas)                        \
    extern "C" __global__ void __cluster_dims__(ctas, 1, 1) __launch_bounds__(32 * (warps), 1) \
        symbol(const __grid_constant__ struct moe_cuda_gemm args)                              \
    {                                                                                          \
        moe_gemm_run<moe_gemm_tile<bm, bn, bk, group_m, warps, stages, ctas>>(args);           \
    }
#define MOE_EMIT_GEMM_SM90_GEMM(symbol, bm, bn, bk, group_m, warps, stages) \
    MOE_EMIT_GEMM(symbol, bm, bn, bk, group_m, warps, stages, 1)
#define MOE_EMIT_GEMM_SM90_PAIR(symbol, bm, bn, bk, group_m, warps, stages) \
    MOE_EMIT_GEMM(symbol, bm, bn, bk, group_m, warps, stages, MOE_KERNEL_CTAS_SM90_PAIR)
#include "instantiate.cuh"
#endif
