/* SPDX-License-Identifier: Apache-2.0 */
/* Random bits of benchmarks: fast, seeded, one stream per (seed, stream) pair. */
#ifndef MOE_BENCH_RANDOM_H
#define MOE_BENCH_RANDOM_H

#include <stdint.h>

struct moe_bench_random {
    uint64_t state;
};

/* Spreads all bits of `value` over all bits of the result (the finalizer of splitmix64). */
static inline uint64_t moe_bench_random_mix(uint64_t value)
{
    value = (value ^ (value >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    value = (value ^ (value >> 27)) * UINT64_C(0x94d049bb133111eb);
    return value ^ (value >> 31);
}

static inline void moe_bench_random_init(struct moe_bench_random *random, uint64_t seed,
                                         uint64_t stream)
{
    random->state = moe_bench_random_mix(seed + 1) ^ moe_bench_random_mix(~stream);
}

static inline uint64_t moe_bench_random_next(struct moe_bench_random *random)
{
    random->state += UINT64_C(0x9e3779b97f4a7c15);
    return moe_bench_random_mix(random->state);
}

/* Uniform in 0..limit-1 for limit below 2^32; the bias is below limit / 2^32. */
static inline int64_t moe_bench_random_below(struct moe_bench_random *random, int64_t limit)
{
    return (int64_t)(((moe_bench_random_next(random) >> 32) * (uint64_t)limit) >> 32);
}

/* Uniform in (0, 1]. */
static inline double moe_bench_random_unit(struct moe_bench_random *random)
{
    return ((double)(moe_bench_random_next(random) >> 11) + 1.0) * 0x1p-53;
}

#endif
