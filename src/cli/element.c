/* SPDX-License-Identifier: Apache-2.0 */
#include "element.h"

#include "moe_plugin.h"

#include <math.h>
#include <string.h>

size_t moe_element_bytes(int32_t dtype)
{
    switch (dtype) {
    case MOE_DTYPE_FP32:
        return 4;
    case MOE_DTYPE_FP16:
    case MOE_DTYPE_BF16:
        return 2;
    case MOE_DTYPE_FP8_E4M3:
        return 1;
    default:
        return 0;
    }
}

static uint32_t bits_of_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float load_fp16(uint16_t bits)
{
    const uint32_t sign = (uint32_t)(bits & 0x8000u) << 16;
    const uint32_t exponent = (bits >> 10) & 0x1fu;
    const uint32_t fraction = bits & 0x3ffu;
    if (exponent == 0x1f) {
        return float_of_bits(sign | 0x7f800000u | fraction << 13);
    }
    if (exponent == 0) {
        const float magnitude = ldexpf((float)fraction, -24);
        return sign != 0 ? -magnitude : magnitude;
    }
    return float_of_bits(sign | (exponent + 127 - 15) << 23 | fraction << 13);
}

static uint16_t store_fp16(float value)
{
    const uint16_t sign = signbit(value) ? 0x8000u : 0;
    const float magnitude = fabsf(value);
    if (isnan(value)) {
        return (uint16_t)(sign | 0x7e00u);
    }
    if (magnitude >= 65520.0f) { /* halfway between the largest number and the next one */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (magnitude == 0.0f) {
        return sign;
    }
    int exponent;
    frexpf(magnitude, &exponent); /* magnitude is in [2^(exponent-1), 2^exponent) */
    const int step = exponent - 11 > -24 ? exponent - 11 : -24;
    const uint32_t steps = (uint32_t)rintf(ldexpf(magnitude, -step));
    /* A full 2048 steps carry into the exponent by themselves. */
    return (uint16_t)(sign | (step == -24 ? steps : ((uint32_t)(step + 24) << 10) + steps));
}

static uint16_t store_bf16(float value)
{
    const uint32_t bits = bits_of_float(value);
    if (isnan(value)) {
        return (uint16_t)(bits >> 16 | 0x40u);
    }
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static float load_fp8(uint8_t bits)
{
    const int exponent = bits >> 3 & 0xf;
    const int fraction = bits & 0x7;
    float magnitude =
        exponent == 0 ? ldexpf((float)fraction, -9) : ldexpf((float)(8 + fraction), exponent - 10);
    if ((bits & 0x7f) == 0x7f) {
        magnitude = NAN;
    }
    return (bits & 0x80) != 0 ? -magnitude : magnitude;
}

static uint8_t store_fp8(float value)
{
    const uint8_t sign = signbit(value) ? 0x80 : 0;
    const float magnitude = fabsf(value);
    if (isnan(value)) {
        return (uint8_t)(sign | 0x7f);
    }
    if (magnitude >= 448.0f) { /* the largest number */
        return (uint8_t)(sign | 0x7e);
    }
    if (magnitude == 0.0f) {
        return sign;
    }
    int exponent;
    frexpf(magnitude, &exponent); /* magnitude is in [2^(exponent-1), 2^exponent) */
    const int step = exponent - 4 > -9 ? exponent - 4 : -9;
    const int steps = (int)rintf(ldexpf(magnitude, -step));
    /* A full 16 steps carry into the exponent by themselves. */
    return (uint8_t)(sign | (step == -9 ? steps : ((step + 9) << 3) + steps));
}

float moe_element_load(const void *elements, int32_t dtype, int64_t idx)
{
    const unsigned char *at =
        (const unsigned char *)elements + (size_t)idx * moe_element_bytes(dtype);
    if (dtype == MOE_DTYPE_FP32) {
        float value;
        memcpy(&value, at, sizeof value);
        return value;
    }
    if (dtype == MOE_DTYPE_FP8_E4M3) {
        return load_fp8(*at);
    }
    uint16_t bits;
    memcpy(&bits, at, sizeof bits);
    return dtype == MOE_DTYPE_FP16 ? load_fp16(bits) : float_of_bits((uint32_t)bits << 16);
}

void moe_element_store(void *elements, int32_t dtype, int64_t idx, float value)
{
    unsigned char *at = (unsigned char *)elements + (size_t)idx * moe_element_bytes(dtype);
    if (dtype == MOE_DTYPE_FP32) {
        memcpy(at, &value, sizeof value);
        return;
    }
    if (dtype == MOE_DTYPE_FP8_E4M3) {
        *at = store_fp8(value);
        return;
    }
    const uint16_t bits = dtype == MOE_DTYPE_FP16 ? store_fp16(value) : store_bf16(value);
    memcpy(at, &bits, sizeof bits);
}

/* The next 64 bits of the generator splitmix64. */
static uint64_t draw(uint64_t *state)
{
    *state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t bits = *state;
    bits = (bits ^ bits >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    bits = (bits ^ bits >> 27) * UINT64_C(0x94d049bb133111eb);
    return bits ^ bits >> 31;
}

/* In (0, 1]. */
static double draw_unit(uint64_t *state)
{
    return ((double)(draw(state) >> 11) + 1.0) * 0x1p-53;
}

void moe_element_fill_normal(void *elements, int32_t dtype, int64_t num_elements, uint64_t seed)
{
    static const double tau = 6.283185307179586;
    uint64_t state = seed;
    for (int64_t i = 0; i < num_elements; ++i) { /* Box and Muller, one of the pair */
        const double radius = sqrt(-2.0 * log(draw_unit(&state)));
        moe_element_store(elements, dtype, i, (float)(radius * cos(tau * draw_unit(&state))));
    }
}
