/* SPDX-License-Identifier: Apache-2.0 */
/*
 * silu(gate) * up of 16 columns of bf16, gates and ups side by side: the bits of act.cuh with fewer
 * instructions. One bound on all gates, |gate| < 32, is found two gates at a time. Below it the
 * quotient needs one correction of a reciprocal that is not refined: that this gives the CPU's
 * bits, zeros and subnormals included, was tried for every bf16 value. For other gates the steps
 * are act.cuh's.
 */
#ifndef MOE_SILU_BF16_CUH
#define MOE_SILU_BF16_CUH

#include "cuda_args.h"
#include "rows.cuh"
#include "vmath.cuh"

/* Gates and ups of 16 columns, as they are in memory. */
struct moe_bf16_halves {
    uint4 gates[2];
    uint4 ups[2];

    /* All loads before the first use. */
    __device__ __forceinline__ void load(const struct moe_op_activation &op, int64_t row,
                                         int32_t unit)
    {
        const uint4 *from = reinterpret_cast<const uint4 *>(
                                static_cast<const uint16_t *>(op.input) + row * op.row_stride) +
                            2 * unit;
        const int64_t up = op.up_offset / 8;
        gates[0] = from[0];
        gates[1] = from[1];
        ups[0] = from[up];
        ups[1] = from[up + 1];
    }
    /* Is every |gate| below MOE_VMATH_NEAR? NaN is not. */
    __device__ __forceinline__ bool is_near() const
    {
        const uint32_t a = moe_ptx_max_abs_bf16x2(moe_ptx_max_abs_bf16x2(gates[0].x, gates[0].y),
                                                  moe_ptx_max_abs_bf16x2(gates[0].z, gates[0].w));
        const uint32_t b = moe_ptx_max_abs_bf16x2(moe_ptx_max_abs_bf16x2(gates[1].x, gates[1].y),
                                                  moe_ptx_max_abs_bf16x2(gates[1].z, gates[1].w));
        const uint32_t most = moe_ptx_max_abs_bf16x2(a, b) & 0x7fff7fffu;
        const uint32_t bound = __float_as_uint(MOE_VMATH_NEAR);
        return most < bound && most << 16 < bound;
    }
};

/* silu of a near gate. The signs are such that a negative zero stays one. */
static __device__ __forceinline__ float moe_silu_bf16_near(float gate)
{
    const float d = moe_vmath_one_plus_exp_neg<true>(gate);
    const float y = moe_ptx_rcp_approx(d);
    const float q = __fmul_rn(gate, y);
    return __fmaf_rn(-y, __fmaf_rn(d, q, -gate), q);
}

/* silu(gate) * up of 16 columns. */
static __device__ __forceinline__ void moe_silu_bf16(const struct moe_bf16_halves &halves,
                                                     float *values)
{
    float gate[16], up[16];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        moe_rows_widen8(halves.gates[h], MOE_DTYPE_BF16, gate + 8 * h);
        moe_rows_widen8(halves.ups[h], MOE_DTYPE_BF16, up + 8 * h);
    }
    if (halves.is_near()) {
#pragma unroll
        for (int c = 0; c < 16; c++) {
            values[c] = __fmul_rn(moe_silu_bf16_near(gate[c]), up[c]);
        }
        return;
    }
    /* Seldom: half as many instructions matter more than time. */
#pragma unroll 1
    for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int c = 0; c < 8; c++) {
            const float g = h == 0 ? gate[c] : gate[c + 8];
            const float value =
                __fmul_rn(moe_vmath_times_logistic<false, false>(g, g), h == 0 ? up[c] : up[c + 8]);
            if (h == 0) {
                values[c] = value;
            } else {
                values[c + 8] = value;
            }
        }
    }
}

#endif
