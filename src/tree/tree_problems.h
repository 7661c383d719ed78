/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The problems found in one text. They are found out of order (duplicate keys when a mapping ends,
 * JSON's escapes ahead of the parser), so they are collected and reported at the end, sorted.
 */
#ifndef MOE_TREE_PROBLEMS_H
#define MOE_TREE_PROBLEMS_H

#include "tree_arena.h"

struct moe_tree_problems {
    struct moe_tree_arena *arena; /* holds the sentences */
    struct moe_tree_diagnostic *list;
    size_t num_listed;
    size_t capacity;
    int is_full;          /* the list has reached its limit */
    int is_out_of_memory; /* at whatever place; kept here because listing it could fail */
};

void moe_tree_problems_init(struct moe_tree_problems *problems, struct moe_tree_arena *arena);

/* Adds a problem with a sentence in printf's language; `%s` must not be given unchecked text. */
__attribute__((format(printf, 5, 6))) void moe_tree_problems_add(struct moe_tree_problems *problems,
                                                                 int32_t code, uint32_t line,
                                                                 uint32_t column,
                                                                 const char *format, ...);

/* 1 if anything was added or memory ran out. */
int moe_tree_problems_any(const struct moe_tree_problems *problems);

/* 1 if there is no point in reading on: memory ran out or the list is full. */
int moe_tree_problems_must_stop(const struct moe_tree_problems *problems);

/* Reports everything in the order of the text, then frees the list. `report` may be NULL. */
void moe_tree_problems_finish(struct moe_tree_problems *problems,
                              void (*report)(void *self,
                                             const struct moe_tree_diagnostic *diagnostic),
                              void *report_self);

/* Room for what `moe_tree_problems_excerpt` writes. */
enum { MOE_TREE_EXCERPT_BYTES = 64 };

/*
 * Writes the start of `text` for a sentence: whole characters, control characters as `?`, and
 * `...` if it is cut. Returns `excerpt`.
 */
const char *moe_tree_problems_excerpt(char excerpt[MOE_TREE_EXCERPT_BYTES], const char *text,
                                      size_t text_bytes);

#endif
