/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quantize: output[t, h] = fp8(tokens[t, h] / scale), scales given or found from the data and
 *   written: one per token, or one per group of columns.
 * Moves: T * H elements in, T * H bytes and the scales out. Bound by memory bandwidth.
 * Pipeline: a thread has 16 columns of a token (form 1: eight). 1 wait for the grid before. 2 load.
 *   3 the largest magnitude of the group, by shuffles or over the CTA. 4 scale, reciprocal.
 *   5 convert, store; one thread stores the scale.
 * Forms: 0 groups that lanes of one warp share, rows aligned to
 *   16 bytes; 1 all others, and given scales.
 * Limits: none on H and the group; without 16-byte alignment columns go one by one.
 */
#include "cuda_args.h"
#include "quant.cuh"

namespace
{

struct Rows {
    const struct moe_cuda_quantize &args;

    __device__ __forceinline__ void enter(int64_t) const
    {
    }
    __device__ __forceinline__ void load_unit(int64_t row, int32_t unit, float *values) const
    {
        const struct moe_op_quantize &op = args.op;
        moe_rows_load16(static_cast<const char *>(op.tokens) +
                            (row * op.token_stride + 16 * unit) * moe_rows_element_bytes(op.dtype),
                        op.dtype, values);
    }
    __device__ __forceinline__ void store_unit(int64_t row, int32_t unit, uint4 bytes) const
    {
        uint8_t *to = static_cast<uint8_t *>(args.op.output) + row * args.op.output_stride;
        reinterpret_cast<uint4 *>(to)[unit] = bytes;
    }
    __device__ __forceinline__ void load(int64_t row, int32_t column, int32_t count,
                                         float *values) const
    {
        const struct moe_op_quantize &op = args.op;
        const char *from = static_cast<const char *>(op.tokens) +
                           (row * op.token_stride + column) * moe_rows_element_bytes(op.dtype);
        if (args.is_vectored && count >= MOE_ROWS_COLUMNS) {
            moe_rows_load(from, op.dtype, values);
        } else {
            moe_rows_load_each(from, op.dtype, 1, count, values);
        }
    }
    __device__ __forceinline__ void store(int64_t row, int32_t column, int32_t count,
                                          const float *values, float inverse) const
    {
        uint8_t *to = static_cast<uint8_t *>(args.op.output) + row * args.op.output_stride + column;
        moe_fp8_store(to, moe_fp8_pack8(values, inverse), args.is_output_vectored, count);
    }
    __device__ __forceinline__ void store_scale(int64_t row, int32_t group, float scale,
                                                int32_t lane, int32_t num_lanes) const
    {
        (void)num_lanes;
        if (lane == 0) {
            moe_fp8_store_scale(args.op.quant, row, group, args.num_groups, scale);
        }
    }
    __device__ __forceinline__ float inverse(int64_t row) const
    {
        const struct moe_op_quant &quant = args.op.quant;
        return __frcp_rn(quant.static_scales[quant.static_per == MOE_QUANT_PER_ROW ? row : 0]);
    }
};

template <bool kByLanes>
__device__ __forceinline__ void quantize(const struct moe_cuda_quantize &args)
{
    Rows rows = {args};
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    const int64_t num_tokens = moe_rows_num_tokens(args.op.num_tokens, args.op.num_tokens_device);
    if constexpr (kByLanes) {
        moe_quant_units(rows, args.units, args.op.quant.scale_layout, num_tokens);
    } else {
        __shared__ float scratch[32];
        for (int64_t row = blockIdx.y; row < num_tokens; row += gridDim.y) {
            moe_quant_other(rows, args.op.quant, row, args.op.hidden, scratch);
        }
    }
}

} // namespace

#define MOE_EMIT_CUDA_ROWS(symbol, size)                                           \
    extern "C" __global__ void __launch_bounds__(size)                             \
        symbol(const __grid_constant__ struct moe_cuda_quantize args)              \
    {                                                                              \
        quantize<true>(args);                                                      \
    }                                                                              \
    extern "C" __global__ void __launch_bounds__(size)                             \
        MOE_FORM(1, symbol)(const __grid_constant__ struct moe_cuda_quantize args) \
    {                                                                              \
        quantize<false>(args);                                                     \
    }
#define MOE_INSTANTIATE_QUANTIZE(kernel, size) MOE_EMIT_ROW(QUANTIZE, kernel, size)
#include "instantiate.cuh"
