/* SPDX-License-Identifier: Apache-2.0 */
/* What the lanes of a warp do together, for sm90.h. */
#ifndef MOE_EMULATED_SM90_WARP_H
#define MOE_EMULATED_SM90_WARP_H

inline void __syncwarp()
{
    sm90::meet_warp();
}

inline int32_t __shfl_up_sync(uint32_t, int32_t value, int32_t step)
{
    const uint32_t thread = sm90::thread_idx();
    auto &words = sm90::cta().words;
    words[thread * 4] = uint32_t(value);
    sm90::meet_warp();
    const int32_t result =
        int32_t(thread % 32) >= step ? int32_t(words[(thread - uint32_t(step)) * 4]) : value;
    sm90::meet_warp();
    return result;
}

inline uint32_t __match_any_sync(uint32_t, int32_t value)
{
    const uint32_t thread = sm90::thread_idx(), first = thread / 32 * 32;
    auto &words = sm90::cta().words;
    uint32_t same = 0;
    words[thread * 4] = uint32_t(value);
    sm90::meet_warp();
    for (uint32_t lane = 0; lane < 32; lane++) {
        same |= uint32_t(words[(first + lane) * 4] == uint32_t(value)) << lane;
    }
    sm90::meet_warp();
    return same;
}

inline int __popc(uint32_t bits)
{
    return __builtin_popcount(bits);
}

inline uint32_t __dp4a(uint32_t a, uint32_t b, uint32_t sum)
{
    for (int i = 0; i < 32; i += 8) {
        sum += (a >> i & 255) * (b >> i & 255);
    }
    return sum;
}

inline float __shfl_xor_sync(uint32_t, float value, uint32_t mask)
{
    const uint32_t thread = sm90::thread_idx();
    auto &words = sm90::cta().words;
    memcpy(&words[thread * 4], &value, 4);
    sm90::meet_warp();
    float result;
    memcpy(&result, &words[(thread ^ mask) * 4], 4);
    sm90::meet_warp();
    return result;
}

#endif
