/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pre_reorder: rows[src2dst[t, j]] = tokens[t] for every slot j whose destination lies in the rows;
 *   or quantized to fp8, with scales given or found from the token and written for every row.
 * Moves: T * H elements read once, T * k * H elements (fp8: bytes, and scales) written. Bound by
 *   memory bandwidth.
 * Pipeline: a CTA has BLOCK_SIZE vectors (of 16 bytes, where addresses allow; quantized: eight
 *   columns) of one token. 1 wait for the grid before. 2 load the thread's vector and the token's
 *   destinations. 3 quantized: the group's scale, once for all destinations. 4 store the vector
 *   once per destination; stores of a warp are contiguous. 5 scales: a lane per destination. CTAs
 *   of one token are neighbours, so that its destinations stay in the cache.
 * Forms: copies; groups of columns that lanes of a warp share; all other quantizations.
 * Limits: none on H and k; rows only need the alignment of their elements.
 */
#include "cuda_args.h"
#include "filter.cuh"
#include "quant.cuh"

namespace
{

__device__ __forceinline__ void store_once(uint4 *to, uint4 value)
{
    __stcs(to, value);
}
template <typename Vector> __device__ __forceinline__ void store_once(Vector *to, Vector value)
{
    *to = value;
}

template <typename Vector, int kThreads>
__device__ __forceinline__ void copy_rows(const struct moe_cuda_pre_reorder &args)
{
    const struct moe_op_pre_reorder &op = args.op;
    const int64_t element_bytes = op.dtype == MOE_DTYPE_FP32 ? 4 : 2;
    const int32_t column =
        static_cast<int32_t>(blockIdx.x) * kThreads + static_cast<int32_t>(threadIdx.x);
    const int64_t num_tokens = moe_rows_num_tokens(op.num_tokens, op.num_tokens_device);
    for (int64_t token = blockIdx.y; token < num_tokens; token += gridDim.y) {
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
                store_once(reinterpret_cast<Vector *>(target) + column, value);
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

/* A CTA has up to kVectors times its threads of 16-byte vectors of one token in registers: with as
 * many tokens per launch as are resident at once, a launch first reads and then writes, which the
 * memory does faster than both at a time. */
template <int kThreads>
__device__ __forceinline__ void pre_reorder_wide(const struct moe_cuda_pre_reorder &args)
{
    constexpr int kVectors = MOE_CUDA_PRE_REORDER_VECTORS;
    const struct moe_op_pre_reorder &op = args.op;
    const int64_t element_bytes = moe_rows_element_bytes(op.dtype);
    const int64_t token = args.first_token + blockIdx.y;
    const int32_t first =
        static_cast<int32_t>(blockIdx.x) * kThreads * kVectors + static_cast<int32_t>(threadIdx.x);
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    if (token >= moe_rows_num_tokens(op.num_tokens, op.num_tokens_device)) {
        return;
    }
    const uint4 *source = reinterpret_cast<const uint4 *>(static_cast<const char *>(op.tokens) +
                                                          token * op.token_stride * element_bytes);
    uint4 values[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; v++) {
        if (first + v * kThreads < args.row_vectors) {
            values[v] = source[first + v * kThreads];
        }
    }
    for (int32_t slot = 0; slot < op.top_k; slot++) {
        const int32_t row = op.src2dst[token * op.top_k + slot];
        if (row < 0 || row >= op.num_rows) {
            continue;
        }
        uint4 *target = reinterpret_cast<uint4 *>(static_cast<char *>(op.rows) +
                                                  row * op.row_stride * element_bytes);
#pragma unroll
        for (int v = 0; v < kVectors; v++) {
            if (first + v * kThreads < args.row_vectors) {
                target[first + v * kThreads] = values[v];
            }
        }
    }
}

constexpr int kHeldSlots = 8; /* destinations that are loaded with the token */

/* A token to its destinations. */
struct Rows {
    const struct moe_cuda_pre_reorder &args;
    int32_t destinations[kHeldSlots];

    __device__ __forceinline__ void load_unit(int64_t token, int32_t unit, float *values) const
    {
        const struct moe_op_pre_reorder &op = args.op;
        moe_rows_load16(static_cast<const char *>(op.tokens) +
                            (token * op.token_stride + 16 * unit) *
                                moe_rows_element_bytes(op.dtype),
                        op.dtype, values);
    }
    __device__ __forceinline__ void store_unit_at(int32_t row, int32_t unit, uint4 bytes) const
    {
        if (is_row(row)) {
            uint8_t *to = static_cast<uint8_t *>(args.op.rows) + row * args.op.row_stride;
            reinterpret_cast<uint4 *>(to)[unit] = bytes;
        }
    }
    __device__ __forceinline__ void store_unit(int64_t token, int32_t unit, uint4 bytes) const
    {
#pragma unroll
        for (int slot = 0; slot < kHeldSlots; slot++) {
            store_unit_at(destinations[slot], unit, bytes);
        }
        for (int32_t slot = kHeldSlots; slot < args.op.top_k; slot++) {
            store_unit_at(args.op.src2dst[token * args.op.top_k + slot], unit, bytes);
        }
    }
    __device__ __forceinline__ void enter(int64_t token)
    {
        const int32_t *from = args.op.src2dst + token * args.op.top_k;
#pragma unroll
        for (int slot = 0; slot < kHeldSlots; slot++) {
            destinations[slot] = slot < args.op.top_k ? from[slot] : -1;
        }
    }
    __device__ __forceinline__ bool is_row(int32_t row) const
    {
        return row >= 0 && row < args.op.num_rows;
    }
    __device__ __forceinline__ void load(int64_t token, int32_t column, int32_t count,
                                         float *values) const
    {
        const struct moe_op_pre_reorder &op = args.op;
        const char *from = static_cast<const char *>(op.tokens) +
                           (token * op.token_stride + column) * moe_rows_element_bytes(op.dtype);
        if (args.vector_bytes == 16 && count >= MOE_ROWS_COLUMNS) {
            moe_rows_load(from, op.dtype, values);
        } else {
            moe_rows_load_each(from, op.dtype, 1, count, values);
        }
    }
    __device__ __forceinline__ void store_one(int32_t row, int32_t column, int32_t count,
                                              uint2 bytes) const
    {
        if (is_row(row)) {
            uint8_t *to = static_cast<uint8_t *>(args.op.rows) + row * args.op.row_stride + column;
            moe_fp8_store(to, bytes, args.is_output_vectored, count);
        }
    }
    /* Each destination has the scale of its route's expert. */
    __device__ __forceinline__ void store_by_expert(int64_t token, int32_t column, int32_t count,
                                                    const float *values) const
    {
        const struct moe_op_pre_reorder &op = args.op;
        for (int32_t slot = 0; slot < op.top_k; slot++) {
            const int64_t route = token * op.top_k + slot;
            const int32_t expert = moe_filter_local(op.filter, op.topk_ids, op.ids_dtype, route);
            if (expert >= 0) {
                const float inverse = __frcp_rn(op.quant.static_scales[expert]);
                store_one(op.src2dst[route], column, count, moe_fp8_pack8(values, inverse));
            }
        }
    }
    __device__ __forceinline__ void store(int64_t token, int32_t column, int32_t count,
                                          const float *values, float inverse) const
    {
        const struct moe_op_pre_reorder &op = args.op;
        if (!op.quant.is_dynamic && op.quant.static_per == MOE_QUANT_PER_EXPERT) {
            store_by_expert(token, column, count, values);
            return;
        }
        const uint2 bytes = moe_fp8_pack8(values, inverse);
#pragma unroll
        for (int slot = 0; slot < kHeldSlots; slot++) {
            store_one(destinations[slot], column, count, bytes);
        }
        for (int32_t slot = kHeldSlots; slot < op.top_k; slot++) {
            store_one(op.src2dst[token * op.top_k + slot], column, count, bytes);
        }
    }
    __device__ __forceinline__ void store_scale(int64_t token, int32_t group, float scale,
                                                int32_t lane, int32_t num_lanes) const
    {
        const struct moe_op_pre_reorder &op = args.op;
        for (int32_t slot = lane; slot < op.top_k; slot += num_lanes) {
            const int32_t row = op.src2dst[token * op.top_k + slot];
            if (is_row(row)) {
                moe_fp8_store_scale(op.quant, row, group, args.num_groups, scale);
            }
        }
    }
    __device__ __forceinline__ float inverse(int64_t token) const
    {
        const struct moe_op_quant &quant = args.op.quant;
        if (quant.static_per == MOE_QUANT_PER_EXPERT) {
            return 0.0f; /* found by destination */
        }
        return __frcp_rn(quant.static_scales[quant.static_per == MOE_QUANT_PER_ROW ? token : 0]);
    }
};

template <bool kByLanes>
__device__ __forceinline__ void pre_reorder_quantized(const struct moe_cuda_pre_reorder &args)
{
    Rows rows = {args, {}};
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    const int64_t num_tokens = moe_rows_num_tokens(args.op.num_tokens, args.op.num_tokens_device);
    if constexpr (kByLanes) {
        moe_quant_units(rows, args.units, args.op.quant.scale_layout, num_tokens);
    } else {
        __shared__ float scratch[32];
        for (int64_t token = blockIdx.y; token < num_tokens; token += gridDim.y) {
            rows.enter(token);
            moe_quant_other(rows, args.op.quant, token, args.op.hidden, scratch);
        }
    }
}

} // namespace

#define MOE_EMIT_PRE_REORDER(symbol, size, run)                          \
    extern "C" __global__ void __launch_bounds__(size, 1024 / (size))    \
        symbol(const __grid_constant__ struct moe_cuda_pre_reorder args) \
    {                                                                    \
        run(args);                                                       \
    }
#define MOE_EMIT_CUDA_ROWS(symbol, size)                                         \
    MOE_EMIT_PRE_REORDER(symbol, size, pre_reorder<size>)                        \
    MOE_EMIT_PRE_REORDER(MOE_FORM(1, symbol), size, pre_reorder_wide<size>)      \
    MOE_EMIT_PRE_REORDER(MOE_FORM(2, symbol), size, pre_reorder_quantized<true>) \
    MOE_EMIT_PRE_REORDER(MOE_FORM(3, symbol), size, pre_reorder_quantized<false>)
#define MOE_INSTANTIATE_PRE_REORDER(kernel, size) MOE_EMIT_ROW(PRE_REORDER, kernel, size)
#include "instantiate.cuh"
