/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fp8 e4m3 values and their scales, as struct moe_recipe documents them: a value is
 * fp8(x * (1 / scale)), the reciprocal rounded once, saturated to +-448, NaN kept as 0x7f; every
 * step is one IEEE operation, so the bits are the CPU's.
 */
#ifndef MOE_FP8_CUH
#define MOE_FP8_CUH

#include "ops.h"
#include "rows.cuh"

#include <cuda_fp8.h>
#include <float.h>

/* Scale of a group whose largest magnitude, NaN left out, is `amax`. */
static __device__ __forceinline__ float moe_fp8_scale(float amax, int32_t scale_layout)
{
    /* amax / 448, rounded once: one correction of the product with 1 / 448 is enough for every
     * value from 1e-10 to FLT_MAX. */
    const float bounded = fmaxf(fminf(amax, FLT_MAX), 1e-10f);
    const float quotient = __fmul_rn(bounded, 1.0f / 448.0f);
    const float scale = __fmaf_rn(1.0f / 448.0f, __fmaf_rn(-448.0f, quotient, bounded), quotient);
    if (scale_layout != MOE_SCALE_UE8M0_PACKED) {
        return scale;
    }
    /* Up to a power of two: any bit of the mantissa carries into the exponent. */
    return __uint_as_float((__float_as_uint(scale) + 0x7fffffu) & 0x7f800000u);
}

/* 1 / scale of a scale that moe_fp8_scale gave: __frcp_rn without its test for extremes. */
static __device__ __forceinline__ float moe_fp8_inverse(float scale)
{
    const float y = moe_ptx_rcp_approx(scale);
    return __fmaf_rn(y, -__fmaf_rn(scale, y, -1.0f), y);
}

/* Dynamic: the scale of group `group` of a row. The last group of a row clears the bytes of its
 * word that belong to no group. */
static __device__ __forceinline__ void moe_fp8_store_scale(const struct moe_op_quant &quant,
                                                           int64_t row, int32_t group,
                                                           int32_t num_groups, float scale)
{
    if (quant.scale_layout == MOE_SCALE_ROW_MAJOR) {
        static_cast<float *>(quant.scales)[row * quant.scale_stride + group] = scale;
    } else if (quant.scale_layout == MOE_SCALE_COLUMN_MAJOR_TMA) {
        static_cast<float *>(quant.scales)[group * quant.scale_stride + row] = scale;
    } else {
        uint8_t *word =
            static_cast<uint8_t *>(quant.scales) + 4 * ((group / 4) * quant.scale_stride + row);
        word[group % 4] = static_cast<uint8_t>(__float_as_uint(scale) >> 23);
        for (int32_t i = group % 4 + 1; group == num_groups - 1 && i < 4; i++) {
            word[i] = 0;
        }
    }
}

/* Four values to four bytes. */
static __device__ __forceinline__ uint32_t moe_fp8_pack4(const float *values, float inverse)
{
    const float2 low = make_float2(__fmul_rn(values[0], inverse), __fmul_rn(values[1], inverse));
    const float2 high = make_float2(__fmul_rn(values[2], inverse), __fmul_rn(values[3], inverse));
    const uint32_t low_bits = __nv_cvt_float2_to_fp8x2(low, __NV_SATFINITE, __NV_E4M3);
    const uint32_t high_bits = __nv_cvt_float2_to_fp8x2(high, __NV_SATFINITE, __NV_E4M3);
    return low_bits | high_bits << 16;
}

static __device__ __forceinline__ uint2 moe_fp8_pack8(const float *values, float inverse)
{
    return make_uint2(moe_fp8_pack4(values, inverse), moe_fp8_pack4(values + 4, inverse));
}

static __device__ __forceinline__ uint4 moe_fp8_pack16(const float *values, float inverse)
{
    return make_uint4(moe_fp8_pack4(values, inverse), moe_fp8_pack4(values + 4, inverse),
                      moe_fp8_pack4(values + 8, inverse), moe_fp8_pack4(values + 12, inverse));
}

/* The first `count` of eight bytes; `is_vectored`: the address divides by 8. */
static __device__ __forceinline__ void moe_fp8_store(void *to, uint2 bytes, bool is_vectored,
                                                     int32_t count)
{
    if (is_vectored && count >= MOE_ROWS_COLUMNS) {
        *static_cast<uint2 *>(to) = bytes;
        return;
    }
#pragma unroll
    for (int c = 0; c < MOE_ROWS_COLUMNS; c++) {
        if (c < count) {
            static_cast<uint8_t *>(to)[c] =
                static_cast<uint8_t>((c < 4 ? bytes.x : bytes.y) >> (8 * (c % 4)));
        }
    }
}

/* max |value|, NaN left out. */
static __device__ __forceinline__ float moe_fp8_amax8(const float *values)
{
    float amax = 0.0f;
#pragma unroll
    for (int c = 0; c < MOE_ROWS_COLUMNS; c++) {
        amax = fmaxf(amax, fabsf(values[c]));
    }
    return amax;
}

/* The largest of 2^lanes_log2 neighbouring lanes, up to 32, to all of them; whole warps. */
static __device__ __forceinline__ float moe_fp8_amax_lanes(float amax, int32_t lanes_log2)
{
#pragma unroll
    for (int step = 0; step < 5; step++) {
        if (step < lanes_log2) {
            amax = fmaxf(amax, __shfl_xor_sync(0xffffffffu, amax, 1 << step));
        }
    }
    return amax;
}

/* The largest of a CTA, to all threads; `scratch` has 32 words. */
static __device__ __forceinline__ float moe_fp8_amax_cta(float amax, float *scratch)
{
    amax = moe_fp8_amax_lanes(amax, 5);
    __syncthreads(); /* the last result has been read */
    if (threadIdx.x % 32 == 0) {
        scratch[threadIdx.x / 32] = amax;
    }
    __syncthreads();
    for (uint32_t w = 0; w < blockDim.x / 32; w++) {
        amax = fmaxf(amax, scratch[w]);
    }
    return amax;
}

#endif
