/* SPDX-License-Identifier: Apache-2.0 */
#include "bench_samples.h"

#include <stdlib.h>

void moe_bench_samples_add(struct moe_bench_samples *samples, double value)
{
    samples->values[samples->num_added % MOE_BENCH_MAX_SAMPLES] = value;
    samples->num_added += 1;
    if (samples->num_samples < MOE_BENCH_MAX_SAMPLES) {
        samples->num_samples += 1;
    }
}

double moe_bench_samples_last(const struct moe_bench_samples *samples)
{
    return samples->values[(samples->num_added - 1) % MOE_BENCH_MAX_SAMPLES];
}

static int compare(const void *a, const void *b)
{
    const double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* Linear between neighbours. */
static double quantile(const double *sorted, size_t num_samples, double fraction)
{
    const double position = fraction * (double)(num_samples - 1);
    const size_t below = (size_t)position;
    if (below + 1 >= num_samples) {
        return sorted[num_samples - 1];
    }
    return sorted[below] + (position - (double)below) * (sorted[below + 1] - sorted[below]);
}

struct moe_bench_summary moe_bench_samples_summarize(struct moe_bench_samples *samples)
{
    struct moe_bench_summary summary = {.num_samples = samples->num_samples};
    if (samples->num_samples == 0) {
        return summary;
    }
    qsort(samples->values, samples->num_samples, sizeof samples->values[0], compare);
    summary.median = quantile(samples->values, samples->num_samples, 0.5);
    summary.p10 = quantile(samples->values, samples->num_samples, 0.1);
    summary.p90 = quantile(samples->values, samples->num_samples, 0.9);
    return summary;
}
