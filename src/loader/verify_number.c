/* SPDX-License-Identifier: Apache-2.0 */
#include "verify_number.h"

#include "moe_plugin.h"

#include <string.h>

int64_t moe_verify_number_bytes(int32_t dtype)
{
    switch (dtype) {
    case MOE_DTYPE_FP32:
        return 4;
    case MOE_DTYPE_FP16:
    case MOE_DTYPE_BF16:
        return 2;
    default:
        return 0;
    }
}

void moe_verify_number_store(int32_t dtype, double value, void *to)
{
    const float single = (float)value;
    uint32_t bits;
    memcpy(&bits, &single, sizeof(bits));
    if (dtype == MOE_DTYPE_FP32) {
        memcpy(to, &bits, sizeof(bits));
        return;
    }
    uint16_t half = (uint16_t)(bits >> 16); /* bf16: the upper half */
    if (dtype == MOE_DTYPE_FP16) {
        const uint32_t exponent = bits >> 23 & 0xff;
        const uint32_t sign = bits >> 16 & 0x8000;
        /* From a bias of 127 to one of 15; what is smaller than a normal number becomes zero. */
        half = exponent < 113 ? (uint16_t)sign
                              : (uint16_t)(sign | (exponent - 112) << 10 | (bits >> 13 & 0x3ff));
    }
    memcpy(to, &half, sizeof(half));
}

double moe_verify_number_load(int32_t dtype, const void *from)
{
    uint32_t bits = 0;
    if (dtype == MOE_DTYPE_FP32) {
        memcpy(&bits, from, sizeof(bits));
    } else {
        uint16_t half;
        memcpy(&half, from, sizeof(half));
        if (dtype == MOE_DTYPE_BF16) {
            bits = (uint32_t)half << 16;
        } else {
            const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
            const uint32_t exponent = half >> 10 & 0x1f;
            const uint32_t fraction = half & 0x3ffu;
            if (exponent == 0) { /* zero and subnormals: multiples of 2^-24 */
                return (sign != 0 ? -1.0 : 1.0) * (double)fraction / 16777216.0;
            }
            bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
        }
    }
    float value;
    memcpy(&value, &bits, sizeof(value));
    return (double)value;
}

uint64_t moe_verify_number_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

double moe_verify_number_uniform(uint64_t *state)
{
    return (double)(moe_verify_number_random(state) >> 11) / 4503599627370496.0 - 1.0;
}

int64_t moe_verify_number_below(uint64_t *state, int64_t limit)
{
    return (int64_t)(moe_verify_number_random(state) % (uint64_t)limit);
}
