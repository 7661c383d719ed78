/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Eight neighbouring columns of a row, as one thread has them: loads to fp32, stores from fp32 with
 * one rounding, both as kernels/cpu/convert.h does them. `is_vectored`: address and distance divide
 * by 16 bytes (fp32 too) and all eight columns exist; else columns go one by one.
 */
#ifndef MOE_ROWS_CUH
#define MOE_ROWS_CUH

#include "ops.h"
#include "ptx.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define MOE_ROWS_COLUMNS 8

static __device__ __forceinline__ int64_t moe_rows_element_bytes(int32_t dtype)
{
    return dtype == MOE_DTYPE_FP32 ? 4 : dtype == MOE_DTYPE_FP8_E4M3 ? 1 : 2;
}

/* The number of tokens of this run: the host's, or less where the device says so. */
static __device__ __forceinline__ int64_t moe_rows_num_tokens(int64_t num_tokens,
                                                              const int32_t *num_tokens_device)
{
    if (num_tokens_device == nullptr) {
        return num_tokens;
    }
    const int64_t given = *num_tokens_device;
    return given < 0 ? 0 : given < num_tokens ? given : num_tokens;
}

/* Columns from `column` on that lie below `width`: may be more than eight, or none (0 or less). Not
 * clamped to 0 .. 8: ptxas 13.0 makes one VIMNMX.RELU of the clamp and a comparison of the result
 * with 8, and its predicate then says the opposite. */
static __device__ __forceinline__ int32_t moe_rows_count(int32_t column, int32_t width)
{
    return width - column;
}

/* Two 16-bit elements of a word. */
static __device__ __forceinline__ void moe_rows_widen(uint32_t word, int32_t dtype, float *low,
                                                      float *high)
{
    if (dtype == MOE_DTYPE_BF16) {
        *low = __uint_as_float(word << 16);
        *high = __uint_as_float(word & 0xffff0000u);
    } else {
        const float2 pair = __half22float2(
            __halves2half2(__ushort_as_half(static_cast<unsigned short>(word & 0xffffu)),
                           __ushort_as_half(static_cast<unsigned short>(word >> 16))));
        *low = pair.x;
        *high = pair.y;
    }
}

/* Eight 16-bit elements. */
static __device__ __forceinline__ void moe_rows_widen8(const uint4 &raw, int32_t dtype,
                                                       float *values)
{
    const uint32_t words[] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int w = 0; w < 4; w++) {
        moe_rows_widen(words[w], dtype, values + 2 * w, values + 2 * w + 1);
    }
}

static __device__ __forceinline__ float moe_rows_load_one(const void *from, int32_t dtype,
                                                          int64_t idx)
{
    if (dtype == MOE_DTYPE_FP32) {
        return static_cast<const float *>(from)[idx];
    }
    float value, none;
    moe_rows_widen(static_cast<const uint16_t *>(from)[idx], dtype, &value, &none);
    return value;
}

/* The first `count` of eight elements at distance `stride`, the others 0. */
static __device__ __forceinline__ void moe_rows_load_each(const void *from, int32_t dtype,
                                                          int64_t stride, int32_t count,
                                                          float *values)
{
#pragma unroll
    for (int c = 0; c < MOE_ROWS_COLUMNS; c++) {
        values[c] = c < count ? moe_rows_load_one(from, dtype, c * stride) : 0.0f;
    }
}

/* Eight elements at an address that divides by 16. */
static __device__ __forceinline__ void moe_rows_load(const void *from, int32_t dtype, float *values)
{
    const uint4 *vectors = static_cast<const uint4 *>(from);
    const uint4 a = vectors[0];
    if (dtype == MOE_DTYPE_FP32) {
        const uint4 b = vectors[1];
        const uint32_t words[] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
        for (int c = 0; c < MOE_ROWS_COLUMNS; c++) {
            values[c] = __uint_as_float(words[c]);
        }
        return;
    }
    moe_rows_widen8(a, dtype, values);
}

/* Sixteen elements at an address that divides by 16; all loads before the first use. */
static __device__ __forceinline__ void moe_rows_load16(const void *from, int32_t dtype,
                                                       float *values)
{
    const uint4 *vectors = static_cast<const uint4 *>(from);
    if (dtype == MOE_DTYPE_FP32) {
        moe_rows_load(vectors, dtype, values);
        moe_rows_load(vectors + 2, dtype, values + MOE_ROWS_COLUMNS);
    } else if (dtype == MOE_DTYPE_BF16) {
        moe_rows_load(vectors, MOE_DTYPE_BF16, values);
        moe_rows_load(vectors + 1, MOE_DTYPE_BF16, values + MOE_ROWS_COLUMNS);
    } else {
        moe_rows_load(vectors, MOE_DTYPE_FP16, values);
        moe_rows_load(vectors + 1, MOE_DTYPE_FP16, values + MOE_ROWS_COLUMNS);
    }
}

/* NaN of any payload is stored as the positive quiet one, as on the CPU. */
static __device__ __forceinline__ uint32_t moe_rows_narrow_fp32(float value)
{
    return value != value ? 0x7fc00000u : __float_as_uint(value);
}

/* Two values to a word of 16-bit elements. */
static __device__ __forceinline__ uint32_t moe_rows_narrow(float low, float high, int32_t dtype)
{
    uint32_t word, nan;
    if (dtype == MOE_DTYPE_BF16) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
        word = *reinterpret_cast<const uint32_t *>(&pair);
        nan = 0x7fc0u;
    } else {
        const __half2 pair = __floats2half2_rn(low, high);
        word = *reinterpret_cast<const uint32_t *>(&pair);
        nan = 0x7e00u;
    }
    if (low != low) {
        word = (word & 0xffff0000u) | nan;
    }
    if (high != high) {
        word = (word & 0xffffu) | nan << 16;
    }
    return word;
}

/* Eight elements at an address that divides by 16. */
static __device__ __forceinline__ void moe_rows_store(void *to, int32_t dtype, const float *values)
{
    uint4 *vectors = static_cast<uint4 *>(to);
    uint32_t words[MOE_ROWS_COLUMNS];
    if (dtype == MOE_DTYPE_FP32) {
#pragma unroll
        for (int c = 0; c < MOE_ROWS_COLUMNS; c++) {
            words[c] = moe_rows_narrow_fp32(values[c]);
        }
        vectors[0] = make_uint4(words[0], words[1], words[2], words[3]);
        vectors[1] = make_uint4(words[4], words[5], words[6], words[7]);
        return;
    }
#pragma unroll
    for (int w = 0; w < 4; w++) {
        words[w] = moe_rows_narrow(values[2 * w], values[2 * w + 1], dtype);
    }
    vectors[0] = make_uint4(words[0], words[1], words[2], words[3]);
}

/* The first `count` of eight elements. */
static __device__ __forceinline__ void moe_rows_store_each(void *to, int32_t dtype, int32_t count,
                                                           const float *values)
{
#pragma unroll
    for (int c = 0; c < MOE_ROWS_COLUMNS; c++) {
        if (c < count && dtype == MOE_DTYPE_FP32) {
            static_cast<uint32_t *>(to)[c] = moe_rows_narrow_fp32(values[c]);
        } else if (c < count) {
            static_cast<uint16_t *>(to)[c] =
                static_cast<uint16_t>(moe_rows_narrow(values[c], 0.0f, dtype));
        }
    }
}

#endif
