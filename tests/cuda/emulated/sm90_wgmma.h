/* SPDX-License-Identifier: Apache-2.0 */
/* wgmma on the emulated sm_90a: reads shared memory through descriptors, as PTX describes them. */
#ifndef SM90_WGMMA_H
#define SM90_WGMMA_H

#include "sm90.h"

/* Column k of row (channel, token) `row`; M-major a row of the 128 bytes is a column of k. */
template <bool kIsHalf, bool kIsTransposed>
inline float moe_emulated_element(uint64_t descriptor, int32_t row, int32_t k)
{
    const uint32_t start = uint32_t(descriptor & 0x3fff) << 4;
    const int32_t line = kIsTransposed ? k : row;
    const uint32_t group_bytes = uint32_t(descriptor >> 32 & 0x3fff) << 4;
    const uint32_t address =
        sm90::swizzled(start + uint32_t(line / 8) * group_bytes +
                       uint32_t(line % 8 * 128 + (kIsTransposed ? row : k) * 2));
    uint16_t bits;
    memcpy(&bits, sm90::at(sm90::cta(), address), 2);
    if constexpr (kIsHalf) {
        __half value;
        memcpy(&value, &bits, 2);
        return __half2float(value);
    } else {
        return sm90::cluster == nullptr ? 0.0f : __int_as_float(int32_t(uint32_t(bits) << 16));
    }
}

template <int kN, bool kIsHalf, bool kIsTransposed, int kSize>
void moe_ptx_wgmma(float (&sums)[kSize], uint64_t a, uint64_t b, uint32_t accumulate)
{
    static_assert(kN / 2 <= kSize, "sums");
    const int32_t thread = int32_t(sm90::thread_idx()) % 128;
    const int32_t row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
    float left[2][16];
    for (int32_t half = 0; half < 2; half++) {
        for (int32_t k = 0; k < 16; k++) {
            left[half][k] = moe_emulated_element<kIsHalf, kIsTransposed>(a, row + 8 * half, k);
        }
    }
    for (int32_t i = 0; i < kN / 2; i++) {
        const int32_t token = i / 4 * 8 + column + i % 2;
        float sum = accumulate != 0 ? sums[i] : 0.0f;
        for (int32_t k = 0; k < 16; k++) {
            sum += left[i % 4 / 2][k] * moe_emulated_element<kIsHalf, false>(b, token, k);
        }
        sums[i] = sum;
    }
}

#endif
