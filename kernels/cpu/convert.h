/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Elements in memory (fp32, fp16, bf16, fp8 e4m3) to and from fp32 lanes. Loads are exact. Stores
 * round to nearest even, overflow to infinity (fp8 saturates), keep subnormals, and write every NaN
 * as the positive quiet NaN (0x7fc00000, 0x7e00, 0x7fc0, 0x7f). The portable and the AVX2 body give
 * the same bits.
 */
#ifndef MOE_CONVERT_H
#define MOE_CONVERT_H

#include "fp8.h"
#include "moe_plugin.h"
#include "vec8.h"

#include <stdint.h>
#include <string.h>

/* A line of the caches: hints fetch one, and stores around the caches should write whole ones.
 * HINT_L2: as the locality of __builtin_prefetch, into the second level only. */
enum { MOE_CONVERT_LINE_BYTES = 64, MOE_CONVERT_HINT_L2 = 2 };

/* Bytes of one element of fp32, fp16, bf16 or fp8. */
static inline int64_t moe_convert_element_bytes(int32_t dtype)
{
    if (dtype == MOE_DTYPE_FP32) {
        return 4;
    }
    return dtype == MOE_DTYPE_FP8_E4M3 ? 1 : 2;
}

/* Address of element idx. */
static inline const void *moe_convert_at(const void *base, int32_t dtype, int64_t idx)
{
    return (const unsigned char *)base + idx * moe_convert_element_bytes(dtype);
}

static inline void *moe_convert_at_mutable(void *base, int32_t dtype, int64_t idx)
{
    return (unsigned char *)base + idx * moe_convert_element_bytes(dtype);
}

/* ---- one element ---- */

static inline float moe_convert_from_bf16(uint16_t bits)
{
    return moe_float_from_bits((uint32_t)bits << 16);
}

static inline float moe_convert_from_fp16(uint16_t bits)
{
    const uint32_t sign = (uint32_t)(bits & 0x8000u) << 16;
    const uint32_t exponent = (bits >> 10) & 31u;
    const uint32_t mantissa = bits & 0x3ffu;
    if (exponent == 31) {
        const uint32_t quiet = mantissa != 0 ? 0x400000u : 0u;
        return moe_float_from_bits(sign | 0x7f800000u | quiet | (mantissa << 13));
    }
    if (exponent == 0) {
        return moe_float_from_bits(sign | moe_float_bits((float)mantissa * 0x1p-24f));
    }
    return moe_float_from_bits(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

static inline uint16_t moe_convert_to_bf16(float value)
{
    const uint32_t bits = moe_float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return 0x7fc0u;
    }
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline uint16_t moe_convert_to_fp16(float value)
{
    const uint32_t bits = moe_float_bits(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return 0x7e00u;
    }
    if (magnitude >= 0x47800000u) { /* 2^16 and above */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (magnitude >=
        0x38800000u) { /* 2^-14, the smallest normal; rounding may carry up to infinity */
        const uint32_t rebiased = magnitude - 0x38000000u;
        return (uint16_t)(sign | ((rebiased + 0xfffu + ((rebiased >> 13) & 1u)) >> 13));
    }
    if (magnitude <= 0x33000000u) { /* 2^-25 is a tie with zero, which is even */
        return (uint16_t)sign;
    }
    const uint32_t shift = 126u - (magnitude >> 23); /* 14 .. 24: units of 2^-24 */
    const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    const uint32_t quotient = mantissa >> shift;
    const uint32_t rest = mantissa & ((1u << shift) - 1u);
    const uint32_t half = 1u << (shift - 1u);
    const uint32_t up = (rest > half || (rest == half && (quotient & 1u) != 0)) ? 1u : 0u;
    return (uint16_t)(sign | (quotient + up));
}

/* A scale of type UE8M0: 2^(code - 127), a subnormal of fp32 for code 0; 255 is NaN. */
static inline float moe_convert_from_ue8m0(uint8_t code)
{
    return moe_float_from_bits(code == 255 ? 0x7fc00000u
                               : code == 0 ? 0x400000u
                                           : (uint32_t)code << 23);
}

/* The element at `from`, exactly. */
static inline float moe_convert_load_scalar(const void *from, int32_t dtype)
{
    if (dtype == MOE_DTYPE_FP32) {
        float value;
        memcpy(&value, from, sizeof(value));
        return value;
    }
    if (dtype == MOE_DTYPE_FP8_E4M3) {
        return moe_fp8_decode(*(const uint8_t *)from);
    }
    uint16_t bits;
    memcpy(&bits, from, sizeof(bits));
    return dtype == MOE_DTYPE_BF16 ? moe_convert_from_bf16(bits) : moe_convert_from_fp16(bits);
}

/* Rounds to dtype and stores. */
static inline void moe_convert_store_scalar(void *to, int32_t dtype, float value)
{
    if (dtype == MOE_DTYPE_FP32) {
        const uint32_t bits = value != value ? 0x7fc00000u : moe_float_bits(value);
        memcpy(to, &bits, sizeof(bits));
        return;
    }
    if (dtype == MOE_DTYPE_FP8_E4M3) {
        *(uint8_t *)to = moe_fp8_encode(value);
        return;
    }
    const uint16_t bits =
        dtype == MOE_DTYPE_BF16 ? moe_convert_to_bf16(value) : moe_convert_to_fp16(value);
    memcpy(to, &bits, sizeof(bits));
}

/* ---- eight elements ---- */

#if MOE_VEC8_AVX2

static inline struct moe_vec8 moe_convert_load_bf16(const void *from)
{
    const __m128i packed = _mm_loadu_si128((const __m128i *)from);
    const __m256i wide = _mm256_slli_epi32(_mm256_cvtepu16_epi32(packed), 16);
    return (struct moe_vec8){_mm256_castsi256_ps(wide)};
}

static inline struct moe_vec8 moe_convert_load_fp16(const void *from)
{
    return (struct moe_vec8){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from))};
}

/* Lanes whose upper halves are the elements rounded to bf16. The canonical NaN comes through
 * unharmed. */
static inline __m256i moe_convert_bump_bf16(struct moe_vec8 a)
{
    const __m256i bits = _mm256_castps_si256(a.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
}

static inline void moe_convert_store_bf16(void *to, struct moe_vec8 a)
{
    const __m256i high = _mm256_srli_epi32(moe_convert_bump_bf16(moe_vec8_canonical(a)), 16);
    const __m128i packed =
        _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    _mm_storeu_si128((__m128i *)to, packed);
}

static inline void moe_convert_store_fp16(void *to, struct moe_vec8 a)
{
    const __m128i packed = _mm256_cvtps_ph(moe_vec8_canonical(a).v, _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128((__m128i *)to, packed);
}

#else

static inline struct moe_vec8 moe_convert_load_bf16(const void *from)
{
    uint16_t bits[MOE_VEC8_LANES];
    memcpy(bits, from, sizeof(bits));
    MOE_VEC8_EACH_(moe_vec8, r, moe_convert_from_bf16(bits[l]))
    return r;
}

static inline struct moe_vec8 moe_convert_load_fp16(const void *from)
{
    uint16_t bits[MOE_VEC8_LANES];
    memcpy(bits, from, sizeof(bits));
    MOE_VEC8_EACH_(moe_vec8, r, moe_convert_from_fp16(bits[l]))
    return r;
}

static inline void moe_convert_store_bf16(void *to, struct moe_vec8 a)
{
    uint16_t bits[MOE_VEC8_LANES];
    for (int l = 0; l < MOE_VEC8_LANES; l++) {
        bits[l] = moe_convert_to_bf16(a.lane[l]);
    }
    memcpy(to, bits, sizeof(bits));
}

static inline void moe_convert_store_fp16(void *to, struct moe_vec8 a)
{
    uint16_t bits[MOE_VEC8_LANES];
    for (int l = 0; l < MOE_VEC8_LANES; l++) {
        bits[l] = moe_convert_to_fp16(a.lane[l]);
    }
    memcpy(to, bits, sizeof(bits));
}

#endif

static inline struct moe_vec8 moe_convert_load_fp32(const void *from)
{
    return moe_vec8_load((const float *)from);
}

static inline void moe_convert_store_fp32(void *to, struct moe_vec8 a)
{
    moe_vec8_store((float *)to, moe_vec8_canonical(a));
}

/* Eight consecutive elements at `from`. The dtype is loop-invariant: let the compiler see it as a
 * constant in hot loops. */
static inline struct moe_vec8 moe_convert_load(const void *from, int32_t dtype)
{
    if (dtype == MOE_DTYPE_BF16) {
        return moe_convert_load_bf16(from);
    }
    if (dtype == MOE_DTYPE_FP8_E4M3) {
        return moe_fp8_load(from);
    }
    return dtype == MOE_DTYPE_FP16 ? moe_convert_load_fp16(from) : moe_convert_load_fp32(from);
}

/* Rounds eight lanes to dtype and stores them at `to`. */
static inline void moe_convert_store(void *to, int32_t dtype, struct moe_vec8 a)
{
    if (dtype == MOE_DTYPE_BF16) {
        moe_convert_store_bf16(to, a);
    } else if (dtype == MOE_DTYPE_FP16) {
        moe_convert_store_fp16(to, a);
    } else if (dtype == MOE_DTYPE_FP8_E4M3) {
        moe_fp8_store(to, a);
    } else {
        moe_convert_store_fp32(to, a);
    }
}

/*
 * Sixteen consecutive elements to two vectors and back, for a dtype that is a constant. Which
 * element sits in which lane is the dtype's and the build's matter: bf16 with AVX2 has the even
 * elements in the first vector and the odd ones in the second. Only a store of the same dtype puts
 * them right.
 */
MOE_INLINE void moe_convert_load_wide(const void *from, int32_t dtype, struct moe_vec8 lanes[2])
{
#if MOE_VEC8_AVX2
    if (dtype == MOE_DTYPE_BF16) {
        const __m256i packed = _mm256_loadu_si256((const __m256i *)from);
        const __m256i high = _mm256_set1_epi32((int)0xffff0000);
        lanes[0].v = _mm256_castsi256_ps(_mm256_slli_epi32(packed, 16));
        lanes[1].v = _mm256_castsi256_ps(_mm256_and_si256(packed, high));
        return;
    }
#endif
    lanes[0] = moe_convert_load(from, dtype);
    lanes[1] = moe_convert_load(moe_convert_at(from, dtype, MOE_VEC8_LANES), dtype);
}

#if MOE_VEC8_AVX2

/* Both vectors rounded to bf16, the even elements from the first. */
static inline __m256i moe_convert_pack_bf16(const struct moe_vec8 lanes[2])
{
    struct moe_vec8 even = lanes[0];
    struct moe_vec8 odd = lanes[1];
    if (_mm256_movemask_ps(_mm256_cmp_ps(even.v, odd.v, _CMP_UNORD_Q)) != 0) {
        even = moe_vec8_canonical(even);
        odd = moe_vec8_canonical(odd);
    }
    const __m256i low = _mm256_srli_epi32(moe_convert_bump_bf16(even), 16);
    return _mm256_blend_epi16(low, moe_convert_bump_bf16(odd), 0xaa);
}

#endif

MOE_INLINE void moe_convert_store_wide(void *to, int32_t dtype, const struct moe_vec8 lanes[2])
{
#if MOE_VEC8_AVX2
    if (dtype == MOE_DTYPE_BF16) {
        _mm256_storeu_si256((__m256i *)to, moe_convert_pack_bf16(lanes));
        return;
    }
#endif
    moe_convert_store(to, dtype, lanes[0]);
    moe_convert_store(moe_convert_at_mutable(to, dtype, MOE_VEC8_LANES), dtype, lanes[1]);
}

/* The same around the caches, where the build can, to a multiple of 32 bytes; a fence of
 * moe_convert_finish_streams must follow. fp16 goes the ordinary way. */
MOE_INLINE void moe_convert_stream_wide(void *to, int32_t dtype, const struct moe_vec8 lanes[2])
{
#if MOE_VEC8_AVX2
    if (dtype == MOE_DTYPE_BF16) {
        _mm256_stream_si256((__m256i *)to, moe_convert_pack_bf16(lanes));
        return;
    }
    if (dtype == MOE_DTYPE_FP32) {
        _mm256_stream_ps((float *)to, moe_vec8_canonical(lanes[0]).v);
        _mm256_stream_ps((float *)to + MOE_VEC8_LANES, moe_vec8_canonical(lanes[1]).v);
        return;
    }
#endif
    moe_convert_store_wide(to, dtype, lanes);
}

static inline void moe_convert_finish_streams(void)
{
#if MOE_VEC8_AVX2
    _mm_sfence();
#endif
}

/* The first `count` (0..8) of eight elements, the other lanes 0; reads nothing beyond them. */
static inline struct moe_vec8 moe_convert_load_partial(const void *from, int32_t dtype,
                                                       int64_t count)
{
    float elements[MOE_VEC8_LANES] = {0}; /* all-zero bytes are zeros of every dtype */
    memcpy(elements, from, (size_t)(count * moe_convert_element_bytes(dtype)));
    return moe_convert_load(elements, dtype);
}

/* Rounds and stores the first `count` (0..8) lanes; writes nothing beyond them. */
static inline void moe_convert_store_partial(void *to, int32_t dtype, struct moe_vec8 a,
                                             int64_t count)
{
    float elements[MOE_VEC8_LANES];
    moe_convert_store(elements, dtype, a);
    memcpy(to, elements, (size_t)(count * moe_convert_element_bytes(dtype)));
}

/* The first `count` (0..8) elements at distance `stride`, the other lanes 0. */
static inline struct moe_vec8 moe_convert_load_strided(const void *from, int32_t dtype,
                                                       int64_t stride, int64_t count)
{
    float elements[MOE_VEC8_LANES] = {0};
    for (int64_t l = 0; l < count; l++) {
        elements[l] = moe_convert_load_scalar(moe_convert_at(from, dtype, l * stride), dtype);
    }
    return moe_vec8_load(elements);
}

#endif
