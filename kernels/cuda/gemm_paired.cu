/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The grouped GEMM of gemm_transposed.cu for gate and up whose channels are in turn, [E, k, 2n]
 * with gate first: the same outputs bit for bit, and the same bytes, FLOPs and bound.
 * Pipeline: that of gemm.cu, but a slab is a box of 32 channels of both matrices. gemm_pairs.cuh
 *   brings gate and up of a channel into one thread between the last multiplication and the
 *   epilogue, by a shuffle for two sums.
 * Limits: tiles with slabs of 64 rows and at most 144 tokens (with 184 the epilogue has ten
 *   registers too few); two matrices.
 */
#if __CUDA_ARCH__ == 900
#define MOE_GEMM_FORM MOE_CUDA_GEMM_PAIRED
#include "gemm_forms.cuh"
#endif
