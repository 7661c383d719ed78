/* SPDX-License-Identifier: Apache-2.0 */
/*
 * activation: output[r, i] = act(gate[r, i], up[r, i]) in fp32, rounded once to the output's type,
 *   or quantized to fp8 with scales given or found from the results and written.
 * Moves: 2 elements in and 1 out per column (ungated: 1 and 1). silu takes about 27 instructions a
 *   column, where an SM has 44 in the time that memory takes for its six bytes (H200, bf16): bound
 *   by memory bandwidth. gelu has twice as many and is bound by them.
 * Pipeline: a thread has eight columns of a row (quantized by lanes, and gated bf16 silu: 16).
 *   1 wait for the grid before. 2 load gate and up, halves or pairs, 16 bytes at a time.
 *   3 activation: if all arguments of the logistic function are moderate its short form, else its
 *   full one. 4 quantized: scale by shuffles or over the CTA. 5 one rounding, one wide store.
 * Arithmetic: that of the CPU's kernel, operation by operation, so the bits are the same.
 * Limits: none on I; without 16-byte alignment and for other strides columns go one by one. In
 *   place: columns that others read are written after a barrier, by one CTA per row.
 */
#include "act.cuh"
#include "cuda_args.h"
#include "quant.cuh"
#include "silu_bf16.cuh"

namespace
{

/* Gate and up of eight columns. */
struct Pair {
    float gate[MOE_ROWS_COLUMNS];
    float up[MOE_ROWS_COLUMNS];
};

/* Eight pairs (gate, up): four or two 16-byte vectors. */
__device__ __forceinline__ void load_pairs(const char *from, int32_t dtype, Pair *pair)
{
    const uint4 *vectors = reinterpret_cast<const uint4 *>(from);
    const uint4 a = vectors[0], b = vectors[1];
    if (dtype == MOE_DTYPE_FP32) {
        const uint4 c = vectors[2], d = vectors[3];
        const uint32_t words[] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w,
                                  c.x, c.y, c.z, c.w, d.x, d.y, d.z, d.w};
#pragma unroll
        for (int i = 0; i < MOE_ROWS_COLUMNS; i++) {
            pair->gate[i] = __uint_as_float(words[2 * i]);
            pair->up[i] = __uint_as_float(words[2 * i + 1]);
        }
        return;
    }
    const uint32_t words[] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < MOE_ROWS_COLUMNS; i++) {
        moe_rows_widen(words[i], dtype, &pair->gate[i], &pair->up[i]);
    }
}

/* gate and up at distance up_offset; all loads before the first use. */
template <int32_t kDtype>
__device__ __forceinline__ void load_halves(const char *gate, const char *up, bool is_ungated,
                                            Pair *pair)
{
    if (is_ungated) {
        moe_rows_load(up, kDtype, pair->up);
        return;
    }
    moe_rows_load(gate, kDtype, pair->gate);
    moe_rows_load(up, kDtype, pair->up);
}

__device__ __forceinline__ void load_columns(const struct moe_cuda_activation &args, int64_t row,
                                             int32_t column, int32_t count, Pair *pair)
{
    const struct moe_op_activation &op = args.op;
    const int32_t dtype = op.input_dtype;
    const int64_t element_bytes = moe_rows_element_bytes(dtype);
    const char *gate = static_cast<const char *>(op.input) +
                       (row * op.row_stride + column * op.col_stride) * element_bytes;
    const char *up = gate + op.up_offset * element_bytes;
    const bool is_ungated = op.act.ungated != 0;
    if (count < MOE_ROWS_COLUMNS || args.load == MOE_CUDA_LOAD_EACH) {
        moe_rows_load_each(up, dtype, op.col_stride, count, pair->up);
        moe_rows_load_each(gate, dtype, op.col_stride, is_ungated ? 0 : count, pair->gate);
    } else if (args.load == MOE_CUDA_LOAD_PAIRS) {
        load_pairs(gate, dtype, pair);
    } else if (dtype == MOE_DTYPE_BF16) {
        load_halves<MOE_DTYPE_BF16>(gate, up, is_ungated, pair);
    } else if (dtype == MOE_DTYPE_FP16) {
        load_halves<MOE_DTYPE_FP16>(gate, up, is_ungated, pair);
    } else {
        load_halves<MOE_DTYPE_FP32>(gate, up, is_ungated, pair);
    }
}

template <int kActivation, bool kUngated, bool kNear>
__device__ __forceinline__ void activate_columns(const struct moe_op_act &act, Pair *pair)
{
#pragma unroll
    for (int c = 0; c < MOE_ROWS_COLUMNS; c++) {
        pair->up[c] = kUngated ? moe_act_single<kActivation, kNear>(act, pair->up[c])
                               : moe_act_gated<kActivation, kNear>(act, pair->gate[c], pair->up[c]);
    }
}

/* pair->up becomes the results. */
template <int kActivation, bool kUngated>
__device__ __forceinline__ void activate(const struct moe_op_act &act, Pair *pair)
{
    constexpr bool kHasNear = kActivation == MOE_ACTIVATION_SILU ||
                              kActivation == MOE_ACTIVATION_GELU_TANH ||
                              kActivation == MOE_ACTIVATION_SWIGLU_OAI;
    bool is_near = kHasNear;
#pragma unroll
    for (int c = 0; kHasNear && c < MOE_ROWS_COLUMNS; c++) {
        is_near &= moe_act_is_near<kActivation>(act, kUngated ? pair->up[c] : pair->gate[c]);
    }
    if (kHasNear && is_near) {
        activate_columns<kActivation, kUngated, true>(act, pair);
    } else {
        activate_columns<kActivation, kUngated, false>(act, pair);
    }
}

template <int kActivation>
__device__ __forceinline__ void activate(const struct moe_op_act &act, Pair *pair)
{
    if (act.ungated && kActivation != MOE_ACTIVATION_SWIGLU_OAI) {
        activate<kActivation, true>(act, pair);
    } else {
        activate<kActivation, false>(act, pair);
    }
}

/* kForm: one of MOE_CUDA_ACTIVATION_*, with the activations that it is for. */
template <int kForm>
__device__ __forceinline__ void activate_any(const struct moe_op_act &act, Pair *pair)
{
    constexpr bool kAll = kForm == MOE_CUDA_ACTIVATION_QUANTIZED;
    constexpr bool kLogistic = kAll || kForm == MOE_CUDA_ACTIVATION_LOGISTIC ||
                               kForm == MOE_CUDA_ACTIVATION_LOGISTIC_LANES;
    constexpr bool kOther =
        kAll || kForm == MOE_CUDA_ACTIVATION_OTHER || kForm == MOE_CUDA_ACTIVATION_OTHER_LANES;
    if (kLogistic && act.activation == MOE_ACTIVATION_GELU_TANH) {
        activate<MOE_ACTIVATION_GELU_TANH>(act, pair);
    } else if (kLogistic && act.activation == MOE_ACTIVATION_SWIGLU_OAI) {
        activate<MOE_ACTIVATION_SWIGLU_OAI>(act, pair);
    } else if (kOther && act.activation == MOE_ACTIVATION_GELU) {
        activate<MOE_ACTIVATION_GELU>(act, pair);
    } else if (kOther && act.activation == MOE_ACTIVATION_RELU2) {
        activate<MOE_ACTIVATION_RELU2>(act, pair);
    } else if (kOther && act.activation == MOE_ACTIVATION_IDENTITY) {
        activate<MOE_ACTIVATION_IDENTITY>(act, pair);
    } else if (kForm == MOE_CUDA_ACTIVATION_SILU || kForm == MOE_CUDA_ACTIVATION_SILU_LANES ||
               kAll) {
        activate<MOE_ACTIVATION_SILU>(act, pair);
    }
}

template <int kForm> struct Rows {
    const struct moe_cuda_activation &args;

    __device__ __forceinline__ void enter(int64_t) const
    {
    }
    __device__ __forceinline__ void load_unit(int64_t row, int32_t unit, float *values) const
    {
        const struct moe_op_activation &op = args.op;
        if constexpr (kForm == MOE_CUDA_ACTIVATION_SILU_BF16 ||
                      kForm == MOE_CUDA_ACTIVATION_SILU_BF16_LANES) {
            moe_bf16_halves halves;
            halves.load(op, row, unit);
            moe_silu_bf16(halves, values);
            return;
        }
        Pair pairs[2];
        if (args.load == MOE_CUDA_LOAD_HALVES && op.input_dtype == MOE_DTYPE_BF16 &&
            op.act.ungated == 0) {
            moe_bf16_halves halves;
            halves.load(op, row, unit);
#pragma unroll
            for (int p = 0; p < 2; p++) {
                moe_rows_widen8(halves.gates[p], MOE_DTYPE_BF16, pairs[p].gate);
                moe_rows_widen8(halves.ups[p], MOE_DTYPE_BF16, pairs[p].up);
            }
        } else {
            load_columns(args, row, 16 * unit, MOE_ROWS_COLUMNS, &pairs[0]);
            load_columns(args, row, 16 * unit + MOE_ROWS_COLUMNS, MOE_ROWS_COLUMNS, &pairs[1]);
        }
#pragma unroll
        for (int p = 0; p < 2; p++) {
            activate_any<kForm>(args.op.act, &pairs[p]);
#pragma unroll
            for (int c = 0; c < MOE_ROWS_COLUMNS; c++) {
                values[p * MOE_ROWS_COLUMNS + c] = pairs[p].up[c];
            }
        }
    }
    __device__ __forceinline__ void store_unit(int64_t row, int32_t unit, uint4 bytes) const
    {
        uint8_t *to = static_cast<uint8_t *>(args.op.output) + row * args.op.output_stride;
        reinterpret_cast<uint4 *>(to)[unit] = bytes;
    }
    __device__ __forceinline__ void load(int64_t row, int32_t column, int32_t count,
                                         float *values) const
    {
        Pair pair;
        load_columns(args, row, column, count, &pair);
        activate_any<kForm>(args.op.act, &pair);
#pragma unroll
        for (int c = 0; c < MOE_ROWS_COLUMNS; c++) {
            values[c] = c < count ? pair.up[c] : 0.0f;
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

/* No quantization. The loop is the CTA's, so that all threads reach its barriers. */
template <int kForm>
__device__ __forceinline__ void store_row(const struct moe_cuda_activation &args, int64_t row)
{
    const struct moe_op_activation &op = args.op;
    const int32_t cta_columns = static_cast<int32_t>(blockDim.x) * MOE_ROWS_COLUMNS;
    const int32_t step = static_cast<int32_t>(gridDim.x) * cta_columns;
    for (int32_t first = static_cast<int32_t>(blockIdx.x) * cta_columns; first < op.inter;
         first += step) {
        const int32_t column = first + static_cast<int32_t>(threadIdx.x) * MOE_ROWS_COLUMNS;
        const int32_t count = moe_rows_count(column, op.inter);
        Pair pair;
        if (count > 0) {
            load_columns(args, row, column, count, &pair);
            activate_any<kForm>(op.act, &pair);
        }
        if (args.is_ordered) {
            __syncthreads();
        }
        char *to = static_cast<char *>(op.output) +
                   (row * op.output_stride + column) * moe_rows_element_bytes(op.output_dtype);
        if (count >= MOE_ROWS_COLUMNS && args.is_output_vectored) {
            moe_rows_store(to, op.output_dtype, pair.up);
        } else if (count > 0) {
            moe_rows_store_each(to, op.output_dtype, count, pair.up);
        }
        if (args.is_ordered) {
            __syncthreads();
        }
    }
}

/* Forms that quantize by lanes, units of 16 columns a thread. */
template <int kForm>
constexpr bool kByLanes = (kForm >= MOE_CUDA_ACTIVATION_SILU_LANES &&
                           kForm <= MOE_CUDA_ACTIVATION_OTHER_LANES) ||
                          kForm == MOE_CUDA_ACTIVATION_SILU_BF16_LANES;

/* A unit without quantization, to bf16. */
template <int kForm>
__device__ __forceinline__ void store_plain_unit(const struct moe_cuda_activation &args,
                                                 int64_t row, int32_t unit)
{
    const Rows<kForm> rows = {args};
    float values[2 * MOE_ROWS_COLUMNS];
    rows.load_unit(row, unit, values);
    uint16_t *to =
        static_cast<uint16_t *>(args.op.output) + row * args.op.output_stride + 16 * unit;
    moe_rows_store(to, MOE_DTYPE_BF16, values);
    moe_rows_store(to + MOE_ROWS_COLUMNS, MOE_DTYPE_BF16, values + MOE_ROWS_COLUMNS);
}

template <int kForm>
__device__ __forceinline__ void run_row(const struct moe_cuda_activation &args, int64_t row,
                                        float *scratch)
{
    const Rows<kForm> rows = {args};
    if constexpr (kForm == MOE_CUDA_ACTIVATION_QUANTIZED) {
        moe_quant_other(rows, args.op.quant, row, args.op.inter, scratch);
    } else if constexpr (kByLanes<kForm>) {
        /* Masked: the CTA has the row. All threads take the same number of turns. */
        for (int32_t first = 0; first < args.units.per_row;
             first += static_cast<int32_t>(blockDim.x)) {
            const int32_t unit = first + static_cast<int32_t>(threadIdx.x);
            moe_quant_unit(rows, args.units, args.op.quant.scale_layout, row, unit,
                           unit < args.units.per_row);
        }
    } else {
        store_row<kForm>(args, row);
    }
}

template <int kForm>
__device__ __forceinline__ void run_units(const struct moe_cuda_activation &args)
{
    const struct moe_op_activation &op = args.op;
    if constexpr (kByLanes<kForm>) {
        Rows<kForm> rows = {args};
        moe_quant_units(rows, args.units, op.quant.scale_layout, op.num_rows);
    } else {
        int32_t unit;
        const uint32_t row = moe_quant_find_unit(args.units, &unit);
        if (row < op.num_rows) {
            store_plain_unit<kForm>(args, row, unit);
        }
    }
}

template <int kForm>
__device__ __forceinline__ void activation(const struct moe_cuda_activation &args)
{
    __shared__ float scratch[32];
    const struct moe_op_activation &op = args.op;
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    if constexpr (kForm >= MOE_CUDA_ACTIVATION_SILU_BF16) {
        run_units<kForm>(args); /* never masked */
        return;
    }
    if constexpr (kByLanes<kForm>) {
        if (op.masked_m == nullptr) {
            run_units<kForm>(args);
            return;
        }
    }
    if (op.masked_m == nullptr) {
        for (int64_t row = blockIdx.y; row < op.num_rows; row += gridDim.y) {
            run_row<kForm>(args, row, scratch);
        }
        return;
    }
    const int64_t per_expert = args.rows_per_expert;
    for (int64_t turn = blockIdx.y; turn < op.num_experts * per_expert; turn += gridDim.y) {
        const int64_t expert = turn / per_expert;
        const int64_t given = op.masked_m[expert];
        const int64_t count = given < op.max_masked_rows ? given : op.max_masked_rows;
        for (int64_t i = turn % per_expert; i < count; i += per_expert) {
            run_row<kForm>(args, expert * op.max_masked_rows + i, scratch);
        }
    }
}

} // namespace

#define MOE_EMIT_ACTIVATION(symbol, size, threads_per_sm, form)                 \
    extern "C" __global__ void __launch_bounds__(size, threads_per_sm / (size)) \
        symbol(const __grid_constant__ struct moe_cuda_activation args)         \
    {                                                                           \
        activation<form>(args);                                                 \
    }
#define MOE_EMIT_CUDA_ROWS(symbol, size)                                                    \
    MOE_EMIT_ACTIVATION(symbol, size, 1280, MOE_CUDA_ACTIVATION_SILU)                       \
    MOE_EMIT_ACTIVATION(MOE_FORM(1, symbol), size, 1280, MOE_CUDA_ACTIVATION_LOGISTIC)      \
    MOE_EMIT_ACTIVATION(MOE_FORM(2, symbol), size, 1280, MOE_CUDA_ACTIVATION_OTHER)         \
    MOE_EMIT_ACTIVATION(MOE_FORM(3, symbol), size, 1024, MOE_CUDA_ACTIVATION_SILU_LANES)    \
    MOE_EMIT_ACTIVATION(MOE_FORM(4, symbol), size, 768, MOE_CUDA_ACTIVATION_LOGISTIC_LANES) \
    MOE_EMIT_ACTIVATION(MOE_FORM(5, symbol), size, 768, MOE_CUDA_ACTIVATION_OTHER_LANES)    \
    MOE_EMIT_ACTIVATION(MOE_FORM(6, symbol), size, 512, MOE_CUDA_ACTIVATION_QUANTIZED)      \
    MOE_EMIT_ACTIVATION(MOE_FORM(7, symbol), size, 1024, MOE_CUDA_ACTIVATION_SILU_BF16)     \
    MOE_EMIT_ACTIVATION(MOE_FORM(8, symbol), size, 1024, MOE_CUDA_ACTIVATION_SILU_BF16_LANES)
#define MOE_INSTANTIATE_ACTIVATION(kernel, size) MOE_EMIT_ROW(ACTIVATION, kernel, size)
#include "instantiate.cuh"
