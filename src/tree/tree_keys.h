/* SPDX-License-Identifier: Apache-2.0 */
/* The order of a mapping's keys: what finds duplicates and values without looking at every key. */
#ifndef MOE_TREE_KEYS_H
#define MOE_TREE_KEYS_H

#include "tree_problems.h"

struct moe_tree_keys_scratch {
    uint32_t *order;
    size_t capacity;
};

/*
 * Sorts the positions of `num_keys` keys by text, equal ones by position, into a piece of the
 * arena, and adds a problem for each key that is a repetition. `scratch` is kept from call to call.
 * Returns the order, or NULL if out of memory. Takes time in n log n whatever the keys are.
 */
const uint32_t *moe_tree_keys_sort(const struct moe_tree_node *keys, size_t num_keys,
                                   struct moe_tree_arena *arena,
                                   struct moe_tree_keys_scratch *scratch,
                                   struct moe_tree_problems *problems);

#endif
