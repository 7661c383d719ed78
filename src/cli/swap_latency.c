/* SPDX-License-Identifier: Apache-2.0 */
#include "swap_latency.h"

#include <stdlib.h>
#include <string.h>

enum { BLOCK_INTERVALS = 4096 };

struct moe_swap_interval_block {
    struct moe_swap_interval_block *next;
    struct moe_swap_interval intervals[BLOCK_INTERVALS];
};

int moe_swap_intervals_add(struct moe_swap_intervals *intervals, int64_t begin_ns, int64_t end_ns)
{
    const size_t place = intervals->num_intervals % BLOCK_INTERVALS;
    if (place == 0) {
        struct moe_swap_interval_block *block = malloc(sizeof *block);
        if (block == NULL) {
            return -1;
        }
        block->next = NULL;
        if (intervals->last != NULL) {
            intervals->last->next = block;
        } else {
            intervals->first = block;
        }
        intervals->last = block;
    }
    intervals->last->intervals[place] = (struct moe_swap_interval){begin_ns, end_ns};
    intervals->num_intervals += 1;
    return 0;
}

void moe_swap_intervals_finish(struct moe_swap_intervals *intervals)
{
    for (struct moe_swap_interval_block *block = intervals->first; block != NULL;) {
        struct moe_swap_interval_block *next = block->next;
        free(block);
        block = next;
    }
    memset(intervals, 0, sizeof *intervals);
}

/* The intervals of some lists in one array, or NULL. */
static struct moe_swap_interval *copy(const struct moe_swap_intervals *const *lists,
                                      size_t num_lists, size_t *num_intervals)
{
    *num_intervals = 0;
    for (size_t i = 0; i < num_lists; ++i) {
        *num_intervals += lists[i]->num_intervals;
    }
    struct moe_swap_interval *all = calloc(*num_intervals + 1, sizeof *all);
    if (all == NULL) {
        return NULL;
    }
    size_t num_copied = 0;
    for (size_t i = 0; i < num_lists; ++i) {
        size_t num_left = lists[i]->num_intervals;
        for (const struct moe_swap_interval_block *block = lists[i]->first; block != NULL;
             block = block->next) {
            const size_t num_here = num_left < BLOCK_INTERVALS ? num_left : BLOCK_INTERVALS;
            memcpy(all + num_copied, block->intervals, num_here * sizeof *all);
            num_copied += num_here;
            num_left -= num_here;
        }
    }
    return all;
}

/* Does one of them overlap the request? The first that ends at or after its begin decides. */
static int overlaps(const struct moe_swap_interval *intervals, size_t num_intervals,
                    const struct moe_swap_interval *request)
{
    size_t low = 0, high = num_intervals;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (intervals[middle].end_ns < request->begin_ns) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < num_intervals && intervals[low].begin_ns <= request->end_ns;
}

static int compare(const void *a, const void *b)
{
    const int64_t left = *(const int64_t *)a, right = *(const int64_t *)b;
    return (left > right) - (left < right);
}

static double percentile_us(const int64_t *sorted, size_t num_requests, size_t percent)
{
    const size_t rank = (num_requests * percent + 99) / 100; /* 1-based */
    return (double)sorted[rank - 1] / 1e3;
}

static struct moe_swap_percentiles summarize(int64_t *times, size_t num_requests)
{
    struct moe_swap_percentiles result = {.num_requests = num_requests};
    if (num_requests == 0) {
        return result;
    }
    qsort(times, num_requests, sizeof *times, compare);
    result.p50_us = percentile_us(times, num_requests, 50);
    result.p90_us = percentile_us(times, num_requests, 90);
    result.p99_us = percentile_us(times, num_requests, 99);
    result.max_us = percentile_us(times, num_requests, 100);
    return result;
}

int moe_swap_latency_summarize(const struct moe_swap_intervals *const *requests, size_t num_lists,
                               const struct moe_swap_intervals *windows,
                               const struct moe_swap_intervals *stagings,
                               struct moe_swap_percentiles out[MOE_SWAP_NUM_PHASES])
{
    size_t num_requests, num_windows, num_stagings;
    struct moe_swap_interval *all = copy(requests, num_lists, &num_requests);
    struct moe_swap_interval *near = copy(&windows, 1, &num_windows);
    struct moe_swap_interval *busy = copy(&stagings, 1, &num_stagings);
    int64_t *times = malloc((num_requests + 1) * sizeof *times);
    const int has_memory = all != NULL && near != NULL && busy != NULL && times != NULL;
    for (int phase = 0; has_memory && phase < MOE_SWAP_NUM_PHASES; ++phase) {
        size_t num_here = 0;
        for (size_t i = 0; i < num_requests; ++i) {
            const int found = overlaps(near, num_windows, &all[i])    ? MOE_SWAP_INSIDE
                              : overlaps(busy, num_stagings, &all[i]) ? MOE_SWAP_STAGING
                                                                      : MOE_SWAP_OUTSIDE;
            if (found == phase) {
                times[num_here++] = all[i].end_ns - all[i].begin_ns;
            }
        }
        out[phase] = summarize(times, num_here);
    }
    free(times);
    free(busy);
    free(near);
    free(all);
    return has_memory ? 0 : -1;
}

double moe_swap_latency_ratio(const struct moe_swap_percentiles phases[MOE_SWAP_NUM_PHASES])
{
    const struct moe_swap_percentiles *inside = &phases[MOE_SWAP_INSIDE];
    const struct moe_swap_percentiles *outside = &phases[MOE_SWAP_OUTSIDE];
    if (inside->num_requests == 0 || outside->num_requests == 0 || outside->p99_us <= 0.0) {
        return 0.0;
    }
    return inside->p99_us / outside->p99_us;
}
