/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pre_reorder: rows[src2dst[t, j]] = tokens[t] for every slot j whose destination lies in the rows.
 * Moves: T * H elements read once, T * k * H written. Bound by memory bandwidth.
 * Pipeline: a CTA has BLOCK_SIZE vectors (of 16 bytes, where addresses allow) of one token.
 *   1 wait for the grid before. 2 load the thread's vector and the token's destinations.
 *   3 let the next grid come. 4 store the vector once per destination; stores of a warp are
 *   contiguous. CTAs of one token are neighbours, so that its destinations stay in the cache.
 * Limits: none on H and k; rows only need the alignment of their elements.
 * Variants: BLOCK_SIZE x 3 widths of a vector, chosen at run time.
 */
#include "cuda_args.h"
#include "ptx.cuh"

namespace
{

template <typename Vector, int kThreads>
__device__ __forceinline__ void copy_rows(const struct moe_cuda_pre_reorder &args)
{
    const struct moe_op_pre_reorder &op = args.op;
    const int64_t element_bytes = op.dtype == MOE_DTYPE_FP32 ? 4 : 2;
    const int32_t column =
        static_cast<int32_t>(blockIdx.x) * kThreads + static_cast<int32_t>(threadIdx.x);
    for (int64_t token = blockIdx.y; token < op.num_tokens; token += gridDim.y) {
        if (column >= args.row_vectors) {
            continue;
        }
        const char *source =
            static_cast<const char *>(op.tokens) + token * op.token_stride * element_bytes;
        const Vector value = reinterpret_cast<const Vector *>(source)[column];
        const int32_t *destinations = op.src2dst + token * op.top_k;
#pragma unroll 4
        for (int32_t slot = 0; slot < op.top_k; slot++) {
            const int32_t row = destinations[slot];
            if (row >= 0 && row < op.num_rows) {
                char *target = static_cast<char *>(op.rows) + row * op.row_stride * element_bytes;
                reinterpret_cast<Vector *>(target)[column] = value;
            }
        }
    }
}

template <int kThreads>
__device__ __forceinline__ void pre_reorder(const struct moe_cuda_pre_reorder &args)
{
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    if (args.vector_bytes == 16) {
        copy_rows<uint4, kThreads>(args);
    } else if (args.vector_bytes == 4) {
        copy_rows<uint32_t, kThreads>(args);
    } else {
        copy_rows<uint16_t, kThreads>(args);
    }
}

} // namespace

#define MOE_EMIT_CUDA_ROWS(symbol, size)                                 \
    extern "C" __global__ void __launch_bounds__(size)                   \
        symbol(const __grid_constant__ struct moe_cuda_pre_reorder args) \
    {                                                                    \
        pre_reorder<size>(args);                                         \
    }
#define MOE_INSTANTIATE_PRE_REORDER(kernel, size) MOE_EMIT_ROW(PRE_REORDER, kernel, size)
#include "instantiate.cuh"
