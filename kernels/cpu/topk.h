/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The k largest of n scores, of equal ones those with the lowest ids, in descending order: a heap
 * of the k best so far with the worst on top. Scores are scanned eight at a time against the top,
 * so that after the first few the common case is one comparison per eight scores; O(n / 8 + k log k
 * log n) for random scores, O(n log k) at worst.
 */
#ifndef MOE_CPU_TOPK_H
#define MOE_CPU_TOPK_H

#include "vec8.h"

#include <stdint.h>

struct moe_topk_entry {
    float score;
    int32_t id;
};

static inline int moe_topk_is_worse(struct moe_topk_entry a, struct moe_topk_entry b)
{
    return a.score < b.score || (a.score == b.score && a.id > b.id);
}

/* Puts `entry` where the top of the heap was. */
static inline void moe_topk_replace_top(struct moe_topk_entry *heap, int32_t size,
                                        struct moe_topk_entry entry)
{
    int64_t at = 0;
    for (int64_t child = 1; child < size; child = 2 * at + 1) {
        if (child + 1 < size && moe_topk_is_worse(heap[child + 1], heap[child])) {
            child++;
        }
        if (!moe_topk_is_worse(heap[child], entry)) {
            break;
        }
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = entry;
}

/* Empties a heap of `size` >= 1 entries: its entries lose against every finite score. */
static inline void moe_topk_init(struct moe_topk_entry *heap, int32_t size)
{
    for (int32_t i = 0; i < size; i++) {
        heap[i].score = -INFINITY;
        heap[i].id = INT32_MAX;
    }
}

/* Offers scores[begin .. end), finite, with their indices as ids. Calls come in ascending order of
 * ids: then an equal score never displaces one that is in. */
static inline void moe_topk_offer(struct moe_topk_entry *heap, int32_t size, const float *scores,
                                  int32_t begin, int32_t end)
{
    int32_t id = begin;
    for (; id + MOE_VEC8_LANES <= end; id += MOE_VEC8_LANES) {
        const struct moe_mask8 better =
            moe_vec8_lt(moe_vec8_set1(heap[0].score), moe_vec8_load(scores + id));
        uint32_t bits = moe_mask8_bits(better);
        for (int32_t lane = 0; bits != 0; lane++, bits >>= 1) {
            if ((bits & 1u) != 0 && scores[id + lane] > heap[0].score) {
                moe_topk_replace_top(heap, size,
                                     (struct moe_topk_entry){scores[id + lane], id + lane});
            }
        }
    }
    for (; id < end; id++) {
        if (scores[id] > heap[0].score) {
            moe_topk_replace_top(heap, size, (struct moe_topk_entry){scores[id], id});
        }
    }
}

/* Turns the heap into an array, best first. */
static inline void moe_topk_sort(struct moe_topk_entry *heap, int32_t size)
{
    for (int32_t last = size - 1; last > 0; last--) {
        const struct moe_topk_entry worst = heap[0];
        moe_topk_replace_top(heap, last, heap[last]);
        heap[last] = worst;
    }
}

#endif
