/* SPDX-License-Identifier: Apache-2.0 */
/*
 * post_reorder: output[t] = scaling * sum over slots j of weight[t, j] * rows[src2dst[t, j]], +
 * factor[t] * shared[t], + residual[t]; sum_reduce is its case without src2dst and weights.
 * Moves: T * k * H elements read, T * H written (+ T * H each for shared and residual), 2 T k H
 *   FLOPs. Bound by memory bandwidth.
 * Pipeline: a thread has one or two 16-byte vectors of columns of one token. 1 wait for the grid
 *   before (in a layer and where one group has all slots: after 2). 2 load the destinations and
 *   weights of a group of slots. 3 load their rows, all before the first use. 4 one chain of fused
 *   multiply-adds in slot order. 5 scaling, shared, residual, one rounding, one wide store.
 * Forms: groups of 2, 4 and 8 slots, so that few slots do not pay for the registers of many; EACH
 *   has one column per thread, where vectors are not aligned.
 * Arithmetic: that of the CPU's kernel, operation by operation, so the bits are the same.
 * Limits: none on H and k. Output may be residual or shared: a thread reads its columns before it
 *   writes them.
 */
#include "cuda_args.h"
#include "rows.cuh"

namespace
{

constexpr int kThreadsPerSm = 1024; /* at least: each has 64 registers */

/* What one thread loads at a time, and its columns. */
struct Vector {
    uint4 words;
};
struct Single {
    uint32_t words;
};

template <int32_t kDtype> struct Columns {
    static constexpr int kElementBytes = kDtype == MOE_DTYPE_FP32 ? 4 : 2;

    static __device__ __forceinline__ void load(const char *row, int32_t idx, Vector *out)
    {
        out->words = reinterpret_cast<const uint4 *>(row)[idx];
    }
    static __device__ __forceinline__ void load(const char *row, int32_t idx, Single *out)
    {
        out->words = kElementBytes == 4 ? reinterpret_cast<const uint32_t *>(row)[idx]
                                        : reinterpret_cast<const uint16_t *>(row)[idx];
    }
    static __device__ __forceinline__ void widen(const Vector &unit, float *values)
    {
        const uint32_t words[] = {unit.words.x, unit.words.y, unit.words.z, unit.words.w};
#pragma unroll
        for (int w = 0; w < 4; w++) {
            if (kElementBytes == 4) {
                values[w] = __uint_as_float(words[w]);
            } else {
                moe_rows_widen(words[w], kDtype, values + 2 * w, values + 2 * w + 1);
            }
        }
    }
    static __device__ __forceinline__ void widen(const Single &unit, float *values)
    {
        float none;
        if (kElementBytes == 4) {
            values[0] = __uint_as_float(unit.words);
        } else {
            moe_rows_widen(unit.words, kDtype, values, &none);
        }
    }
    static __device__ __forceinline__ void store(char *row, int32_t idx, const float *values,
                                                 const Vector &)
    {
        uint32_t words[4];
#pragma unroll
        for (int w = 0; w < 4; w++) {
            words[w] = kElementBytes == 4
                           ? moe_rows_narrow_fp32(values[w])
                           : moe_rows_narrow(values[2 * w], values[2 * w + 1], kDtype);
        }
        reinterpret_cast<uint4 *>(row)[idx] = make_uint4(words[0], words[1], words[2], words[3]);
    }
    static __device__ __forceinline__ void store(char *row, int32_t idx, const float *values,
                                                 const Single &)
    {
        moe_rows_store_each(row + static_cast<int64_t>(idx) * kElementBytes, kDtype, 1, values);
    }
};

/* Columns of a unit. */
template <int32_t kDtype, typename Unit>
constexpr int kColumnsOf = sizeof(Unit) == 16 ? 16 / Columns<kDtype>::kElementBytes : 1;

/* Which rows a group of slots adds, and their weights; bit s of `is_row`: the row exists. */
template <int kSlots> struct Terms {
    int32_t rows[kSlots]; /* 0 where there is none */
    float weights[kSlots];
    uint32_t is_row;
};

/* kIndexed: rows by src2dst; else slot by slot. kFull: all slots exist, with weights if indexed. */
template <int kSlots, bool kIndexed, bool kFull>
__device__ __forceinline__ void find_rows(const struct moe_op_post_reorder &op, int64_t token,
                                          int32_t first, Terms<kSlots> *terms)
{
    const int64_t route = token * op.top_k + first;
    terms->is_row = 0;
#pragma unroll
    for (int s = 0; s < kSlots; s++) {
        const bool is_slot = kFull || first + s < op.top_k;
        int32_t row = -1;
        if (is_slot) {
            row = kIndexed ? op.src2dst[route + s] : first + s;
        }
        const bool is_row = row >= 0 && (!kIndexed || row < op.num_rows);
        terms->rows[s] = is_row ? row : 0;
        terms->is_row |= is_row ? 1u << s : 0u;
    }
#pragma unroll
    for (int s = 0; s < kSlots; s++) {
        const bool has_weight = kFull || (first + s < op.top_k && op.topk_weights != nullptr);
        terms->weights[s] = kIndexed && has_weight ? op.topk_weights[route + s] : 1.0f;
    }
}

__device__ __forceinline__ void wait_for_rows()
{
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
}

/* kFull: top_k is kSlots, and there are rows. kPlain: neither shared nor residual. */
template <int32_t kDtype, typename Unit, int kSlots, int kUnits, bool kIndexed, bool kFull,
          bool kPlain>
struct Combine {
    using Dtype = Columns<kDtype>;
    static constexpr int kColumns = kColumnsOf<kDtype, Unit>;
    const struct moe_op_post_reorder &op;
    int64_t token;
    int32_t first_unit; /* of this thread; the others follow at distance `distance` */
    int32_t distance;
    int32_t num_units; /* of a row */

    __device__ __forceinline__ bool has_unit(int u) const
    {
        return first_unit + u * distance < num_units;
    }
    __device__ __forceinline__ const char *at(const void *base, int64_t offset) const
    {
        return static_cast<const char *>(base) + offset * Dtype::kElementBytes;
    }
    /* kFull: rows that do not exist are read as row 0 and left out of the sum, so that loads wait
     * for no test; else they are not read. */
    __device__ __forceinline__ void add_terms(const Terms<kSlots> &terms,
                                              float (&sums)[kUnits][kColumns]) const
    {
        const char *rows = at(op.rows, kIndexed ? 0 : token * op.token_stride);
        Unit units[kSlots][kUnits];
#pragma unroll
        for (int s = 0; s < kSlots; s++) {
            const char *row = at(rows, terms.rows[s] * op.row_stride);
#pragma unroll
            for (int u = 0; u < kUnits; u++) {
                if ((kFull || (terms.is_row >> s & 1u) != 0) && has_unit(u)) {
                    Dtype::load(row, first_unit + u * distance, &units[s][u]);
                }
            }
        }
#pragma unroll
        for (int s = 0; s < kSlots; s++) {
            if ((terms.is_row >> s & 1u) == 0) {
                continue;
            }
#pragma unroll
            for (int u = 0; u < kUnits; u++) {
                float values[kColumns];
                Dtype::widen(units[s][u], values);
#pragma unroll
                for (int c = 0; c < kColumns; c++) {
                    sums[u][c] = __fmaf_rn(terms.weights[s], values[c], sums[u][c]);
                }
            }
        }
    }
    __device__ __forceinline__ void finish(int u, float (&sums)[kColumns]) const
    {
        const int32_t idx = first_unit + u * distance;
        float values[kColumns];
        Unit unit;
#pragma unroll
        for (int c = 0; c < kColumns; c++) {
            sums[c] = __fmul_rn(sums[c], op.scaling);
        }
        if (!kPlain && op.shared != nullptr) {
            const float factor = op.shared_factor != nullptr ? op.shared_factor[token] : 1.0f;
            Dtype::load(at(op.shared, token * op.shared_stride), idx, &unit);
            Dtype::widen(unit, values);
#pragma unroll
            for (int c = 0; c < kColumns; c++) {
                sums[c] = __fmaf_rn(factor, values[c], sums[c]);
            }
        }
        if (!kPlain && op.residual != nullptr) {
            Dtype::load(at(op.residual, token * op.residual_stride), idx, &unit);
            Dtype::widen(unit, values);
#pragma unroll
            for (int c = 0; c < kColumns; c++) {
                sums[c] = __fadd_rn(sums[c], values[c]);
            }
        }
        char *row = static_cast<char *>(op.output) +
                    token * op.output_stride * static_cast<int64_t>(Dtype::kElementBytes);
        Dtype::store(row, idx, sums, unit);
    }
    /* More than one group of slots: nothing is read before the wait, since a test between the loads
     * of a group takes registers that its threads do not have. */
    __device__ __forceinline__ void run(bool is_early) const
    {
        constexpr bool kHasGroups = !kFull && kSlots > 2;
        float sums[kUnits][kColumns] = {};
        int32_t first = 0;
        if (kHasGroups && is_early) {
            wait_for_rows();
        }
        do {
            Terms<kSlots> terms;
            find_rows<kSlots, kIndexed, kFull>(op, token, first, &terms);
            if (!kHasGroups && is_early) {
                wait_for_rows();
            }
            add_terms(terms, sums);
            first += kSlots;
        } while (kHasGroups && first < op.top_k);
#pragma unroll
        for (int u = 0; u < kUnits; u++) {
            if (has_unit(u)) {
                finish(u, sums[u]);
            }
        }
    }
};

template <int32_t kDtype, typename Unit, int kSlots, int kUnits, bool kIndexed, bool kFull,
          bool kPlain, int kThreads>
__device__ __forceinline__ void combine_tokens(const struct moe_op_post_reorder &op, bool is_early)
{
    constexpr int kColumns = kColumnsOf<kDtype, Unit>;
    const int32_t first =
        static_cast<int32_t>(blockIdx.x) * kThreads * kUnits + static_cast<int32_t>(threadIdx.x);
    const int32_t num_units = op.hidden / kColumns;
    const int64_t token = static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y;
    if (token < moe_rows_num_tokens(op.num_tokens, op.num_tokens_device)) {
        const Combine<kDtype, Unit, kSlots, kUnits, kIndexed, kFull, kPlain> combine = {
            op, token, first, kThreads, num_units};
        combine.run(is_early);
    } else if (is_early) {
        wait_for_rows();
    }
}

/* kPlain: and of bf16. */
template <typename Unit, int kSlots, int kUnits, bool kIndexed, bool kFull, bool kPlain,
          int kThreads>
__device__ __forceinline__ void post_reorder(const struct moe_cuda_post_reorder &args)
{
    const bool is_early = args.is_early != 0;
    if (!is_early) {
        wait_for_rows();
    }
    if (kPlain || args.op.dtype == MOE_DTYPE_BF16) {
        combine_tokens<MOE_DTYPE_BF16, Unit, kSlots, kUnits, kIndexed, kFull, kPlain, kThreads>(
            args.op, is_early);
    } else if (args.op.dtype == MOE_DTYPE_FP16) {
        combine_tokens<MOE_DTYPE_FP16, Unit, kSlots, kUnits, kIndexed, kFull, kPlain, kThreads>(
            args.op, is_early);
    } else {
        combine_tokens<MOE_DTYPE_FP32, Unit, kSlots, kUnits, kIndexed, kFull, kPlain, kThreads>(
            args.op, is_early);
    }
}

} // namespace

#define MOE_EMIT_COMBINE(symbol, size, min_ctas, ...)                     \
    extern "C" __global__ void __launch_bounds__(size, min_ctas)          \
        symbol(const __grid_constant__ struct moe_cuda_post_reorder args) \
    {                                                                     \
        post_reorder<__VA_ARGS__, size>(args);                            \
    }
#define MOE_EMIT_COMBINES(symbol, size, is_indexed)                                           \
    MOE_EMIT_COMBINE(symbol, size, 1, Single, 4, 1, is_indexed, false, false)                 \
    MOE_EMIT_COMBINE(MOE_FORM(1, symbol), size, 1, Vector, 2, MOE_CUDA_POST_REORDER_UNITS_K2, \
                     is_indexed, false, false)                                                \
    MOE_EMIT_COMBINE(MOE_FORM(2, symbol), size, 1, Vector, 4, MOE_CUDA_POST_REORDER_UNITS_K4, \
                     is_indexed, false, false)                                                \
    MOE_EMIT_COMBINE(MOE_FORM(3, symbol), size, kThreadsPerSm / (size), Vector, 8,            \
                     MOE_CUDA_POST_REORDER_UNITS_K8, is_indexed, true, false)                 \
    MOE_EMIT_COMBINE(MOE_FORM(4, symbol), size, kThreadsPerSm / (size), Vector, 8,            \
                     MOE_CUDA_POST_REORDER_UNITS_K8, is_indexed, true, true)
#define MOE_EMIT_CUDA_ROWS(symbol, size) MOE_EMIT_COMBINES(symbol, size, true)
#define MOE_EMIT_SUM_CPU_C11(symbol, size)
#define MOE_EMIT_SUM_CPU_AVX2(symbol, size)
#define MOE_EMIT_SUM_CUDA_ROWS(symbol, size)       MOE_EMIT_COMBINES(symbol, size, false)
#define MOE_INSTANTIATE_POST_REORDER(kernel, size) MOE_EMIT_ROW(POST_REORDER, kernel, size)
#define MOE_INSTANTIATE_SUM_REDUCE(kernel, size) \
    MOE_EMIT_SUM_##kernel(moe_SUM_REDUCE_##kernel##_##size, size)
#include "instantiate.cuh"
