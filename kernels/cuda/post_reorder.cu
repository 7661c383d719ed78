/* SPDX-License-Identifier: Apache-2.0 */
/*
 * post_reorder: output[t] = scaling * sum over slots j of weight[t, j] * rows[src2dst[t, j]], +
 * factor[t] * shared[t], + residual[t]; sum_reduce is its case without src2dst and weights.
 * Moves: T * k * H elements read, T * H written (+ T * H each for shared and residual), 2 T k H
 *   FLOPs. Bound by memory bandwidth.
 * Pipeline: a thread has eight neighbouring columns of one token. 1 wait for the grid before.
 *   2 load destinations, weights and up to eight rows (fp32: four) before the first use. 3 one
 *   chain of fused multiply-adds in slot order. 4 scaling, shared, residual. 5 one rounding, one
 *   wide store.
 * Arithmetic: that of the CPU's kernel, operation by operation, so the bits are the same.
 * Limits: none on H and k; without 16-byte alignment columns are loaded one by one. Output may be
 *   residual or shared: a thread reads its columns before it writes them.
 */
#include "cuda_args.h"
#include "ptx.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace
{

constexpr int kColumns = 8;
constexpr int kThreadsPerSm = 512; /* at least; leaves each 128 registers */

/* Eight columns as they lie in memory. */
template <typename Element> struct alignas(16) Columns {
    Element values[kColumns];
};

/* Rows that are loaded before the first is used: what 32 registers hold of 16-bit columns, and half
 * as many of fp32, which would spill otherwise. */
template <typename Element> constexpr int kRowsInFlight = 16 / static_cast<int>(sizeof(Element));

__device__ __forceinline__ float widen(float value)
{
    return value;
}
__device__ __forceinline__ float widen(__half value)
{
    return __half2float(value);
}
__device__ __forceinline__ float widen(__nv_bfloat16 value)
{
    return __bfloat162float(value);
}

/* NaN of any payload is stored as the positive quiet one, as on the CPU. */
__device__ __forceinline__ void narrow(float value, float *out)
{
    *out = value != value ? __int_as_float(0x7fc00000) : value;
}
__device__ __forceinline__ void narrow(float value, __half *out)
{
    *out = value != value ? __ushort_as_half(0x7e00) : __float2half_rn(value);
}
__device__ __forceinline__ void narrow(float value, __nv_bfloat16 *out)
{
    *out = value != value ? __ushort_as_bfloat16(0x7fc0) : __float2bfloat16_rn(value);
}

template <typename Element, bool kVectored>
__device__ __forceinline__ Columns<Element> load_columns(const Element *from, int32_t count)
{
    Columns<Element> columns;
    if constexpr (kVectored) {
        const uint4 *words = reinterpret_cast<const uint4 *>(from);
        uint4 *target = reinterpret_cast<uint4 *>(&columns);
#pragma unroll
        for (int i = 0; i < static_cast<int>(sizeof(columns) / sizeof(uint4)); i++) {
            target[i] = words[i];
        }
    } else {
#pragma unroll
        for (int c = 0; c < kColumns; c++) {
            columns.values[c] = c < count ? from[c] : Element(0.0f);
        }
    }
    return columns;
}

template <typename Element, bool kVectored>
__device__ __forceinline__ void store_columns(Element *to, const float *sums, int32_t count)
{
    Columns<Element> columns;
#pragma unroll
    for (int c = 0; c < kColumns; c++) {
        narrow(sums[c], &columns.values[c]);
    }
    if constexpr (kVectored) {
        const uint4 *words = reinterpret_cast<const uint4 *>(&columns);
        uint4 *target = reinterpret_cast<uint4 *>(to);
#pragma unroll
        for (int i = 0; i < static_cast<int>(sizeof(columns) / sizeof(uint4)); i++) {
            target[i] = words[i];
        }
    } else {
#pragma unroll
        for (int c = 0; c < kColumns; c++) {
            if (c < count) {
                to[c] = columns.values[c];
            }
        }
    }
}

/* Offset of the row of a slot, -1 if it has none. */
__device__ __forceinline__ int64_t find_row(const struct moe_op_post_reorder &op, int64_t token,
                                            int32_t slot)
{
    if (op.src2dst == nullptr) {
        return token * op.token_stride + slot * op.row_stride;
    }
    const int32_t row = op.src2dst[token * op.top_k + slot];
    return row >= 0 && row < op.num_rows ? row * op.row_stride : -1;
}

/* A row that does not exist is read as row 0 and left out of the sum, so that the loads of a group
 * do not wait for each other's tests. Only called when there is a row 0. */
template <typename Element, bool kVectored>
__device__ __forceinline__ void add_rows(const struct moe_op_post_reorder &op, int64_t token,
                                         int32_t column, int32_t count, float *sums)
{
    constexpr int kRows = kRowsInFlight<Element>;
    const Element *rows = static_cast<const Element *>(op.rows) + column;
    for (int32_t first = 0; first < op.top_k; first += kRows) {
        int64_t offsets[kRows];
        float weights[kRows];
        Columns<Element> columns[kRows];
#pragma unroll
        for (int r = 0; r < kRows; r++) {
            const int32_t slot = first + r;
            const bool is_slot = slot < op.top_k;
            offsets[r] = is_slot ? find_row(op, token, slot) : -1;
            weights[r] = is_slot && op.topk_weights != nullptr
                             ? op.topk_weights[token * op.top_k + slot]
                             : 1.0f;
        }
#pragma unroll
        for (int r = 0; r < kRows; r++) {
            columns[r] =
                load_columns<Element, kVectored>(rows + (offsets[r] >= 0 ? offsets[r] : 0), count);
        }
#pragma unroll
        for (int r = 0; r < kRows; r++) {
#pragma unroll
            for (int c = 0; c < kColumns; c++) {
                const float sum = __fmaf_rn(weights[r], widen(columns[r].values[c]), sums[c]);
                sums[c] = offsets[r] >= 0 ? sum : sums[c];
            }
        }
    }
}

template <typename Element, bool kVectored>
__device__ __forceinline__ void combine(const struct moe_op_post_reorder &op, int64_t token,
                                        int32_t column)
{
    const int32_t left = op.hidden - column;
    const int32_t count = left < kColumns ? left : kColumns;
    float sums[kColumns] = {};
    if (op.src2dst == nullptr || op.num_rows > 0) {
        add_rows<Element, kVectored>(op, token, column, count, sums);
    }
#pragma unroll
    for (int c = 0; c < kColumns; c++) {
        sums[c] = __fmul_rn(sums[c], op.scaling);
    }
    if (op.shared != nullptr) {
        const Element *from =
            static_cast<const Element *>(op.shared) + token * op.shared_stride + column;
        const Columns<Element> shared = load_columns<Element, kVectored>(from, count);
        const float factor = op.shared_factor != nullptr ? op.shared_factor[token] : 1.0f;
#pragma unroll
        for (int c = 0; c < kColumns; c++) {
            sums[c] = __fmaf_rn(factor, widen(shared.values[c]), sums[c]);
        }
    }
    if (op.residual != nullptr) {
        const Element *from =
            static_cast<const Element *>(op.residual) + token * op.residual_stride + column;
        const Columns<Element> residual = load_columns<Element, kVectored>(from, count);
#pragma unroll
        for (int c = 0; c < kColumns; c++) {
            sums[c] = __fadd_rn(sums[c], widen(residual.values[c]));
        }
    }
    Element *to = static_cast<Element *>(op.output) + token * op.output_stride + column;
    store_columns<Element, kVectored>(to, sums, count);
}

template <typename Element, int kThreads>
__device__ __forceinline__ void combine_tokens(const struct moe_cuda_post_reorder &args)
{
    const int32_t column =
        (static_cast<int32_t>(blockIdx.x) * kThreads + static_cast<int32_t>(threadIdx.x)) *
        kColumns;
    if (column >= args.op.hidden) {
        return;
    }
    for (int64_t token = blockIdx.y; token < args.op.num_tokens; token += gridDim.y) {
        if (args.is_vectored) {
            combine<Element, true>(args.op, token, column);
        } else {
            combine<Element, false>(args.op, token, column);
        }
    }
}

template <int kThreads>
__device__ __forceinline__ void post_reorder(const struct moe_cuda_post_reorder &args)
{
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    if (args.op.dtype == MOE_DTYPE_BF16) {
        combine_tokens<__nv_bfloat16, kThreads>(args);
    } else if (args.op.dtype == MOE_DTYPE_FP16) {
        combine_tokens<__half, kThreads>(args);
    } else {
        combine_tokens<float, kThreads>(args);
    }
}

} // namespace

#define MOE_EMIT_CUDA_ROWS(symbol, size)                                       \
    extern "C" __global__ void __launch_bounds__(size, kThreadsPerSm / (size)) \
        symbol(const __grid_constant__ struct moe_cuda_post_reorder args)      \
    {                                                                          \
        post_reorder<size>(args);                                              \
    }
#define MOE_INSTANTIATE_POST_REORDER(kernel, size) MOE_EMIT_ROW(POST_REORDER, kernel, size)
#define MOE_INSTANTIATE_SUM_REDUCE(kernel, size)   MOE_EMIT_ROW(SUM_REDUCE, kernel, size)
#include "instantiate.cuh"
