/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Emits one kernel per row of tiles.def. An operation's file defines MOE_EMIT_<KERNEL>(symbol,
 * block_size) for its kernels and MOE_INSTANTIATE_<OP>(kernel, size) as MOE_EMIT_ROW(<OP>, kernel,
 * size), and includes this file last; rows of other operations and kernels expand to nothing.
 * Symbols are moe_<OP>_<KERNEL>_<BLOCK_SIZE>, as cuda_state.c looks them up from the same rows.
 * GEMM rows: MOE_EMIT_GEMM_<KERNEL>(symbol, bm, bn, bk, group_m, warps, stages), with symbols
 * moe_GEMM_<KERNEL>_<bm>_<bn>_<bk>_<group_m>_<warps>_<stages>.
 */
#define MOE_HAVE_AVX2 0
#define MOE_HAVE_CUDA 1

/* The symbol of a form of a kernel (MOE_CUDA_FORMS_LIST); form 0 has the kernel's own. */
#define MOE_FORM(form, symbol)    MOE_FORM_(form, symbol)
#define MOE_FORM_(number, symbol) form##number##_##symbol

#define MOE_EMIT_ROW(op, kernel, size) MOE_EMIT_##kernel(moe_##op##_##kernel##_##size, size)

#ifndef MOE_INSTANTIATE_GATING
#define MOE_INSTANTIATE_GATING(kernel, size)
#endif
#ifndef MOE_INSTANTIATE_ALIGN_BLOCK_SIZE
#define MOE_INSTANTIATE_ALIGN_BLOCK_SIZE(kernel, size)
#endif
#ifndef MOE_INSTANTIATE_EP_PREPROCESS
#define MOE_INSTANTIATE_EP_PREPROCESS(kernel, size)
#endif
#ifndef MOE_INSTANTIATE_ROUTE
#define MOE_INSTANTIATE_ROUTE(kernel, size)
#endif
#ifndef MOE_INSTANTIATE_PRE_REORDER
#define MOE_INSTANTIATE_PRE_REORDER(kernel, size)
#endif
#ifndef MOE_INSTANTIATE_QUANTIZE
#define MOE_INSTANTIATE_QUANTIZE(kernel, size)
#endif
#ifndef MOE_INSTANTIATE_ACTIVATION
#define MOE_INSTANTIATE_ACTIVATION(kernel, size)
#endif
#ifndef MOE_INSTANTIATE_POST_REORDER
#define MOE_INSTANTIATE_POST_REORDER(kernel, size)
#endif
#ifndef MOE_INSTANTIATE_SUM_REDUCE
#define MOE_INSTANTIATE_SUM_REDUCE(kernel, size)
#endif

#define MOE_EMIT_CPU_C11(symbol, size)
#define MOE_EMIT_CPU_AVX2(symbol, size)
#ifndef MOE_EMIT_CUDA_ROWS
#define MOE_EMIT_CUDA_ROWS(symbol, size)
#endif
#ifndef MOE_EMIT_CUDA_SORT
#define MOE_EMIT_CUDA_SORT(symbol, size)
#endif
#ifndef MOE_EMIT_CUDA_SPLIT
#define MOE_EMIT_CUDA_SPLIT(symbol, size)
#endif

/* The router's rows: moe_ROUTER_<KERNEL>_<BLOCK_SIZE_M>_<BLOCK_SIZE_N>. */
#define MOE_EMIT_ROUTER_ROW(kernel, bm, bn) \
    MOE_EMIT_##kernel(moe_ROUTER_##kernel##_##bm##_##bn, bm, bn)
#ifndef MOE_INSTANTIATE_ROUTER
#define MOE_INSTANTIATE_ROUTER(kernel, bm, bn)
#endif

#define MOE_TILE_ROUTER(kernel, bm, bn, bk, group_m, warps, stages) \
    MOE_INSTANTIATE_ROUTER(kernel, bm, bn)
#define MOE_EMIT_GEMM_CPU_C11(symbol, bm, bn, bk, group_m, warps, stages)
#define MOE_EMIT_GEMM_CPU_AVX2(symbol, bm, bn, bk, group_m, warps, stages)
#ifndef MOE_EMIT_GEMM_SM90_GEMM
#define MOE_EMIT_GEMM_SM90_GEMM(symbol, bm, bn, bk, group_m, warps, stages)
#endif

#ifndef MOE_EMIT_GEMM_SM90_PAIR
#define MOE_EMIT_GEMM_SM90_PAIR(symbol, bm, bn, bk, group_m, warps, stages)
#endif

#define MOE_TILE_BLOCK(op, kernel, size) MOE_INSTANTIATE_##op(kernel, size)
#define MOE_TILE_GEMM(kernel, bm, bn, bk, group_m, warps, stages)                            \
    MOE_EMIT_GEMM_##kernel(                                                                  \
        moe_GEMM_##kernel##_##bm##_##bn##_##bk##_##group_m##_##warps##_##stages, bm, bn, bk, \
        group_m, warps, stages)
#include "tiles.def"
