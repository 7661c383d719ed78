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
 * Forms: copies of 16-byte vectors, one or two a thread, and of smaller ones; groups of columns
 *   that lanes of a warp share, also for bf16 with eight slots alone; all other quantizations;
 *   copies and such groups where many rows are written (reorder_wide.cuh).
 * Limits: none on H and k; rows only need the alignment of their elements.
 */
#include "cuda_args.h"
#include "filter.cuh"
#include "quant.cuh"
#include "reorder_wide.cuh"

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

constexpr int kHeldSlots = 8; /* destinations that are loaded with the token */

/* kUnits vectors of a thread, kThreads apart. */
template <typename Vector, int kThreads, int kUnits> struct Copy {
    const struct moe_cuda_pre_reorder &args;
    int32_t column;
    Vector values[kUnits];

    __device__ __forceinline__ void load(int64_t token, int64_t element_bytes)
    {
        const Vector *source =
            reinterpret_cast<const Vector *>(static_cast<const char *>(args.op.tokens) +
                                             token * args.op.token_stride * element_bytes);
#pragma unroll
        for (int u = 0; u < kUnits; u++) {
            if (column + u * kThreads < args.row_vectors) {
                values[u] = source[column + u * kThreads];
            }
        }
    }
    __device__ __forceinline__ void store(int32_t row, int64_t element_bytes) const
    {
        if (row < 0 || row >= args.op.num_rows) {
            return;
        }
        Vector *target = reinterpret_cast<Vector *>(static_cast<char *>(args.op.rows) +
                                                    row * args.op.row_stride * element_bytes);
#pragma unroll
        for (int u = 0; u < kUnits; u++) {
            if (column + u * kThreads < args.row_vectors) {
                store_once(target + column + u * kThreads, values[u]);
            }
        }
    }
};

template <typename Vector, int kThreads, int kUnits>
__device__ __forceinline__ void copy_rows(const struct moe_cuda_pre_reorder &args)
{
    const struct moe_op_pre_reorder &op = args.op;
    const int64_t element_bytes = moe_rows_element_bytes(op.dtype);
    const int64_t num_tokens = moe_rows_num_tokens(op.num_tokens, op.num_tokens_device);
    Copy<Vector, kThreads, kUnits> copy = {args,
                                           static_cast<int32_t>(blockIdx.x) * kThreads * kUnits +
                                               static_cast<int32_t>(threadIdx.x),
                                           {}};
    for (int64_t token = blockIdx.y; token < num_tokens; token += gridDim.y) {
        const int32_t *from = op.src2dst + token * op.top_k;
        int32_t destinations[kHeldSlots]; /* all before a store, which might change them */
        copy.load(token, element_bytes);
#pragma unroll
        for (int slot = 0; slot < kHeldSlots; slot++) {
            destinations[slot] = slot < op.top_k ? from[slot] : -1;
        }
#pragma unroll
        for (int slot = 0; slot < kHeldSlots; slot++) {
            copy.store(destinations[slot], element_bytes);
        }
#pragma unroll 1
        for (int32_t slot = kHeldSlots; slot < op.top_k; slot++) {
            copy.store(from[slot], element_bytes);
        }
    }
}

/* kUnits: 16-byte vectors of a thread; 0: one, of fewer bytes. */
template <int kThreads, int kUnits>
__device__ __forceinline__ void pre_reorder(const struct moe_cuda_pre_reorder &args)
{
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    if constexpr (kUnits > 0) {
        copy_rows<uint4, kThreads, kUnits>(args);
    } else if (args.vector_bytes == 4) {
        copy_rows<uint32_t, kThreads, 1>(args);
    } else if (args.vector_bytes == 2) {
        copy_rows<uint16_t, kThreads, 1>(args);
    } else {
        copy_rows<uint8_t, kThreads, 1>(args);
    }
}

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

/* The same of bf16 with eight destinations, all there at once. */
struct EightRows {
    const struct moe_cuda_pre_reorder &args;
    int32_t destinations[8];

    __device__ __forceinline__ void enter(int64_t token)
    {
        const int4 *from = reinterpret_cast<const int4 *>(args.op.src2dst) + 2 * token;
        const int4 low = from[0], high = from[1];
        const int32_t rows[] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int slot = 0; slot < 8; slot++) {
            destinations[slot] = rows[slot];
        }
    }
    __device__ __forceinline__ void load_unit(int64_t token, int32_t unit, float *values) const
    {
        const uint16_t *from =
            static_cast<const uint16_t *>(args.op.tokens) + token * args.op.token_stride;
        moe_rows_load16(from + 16 * unit, MOE_DTYPE_BF16, values);
    }
    __device__ __forceinline__ bool is_row(int32_t row) const
    {
        return row >= 0 && row < args.op.num_rows;
    }
    __device__ __forceinline__ void store_unit(int64_t token, int32_t unit, uint4 bytes) const
    {
        (void)token;
#pragma unroll
        for (int slot = 0; slot < 8; slot++) {
            if (is_row(destinations[slot])) {
                uint8_t *to =
                    static_cast<uint8_t *>(args.op.rows) + destinations[slot] * args.op.row_stride;
                reinterpret_cast<uint4 *>(to)[unit] = bytes;
            }
        }
    }
    __device__ __forceinline__ void store_scale(int64_t token, int32_t group, float scale,
                                                int32_t lane, int32_t num_lanes) const
    {
        (void)token;
#pragma unroll 1
        for (int32_t slot = lane; slot < 8; slot += num_lanes) {
            int32_t row = destinations[0];
#pragma unroll
            for (int other = 1; other < 8; other++) {
                row = slot == other ? destinations[other] : row;
            }
            if (is_row(row)) {
                moe_fp8_store_scale(args.op.quant, row, group, args.num_groups, scale);
            }
        }
    }
};

/* Groups that lanes share: a unit a thread, tokens from the launch's first one on. */
template <typename TokenRows>
__device__ __forceinline__ void pre_reorder_lanes(const struct moe_cuda_pre_reorder &args)
{
    TokenRows rows = {args, {}};
    int32_t unit;
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    const int64_t token = args.wide.first_token + moe_quant_find_unit(args.units, &unit);
    const bool is_there =
        token < moe_rows_num_tokens(args.op.num_tokens, args.op.num_tokens_device);
    if (is_there) {
        rows.enter(token);
    }
    moe_quant_unit(rows, args.units, args.op.quant.scale_layout, token, unit, is_there);
}

__device__ __forceinline__ void pre_reorder_other(const struct moe_cuda_pre_reorder &args)
{
    __shared__ float scratch[32];
    Rows rows = {args, {}};
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    const int64_t num_tokens = moe_rows_num_tokens(args.op.num_tokens, args.op.num_tokens_device);
    for (int64_t token = blockIdx.y; token < num_tokens; token += gridDim.y) {
        rows.enter(token);
        moe_quant_other(rows, args.op.quant, token, args.op.hidden, scratch);
    }
}

} // namespace

#define MOE_EMIT_PRE_REORDER(symbol, size, ...)                                        \
    extern "C" __global__ void __launch_bounds__(size, MOE_CUDA_WIDE_THREADS / (size)) \
        symbol(const __grid_constant__ struct moe_cuda_pre_reorder args)               \
    {                                                                                  \
        __VA_ARGS__(args);                                                             \
    }
#define MOE_EMIT_CUDA_ROWS(symbol, size)                                          \
    MOE_EMIT_PRE_REORDER(symbol, size, pre_reorder<size, 1>)                      \
    MOE_EMIT_PRE_REORDER(MOE_FORM(1, symbol), size, moe_reorder_wide<size>)       \
    MOE_EMIT_PRE_REORDER(MOE_FORM(2, symbol), size, pre_reorder_lanes<Rows>)      \
    MOE_EMIT_PRE_REORDER(MOE_FORM(3, symbol), size, pre_reorder_other)            \
    MOE_EMIT_PRE_REORDER(MOE_FORM(4, symbol), size, moe_reorder_wide_lanes<size>) \
    MOE_EMIT_PRE_REORDER(MOE_FORM(5, symbol), size, pre_reorder<size, 2>)         \
    MOE_EMIT_PRE_REORDER(MOE_FORM(6, symbol), size, pre_reorder<size, 0>)         \
    MOE_EMIT_PRE_REORDER(MOE_FORM(7, symbol), size, pre_reorder_lanes<EightRows>)
#define MOE_INSTANTIATE_PRE_REORDER(kernel, size) MOE_EMIT_ROW(PRE_REORDER, kernel, size)
#include "instantiate.cuh"
