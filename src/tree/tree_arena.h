/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of one tree: many small pieces that live and die together, and buffers that grow. */
#ifndef MOE_TREE_ARENA_H
#define MOE_TREE_ARENA_H

#include "tree.h"

struct moe_tree_chunk;

struct moe_tree_arena {
    struct moe_tree_memory memory;
    struct moe_tree_chunk *newest; /* the chunk that pieces are cut from */
    size_t next_chunk_bytes;
};

/* Takes no memory yet. `memory` NULL means malloc and free. */
void moe_tree_arena_init(struct moe_tree_arena *arena, const struct moe_tree_memory *memory);

/* Gives back every piece. */
void moe_tree_arena_finish(struct moe_tree_arena *arena);

/* A piece at a multiple of `align` (a power of two, at most 16), or NULL if out of memory. */
void *moe_tree_arena_alloc(struct moe_tree_arena *arena, size_t bytes, size_t align);

/*
 * Replaces a buffer of `*capacity` elements by one of at least `needed`, keeping the elements;
 * NULL and 0 start one. Returns the buffer, or NULL if out of memory; the old one is then intact.
 */
void *moe_tree_arena_grow(const struct moe_tree_arena *arena, void *buffer, size_t *capacity,
                          size_t needed, size_t element_bytes);

/* Gives back a buffer that `moe_tree_arena_grow` made; NULL is allowed. */
void moe_tree_arena_drop(const struct moe_tree_arena *arena, void *buffer, size_t capacity,
                         size_t element_bytes);

#endif
