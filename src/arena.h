/* SPDX-License-Identifier: Apache-2.0 */
/* Many small blocks with one lifetime. */
#ifndef MOE_ARENA_H
#define MOE_ARENA_H

#include "memory.h"

struct moe_arena_chunk;

struct moe_arena {
    struct moe_memory memory;
    struct moe_arena_chunk *chunks; /* newest first */
};

/* An empty arena that takes its chunks from `memory`, which is copied. One thread at a time. */
void moe_arena_init(struct moe_arena *arena, const struct moe_memory *memory);

/* Free all blocks. The arena is empty afterwards and can be used again. */
void moe_arena_finish(struct moe_arena *arena);

/* `bytes` zeroed bytes aligned to 16, or NULL when there is no memory. They live until finish. */
void *moe_arena_alloc(struct moe_arena *arena, size_t bytes);

/* A terminated copy of `text_bytes` bytes, or NULL when there is no memory. */
char *moe_arena_copy(struct moe_arena *arena, const char *text, size_t text_bytes);

#endif
