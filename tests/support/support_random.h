/* SPDX-License-Identifier: Apache-2.0 */
/* Seeded random numbers and inputs: the same seed gives the same data on every machine. */
#ifndef MOE_TESTS_SUPPORT_RANDOM_H
#define MOE_TESTS_SUPPORT_RANDOM_H

#include "ref.h"

#include <stddef.h>
#include <stdint.h>

/* xoshiro256**; not thread safe, one per thread. */
struct support_random {
    uint64_t state[4];
};

/* Any seed, zero included; nearby seeds give unrelated streams (splitmix64). */
void support_random_seed(struct support_random *random, uint64_t seed);

uint64_t support_random_u64(struct support_random *random);

/* Uniform in [0, bound), without bias; bound > 0. */
uint64_t support_random_below(struct support_random *random, uint64_t bound);

/* Uniform in (0, 1). */
double support_random_uniform(struct support_random *random);

/* Mean 0, variance 1; a sum of four uniforms, so never beyond
 * +-3.47. */
double support_random_normal(struct support_random *random);

/* count elements of dtype: normal times scale (> 0), rounded to dtype, never zero after rounding.
 */
void support_fill_normal(struct support_random *random, enum ref_dtype dtype, void *array,
                         int64_t count, double scale);

/* [num_tokens][top_k] ids: distinct within a token, uniform over [0, num_experts); top_k <=
 * num_experts. */
void support_fill_ids(struct support_random *random, int64_t *ids, int64_t num_tokens,
                      int64_t top_k, int64_t num_experts);

/* int64 ids to int32. */
void support_narrow_ids(const int64_t *ids, int64_t count, int32_t *narrow);

#endif
