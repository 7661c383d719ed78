/* SPDX-License-Identifier: Apache-2.0 */
#include "tree_build.h"

#include <string.h>

struct moe_tree_open {
    size_t first_pending; /* its children begin here, in a mapping key, value, key, value ... */
    struct moe_tree_place place;
    int32_t kind;
};

void moe_tree_build_init(struct moe_tree_build *build, struct moe_tree_arena *arena,
                         struct moe_tree_problems *problems, const struct moe_tree_limits *limits)
{
    memset(build, 0, sizeof *build);
    build->arena = arena;
    build->problems = problems;
    build->limits = *limits;
}

void moe_tree_build_finish(struct moe_tree_build *build)
{
    moe_tree_arena_drop(build->arena, build->scratch.order, build->scratch.capacity,
                        sizeof *build->scratch.order);
    moe_tree_arena_drop(build->arena, build->open, build->open_capacity, sizeof *build->open);
    moe_tree_arena_drop(build->arena, build->pending, build->pending_capacity,
                        sizeof *build->pending);
}

static int report_no_memory(struct moe_tree_build *build)
{
    moe_tree_problems_add(build->problems, MOE_TREE_OUT_OF_MEMORY, 1, 1, "out of memory");
    return -1;
}

/* Appends a node to the children of the innermost open collection. */
static int append_node(struct moe_tree_build *build, const struct moe_tree_node *node)
{
    if (build->pending == NULL || build->num_pending == build->pending_capacity) {
        struct moe_tree_node *grown =
            moe_tree_arena_grow(build->arena, build->pending, &build->pending_capacity,
                                build->num_pending + 1, sizeof *grown);

        if (grown == NULL) {
            return report_no_memory(build);
        }
        build->pending = grown;
    }
    build->pending[build->num_pending++] = *node;
    return 0;
}

static int count_node(struct moe_tree_build *build, struct moe_tree_place place)
{
    if (build->num_nodes == build->limits.max_nodes) {
        moe_tree_problems_add(build->problems, MOE_TREE_TOO_LARGE, place.line, place.column,
                              "more than %zu keys, values and collections",
                              build->limits.max_nodes);
        return -1;
    }
    build->num_nodes++;
    return 0;
}

/* 1 if the next node is a key of a mapping. */
static int is_key_next(const struct moe_tree_build *build)
{
    const struct moe_tree_open *open;

    if (build->num_open == 0) {
        return 0;
    }
    open = &build->open[build->num_open - 1];
    return open->kind == MOE_NODE_MAPPING && (build->num_pending - open->first_pending) % 2 == 0;
}

int moe_tree_build_scalar(struct moe_tree_build *build, struct moe_tree_place place,
                          const char *text, size_t text_bytes, int is_quoted)
{
    struct moe_tree_node node = {.kind = MOE_NODE_SCALAR, .quoted = is_quoted};
    char *copy;

    if (count_node(build, place) != 0) {
        return -1;
    }
    if (memchr(text, '\0', text_bytes) != NULL) {
        moe_tree_problems_add(build->problems, MOE_TREE_NUL_INSIDE, place.line, place.column,
                              "a string with the character U+0000");
    }
    copy = moe_tree_arena_alloc(build->arena, text_bytes + 1, 1);
    if (copy == NULL) {
        return report_no_memory(build);
    }
    memcpy(copy, text, text_bytes);
    copy[text_bytes] = '\0';
    node.line = place.line;
    node.column = place.column;
    node.text = copy;
    node.text_bytes = text_bytes;
    return append_node(build, &node);
}

int moe_tree_build_hole(struct moe_tree_build *build, struct moe_tree_place place)
{
    struct moe_tree_node node = {
        .kind = MOE_NODE_SEQUENCE, .line = place.line, .column = place.column};

    return count_node(build, place) != 0 ? -1 : append_node(build, &node);
}

int moe_tree_build_open(struct moe_tree_build *build, struct moe_tree_place place, int32_t kind)
{
    struct moe_tree_open *open;

    if (build->num_open == build->limits.max_depth) {
        moe_tree_problems_add(build->problems, MOE_TREE_TOO_DEEP, place.line, place.column,
                              "more than %u collections inside each other",
                              (unsigned)build->limits.max_depth);
        return -1;
    }
    if (count_node(build, place) != 0) {
        return -1;
    }
    if (is_key_next(build)) {
        moe_tree_problems_add(build->problems, MOE_TREE_KEY_NOT_SCALAR, place.line, place.column,
                              "a %s cannot be a key; a key is a single word or string",
                              kind == MOE_NODE_MAPPING ? "mapping" : "sequence");
    }
    if (build->open == NULL || build->num_open == build->open_capacity) {
        open = moe_tree_arena_grow(build->arena, build->open, &build->open_capacity,
                                   build->num_open + 1, sizeof *open);
        if (open == NULL) {
            return report_no_memory(build);
        }
        build->open = open;
    }
    open = &build->open[build->num_open++];
    open->first_pending = build->num_pending;
    open->place = place;
    open->kind = kind;
    return 0;
}

static int fill_sequence(struct moe_tree_build *build, struct moe_tree_node *node,
                         const struct moe_tree_node *pending, size_t num_pending)
{
    struct moe_tree_node *children =
        moe_tree_arena_alloc(build->arena, num_pending * sizeof *children, _Alignof(max_align_t));

    if (children == NULL) {
        return report_no_memory(build);
    }
    memcpy(children, pending, num_pending * sizeof *children);
    node->children = children;
    node->num_children = num_pending;
    return 0;
}

static int fill_mapping(struct moe_tree_build *build, struct moe_tree_node *node,
                        const struct moe_tree_node *pending, size_t num_pending)
{
    size_t num_pairs = num_pending / 2;
    size_t half_bytes = num_pairs * sizeof(struct moe_tree_node);
    struct moe_tree_node *keys =
        moe_tree_arena_alloc(build->arena, 2 * half_bytes, _Alignof(max_align_t));
    struct moe_tree_node *values;

    if (keys == NULL) {
        return report_no_memory(build);
    }
    values = keys + num_pairs;
    for (size_t i = 0; i < num_pairs; i++) {
        keys[i] = pending[2 * i];
        values[i] = pending[2 * i + 1];
    }
    node->keys = keys;
    node->children = values;
    node->num_children = num_pairs;
    node->key_order =
        moe_tree_keys_sort(keys, num_pairs, build->arena, &build->scratch, build->problems);
    return node->key_order != NULL ? 0 : report_no_memory(build);
}

int moe_tree_build_close(struct moe_tree_build *build)
{
    const struct moe_tree_open *open = &build->open[--build->num_open];
    static const struct moe_tree_node none; /* stands for the children if there never were any */
    const struct moe_tree_node *pending =
        build->pending != NULL ? build->pending + open->first_pending : &none;
    size_t num_pending = build->num_pending - open->first_pending;
    struct moe_tree_node node = {
        .kind = open->kind, .line = open->place.line, .column = open->place.column};
    int status;

    status = open->kind == MOE_NODE_MAPPING ? fill_mapping(build, &node, pending, num_pending)
                                            : fill_sequence(build, &node, pending, num_pending);
    if (status != 0) {
        return -1;
    }
    build->num_pending = open->first_pending;
    return append_node(build, &node);
}

void moe_tree_build_close_all(struct moe_tree_build *build)
{
    while (build->num_open > 0) {
        const struct moe_tree_open *open = &build->open[build->num_open - 1];

        if (open->kind == MOE_NODE_MAPPING && (build->num_pending - open->first_pending) % 2 == 1) {
            struct moe_tree_node no_value = {.kind = MOE_NODE_SEQUENCE};

            if (append_node(build, &no_value) != 0) {
                return;
            }
        }
        if (moe_tree_build_close(build) != 0) {
            return;
        }
    }
}
