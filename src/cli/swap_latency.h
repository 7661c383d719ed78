/* SPDX-License-Identifier: Apache-2.0 */
/* Times of requests, and their percentiles inside and outside of intervals. */
#ifndef MOE_SWAP_LATENCY_H
#define MOE_SWAP_LATENCY_H

#include <stddef.h>
#include <stdint.h>

/* From begin to end, both included, in nanoseconds of one clock. */
struct moe_swap_interval {
    int64_t begin_ns;
    int64_t end_ns;
};

/* A list of intervals that grows; all zero is empty. One thread at a time. */
struct moe_swap_intervals {
    size_t num_intervals;
    struct moe_swap_interval_block *first; /* private, as is the next */
    struct moe_swap_interval_block *last;
};

/* Takes the same short time however long the list is. Returns 0, or -1 when memory is short. */
int moe_swap_intervals_add(struct moe_swap_intervals *intervals, int64_t begin_ns, int64_t end_ns);
void moe_swap_intervals_finish(struct moe_swap_intervals *intervals);

/* What a request ran into; the first that applies. */
enum moe_swap_phase {
    MOE_SWAP_INSIDE,  /* it overlaps the window around a promote */
    MOE_SWAP_STAGING, /* it overlaps work of the control thread: stage, verify, park */
    MOE_SWAP_OUTSIDE, /* neither */
    MOE_SWAP_NUM_PHASES
};

struct moe_swap_percentiles {
    size_t num_requests; /* 0: all else is 0 */
    double p50_us;
    double p90_us;
    double p99_us;
    double max_us;
};

/*
 * Sorts the requests of num_lists lists into phases. `windows` and `stagings` are in ascending
 * order of begin and of end. Percentile p is the smallest time that at least p percent of the
 * requests do not exceed. Returns 0, or -1 when memory is short.
 */
int moe_swap_latency_summarize(const struct moe_swap_intervals *const *requests, size_t num_lists,
                               const struct moe_swap_intervals *windows,
                               const struct moe_swap_intervals *stagings,
                               struct moe_swap_percentiles out[MOE_SWAP_NUM_PHASES]);

/* p99 inside over p99 outside; 0 when one of them has no requests. */
double moe_swap_latency_ratio(const struct moe_swap_percentiles phases[MOE_SWAP_NUM_PHASES]);

#endif
