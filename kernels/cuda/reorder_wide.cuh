/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pre_reorder for many tokens with many destinations: a launch has as many tokens as shared memory
 * holds on all multiprocessors, so that it first reads and then writes, which the memory does
 * faster than both at a time. A warp has a token, or a part of one, as it is written: copied, or
 * quantized in groups that lanes share. No warp waits for another.
 * Pipeline: 1 wait for the grid before. 2 the copy engine, or lanes that quantize, fill the warp's
 *   shared memory; destinations are loaded meanwhile. 3 one bulk copy per destination; of quantized
 *   rows evict-first, which gained 2 % (not tried for copied ones). 4 scales, by another bulk copy
 *   where they lie in rows of 16 bytes, else by neighbouring lanes.
 * Below sm_90 there is no copy engine for this: lanes copy.
 */
#ifndef MOE_REORDER_WIDE_CUH
#define MOE_REORDER_WIDE_CUH

#include "cuda_args.h"
#include "fp8.cuh"

/* What a warp has: of `token`, `part_bytes` bytes from `part_at` on. */
struct moe_reorder_warp {
    const struct moe_cuda_pre_reorder &args;
    int64_t token;
    int32_t part_at;    /* bytes of a row, as it is written */
    int32_t part_bytes; /* 0: the warp has nothing */
    int32_t lane;
    uint8_t *held; /* shared memory */
    char *side;    /* too, behind what all warps hold: args.wide.side_bytes */

    __device__ __forceinline__ moe_reorder_warp(const struct moe_cuda_pre_reorder &own,
                                                int32_t num_warps)
        : args(own)
    {
        const struct moe_cuda_wide &wide = args.wide;
        const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
        const int32_t number = static_cast<int32_t>(blockIdx.x) * num_warps + warp;
        const int64_t num_tokens =
            moe_rows_num_tokens(args.op.num_tokens, args.op.num_tokens_device);
        lane = static_cast<int32_t>(threadIdx.x) % 32;
        token = wide.first_token + number / wide.num_parts;
        part_at = number % wide.num_parts * wide.part_bytes;
        const int32_t left = wide.row_bytes - part_at;
        part_bytes = token >= wide.end_token || token >= num_tokens || left < 0 ? 0
                     : left < wide.part_bytes                                   ? left
                                                                                : wide.part_bytes;
        held = reinterpret_cast<uint8_t *>(moe_ptx_shared_memory()) + warp * wide.part_bytes;
        side = moe_ptx_shared_memory() + num_warps * wide.part_bytes + warp * wide.side_bytes;
    }
    /* This lane's destination among 32 slots; -1: none. */
    __device__ __forceinline__ int32_t load_row(int32_t first_slot) const
    {
        const struct moe_op_pre_reorder &op = args.op;
        const int32_t slot = first_slot + lane;
        const int32_t row = slot < op.top_k ? op.src2dst[token * op.top_k + slot] : -1;
        return row < op.num_rows ? row : -1;
    }
    /* All lanes' destinations. */
    __device__ __forceinline__ void write(int32_t row) const
    {
        uint8_t *rows = static_cast<uint8_t *>(args.op.rows) + part_at;
#if __CUDA_ARCH__ >= 900
        if (row >= 0) {
            moe_ptx_bulk_store(rows + row * args.wide.row_stride_bytes,
                               moe_ptx_shared_address(held), static_cast<uint32_t>(part_bytes));
        }
#else
        for (int32_t i = 0; i < 32; i++) {
            const int32_t other = __shfl_sync(0xffffffffu, row, i);
            if (other >= 0) {
                copy(rows + other * args.wide.row_stride_bytes, held);
            }
        }
#endif
    }
    __device__ __forceinline__ void finish() const
    {
#if __CUDA_ARCH__ >= 900
        moe_ptx_bulk_finish();
#endif
    }
#if __CUDA_ARCH__ < 900
    /* The part, by all lanes. Not unrolled: other warps hide the waiting. */
    __device__ __forceinline__ void copy(uint8_t *to, const uint8_t *from) const
    {
#pragma unroll 1
        for (int32_t at = 16 * lane; at < part_bytes; at += 512) {
            *reinterpret_cast<uint4 *>(to + at) = *reinterpret_cast<const uint4 *>(from + at);
        }
    }
#endif
};

template <int kThreads>
__device__ __forceinline__ void moe_reorder_wide(const struct moe_cuda_pre_reorder &args)
{
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    const struct moe_reorder_warp warp(args, kThreads / 32);
    if (warp.part_bytes == 0) {
        return;
    }
    const uint8_t *source =
        static_cast<const uint8_t *>(args.op.tokens) +
        warp.token * args.op.token_stride * moe_rows_element_bytes(args.op.dtype) + warp.part_at;
#if __CUDA_ARCH__ >= 900
    const uint32_t barrier = moe_ptx_shared_address(warp.side);
    if (warp.lane == 0) {
        moe_ptx_mbarrier_init(barrier, 1);
        moe_ptx_fence_mbarrier_init();
        moe_ptx_mbarrier_expect(barrier, static_cast<uint32_t>(warp.part_bytes));
        moe_ptx_bulk_load(moe_ptx_shared_address(warp.held), source,
                          static_cast<uint32_t>(warp.part_bytes), barrier);
    }
    __syncwarp();
    int32_t row = warp.load_row(0);
    moe_ptx_mbarrier_wait(barrier, 0);
#else
    warp.copy(warp.held, source);
    __syncwarp();
    int32_t row = warp.load_row(0);
#endif
    for (int32_t first = 0; first < args.op.top_k; first += 32) {
        row = first == 0 ? row : warp.load_row(first);
        warp.write(row);
    }
    warp.finish();
}

/* A unit of 16 columns, on its way. */
template <int32_t kDtype> struct moe_reorder_raw {
    static constexpr int kVectors = kDtype == MOE_DTYPE_FP32 ? 4 : 2;
    uint4 vectors[kVectors];

    __device__ __forceinline__ void load(const uint4 *units, int32_t unit, bool is_there)
    {
#pragma unroll
        for (int v = 0; v < kVectors; v++) {
            vectors[v] = is_there ? units[unit * kVectors + v] : make_uint4(0, 0, 0, 0);
        }
    }
};

/* The part's values and scales to shared memory. */
template <int32_t kDtype>
__device__ __forceinline__ void moe_reorder_quantize(const struct moe_reorder_warp &warp)
{
    constexpr int kUnits = 2; /* of a lane on their way */
    const struct moe_op_pre_reorder &op = warp.args.op;
    const int32_t lanes_log2 = warp.args.units.lanes_log2;
    const int32_t num_units = warp.part_bytes / 16;
    const uint4 *source = reinterpret_cast<const uint4 *>(
        static_cast<const uint8_t *>(op.tokens) +
        (warp.token * op.token_stride + warp.part_at) * moe_rows_element_bytes(kDtype));
    uint4 *held = reinterpret_cast<uint4 *>(warp.held);
    float *scales = reinterpret_cast<float *>(warp.side);
    for (int32_t first = warp.lane; first - warp.lane < num_units; first += 32 * kUnits) {
        moe_reorder_raw<kDtype> raw[kUnits];
#pragma unroll
        for (int u = 0; u < kUnits; u++) {
            raw[u].load(source, first + 32 * u, first + 32 * u < num_units);
        }
#pragma unroll
        for (int u = 0; u < kUnits; u++) {
            const int32_t unit = first + 32 * u;
            float values[2 * MOE_ROWS_COLUMNS];
            moe_rows_load16(raw[u].vectors, kDtype, values);
            const float own =
                fmaxf(moe_fp8_amax8(values), moe_fp8_amax8(values + MOE_ROWS_COLUMNS));
            const float scale =
                moe_fp8_scale(moe_fp8_amax_lanes(own, lanes_log2), op.quant.scale_layout);
            if (unit < num_units) {
                held[unit] = moe_fp8_pack16(values, moe_fp8_inverse(scale));
            }
            if (unit < num_units && (unit & ((1 << lanes_log2) - 1)) == 0) {
                scales[unit >> lanes_log2] = scale;
            }
        }
    }
}

/* Scales of the rows that all lanes have, by all lanes. */
static __device__ __forceinline__ void moe_reorder_write_scales(const struct moe_reorder_warp &warp,
                                                                int32_t num_slots, int32_t row)
{
    const struct moe_cuda_pre_reorder &args = warp.args;
    const float *scales = reinterpret_cast<const float *>(warp.side);
    const int32_t first_group = warp.part_at / 16 >> args.units.lanes_log2;
    const int32_t part_groups = warp.part_bytes / 16 >> args.units.lanes_log2;
    for (int32_t i = 0; i < num_slots; i++) {
        const int32_t other = __shfl_sync(0xffffffffu, row, i);
        for (int32_t group = warp.lane; group < part_groups && other >= 0; group += 32) {
            moe_fp8_store_scale(args.op.quant, other, first_group + group, args.num_groups,
                                scales[group]);
        }
    }
}

#if __CUDA_ARCH__ >= 900
/* Rows that all lanes have, and their scales where that is possible. What is written is not read
 * soon: it leaves the L2 first. */
static __device__ __forceinline__ void moe_reorder_copy_out(const struct moe_reorder_warp &warp,
                                                            int32_t row, uint64_t policy)
{
    const struct moe_cuda_pre_reorder &args = warp.args;
    if (row < 0) {
        return;
    }
    uint8_t *rows = static_cast<uint8_t *>(args.op.rows) + warp.part_at;
    moe_ptx_bulk_store_hinted(rows + row * args.wide.row_stride_bytes,
                              moe_ptx_shared_address(warp.held),
                              static_cast<uint32_t>(warp.part_bytes), policy);
    if (args.wide.copies_scales) {
        const int32_t group_log2 = args.units.lanes_log2 + 4;
        float *scales = static_cast<float *>(args.op.quant.scales) +
                        row * args.op.quant.scale_stride + (warp.part_at >> group_log2);
        moe_ptx_bulk_store_hinted(scales, moe_ptx_shared_address(warp.side),
                                  static_cast<uint32_t>(warp.part_bytes >> group_log2) * 4, policy);
    }
}
#endif

template <int kThreads>
__device__ __forceinline__ void moe_reorder_wide_lanes(const struct moe_cuda_pre_reorder &args)
{
    moe_ptx_griddep_wait();
    moe_ptx_griddep_launch();
    const struct moe_reorder_warp warp(args, kThreads / 32);
    if (warp.part_bytes == 0) {
        return;
    }
    int32_t row = warp.load_row(0);
    if (args.op.dtype == MOE_DTYPE_BF16) {
        moe_reorder_quantize<MOE_DTYPE_BF16>(warp);
    } else if (args.op.dtype == MOE_DTYPE_FP16) {
        moe_reorder_quantize<MOE_DTYPE_FP16>(warp);
    } else {
        moe_reorder_quantize<MOE_DTYPE_FP32>(warp);
    }
#if __CUDA_ARCH__ >= 900
    const uint64_t policy = moe_ptx_evict_first();
    const bool copies_scales = args.wide.copies_scales != 0;
    moe_ptx_fence_async();
#else
    const bool copies_scales = false;
#endif
    __syncwarp();
    for (int32_t first = 0; first < args.op.top_k; first += 32) {
        const int32_t left = args.op.top_k - first;
        row = first == 0 ? row : warp.load_row(first);
#if __CUDA_ARCH__ >= 900
        moe_reorder_copy_out(warp, row, policy);
#else
        warp.write(row);
#endif
        if (!copies_scales) {
            moe_reorder_write_scales(warp, left < 32 ? left : 32, row);
        }
    }
    warp.finish();
}

#endif
