/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The grouped GEMM of gemm.cu for weights that lie channel by channel, [E, k, n]: the same outputs
 * bit for bit, and the same bytes, FLOPs and bound.
 * Pipeline: that of gemm.cu, but a box is 64 channels (128 bytes) by block_k columns. So a slab is
 *   M-major in shared memory, and wgmma reads it transposed.
 * Limits: tiles with slabs of 64 rows. Smaller slabs would be boxes of 64 or 32 bytes a column,
 *   pieces of the 128 bytes that memory delivers best.
 */
#if __CUDA_ARCH__ == 900
#define MOE_GEMM_FORM MOE_CUDA_GEMM_TRANSPOSED
#include "gemm_forms.cuh"
#endif
