/* SPDX-License-Identifier: Apache-2.0 */
#include "support_random.h"

#include <math.h>

static uint64_t rotate_left(uint64_t value, int count)
{
    return (value << count) | (value >> (64 - count));
}

void support_random_seed(struct support_random *random, uint64_t seed)
{
    for (int i = 0; i < 4; i++) {
        seed += UINT64_C(0x9e3779b97f4a7c15);
        uint64_t mixed = seed;
        mixed = (mixed ^ (mixed >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        mixed = (mixed ^ (mixed >> 27)) * UINT64_C(0x94d049bb133111eb);
        random->state[i] = mixed ^ (mixed >> 31);
    }
}

uint64_t support_random_u64(struct support_random *random)
{
    uint64_t *s = random->state;
    uint64_t result = rotate_left(s[1] * 5, 7) * 9;
    uint64_t shifted = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= shifted;
    s[3] = rotate_left(s[3], 45);
    return result;
}

uint64_t support_random_below(struct support_random *random, uint64_t bound)
{
    uint64_t unfair = (UINT64_MAX % bound + 1) % bound; /* values too many for whole multiples */
    uint64_t value;
    do {
        value = support_random_u64(random);
    } while (value > UINT64_MAX - unfair);
    return value % bound;
}

double support_random_uniform(struct support_random *random)
{
    return ((double)(support_random_u64(random) >> 12) + 0.5) * 0x1p-52;
}

double support_random_normal(struct support_random *random)
{
    double sum = -2.0;
    for (int i = 0; i < 4; i++) {
        sum += support_random_uniform(random);
    }
    return sum * sqrt(3.0); /* four uniforms have variance 4 / 12 */
}

void support_fill_normal(struct support_random *random, enum ref_dtype dtype, void *array,
                         int64_t count, double scale)
{
    for (int64_t i = 0; i < count; i++) {
        do {
            ref_store(dtype, array, i, scale * support_random_normal(random));
        } while (ref_load(dtype, array, i) == 0.0);
    }
}

void support_fill_ids(struct support_random *random, int64_t *ids, int64_t num_tokens,
                      int64_t top_k, int64_t num_experts)
{
    for (int64_t i = 0; i < num_tokens * top_k; i++) {
        const int64_t *token = ids + i / top_k * top_k;
        bool taken;
        do {
            ids[i] = (int64_t)support_random_below(random, (uint64_t)num_experts);
            taken = false;
            for (const int64_t *other = token; other < ids + i; other++) {
                taken = taken || *other == ids[i];
            }
        } while (taken);
    }
}

void support_narrow_ids(const int64_t *ids, int64_t count, int32_t *narrow)
{
    for (int64_t i = 0; i < count; i++) {
        narrow[i] = (int32_t)ids[i];
    }
}
