/* SPDX-License-Identifier: Apache-2.0 */
#include "tree_keys.h"

#include <string.h>

static int compare_texts(const char *a, size_t a_bytes, const char *b, size_t b_bytes)
{
    int order = memcmp(a, b, a_bytes < b_bytes ? a_bytes : b_bytes);

    if (order != 0) {
        return order;
    }
    return (a_bytes > b_bytes) - (a_bytes < b_bytes);
}

/* Keys that are no scalars, an error of their own, come last and count as equal. */
static int compare_keys(const struct moe_tree_node *a, const struct moe_tree_node *b)
{
    if (a->text == NULL || b->text == NULL) {
        return (a->text == NULL) - (b->text == NULL);
    }
    return compare_texts(a->text, a->text_bytes, b->text, b->text_bytes);
}

/* Merges the sorted runs [first, middle) and [middle, end) of `from` into `to`. */
static void merge_runs(const struct moe_tree_node *keys, const uint32_t *from, uint32_t *to,
                       size_t first, size_t middle, size_t end)
{
    size_t left = first;
    size_t right = middle;

    for (size_t i = first; i < end; i++) {
        if (right == end ||
            (left < middle && compare_keys(&keys[from[left]], &keys[from[right]]) <= 0)) {
            to[i] = from[left++];
        } else {
            to[i] = from[right++];
        }
    }
}

/* Merge sort: the keys come from outside, and no input may make it quadratic. */
static void sort_order(const struct moe_tree_node *keys, uint32_t *order, uint32_t *scratch,
                       size_t num_keys)
{
    uint32_t *from = order;
    uint32_t *to = scratch;

    for (size_t width = 1; width < num_keys; width *= 2) {
        uint32_t *swap = from;

        for (size_t first = 0; first < num_keys; first += 2 * width) {
            size_t middle = first + width < num_keys ? first + width : num_keys;
            size_t end = middle + width < num_keys ? middle + width : num_keys;

            merge_runs(keys, from, to, first, middle, end);
        }
        from = to;
        to = swap;
    }
    if (from != order) {
        memcpy(order, from, num_keys * sizeof *order);
    }
}

static void report_duplicates(const struct moe_tree_node *keys, const uint32_t *order,
                              size_t num_keys, struct moe_tree_problems *problems)
{
    const struct moe_tree_node *first = num_keys > 0 ? &keys[order[0]] : NULL;

    for (size_t i = 1; i < num_keys; i++) {
        const struct moe_tree_node *key = &keys[order[i]];
        char excerpt[MOE_TREE_EXCERPT_BYTES];

        if (key->text == NULL) {
            return;
        }
        if (compare_keys(first, key) != 0) {
            first = key;
            continue;
        }
        moe_tree_problems_add(problems, MOE_TREE_DUPLICATE_KEY, key->line, key->column,
                              "the key '%s' is already given at line %u, column %u",
                              moe_tree_problems_excerpt(excerpt, key->text, key->text_bytes),
                              (unsigned)first->line, (unsigned)first->column);
    }
}

const uint32_t *moe_tree_keys_sort(const struct moe_tree_node *keys, size_t num_keys,
                                   struct moe_tree_arena *arena,
                                   struct moe_tree_keys_scratch *scratch,
                                   struct moe_tree_problems *problems)
{
    uint32_t *order = moe_tree_arena_alloc(arena, num_keys * sizeof *order, sizeof *order);
    uint32_t *grown = moe_tree_arena_grow(arena, scratch->order, &scratch->capacity, num_keys,
                                          sizeof *scratch->order);

    if (grown != NULL) {
        scratch->order = grown;
    }
    if (order == NULL || grown == NULL) {
        return NULL;
    }
    for (size_t i = 0; i < num_keys; i++) {
        order[i] = (uint32_t)i;
    }
    sort_order(keys, order, scratch->order, num_keys);
    report_duplicates(keys, order, num_keys, problems);
    return order;
}

const struct moe_tree_node *moe_tree_find(const struct moe_tree_node *mapping, const char *key)
{
    size_t key_bytes = strlen(key);
    size_t first = 0;
    size_t end = mapping != NULL && mapping->kind == MOE_NODE_MAPPING ? mapping->num_children : 0;

    while (first < end) {
        size_t middle = first + (end - first) / 2;
        uint32_t position = mapping->key_order[middle];
        const struct moe_tree_node *candidate = &mapping->keys[position];
        int order = compare_texts(key, key_bytes, candidate->text, candidate->text_bytes);

        if (order == 0) {
            return &mapping->children[position];
        }
        if (order < 0) {
            end = middle;
        } else {
            first = middle + 1;
        }
    }
    return NULL;
}
