/* SPDX-License-Identifier: Apache-2.0 */
/* Measured numbers of one thing, and what is reported of them. */
#ifndef MOE_BENCH_SAMPLES_H
#define MOE_BENCH_SAMPLES_H

#include <stddef.h>

enum { MOE_BENCH_MAX_SAMPLES = 2048 };

struct moe_bench_samples {
    size_t
        num_samples; /* that are kept: after MOE_BENCH_MAX_SAMPLES, new ones take the place of the
                        oldest */
    size_t num_added;
    double values[MOE_BENCH_MAX_SAMPLES];
};

struct moe_bench_summary {
    size_t num_samples;
    double median;
    double p10; /* a tenth of the samples is at most this */
    double p90;
};

void moe_bench_samples_add(struct moe_bench_samples *samples, double value);

/* The newest sample; there is one, and the samples are not sorted yet. */
double moe_bench_samples_last(const struct moe_bench_samples *samples);

/* All zero without samples. Sorts the samples. */
struct moe_bench_summary moe_bench_samples_summarize(struct moe_bench_samples *samples);

#endif
