/* SPDX-License-Identifier: Apache-2.0 */
/* Builds nodes from the events of one document; knows nothing of libyaml. */
#ifndef MOE_TREE_BUILD_H
#define MOE_TREE_BUILD_H

#include "tree_json.h"
#include "tree_keys.h"

struct moe_tree_open; /* a collection whose end has not come yet */

struct moe_tree_build {
    struct moe_tree_arena *arena;
    struct moe_tree_problems *problems;
    struct moe_tree_limits limits;
    struct moe_tree_node *pending; /* the children so far of all open collections, outermost first;
                                      at the end, the root alone */
    size_t num_pending;
    size_t pending_capacity;
    struct moe_tree_open *open;
    size_t num_open;
    size_t open_capacity;
    size_t num_nodes;
    struct moe_tree_keys_scratch scratch;
};

void moe_tree_build_init(struct moe_tree_build *build, struct moe_tree_arena *arena,
                         struct moe_tree_problems *problems, const struct moe_tree_limits *limits);

/* Frees the work space; nodes stay in the arena. */
void moe_tree_build_finish(struct moe_tree_build *build);

/*
 * The events. Each returns 0, or -1 after adding a problem that ends the reading (a limit, or no
 * memory). Other problems are added and the building goes on, for those behind them.
 * `text` need not end with a NUL and may be released afterwards.
 */
int moe_tree_build_scalar(struct moe_tree_build *build, struct moe_tree_place place,
                          const char *text, size_t text_bytes, int is_quoted);
int moe_tree_build_open(struct moe_tree_build *build, struct moe_tree_place place, int32_t kind);
int moe_tree_build_close(struct moe_tree_build *build);

/* Stands for an alias, which has been reported. */
int moe_tree_build_hole(struct moe_tree_build *build, struct moe_tree_place place);

/* Closes what a broken text left open, so that its duplicate keys are reported as well. */
void moe_tree_build_close_all(struct moe_tree_build *build);

#endif
